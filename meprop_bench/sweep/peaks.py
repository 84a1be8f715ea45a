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
from meprop_bench.workloads.case import Case

__all__ = ["MachinePeaks"]

_AGAIN = 2

Costs = Mapping[str, Sequence[Sequence[float]]]


class MachinePeaks:
    """Peaks of the environments of one run.

    Args:
        cache: of earlier runs; the user's by default.
        measuring: called before they are measured.

    """

    def __init__(self, cache: PeaksCache | None = None, measuring: Callable[[], object] = lambda: None) -> None:
        self._cache, self._measuring = cache or PeaksCache(), measuring
        self._again: Counter[tuple[str, str]] = Counter()

    def of(self, case: Case, environment_id: str, pool: Pool[int]) -> Peaks:
        """Return the peaks for a case, measured by the first process of its pool if they are not known."""
        return self._cache.peaks(environment_id, _key(case), lambda: self._measured(case, pool))

    def unbeaten(
        self,
        peaks: Peaks,
        case: Case,
        environment_id: str,
        pool: Pool[int],
        costs: Costs,
        measured: Iterable[Measurement],
    ) -> Peaks:
        """Return the peaks, or better ones if a side of the case was faster than its floor.

        Args:
            peaks: as known so far.
            case: what was measured.
            environment_id: where.
            pool: its processes.
            costs: phase -> [operations, bytes] of baseline and method; a phase may be missing.
            measured: the phases.

        """
        key = (environment_id, _key(case))
        if self._again[key] < _AGAIN and any(_beaten(peaks, case, costs, found) for found in measured):
            self._again[key] += 1
            return self._cache.add(*key, peaks.merged(self._measured(case, pool)))
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
