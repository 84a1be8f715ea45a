"""The child side of a measurement: one fresh process that sets a case up, checks it, and takes pairs when it is asked
to.

    hello        {threads, device, pin}      -> the environment, when torch is imported; protocol, package (its folder)
    setup        {case}                      -> kernel, k, phases, costs, notes
    check        {warm_s}                    -> check, and if it passed, loops (and those of each side)
    measure      {seconds, least_pairs, loops, seed} -> pairs: phase -> [[baseline_s, method_s], ...], which of them the
                                                machine disturbed (null: it cannot tell), and what others did meanwhile
    memory       {device}                    -> weights: phase -> [baseline, method], what each takes at most
    again        {seed}                      -> nothing; the case that passed is set up once more, elsewhere in memory
    meet         {port}                      -> port, at which another worker can meet this one; or nothing, having gone
                                                to the one that is told
    turns        {me, plan, loops, lead, number} -> blocks: for each turn of the plan that is mine, phase -> seconds of
                                                one side, after a lead-in that is not timed, and whether the machine
                                                disturbed it (null: it cannot tell); stopped: the other worker failed
    count        {}                          -> operators: phase -> how many of torch's operators the method calls
    utilization  {device, seconds}           -> phase, sides: [baseline, method], what a steady loop takes
    peaks        {device, dtype, threads}    -> the machine's arithmetic rate and bandwidth
    accuracy     {case, sparsified, seeds, steps} -> [seed, development-set accuracy in percent] of one side

A worker is told its threads and allocator by its environment, before torch starts; it reads nothing else from outside.

The runner asks for whole pairs; the gate has base and head in two processes, each with its own code, and gives both the
same plan of turns, which they take by themselves (`measure.baton`): blocks of milliseconds. The two may be of different
revisions, so `PROTOCOL` counts the changes of what a request or an answer means; a request or a key that is new changes
nothing for those who do not ask for it.
Run as `python -m meprop_bench.sweep.worker`.
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
from meprop_bench.measure.baton import Baton
from meprop_bench.measure.paired import calibrate, warm_up
from meprop_bench.measure.serve import serve

if TYPE_CHECKING:
    from torch import Tensor

    from meprop_bench.measure.clock import Clock
    from meprop_bench.sweep.blocks import Blocks
    from meprop_bench.workloads.case import Case
    from meprop_bench.workloads.prepared import Prepared

__all__ = ["PROTOCOL", "Session", "main"]

PROTOCOL = 2
"""Of the requests and answers above."""

_Answer = Mapping[str, Any]

_BALLAST = (4 << 10, 64 << 10, 1 << 20)
"""Bytes at most of each tensor that is in the way when a case is set up again."""


class Session:
    """What one worker holds between requests: the case that is set up."""

    def __init__(self) -> None:
        self._case: Case | None = None
        self._prepared: Prepared | None = None
        self._checked: tuple[Prepared, Clock] | None = None
        self._blocks: Blocks | None = None
        self._baton: Baton | None = None
        self._ballast: list[Tensor] = []

    def handle(self, message: Mapping[str, Any]) -> _Answer:
        """Answer one request."""
        actions: dict[str, Callable[..., _Answer]] = {
            "hello": self.hello,
            "setup": self.setup,
            "check": self.check,
            "measure": self.measure,
            "memory": self.memory,
            "again": self.again,
            "meet": self.meet,
            "turns": self.turns,
            "count": self.count,
            "utilization": self.utilization,
            "peaks": self.peaks,
            "accuracy": self.accuracy,
        }
        return actions[message["do"]](**{key: value for key, value in message.items() if key != "do"})

    def hello(self, threads: int, device: str, pin: bool = False) -> _Answer:
        """Import what takes seconds; the answer says that none of it will fall into another worker's timing."""
        if pin:
            affinity.bind(threads)
            affinity.load_openmp()
        with affinity.free():
            import torch

            import meprop_bench
            from meprop_bench.measure.allocator import current
            from meprop_bench.measure.environment import collect, environment_id
            from meprop_bench.ops.kernels import KERNELS

            for name in KERNELS:
                with suppress(ImportError):  # a kernel whose library is not installed says so when it is asked for
                    KERNELS[name]
        torch.set_num_threads(threads)
        environment = collect(device, current())
        return {
            "environment": environment,
            "environment_id": environment_id(environment),
            "protocol": PROTOCOL,
            "package": str(Path(meprop_bench.__file__).parent),
        }

    def setup(self, case: Mapping[str, Any]) -> _Answer:
        """Set a case up."""
        from meprop_bench import workloads

        self._close_blocks()
        self._prepared = self._checked = None  # the last case's memory, before the next one's is taken
        self._case = workloads.Case.from_json(case)
        if self._case.device != "cpu":
            _give_back()
        try:
            with _one_thread(), _stream(self._case):
                self._prepared = prepared = workloads.setup(self._case)
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

    def check(self, warm_s: float) -> _Answer:
        """Check the case that is set up and, if it passed, warm both sides up and calibrate the loops."""
        from meprop_bench.measure.clocks import clock_for
        from meprop_bench.results.schema import PASSED

        if self._case is None or self._prepared is None:
            raise ValueError("no case is set up")
        found = self._prepared.check()
        if found != PASSED:
            return {"check": found, "loops": 1, "side_loops": [1, 1]}
        clock = clock_for(self._case.device, caches=self._case.caches, graphs=self._case.launch == "graph")
        self._checked = self._prepared, clock
        sides = (self._prepared.baseline, self._prepared.method)
        for side in sides:
            warm_up(side, clock, seconds=warm_s)
        loops = [calibrate(side, clock) for side in sides]
        return {"check": found, "loops": max(loops), "side_loops": loops}

    def measure(self, seconds: float, least_pairs: int, loops: int, seed: int) -> _Answer:
        """Take interleaved pairs for about `seconds`."""
        from meprop_bench.measure.disturbance import contention
        from meprop_bench.measure.machine import Watch
        from meprop_bench.measure.paired import measure_pairs
        from meprop_bench.measure.procfs import Unavailable

        prepared, clock = self._passed()
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

    def memory(self, device: str) -> _Answer:
        """Weigh each phase, in a pass of its own: weighing slows what it weighs."""
        from meprop_bench.measure.memory import weigh
        from meprop_bench.workloads.prepared import After

        prepared, _ = self._passed()

        def weight(call: Callable[[], object]) -> _Answer:
            found = weigh(call.call, device, call.before) if isinstance(call, After) else weigh(call, device)
            return found.to_json()

        return {"weights": {phase: [weight(call) for call in pair] for phase, pair in prepared.memory.items()}}

    def again(self, seed: int) -> _Answer:
        """Set the case up once more: what its addresses do to its time is drawn anew, without a new process.

        The same code on the same numbers passed its check in this process. A ballast of random sizes, kept until the
        next time, sees to it that other memory is free than before.
        """
        import torch

        from meprop_bench import workloads

        self._passed()
        assert self._case is not None
        blocks = self._blocks_of_case()
        self._prepared = self._checked = None
        blocks.release()
        rng = random.Random(seed)
        self._ballast = [torch.empty(rng.randrange(1, most), dtype=torch.uint8) for most in _BALLAST]
        with _one_thread(), _stream(self._case):
            self._prepared = prepared = workloads.setup(self._case)
            warm_up(prepared.method, blocks.clock, seconds=0.0)  # touches the new memory
        self._checked = prepared, blocks.clock
        blocks.use(prepared)
        return {}

    def meet(self, port: int | None = None) -> _Answer:
        """Say where another worker can meet this one, or go to where it is."""
        self._baton = Baton()
        if port is None:
            return {"port": self._baton.listen()}
        self._baton.connect(port)
        return {}

    def turns(
        self,
        me: str,
        plan: Sequence[tuple[str, str, float]],
        loops: Mapping[str, int],
        lead: int,
        number: int = 0,
    ) -> _Answer:
        """Time one side again and again, in turns with another worker that has the same plan.

        Args:
            me: whose turns are ours.
            plan: whose turn it is, which side ("baseline" or "method") he times, by how much he slows it.
            loops: side -> timed iterations of a block.
            lead: iterations before them that are not timed.
            number: of the plan.

        """
        taken: list[_Answer] = []
        baton = self._baton or Baton()
        try:
            blocks = self._blocks_of_case()
            for index, (who, side, slowdown) in enumerate(plan):
                if who != me:
                    continue
                if index and plan[index - 1][0] != me and not baton.wait(number):
                    return {"blocks": taken, "stopped": True}
                values, disturbed = blocks.take(side, loops[side], lead, slowdown)
                taken.append({"values": values, "disturbed": disturbed})
                if index + 1 < len(plan) and plan[index + 1][0] != me and not baton.give(number):
                    return {"blocks": taken, "stopped": True}
        except BaseException:
            if self._baton is not None:
                self._baton.stop(number)
            raise
        return {"blocks": taken, "stopped": False}

    def count(self) -> _Answer:
        """Count the operators of the method's phases, in a pass of its own: counting slows what it counts."""
        from meprop_bench.sweep.operators import operators

        prepared, _ = self._passed()
        return {"operators": {phase: operators(pair[1]) for phase, pair in prepared.memory.items()}}

    def utilization(self, device: str, seconds: float) -> _Answer:
        """Watch the machine while each side runs its main phase steadily, in a pass of its own: watching costs time."""
        from meprop_bench.measure.graph import CudaGraphClock
        from meprop_bench.measure.utilization import watch

        prepared, clock = self._passed()
        if prepared.main is None:
            raise ValueError("no call of this workload can be repeated")
        phase, calls = prepared.main
        if isinstance(clock, CudaGraphClock):
            calls = clock.replay(calls[0]), clock.replay(calls[1])
        return {"phase": phase, "sides": [watch(call, device, clock, seconds=seconds) for call in calls]}

    def peaks(self, device: str, dtype: str, threads: int) -> _Answer:
        """Measure what this machine can do at best."""
        from meprop_bench.measure.peaks import measure_peaks

        return {"peaks": measure_peaks(device, dtype, threads).to_json()}

    def accuracy(self, case: Mapping[str, Any], sparsified: bool, seeds: list[int], steps: int) -> _Answer:
        """Train one side from these seeds."""
        from meprop_bench.sweep.accuracy import recipe_of, trained
        from meprop_bench.workloads import Case

        recipe = recipe_of(Case.from_json(case), steps)
        with _one_thread():  # the other workers train meanwhile, and nothing is timed
            return {"accuracies": list(trained(recipe if sparsified else recipe.dense(), seeds).items())}

    def _blocks_of_case(self) -> Blocks:
        from meprop_bench.sweep.blocks import Blocks

        prepared, clock = self._passed()
        if self._blocks is None:
            self._blocks = Blocks(prepared, clock)
        return self._blocks

    def _close_blocks(self) -> None:
        if self._blocks is not None:
            self._blocks.close()
            self._blocks = None

    def _passed(self) -> tuple[Prepared, Clock]:
        if self._checked is None:
            raise ValueError("there is no case whose check passed")
        return self._checked


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
    from meprop_bench.measure.graph import on_capture_stream

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


def main() -> None:
    """Serve until the parent is done."""
    serve(Session().handle)


if __name__ == "__main__":
    main()
