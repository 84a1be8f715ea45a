"""What a profile found out about one case: times of stages, a tree of operators, and where sparse stops to pay.

Times come from a clock, without a profiler; the operators' shares come from a profiler (`measure.profile`). Nothing
here knows how either is obtained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from meprop_bench.measure.profile import Node
from meprop_bench.results.incoming import Count, checked
from meprop_bench.results.schema import Row
from meprop_bench.stats import Interval, process_interval, too_wide

__all__ = ["SIDES", "BreakEven", "Profile", "Stage"]

SIDES = ("dense", "sparse")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the linear layers' backward pass, run by itself."""

    # "selection", "gather" (where it is apart from the products), "dx", "dW", "scatter", "dense layers" or "rest"
    name: str
    seconds: float  # the mean of the processes' medians
    flops: int | None = None  # floating-point operations that it needs; None where nobody counts (the rest)
    bytes: int | None = None  # bytes that it must move at least; likewise
    floor_s: float | None = None  # least seconds that the machine allows, where it is known
    bound: str | None = None  # what makes the floor: "arithmetic" or "memory"
    low: float | None = None  # with `high`, its 95% interval over the processes; None where there is one process
    high: float | None = None  # likewise

    @property
    def interval(self) -> Interval:
        """The time with its bounds."""
        return Interval.of(self.seconds, self.low, self.high)

    @property
    def vague(self) -> bool:
        """Whether its interval is too wide for its time to be a figure."""
        return too_wide(self.interval.half_width)

    @property
    def efficiency(self) -> float | None:
        """The floor as a share of the time."""
        return None if self.floor_s is None or self.seconds <= 0 else self.floor_s / self.seconds


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Where, along one axis, the sparse backward pass of the linear layers stops to be faster."""

    axis: str  # "k" or "hidden"
    pays: Count | None  # the value nearest to break-even at which it was faster, or None when it never was
    loses: Count | None  # the value nearest to break-even at which it was not, or None likewise
    ends: tuple[Count, Count]  # the smallest and the largest value that make sense, or that were allowed
    # (value, speed-up) in the order tried; single short measurements, hence approximate
    points: tuple[tuple[Count, float], ...]
    held: str = ""  # what stayed as it was, in words

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build from a JSON object; raises ValueError for one that is none."""
        return checked(record, cls)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One case, taken apart."""

    label: str  # the case in words
    rows: tuple[Row, ...]  # its phases, timed in pairs, in several processes
    # side -> stages of the linear layers' backward pass, in order; they add up to `stages_of`
    stages: Mapping[str, tuple[Stage, ...]]
    stages_of: str | None  # the phase that the stages make up, or None without stages
    layers: tuple[int, int]  # linear layers, all of them, and those that are sparsified
    # phase -> (dense, sparse): seconds of the same call on a layer of almost nothing
    overhead: Mapping[str, tuple[float, float]]
    trees: Mapping[str, tuple[Node, ...]]  # side -> a tree for each phase, seconds under the profiler
    break_even: tuple[BreakEven, ...] = ()  # what was searched for, in one process
    notes: tuple[str, ...] = field(default=())  # what a reader should know, one line each
    # phase -> the 95% interval of each of `overhead`, over the processes
    overhead_within: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = field(default_factory=dict)
    # of a model: its gradients as ranks would exchange them, (n, m, k), k null where they are dense
    exchanged: tuple[tuple[int, int, float | None], ...] = ()
    doubts: tuple[str, ...] = ()  # why it is not to be believed, a line each: a machine that was busy

    def row(self, phase: str) -> Row | None:
        """Return the row of a phase."""
        return next((row for row in self.rows if row.phase == phase), None)

    def stage(self, side: str, name: str) -> Stage | None:
        """Return a stage."""
        return next((stage for stage in self.stages.get(side, ()) if stage.name == name), None)

    @property
    def kernel(self) -> str:
        """The kernel of the sparse side; several with a plus between them."""
        return next((row.kernel for row in self.rows if row.kernel is not None), "dense")

    @property
    def fused(self) -> bool:
        """Whether what is selected is gathered within the products, so that both are one figure."""
        names = {stage.name for stage in self.stages.get("sparse", ())}
        return "dW" in names and "gather" not in names and self.kernel != "masked"

    def seconds(self, side: str, phase: str) -> float | None:
        """Return the median of a phase, measured without a profiler."""
        row = self.row(phase)
        return None if row is None else row.side(side).median_s

    def overhead_of(self, phase: str) -> tuple[Interval, Interval]:
        """Return `overhead` of a phase, dense and sparse, with its bounds."""
        bounds = self.overhead_within.get(phase, ((None, None), (None, None)))
        dense, sparse = (Interval.of(s, *own) for s, own in zip(self.overhead[phase], bounds, strict=True))
        return dense, sparse

    def within(self, side: str, phase: str) -> Interval | None:
        """Return the time of a phase with its interval over the processes; None where there are no raw values."""
        row = self.row(phase)
        if row is None or row.measurement is None:
            return None
        return process_interval([[pair[SIDES.index(side)] for pair in run] for run in row.measurement.runs])

    @property
    def vague_phases(self) -> list[str]:
        """The phases of which a time, or the speed-up, has too wide an interval to be a figure."""
        found = {
            row.phase: [row.half_width, *(one.half_width for side in SIDES if (one := self.within(side, row.phase)))]
            for row in self.rows
            if row.phase is not None
        }
        return [phase for phase, halves in found.items() if any(map(too_wide, halves))]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without the rows."""
        own = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != "rows"}
        own["stages"] = {side: [asdict(stage) for stage in found] for side, found in self.stages.items()}
        own["trees"] = {side: [node.to_json() for node in found] for side, found in self.trees.items()}
        own["break_even"] = [asdict(found) for found in self.break_even]
        return own
