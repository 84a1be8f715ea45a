"""The machine's peaks for a run: from the cache, else measured by a worker, and again when a case beat them.

A time below its floor says that the peaks were measured while the machine was busy (or that a count is wrong, which
measuring again does not mend: hence at most twice for a kind of arithmetic).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.peaks import Peaks, PeaksCache, peaks_key
from meprop_bench.measure.pool import Pool
from meprop_bench.results.store import Store
from meprop_bench.workloads.case import Case

__all__ = ["MachinePeaks"]

_AGAIN = 2

Costs = Mapping[str, Sequence[Sequence[float]]]


class MachinePeaks:
    """Peaks of the environments of one run: settled once in its folder, and found there again when it is resumed.

    The cache is that of earlier runs, the user's by default; `measuring` is called before they are measured.
    """

    def __init__(
        self,
        cache: PeaksCache | None = None,
        measuring: Callable[[], object] = lambda: None,
        store: Store | None = None,
    ) -> None:
        self._cache, self._measuring, self._store = cache or PeaksCache(), measuring, store
        self._again: Counter[tuple[str, str]] = Counter()

    def of(self, case: Case, environment_id: str, pool: Pool[int]) -> Peaks:
        """Return the peaks for a case, measured by the first process of its pool if they are not known."""
        key = _key(case)
        if self._store is not None and (stored := self._store.header["peaks"].get(key)) is not None:
            return Peaks.from_json(stored)
        return self._settled(key, self._cache.peaks(environment_id, key, lambda: self._measured(case, pool)))

    def unbeaten(
        self, peaks: Peaks, case: Case, environment_id: str, pool: Pool[int], costs: Costs, found: Iterable[Measurement]
    ) -> Peaks:
        """Return the peaks, or better ones if a side was faster than its floor; earlier rows keep the floors they have.

        `costs` has phase -> [operations, bytes] of baseline and method; a phase may be missing.
        """
        key = (environment_id, _key(case))
        if self._again[key] < _AGAIN and any(_beaten(peaks, case, costs, each) for each in found):
            self._again[key] += 1
            return self._settled(key[1], self._cache.add(*key, peaks.merged(self._measured(case, pool))))
        return peaks

    def _settled(self, key: str, peaks: Peaks) -> Peaks:
        if self._store is not None:
            self._store.write_environment({}, {key: peaks.to_json()})
        return peaks

    def _measured(self, case: Case, pool: Pool[int]) -> Peaks:
        self._measuring()
        answer = pool.ask(0, "peaks", device=case.device, dtype=case.dtype, threads=case.threads)
        return Peaks.from_json(answer["peaks"])


def _key(case: Case) -> str:
    return peaks_key(case.device, case.dtype, case.threads)


def _beaten(peaks: Peaks, case: Case, costs: Costs, found: Measurement) -> bool:
    times_s = (found.baseline_median_s, found.median_s)
    pairs = zip(costs.get(found.phase) or (), times_s, strict=False)
    return any(peaks.floor_s(flops, nbytes, case.dtype) > seconds for (flops, nbytes), seconds in pairs)
