"""A profile is made in processes of its own, since threads and allocator are settled when a process starts.

`profile_case` asks for one part after the other and puts them together. Of its requests these are of a profile alone:

    stages      {seconds}           -> sides: side -> stages, without floors; layers: [all, sparsified]
    overhead    {seconds}           -> overhead: phase -> [dense, sparse]
    trees       {trace}             -> trees: side -> phases
    break_even  {axis, seconds}     -> found: a search's result, or null

The profiler comes last: what it adds must not fall into anything that is timed.

Each part is measured in `_PROCESSES` fresh processes, one after the other, and the process is what its interval is over
(`stats`): a time is the mean of the processes' medians. The searches and the trace are made in one of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.lock import device_lock, waiting_for
from meprop_bench.measure.machine import state, was_busy
from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.peaks import Peaks
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.profile import Node, merged
from meprop_bench.measure.worker import WorkerDied, WorkerError, WorkerOutOfMemory, WorkerRefused
from meprop_bench.results.profile import SIDES, BreakEven, Profile, Stage
from meprop_bench.results.schema import PASSED
from meprop_bench.stats import mean_interval, median
from meprop_bench.sweep.peaks import MachinePeaks
from meprop_bench.sweep.rows import Answers, case_rows
from meprop_bench.sweep.worker import WorkerSession, start_for

if TYPE_CHECKING:
    from meprop_bench.workloads.case import Case

__all__ = ["check_trace", "profile_case"]

_PROCESSES = 4
"""Fresh processes: three would leave Student's t at 4.3, and each takes two seconds to start."""

_PAIRS_S = 3.0
_STAGES_S = 2.0
_OVERHEAD_S = 0.4
"""Seconds of all processes together."""
_WARM_S = 0.05

_PROFILED_S = 0.5
"""Seconds of all ranges together that the profiler sees, about; at least 3 rounds and at most 30."""


def stages(session: WorkerSession, seconds: float) -> Mapping[str, Any]:
    """Time the stages of the linear layers' backward passes."""
    from meprop_bench.workloads.profile import stages

    prepared, clock = session.passed()
    layers = prepared.layers()
    found = stages(layers, clock, seconds=seconds) if layers else {}
    return {
        "sides": {side: [asdict(stage) for stage in parts] for side, parts in found.items()},
        "layers": [len(layers), sum(layer.request is not None for layer in layers)],
    }


def overhead(session: WorkerSession, seconds: float) -> Mapping[str, Any]:
    """Time the calls on next to nothing."""
    from meprop_bench.workloads.profile import overhead

    prepared, clock = session.passed()
    assert session.case is not None
    layers = prepared.layers()
    return {"overhead": overhead(session.case, layers, clock, seconds=seconds) if layers else {}}


def break_even(session: WorkerSession, axis: str, seconds: float) -> Mapping[str, Any]:
    """Search where sparse stops to pay."""
    from meprop_bench.workloads.profile import break_even_k, break_even_size

    prepared, clock = session.passed()
    assert session.case is not None
    search = {"k": break_even_k, "hidden": break_even_size}[axis]
    found = search(session.case, prepared.layers(), clock, seconds=seconds)
    return {"found": None if found is None else asdict(found)}


def trees(session: WorkerSession, trace: str | None) -> Mapping[str, Any]:
    """Run the phases of both sides under torch.profiler."""
    from meprop_bench.measure.profile import Range, profile_ranges
    from meprop_bench.workloads import After

    prepared, clock = session.passed()
    assert session.case is not None
    ranges = []
    for phase in (phase for phase in prepared.phases if phase in prepared.memory and phase not in _SUMS):
        for side, call in zip(SIDES, prepared.memory[phase], strict=True):
            parts = (call.call, call.before) if isinstance(call, After) else (call, None)
            ranges.append(Range(f"{side} {phase}", *parts))
    taken_s = sum(clock.time(_whole(found), 1) for found in ranges for _ in range(2)) / 2
    rounds = max(3, min(30, int(_PROFILED_S / max(taken_s, 1e-6))))
    found = profile_ranges(ranges, session.case.device, rounds=rounds, trace=None if trace is None else Path(trace))
    trees: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for node in found:
        side, phase = node.name.split(" ", 1)
        trees[side].append(replace(node, name=phase).to_json())
    return {"trees": trees}


_NO_SEARCH = (
    "Where sparse breaks even is searched for a layer, and for layers of one width as the mlp's: not for these."
)
_SUMS = ("step", "linear-backward")
"""Phases that hold others, or parts of them: shown once."""


def _whole(found: Any) -> Callable[[], object]:
    def run() -> None:
        if found.before is not None:
            found.before()
        found.call()

    return run


def profile_case(
    case: Case,
    *,
    search_s: float = 10.0,
    trace: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Profile, dict[str, Any]]:
    """Take one case apart in fresh processes; return the profile and the environment.

    Args:
        case: to look into.
        search_s: seconds for the two break-even searches together; 0 leaves them out.
        trace: a file for it, .json or .json.gz.
        progress: called with what is being done.

    Raises:
        UserError: the case cannot be set up or measured, or its check failed.

    """
    if case.method == "dense":
        raise UserError("nothing is sparsified by the method dense, so there is nothing to take apart: take another")
    if case.compile == "on" or case.baseline == "best":
        raise UserError("a profile takes eager code apart, stage by stage: leave --compile and --baseline best out")
    with device_lock(case.device, lambda holder: progress(waiting_for(holder))):
        before = state(case.threads)  # before processes are started: it counts what others take
        with Pool.of(partial(start_for, case), _PROCESSES) as pool:
            try:
                return _Parent(pool, case, progress).profile(search_s, trace, before)
            except WorkerError as error:
                raise _user_error(error, case) from None


def check_trace(trace: Path | None) -> None:
    """Find out now, not after half a minute, that a trace cannot be written: `UserError` says why."""
    if trace is None:
        return
    if not trace.name.endswith((".json", ".json.gz")):
        raise UserError(f"the trace is JSON: name it {trace.name or 'trace'}.json or .json.gz, not {trace}")
    folder = trace.absolute().parent
    if not folder.is_dir():
        raise UserError(f"cannot write the trace {trace}: there is no folder {folder}")
    if trace.is_dir() or not os.access(trace if trace.exists() else folder, os.W_OK):
        raise UserError(f"cannot write the trace {trace}: permission denied, or it is a folder")


def _user_error(error: WorkerError, case: Case) -> UserError:
    if isinstance(error, WorkerOutOfMemory):
        return UserError(f"out of memory: take a smaller case ({error.reason})", ExitCode.NOTHING_MEASURED)
    if isinstance(error, WorkerDied):
        return UserError(error.sentence("the measuring process"), ExitCode.NOTHING_MEASURED)
    code = ExitCode.USAGE if isinstance(error, WorkerRefused) else ExitCode.NOTHING_MEASURED
    return UserError(f"{case.label}: {error}", code)


class _Parent:
    """The parent's side of one profile."""

    def __init__(self, pool: Pool[int], case: Case, progress: Callable[[str], None]) -> None:
        self._pool, self._case, self._progress = pool, case, progress
        self._machine = MachinePeaks(measuring=partial(progress, "measuring the machine's peaks"))

    def profile(self, search_s: float, trace: Path | None, before: Mapping[str, Any]) -> tuple[Profile, dict[str, Any]]:
        case, pool = self._case, self._pool
        self._progress("starting")
        hello, *_ = pool.hello(threads=case.threads, device=case.device, one_first=True).values()
        environment_id = hello["environment_id"]
        peaks = self._machine.of(case, environment_id, pool)
        self._progress("setting up and checking")
        setup, *_ = pool.ask_all("setup", case=case.to_json(), one_first=True).values()
        checks = pool.ask_each("check", warm_s=_WARM_S)
        if wrong := [check["check"] for check in checks if check["check"] != PASSED]:
            raise UserError(f"the gradients are wrong, so nothing was timed: {wrong[0]}", ExitCode.REGRESSION)
        self._progress("timing both sides")
        loops = max(check["loops"] for check in checks)
        share = 1 / len(pool)
        answers = Answers()
        wanted = {"seconds": share * _PAIRS_S, "least_pairs": 5, "loops": loops, "seed": case.seed}
        for index, answer in enumerate(pool.ask_each("measure", **wanted)):
            answers.add(index, answer)
        measured = [answers.measurement(phase, loops) for phase in setup["phases"]]
        notes = answers.notes
        peaks = self._machine.unbeaten(peaks, case, environment_id, pool, setup["costs"], measured)
        rows = case_rows(
            case, setup, measured, peaks=peaks, memory={}, utilization="a profile does not watch the machine",
            parity=None, environment_id=environment_id, target=0.02, notes=notes,
        )  # fmt: skip
        self._progress("timing the stages")
        stages = pool.ask_each("stages", seconds=share * _STAGES_S)
        tiny = [found["overhead"] for found in pool.ask_each("overhead", seconds=share * _OVERHEAD_S)]
        overhead = {
            phase: [mean_interval([found[phase][side] for found in tiny]) for side in (0, 1)] for phase in tiny[0]
        }
        break_even = self._searched(search_s)
        exchanged = pool.ask(0, "exchanged")["exchanged"]
        self._progress("profiling")
        trees = self._trees(trace)
        of, sides = self._with_floors([found["sides"] for found in stages], peaks, {m.phase: m for m in measured})
        profile = Profile(
            label=case.label,
            rows=tuple(rows),
            stages=sides,
            stages_of=of,
            layers=(stages[0]["layers"][0], stages[0]["layers"][1]),
            overhead={phase: (dense.estimate, sparse.estimate) for phase, (dense, sparse) in overhead.items()},
            overhead_within={
                phase: ((dense.low, dense.high), (sparse.low, sparse.high))
                for phase, (dense, sparse) in overhead.items()
                if dense.bounded
            },
            trees=trees,
            break_even=break_even,
            notes=() if break_even or search_s <= 0 else (_NO_SEARCH,),
            exchanged=tuple((n, m, k) for n, m, k in exchanged),
            doubts=tuple(filter(None, (was_busy([before], {case.case_id: notes}),))),
        )
        return profile, {environment_id: hello["environment"]}

    def _searched(self, seconds: float) -> tuple[BreakEven, ...]:
        if seconds <= 0:
            return ()
        found = []
        for axis, words in (("k", "k"), ("hidden", "size")):
            self._progress(f"searching the {words} at which sparse breaks even")
            answer = self._pool.ask(0, "break_even", axis=axis, seconds=seconds / 2)["found"]
            if answer is not None:
                found.append(BreakEven.from_json(answer))
        return tuple(found)

    def _trees(self, trace: Path | None) -> dict[str, tuple[Node, ...]]:
        """Return side -> the trees of its phases, those of all processes as one; the trace is of the first."""
        first = self._pool.ask(0, "trees", trace=None if trace is None else str(trace.absolute()))["trees"]
        others = range(1, len(self._pool))
        every = [first, *(self._pool.ask(index, "trees", trace=None)["trees"] for index in others)]
        return {
            side: tuple(
                merged([Node.from_json(found[side][place]) for found in every]) for place in range(len(first[side]))
            )
            for side in first
        }

    def _with_floors(
        self, processes: Sequence[Mapping[str, Any]], peaks: Peaks, measured: Mapping[str, Measurement]
    ) -> tuple[str | None, dict[str, tuple[Stage, ...]]]:
        """Give each process's stages (by side) their floors, and each side its rest: what else its phase takes."""
        of = next((phase for phase in ("linear-backward", "backward") if phase in measured), None)
        if of is None or not processes[0]:
            return None, {}
        result = {}
        for which, side in enumerate(SIDES):
            totals = [median(pair[which] for pair in run) for run in measured[of].runs]
            records = [found[side] for found in processes]
            seconds = [[record["seconds"] for record in own] for own in records]
            stages = [
                self._with_floor(_within(Stage(**record), times), peaks)
                for record, times in zip(records[0], zip(*seconds, strict=True), strict=True)
            ]
            rest = [whole - sum(own) for whole, own in zip(totals, seconds, strict=True)]
            result[side] = (*stages, _within(Stage(name="rest", seconds=0.0), rest))
        return of, result

    def _with_floor(self, stage: Stage, peaks: Peaks) -> Stage:
        if stage.flops is None or stage.bytes is None:
            return stage
        counts = stage.flops, stage.bytes, self._case.dtype
        return replace(stage, floor_s=peaks.floor_s(*counts), bound=peaks.bound(*counts))


def _within(stage: Stage, times: Sequence[float]) -> Stage:
    """Give a stage the seconds that the processes found, with their interval."""
    found = mean_interval(times)
    low, high = (None if math.isnan(bound) else bound for bound in (found.low, found.high))
    return replace(stage, seconds=found.estimate, low=low, high=high)
