"""What a worker answers about a case: it sets the case up, checks it, and takes pairs when it is asked to.

    hello        {threads, device, pin, kernels} -> the environment, when torch is imported; protocol, package (its
                                                folder)
    setup        {case}                      -> kernel, k, phases, costs, notes
    check        {warm_s}                    -> check, and if it passed, loops (and those of each side)
    measure      {seconds, least_pairs, loops, seed} -> pairs: phase -> [[baseline_s, method_s], ...], which of them the
                                                machine disturbed (null: it cannot tell), and what others did meanwhile
    memory       {device}                    -> weights: phase -> [baseline, method], what each takes at most
    utilization  {device, seconds}           -> phase, sides: [baseline, method], what a steady loop takes
    peaks        {device, dtype, threads}    -> the machine's arithmetic rate and bandwidth
    accuracy     {case, sparsified, seeds, steps} -> [seed, development-set accuracy in percent] of one side
    meet         {port}                      -> port, at which another worker can meet this one; or nothing, having gone
                                                to the one that is given
    again        {seed}                      -> nothing; the case that passed is set up once more, elsewhere in memory
    turns        {me, plan, loops, lead, number} -> blocks: for each of the plan that is mine, phase -> seconds of one
                                                side, after a lead-in that is not timed, and whether the machine
                                                disturbed it (null: it cannot tell); stopped: the other worker failed
    count        {}                          -> operators: phase -> how many of torch's operators the method calls

The runner asks for whole pairs. The gate has base and head in two processes, each with its own code, and gives both one
plan of interleaved blocks of milliseconds, which they follow by themselves (`measure.handoff`). The two may be of
different revisions, so `PROTOCOL` counts the changes of what a request or an answer means; a request or a key that is
new changes nothing for those who do not ask for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import UserError
from meprop_bench.measure import affinity
from meprop_bench.measure.handoff import Handoff
from meprop_bench.measure.paired import calibrate, warm_up

if TYPE_CHECKING:
    from meprop_bench.sweep.worker import Session
    from meprop_bench.workloads.case import Case

__all__ = ["PROTOCOL"]

PROTOCOL = 2
"""Of the requests and answers above."""

_Answer = Mapping[str, Any]

_BALLAST = (4 << 10, 64 << 10, 1 << 20)
"""Bytes at most of each tensor that is in the way when a case is set up again."""


def hello(session: Session, threads: int, device: str, pin: bool = False, kernels: bool = True) -> _Answer:
    """Import what takes seconds; the answer says that none of it will fall into another worker's timing.

    Args:
        session: of this process.
        threads: of torch.
        device: whose environment it is.
        pin: bind the process to as many cores.
        kernels: load all of them, compiled where they are not in the cache yet.

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


def setup(session: Session, case: Mapping[str, Any]) -> _Answer:
    """Set a case up."""
    from meprop_bench import workloads

    session.forget()  # the last case's memory, before the next one's is taken
    session.case = workloads.Case.from_json(case)
    if session.case.device != "cpu":
        _give_back()
    try:
        with _one_thread(), _stream(session.case):
            session.prepared = prepared = workloads.setup(session.case)
    except ValueError as error:  # the kernel that was asked for cannot do the case; nothing has happened
        raise UserError(str(error)) from error
    return {
        "kernel": prepared.kernel,
        "k": prepared.k,
        "phases": list(prepared.phases),
        "costs": {phase: [list(cost) for cost in pair] for phase, pair in prepared.costs.items()},
        "data_published": prepared.data_published,
        "notes": list(prepared.notes),
    }


def check(session: Session, warm_s: float) -> _Answer:
    """Check the case that is set up and, if it passed, warm both sides up and calibrate the loops."""
    from meprop_bench.measure.clock import clock_for
    from meprop_bench.results.schema import PASSED

    if session.case is None or session.prepared is None:
        raise ValueError("no case is set up")
    found = session.prepared.check()
    if found != PASSED:
        return {"check": found, "loops": 1, "side_loops": [1, 1]}
    clock = clock_for(session.case.device, caches=session.case.caches, graphs=session.case.launch == "graph")
    session.checked = session.prepared, clock
    sides = (session.prepared.baseline, session.prepared.method)
    for side in sides:
        warm_up(side, clock, seconds=warm_s)
    loops = [calibrate(side, clock) for side in sides]
    return {"check": found, "loops": max(loops), "side_loops": loops}


def measure(session: Session, seconds: float, least_pairs: int, loops: int, seed: int) -> _Answer:
    """Take interleaved pairs for about `seconds`."""
    from meprop_bench.measure.disturbance import contention
    from meprop_bench.measure.machine import Watch
    from meprop_bench.measure.paired import measure_pairs
    from meprop_bench.measure.procfs import Unavailable

    prepared, clock = session.passed()
    watch = Watch()
    with ExitStack() as stack:
        probe = None
        with suppress(Unavailable):
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


def memory(session: Session, device: str) -> _Answer:
    """Measure the memory of each phase, in a pass of its own, which is slow."""
    from meprop_bench.measure.memory import weigh
    from meprop_bench.workloads.prepared import After

    prepared, _ = session.passed()

    def weight(call: Callable[[], object]) -> _Answer:
        found = weigh(call.call, device, call.before) if isinstance(call, After) else weigh(call, device)
        return found.to_json()

    return {"weights": {phase: [weight(call) for call in pair] for phase, pair in prepared.memory.items()}}


def again(session: Session, seed: int) -> _Answer:
    """Set the case up once more: what its addresses do to its time is drawn anew, without a new process.

    The same code on the same numbers passed its check in this process. A ballast of random sizes, there until the
    next time, sees to it that other memory is free than before.
    """
    import torch

    from meprop_bench import workloads

    session.passed()
    assert session.case is not None
    blocks = session.blocks()
    session.prepared = session.checked = None
    blocks.release()
    rng = random.Random(seed)
    session.ballast = [torch.empty(rng.randrange(1, most), dtype=torch.uint8) for most in _BALLAST]
    with _one_thread(), _stream(session.case):
        session.prepared = prepared = workloads.setup(session.case)
        warm_up(prepared.method, blocks.clock, seconds=0.0)  # touches the new memory
    session.checked = prepared, blocks.clock
    blocks.use(prepared)
    return {}


def meet(session: Session, port: int | None = None) -> _Answer:
    """Say where another worker can meet this one, or go to where it is."""
    session.handoff = Handoff()
    if port is None:
        return {"port": session.handoff.listen()}
    session.handoff.connect(port)
    return {}


def interleave(
    session: Session,
    me: str,
    plan: Sequence[tuple[str, str, float]],
    loops: Mapping[str, int],
    lead: int,
    number: int = 0,
) -> _Answer:
    """Time one side in blocks, alternating with another worker that has the same plan.

    Args:
        session: of this process.
        me: whose blocks are ours.
        plan: of each block, who times it, which side ("baseline" or "method"), and by what share he slows it.
        loops: side -> timed iterations of a block.
        lead: iterations before them that are not timed.
        number: of the plan.

    """
    taken: list[_Answer] = []
    handoff = session.handoff or Handoff()
    try:
        blocks = session.blocks()
        for index, (who, side, slowdown) in enumerate(plan):
            if who != me:
                continue
            if index and plan[index - 1][0] != me and not handoff.wait(number):
                return {"blocks": taken, "stopped": True}
            values, disturbed = blocks.take(side, loops[side], lead, slowdown)
            taken.append({"values": values, "disturbed": disturbed})
            if index + 1 < len(plan) and plan[index + 1][0] != me and not handoff.give(number):
                return {"blocks": taken, "stopped": True}
    except BaseException:
        if session.handoff is not None:
            session.handoff.stop(number)
        raise
    return {"blocks": taken, "stopped": False}


def count(session: Session) -> _Answer:
    """Count the operators of the method's phases, in a pass of its own: counting slows what it counts."""
    from meprop_bench.sweep.operators import operators

    prepared, _ = session.passed()
    return {"operators": {phase: operators(pair[1]) for phase, pair in prepared.memory.items()}}


def utilization(session: Session, device: str, seconds: float) -> _Answer:
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


def peaks(session: Session, device: str, dtype: str, threads: int) -> _Answer:
    """Measure what this machine can do at best."""
    from meprop_bench.measure.peaks import measure_peaks

    return {"peaks": measure_peaks(device, dtype, threads).to_json()}


def accuracy(session: Session, case: Mapping[str, Any], sparsified: bool, seeds: list[int], steps: int) -> _Answer:
    """Train one side from these seeds."""
    from meprop_bench.sweep.accuracy import recipe_of, trained
    from meprop_bench.workloads import Case

    recipe = recipe_of(Case.from_json(case), steps)
    with _one_thread():  # the other workers train meanwhile, and nothing is timed
        return {"accuracies": list(trained(recipe if sparsified else recipe.dense(), seeds).items())}


def _give_back() -> None:
    """Give the GPU's memory of the last case back, which torch would keep from the processes beside it."""
    import gc

    import torch

    gc.collect()  # a captured graph and its clock know each other
    torch.cuda.empty_cache()


def _stream(case: Case) -> AbstractContextManager[None]:
    """Return what a case is set up in: a backward pass can be captured only where its forward pass was issued."""
    if case.launch == "eager":
        return nullcontext()
    from meprop_bench.measure.clock import on_capture_stream

    return on_capture_stream(case.device)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Work on one thread, of any core: other workers do the same meanwhile, and threads of several would wait for one
    another.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with affinity.free():
            yield
    finally:
        torch.set_num_threads(threads)
