"""The one program of all measuring processes, and the one table of what they can do.

    python -m meprop_bench.sweep.worker        answers requests until its parent is gone (`measure.worker`)

A request is a line of the table: its name, and the function that answers it. The function is given the session, what
this process holds between requests, and the rest of the request by name; its module is loaded when it is first needed.
To add one, write the function and its line.

A worker has its threads and allocator from its environment, before torch starts; it reads nothing else from outside.
Of a case it takes whole pairs for the runner; the gate's two workers, which may be of different revisions, alternate by
blocks (`sweep.blocks`). So `PROTOCOL` counts the changes of what a request or an answer means; a request or a key that
is new changes nothing for those who do not use it.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import UserError
from meprop_bench.measure import affinity
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.layout import alike
from meprop_bench.measure.paired import calibrate, warm_up
from meprop_bench.measure.ranks import RankClock, here
from meprop_bench.measure.worker import Worker, serve
from meprop_bench.tasks.build import is_model

if TYPE_CHECKING:
    from torch import Tensor

    from meprop_bench.measure.clock import Clock
    from meprop_bench.workloads import Case, Prepared

__all__ = [
    "PROTOCOL",
    "REQUESTS",
    "WorkerSession",
    "main",
    "side_by_side",
    "start_for",
    "start_trainer",
    "start_worker",
]

PROTOCOL = 2
"""Of requests and answers."""

REQUESTS = {
    # {threads, device, pin, kernels} -> the environment, when torch is imported; protocol, package (its folder)
    "hello": "sweep.worker:hello",
    # {recipes, threads} -> evaluates, metric, steps; what is wrong with a model of the user's own is an error
    "examine": "sweep.models:examine",
    # a case: speedup, profile, gate, doctor
    # {case, seconds, seed, among (all)} -> baseline: how its dense side is the fastest (`workloads.dense_side`), notes
    "baseline": "sweep.worker:baseline",
    # {case, baseline (null: as the case says)} -> kernel, k, phases, costs, notes, baseline (in words, but of "same")
    "setup": "sweep.worker:setup",
    # {warm_s} -> check, and if it passed, loops (and those of each side)
    "check": "sweep.worker:check",
    # {seconds, least_pairs, loops, seed} -> pairs: phase -> [[baseline_s, method_s], ...], which of them the machine
    # disturbed (null: it cannot tell), and what others did meanwhile
    "measure": "sweep.worker:measure",
    # {device} -> weights: phase -> [baseline, method], what each takes at most
    "memory": "sweep.worker:memory",
    # {} -> of several ranks, sides: [baseline, method], bytes that a rank sends in a step, predicted and measured; why
    # they are not measured, or null. {bytes_per_s} -> connections, each of which sends no faster from now on
    "wire": "sweep.worker:wire",
    "limit": "sweep.worker:limit",
    # {} -> exchanged: of each tensor of gradients [n, m, k], k null where it is dense
    "exchanged": "sweep.worker:exchanged",
    # {device, seconds} -> phase, sides: [baseline, method], what a steady loop takes
    "utilization": "sweep.worker:utilization",
    # {device, dtype, threads} -> the machine's arithmetic rate and bandwidth
    "peaks": "sweep.worker:peaks",
    # {case, sparsified, seeds, steps} -> [seed, development-set figure] of one side, and what that is
    "accuracy": "sweep.worker:accuracy",
    # a case in two revisions: gate
    # {port} -> port, at which another worker can meet this one; or nothing, having gone to the one that is given
    "meet": "sweep.blocks:meet",
    # {seed} -> nothing; the case that passed is set up once more, elsewhere in memory
    "again": "sweep.blocks:again",
    # {me, plan, loops, lead, number} -> blocks: for each of the plan that is mine, phase -> seconds of one side, after
    # a lead-in that is not timed, and whether the machine disturbed it (null); stopped: the other worker failed
    "turns": "sweep.blocks:interleave",
    # {} -> operators: phase -> how many of torch's operators the method calls
    "count": "sweep.operators:count",
    # a project of a user's in two revisions: gate
    # {threads, device, pin} -> as hello, without torch
    "hello_function": "sweep.function_case:hello_function",
    # {path, first} -> nothing; folders that the project's modules are imported from, before all others or behind them
    "enter_project": "sweep.project:enter_project",
    # {names, below} -> origins: of the modules by these top-level names, or below a folder, module -> its file
    "origins": "sweep.project:origins",
    # {} -> borrowed: names of modules that come from the gate's environment, as the project's own has none
    "borrowed": "sweep.project:borrowed",
    # a function: {case} -> phases, costs; {warm_s} -> side_loops, changed; {seed} -> nothing; {} -> peak, in bytes
    "setup_function": "sweep.function_case:setup_function",
    "check_function": "sweep.function_case:check_function",
    "again_function": "sweep.function_case:again_function",
    "peak_function": "sweep.function_case:peak_function",
    # two functions of a user: testing
    # {file} -> nothing; or raised, what the user's code raised: side, line, traceback
    "load_functions": "sweep.functions:load_functions",
    # {warm_s, timed} -> differ, changed, device, loops (of each side); or raised
    "try_functions": "sweep.functions:try_functions",
    # those of measure -> its answer; or raised
    "time_functions": "sweep.functions:time_functions",
    # what takes a case apart: profile
    "stages": "sweep.profile:stages",
    "overhead": "sweep.profile:overhead",
    "trees": "sweep.profile:trees",
    "break_even": "sweep.profile:break_even",
    # trainings: parity, paper
    "train": "sweep.trainers:train",
    "train_arm": "paper.requests:train_arm",
    "examples": "paper.requests:examples",
    "cut": "paper.requests:cut",
    "decode": "paper.requests:decode",
    # what a training costs besides its steps, and its layers: tune
    "costs": "tuning.requests:costs",
}
"""Request -> the function that answers it, as module:function of this package."""

_Answer = Mapping[str, Any]


class WorkerSession:
    """What a worker holds between requests."""

    def __init__(self) -> None:
        self.environment: Mapping[str, Any] = {}  # this process's, once it has said hello
        self.environment_id = "unknown"
        self.case: Case | None = None  # that is set up, or was last tried
        self.prepared: Prepared | None = None  # its two sides
        self.checked: tuple[Prepared, Clock] | None = None  # the same with their clock, once the check has passed
        self.handoff: Any = None  # to the other worker, for the gate (`blocks.Handoff`)
        self.ballast: list[Tensor] = []  # memory that is in the way when a case is set up again
        self.loaded: dict[str, Any] = {}  # what takes long to make and serves later requests, by name
        self.blocks: Any = None  # that the gate has the case timed in (`blocks.Blocks`)

    def handle(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one request."""
        fields = dict(message)
        do = fields.pop("do")
        if do not in REQUESTS:
            raise ValueError(f"a worker does not know the request {do!r}")
        module, _, function = REQUESTS[do].partition(":")
        answer: Mapping[str, Any] = getattr(import_module(f"meprop_bench.{module}"), function)(self, **fields)
        return answer

    def passed(self) -> tuple[Prepared, Clock]:
        """Return the case that is set up and its clock; ValueError unless its check has passed."""
        if self.checked is None:
            raise ValueError("there is no case whose check passed")
        return self.checked

    def forget(self) -> None:
        """Let the case go, with its memory."""
        if self.blocks is not None:
            self.blocks.close()
        self.blocks = self.prepared = self.checked = None


def hello(session: WorkerSession, threads: int, device: str, pin: bool = False, kernels: bool = True) -> _Answer:
    """Import what takes seconds; the answer says that none of it will fall into another worker's timing.

    With `pin` the process is bound to as many cores; with `kernels` all of them are loaded, compiled where they are not
    in the cache yet.
    """
    if pin:
        affinity.bind(threads)
        affinity.load_openmp()
    with affinity.free():
        import torch

        import meprop_bench
        from meprop_bench.measure.allocator import current
        from meprop_bench.measure.environment import collect, environment_id
        from meprop_bench.ops.kernels import KERNELS

        for name in KERNELS if kernels else ():
            with suppress(ImportError):  # a kernel whose library is not installed says so when it is asked for
                KERNELS[name]
    torch.set_num_threads(threads)
    session.environment = environment = collect(device, current())
    session.environment_id = environment_id(environment)
    return {
        "environment": environment,
        "environment_id": session.environment_id,
        "protocol": PROTOCOL,
        "package": str(Path(meprop_bench.__file__).parent),
    }


def baseline(
    session: WorkerSession, case: Mapping[str, Any], seconds: float, seed: int, among: Sequence[Mapping[str, Any]] = ()
) -> _Answer:
    """Find out how the dense side of a case is the fastest here, by pairs for these seconds in each comparison, `among`
    some candidates or all.

    Nothing else runs meanwhile. The case has to be set up then.
    """
    from meprop_bench.measure.clock import clock_for
    from meprop_bench.workloads import DenseSide, choose

    _discard_last(session, case)
    assert session.case is not None
    clock = _alike(clock_for(session.case.device, caches=session.case.caches))
    with _kernels_own_errors():
        sides = [DenseSide.from_json(each) for each in among] or None
        found, notes = choose(session.case, clock, seconds=seconds, rng=random.Random(seed), among=sides)
    return {"baseline": found.to_json(), "notes": list(notes)}


def setup(session: WorkerSession, case: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> _Answer:
    """Set a case up."""
    from meprop_bench import workloads

    _discard_last(session, case)
    assert session.case is not None
    chosen = workloads.DenseSide.from_json(baseline) if baseline else None
    # What is compiled is compiled for the threads that torch has then.
    compiled = session.case.compile == "on" or (chosen or workloads.DenseSide.of(session.case)).compiled
    with _kernels_own_errors(), side_by_side(session.case, threads=session.case.threads if compiled else 1):
        session.prepared = prepared = workloads.setup(session.case, chosen)
    return {
        "kernel": prepared.kernel,
        "k": prepared.k,
        "phases": list(prepared.phases),
        "costs": {phase: [list(cost) for cost in pair] for phase, pair in prepared.costs.items()},
        "converted": prepared.converted,
        "convertible": prepared.convertible,
        "data_published": prepared.data_published,
        "notes": list(prepared.notes),
        "baseline": prepared.dense_side,
    }


def _discard_last(session: WorkerSession, case: Mapping[str, Any]) -> None:
    """Let the last case's memory go, before the next one's is taken."""
    from meprop_bench.workloads import Case

    session.forget()
    session.case = Case.from_json(case)
    if (own := here()) is not None and session.case.device != "cpu":  # each rank has a GPU
        number = int(session.case.device.removeprefix("cuda:")) + own.rank
        session.case = replace(session.case, device=f"cuda:{number}")
    gc.collect()  # a captured graph and its clock know each other, and so do a wrapped model and its hooks
    if session.case.device != "cpu":  # or torch would keep the GPU's memory from the processes beside it
        import torch

        torch.cuda.empty_cache()


def _alike(clock: Clock) -> Clock:
    """Return a clock that all ranks read alike, where there are some."""
    own = here()
    return clock if own is None else RankClock(clock, own)


@contextmanager
def _kernels_own_errors() -> Iterator[None]:
    """Have a kernel that was asked for, and cannot do the case, refuse it; nothing has happened."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def check(session: WorkerSession, warm_s: float) -> _Answer:
    """Check the case that is set up and, if it passed, warm both sides up and calibrate the loops."""
    from meprop_bench.measure.clock import clock_for
    from meprop_bench.results.schema import PASSED

    if session.case is None or session.prepared is None:
        raise ValueError("no case is set up")
    found = session.prepared.check()
    if found != PASSED:
        return {"check": found, "loops": 1, "side_loops": [1, 1]}
    clock = _alike(clock_for(session.case.device, caches=session.case.caches, graphs=session.case.launch == "graph"))
    session.checked = session.prepared, clock
    sides = (session.prepared.baseline, session.prepared.method)
    for side in sides:
        warm_up(side, clock, seconds=warm_s)
    loops = [calibrate(side, clock) for side in sides]
    return {"check": found, "loops": max(loops), "side_loops": loops}


def measure(session: WorkerSession, seconds: float, least_pairs: int, loops: int, seed: int) -> _Answer:
    """Take interleaved pairs for about `seconds`."""
    from meprop_bench.measure.disturbance import contention
    from meprop_bench.measure.machine import Watch
    from meprop_bench.measure.paired import measure_pairs
    from meprop_bench.measure.procfs import Unavailable

    prepared, clock = session.passed()
    own = here()
    watch = Watch() if own is None else Watch(own_s=own.spent_s)
    with ExitStack() as stack:
        probe = None
        with suppress(Unavailable):
            if own is None:  # of ranks, whose own threads wait for each other's cores, nobody could tell
                probe = stack.enter_context(contention())
        pairs = measure_pairs(
            prepared.baseline,
            prepared.method,
            seconds=seconds,
            least_pairs=least_pairs,
            loops=loops,
            rng=random.Random(seed),
            clock=clock,
            probe=probe,
        )
    return {
        "pairs": {phase: [list(pair.phases[phase]) for pair in pairs] for phase in prepared.phases},
        "disturbed": None if probe is None else [pair.disturbed for pair in pairs],
        "activity": asdict(watch.activity()),
    }


def memory(session: WorkerSession, device: str) -> _Answer:
    """Measure the memory of each phase, in a pass of its own, which is slow."""
    from meprop_bench.measure.memory import peaks_of
    from meprop_bench.workloads import After

    prepared, _ = session.passed()

    def peaks(call: Callable[[], object]) -> _Answer:
        own, before = (call.call, call.before) if isinstance(call, After) else (call, None)
        return asdict(peaks_of(own, device, before))

    return {"weights": {phase: [peaks(call) for call in pair] for phase, pair in prepared.memory.items()}}


def wire(session: WorkerSession) -> _Answer:
    """Count what a rank sends in a step of each side."""
    prepared, _ = session.passed()
    if prepared.wire is None:
        raise ValueError("nothing is sent by a process that is by itself")
    return prepared.wire()


def limit(session: WorkerSession, bytes_per_s: float) -> _Answer:
    """Have each connection of this process send no faster than that."""
    from meprop_bench.measure import wire

    return {"connections": wire.limit(bytes_per_s)}


def exchanged(session: WorkerSession) -> _Answer:
    """Say what several ranks would exchange of the method's gradients."""
    prepared, _ = session.passed()
    return {"exchanged": [list(each) for each in prepared.exchanged()]}


def utilization(session: WorkerSession, device: str, seconds: float) -> _Answer:
    """Watch the machine while each side runs its main phase steadily, in a pass of its own: watching costs time."""
    from meprop_bench.measure.clock import CudaGraphClock
    from meprop_bench.measure.utilization import watch

    prepared, clock = session.passed()
    if prepared.main is None:
        raise ValueError("no call of this workload can be repeated")
    phase, calls = prepared.main
    if isinstance(clock, CudaGraphClock):
        calls = clock.replay(calls[0]), clock.replay(calls[1])
    return {"phase": phase, "sides": [watch(call, device, clock, seconds=seconds) for call in calls]}


def peaks(session: WorkerSession, device: str, dtype: str, threads: int) -> _Answer:
    """Measure what this machine can do at best."""
    from meprop_bench.measure.peaks import measure_peaks

    return {"peaks": measure_peaks(device, dtype, threads).to_json()}


def accuracy(
    session: WorkerSession, case: Mapping[str, Any], sparsified: bool, seeds: list[int], steps: int
) -> _Answer:
    """Train one side from these seeds."""
    from meprop_bench.sweep.accuracy import trained
    from meprop_bench.workloads import Case
    from meprop_bench.workloads.case import recipe_of

    learning = Case.from_json(case)
    recipe = recipe_of(learning, steps)
    with side_by_side(learning):
        found = trained(recipe if sparsified else recipe.dense(), seeds)
    return {"accuracies": list(found.of.items()), "metric": found.metric, "percent": found.percent}


@contextmanager
def side_by_side(case: Case, threads: int = 1) -> Iterator[None]:
    """Do what nothing is timed of on one thread, of any core: other workers do the same meanwhile, and threads of
    several would wait for one another.

    A case whose launches are captured is set up on the stream of its capture, where alone its backward pass can be.
    """
    import torch

    from meprop_bench.measure.clock import on_capture_stream

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with affinity.free(), nullcontext() if case.launch == "eager" else on_capture_stream(case.device):
            yield
    finally:
        torch.set_num_threads(before)


def start_worker(
    env: Mapping[str, str | None] | None = None,
    *flags: str,
    python: Path | None = None,
    cwd: Path | None = None,
    layout: int | None = None,
) -> Worker:
    """Start a measuring process, with changes to this one's environment (None removes) and flags of the interpreter.

    `python` is another one than this process's, `cwd` another folder to work in. Those of one `layout`, a drawn number,
    lie alike in memory (`measure.layout`).
    """
    argv = [str(python or sys.executable), *flags, "-m", "meprop_bench.sweep.worker"]
    if layout is None:
        return Worker(argv, env, cwd)
    argv, variables = alike(argv, layout)
    return Worker(argv, {**(env or {}), **variables}, cwd)


def start_for(case: Case) -> Worker:
    """Start a measuring process, or the ranks of one, with a case's threads and allocator."""
    env = environment_of(case.allocator, case.threads)
    if case.world_size > 1:
        return Worker([sys.executable, "-m", "meprop_bench.sweep.ranks", str(case.world_size), case.device], env)
    return start_worker(env | _same_order() if case.model is not None and is_model(case.model) else env)


def start_trainer() -> Worker:
    """Start a process that trains, one of several that share the trainings of a comparison."""
    return start_worker(_same_order())


def _same_order() -> dict[str, str | None]:
    """Have sets of strings be in one order in all processes: a user's data may be made of some, a vocabulary, say."""
    return {"PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}


def main() -> None:
    """Serve until the parent is done."""
    serve(WorkerSession().handle)


if __name__ == "__main__":
    main()
