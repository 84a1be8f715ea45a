"""What the machine can do at best, measured on it: the floor under every time, and the efficiency above it.

A speed-up says how much better than the baseline; the floor says how much is left. With f arithmetic operations and q
bytes that must move (each operand counted once),

    floor = max(f / peak arithmetic rate, q / bandwidth(q))           seconds; efficiency = floor / measured, at most 1

How the two are measured, as the best of many tries (noise only ever slows a machine down):

    arithmetic  square matrix products, 2 n^3 operations each, doubling n while time permits
    bandwidth   at working sets of 64 KiB to 512 MiB, the best of
                  copy   half of the set onto the other half: reads set/2, writes set/2; counted as set bytes
                  read   sums over set/threads bytes, many in one call (a stride of 0 repeats them), so that each
                         thread reads its share again and again: the caches' rate without the price of a call
                  fill   writes the set
                the lines that a write first fetches are not counted, neither here nor in a kernel's cost

A floor must be a lower bound, so bandwidth(q) is the best of every set measured at or above q and of the next one
below: q lies between two points, and the cache that holds the smaller may hold q as well. The price is that a floor
just above a cache's size is optimistic by up to the step between two caches. On a machine that is busy meanwhile the
peaks still come out low, and efficiencies above 1: measure again and keep the best of both (`merged`). One thread
alone is tried as well, because threads that wait for a neighbour's to be scheduled can be a hundred times slower.

Peaks are properties of an environment, so they are kept across runs (`PeaksCache`), in the user's cache folder
(`$XDG_CACHE_HOME/meprop-bench/peaks`, else `~/.cache/meprop-bench/peaks`), a file for each environment id. One
measurement on a busy machine may be low: the first three runs of an environment measure and keep the best of all, and
only then is the cache trusted, for 30 days since the first of them. A machine that is slower for good since (another
clock limit, fewer channels of memory) so shows after 30 days at the latest; deleting the folder shows it at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from meprop_bench.atomic import replacing
from meprop_bench.cache import places
from meprop_bench.measure.arithmetic import adopted, tensor_type
from meprop_bench.measure.clock import Clock, clock_for

__all__ = ["Bound", "Peaks", "PeaksCache", "measure_peaks", "peaks_key"]

Bound = Literal["arithmetic", "memory"]

_KIB, _MIB = 1 << 10, 1 << 20
_SETS = (64 * _KIB, 256 * _KIB, _MIB, 4 * _MIB, 16 * _MIB, 64 * _MIB, 256 * _MIB, 512 * _MIB)
_CUDA_SETS = (*_SETS, 2048 * _MIB)  # 512 MiB take a tenth of a millisecond there, a launch a tenth of that
_ARITHMETIC_S = 0.5
_BANDWIDTH_S = 1.0
_VALUE_S = 1e-4

_TRUSTED_AFTER = 3
"""Measurements of one environment after which the best of them stands."""

_KEPT_S = 30 * 24 * 3600.0
"""Seconds after the first of them when measuring begins anew."""


@dataclass(frozen=True)
class Peaks:
    """The measured peaks of one device at one number of threads."""

    flops_per_s: Mapping[str, float]  # dtype name -> floating-point operations a second
    bandwidth: tuple[tuple[int, float], ...]  # (working set in bytes, bytes a second), by rising working set

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidth", tuple(sorted((int(size), float(rate)) for size, rate in self.bandwidth)))
        rates = [*self.flops_per_s.values(), *(rate for _, rate in self.bandwidth)]
        if not self.flops_per_s or not self.bandwidth or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(f"peaks are positive rates, at least one of each kind, got {self!r}")

    def bandwidth_at(self, nbytes: float) -> float:
        """Return bytes a second that no kernel with this working set should exceed."""
        below = max((size for size, _ in self.bandwidth if size <= nbytes), default=0)
        return max(rate for size, rate in self.bandwidth if size >= below)

    def floor_s(self, flops: float, nbytes: float, dtype: str | None = None) -> float:
        """Return the least seconds for these operations, and bytes read and written, each operand once.

        Raises:
            ValueError: a negative count, or no rate for the dtype, which may be left out when only one was measured.

        """
        return max(self._floors_s(flops, nbytes, dtype))

    def bound(self, flops: float, nbytes: float, dtype: str | None = None) -> Bound:
        """Return which of the two makes the floor; the arguments are those of `floor_s`."""
        arithmetic_s, memory_s = self._floors_s(flops, nbytes, dtype)
        return "arithmetic" if arithmetic_s > memory_s else "memory"

    def _floors_s(self, flops: float, nbytes: float, dtype: str | None) -> tuple[float, float]:
        if not (flops >= 0 and nbytes >= 0):
            raise ValueError(f"counts are at least 0, got flops={flops!r}, nbytes={nbytes!r}")
        if dtype is None and len(self.flops_per_s) == 1:
            (dtype,) = self.flops_per_s
        if dtype is None or dtype not in self.flops_per_s:
            raise ValueError(f"no peak for dtype {dtype!r}, only for {', '.join(self.flops_per_s)}")
        return flops / self.flops_per_s[dtype], nbytes / self.bandwidth_at(nbytes)

    def merged(self, other: Peaks) -> Peaks:
        """Return the best of two measurements of one device: noise only ever lowers a peak."""
        flops = {
            dtype: max(peaks.flops_per_s.get(dtype, 0.0) for peaks in (self, other))
            for dtype in {**self.flops_per_s, **other.flops_per_s}
        }
        bandwidth = dict(self.bandwidth)
        for size, rate in other.bandwidth:
            bandwidth[size] = max(rate, bandwidth.get(size, 0.0))
        return Peaks(flops, tuple(bandwidth.items()))

    def to_json(self) -> dict[str, Any]:
        """Return the peaks as JSON values."""
        return {"flops_per_s": dict(self.flops_per_s), "bandwidth": [list(point) for point in self.bandwidth]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(dict(data["flops_per_s"]), tuple((size, rate) for size, rate in data["bandwidth"]))


def peaks_key(device: str, dtype: str, threads: int) -> str:
    """Return what peaks are filed under within an environment: "cpu float32, 2 threads"."""
    return f"{device} {dtype}, {threads} thread" + "s" * (threads != 1)


class PeaksCache:
    """Peaks across runs; see the module. A cache that cannot be read or written is none, and nobody is bothered."""

    def __init__(self, folder: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._folder, self._now = folder, now

    def peaks(self, environment_id: str, key: str, measure: Callable[[], Peaks]) -> Peaks:
        """Return the trusted peaks of an environment by their `peaks_key`, or measure, and return the best known."""
        entry = self._read(environment_id).get(key)
        if entry is not None and entry.times >= _TRUSTED_AFTER:
            return entry.peaks
        return self.add(environment_id, key, measure())

    def add(self, environment_id: str, key: str, peaks: Peaks) -> Peaks:
        """Keep the best of these peaks and of those before, and return it."""
        entries = self._read(environment_id)
        before = entries.get(key) or _Entry(peaks, self._now(), 0)
        entries[key] = _Entry(before.peaks.merged(peaks), before.first, before.times + 1)
        with suppress(OSError):
            path = self._path(environment_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(msgspec.json.format(msgspec.json.encode(entries), indent=1))
        return entries[key].peaks

    def _read(self, environment_id: str) -> dict[str, _Entry]:
        """Return the entries that are young enough."""
        try:
            entries = msgspec.json.decode(self._path(environment_id).read_bytes(), type=dict[str, _Entry])
        except (OSError, msgspec.MsgspecError):
            return {}
        return {name: entry for name, entry in entries.items() if 0 <= self._now() - entry.first < _KEPT_S}

    def _path(self, environment_id: str) -> Path:
        if self._folder is not None:
            return self._folder / f"{environment_id}.json"
        if not (found := places("peaks")):
            raise FileNotFoundError("there is no folder to keep peaks in")
        return found[0] / f"{environment_id}.json"


@dataclass(frozen=True)
class _Entry:
    """The best of `times` measurements, the first of them made at `first`."""

    peaks: Peaks
    first: float
    times: int


def measure_peaks(device: str, dtype: str, threads: int) -> Peaks:
    """Measure one device, within about two seconds on an idle machine.

    Args:
        device: "cpu" or "cuda:N".
        dtype: torch's name of a floating-point type, such as "float32", or "tf32" (`measure.arithmetic`); the bandwidth
            does not depend on it.
        threads: CPU threads; set for the duration, then set back.

    """
    import torch

    kind = tensor_type(dtype)
    clock = clock_for(device)
    counts = sorted({threads, 1} if device == "cpu" else {threads}, reverse=True)
    before = torch.get_num_threads()
    found = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            with adopted(dtype):
                flops = _arithmetic(device, kind, clock, _ARITHMETIC_S / len(counts))
            # One thread among several: only the caches, main memory would take too long.
            sets = (_SETS if device == "cpu" else _CUDA_SETS) if count == threads else _SETS[:5]
            found.append(Peaks({dtype: flops}, _bandwidth(device, sets, count, clock, _BANDWIDTH_S / len(counts))))
    finally:
        torch.set_num_threads(before)
    return reduce(Peaks.merged, found)


def _arithmetic(device: str, dtype: Any, clock: Clock, seconds: float) -> float:
    """Return operations a second of the best matrix product."""
    import torch

    best, size = 0.0, 256
    deadline = clock.now() + seconds
    while True:
        if device == "cpu":
            a, b = (torch.full((size, size), 0.5, dtype=dtype) for _ in range(2))
        else:  # equal numbers cost a GPU less power, and let it run faster than the numbers of a layer do
            a, b = (torch.randn((size, size), device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        product_s = _best_s(partial(torch.mm, a, b, out=out), clock, seconds / 6)
        best = max(best, 2 * size**3 / product_s)
        size *= 2
        if clock.now() + 3 * 8 * product_s > deadline:  # the next size: eight times the work, three times
            return best


def _bandwidth(
    device: str, sets: tuple[int, ...], threads: int, clock: Clock, seconds: float
) -> tuple[tuple[int, float], ...]:
    """Return (working set, bytes a second) for each set that fits into memory."""
    import torch

    buffer = _largest(device, sets)
    sharers = threads if device == "cpu" else 1
    points: list[tuple[int, float]] = []
    for nbytes in (nbytes for nbytes in sets if nbytes <= 4 * buffer.numel()):
        data = buffer[: nbytes // 4]
        half = data.numel() // 2
        share = data[: data.numel() // sharers]
        repeats = sharers * max(1, 16 * _MIB // nbytes)
        sums = torch.empty(repeats, device=device)
        rows = share.expand(repeats, share.numel())
        each_s = seconds / len(sets) / 3
        copy_s = _best_s(partial(data[:half].copy_, data[half:]), clock, each_s)
        read_s = _best_s(partial(torch.sum, rows, dim=1, out=sums), clock, each_s)
        fill_s = _best_s(partial(data.fill_, 1.0), clock, each_s)
        points.append((nbytes, max(nbytes / copy_s, 4 * rows.numel() / read_s, nbytes / fill_s)))
    return tuple(points)


def _largest(device: str, sets: tuple[int, ...]) -> Any:
    """Return float32 ones that fill the largest set that fits into memory."""
    import torch

    for nbytes in sorted(sets, reverse=True)[:-1]:
        try:
            return torch.ones(nbytes // 4, device=device, dtype=torch.float32)
        except (RuntimeError, MemoryError):  # the points below stand for it: main memory is no faster beyond them
            continue
    return torch.ones(min(sets) // 4, device=device, dtype=torch.float32)


def _best_s(fn: Callable[[], object], clock: Clock, seconds: float) -> float:
    """Return the least seconds of one call: the first, or any of those that fit into `seconds` after it (at least one).

    Short values, so that some fall between the disturbances: the clock ticks well below a microsecond.
    """
    deadline = clock.now() + seconds
    first_s = clock.time(fn, 1)
    loops = max(1, int(_VALUE_S / max(first_s, 1e-7)))
    best = min(first_s, clock.time(fn, loops))
    while clock.now() < deadline:
        best = min(best, clock.time(fn, loops))
    return max(best, 1e-12)
