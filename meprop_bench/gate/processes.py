"""A pair of processes, each of which runs one revision's code, on the same cores and with the same settings.

    process pair    a fresh process for base and one for head
    neighbours      one block of base and one of head, in random order, which the two take by themselves
    facts           what is asked once for each case: FLOPs, bytes, operators and peak memory of each phase, which are
                    the same in every process, and the accuracies of both, trained from the same seeds

Nothing of a revision is imported here: a worker is `python -P -m meprop_bench.sweep.worker` with the revision's folder
before everything else on Python's path, and says which folder its package came from. Both use this interpreter with
its torch, so what differs is the project's own code.

A worker of a project of its own runs this package, in the revision's folder, by the interpreter of the revision's own
environment where it has one. It imports the project's modules once it has said hello. Hashes of strings are the same in
base and head.

Threads that wait in OpenMP sleep here, where torch lets them spin (unless the environment says how they are to wait).
Spinning burns a thread's share of the cores, so that on a machine with other work it is left waiting for its core,
and all threads of its region with it, for 10 ms and more: identical code, a layer of 784 x 500 at B = 50 on two
threads, two cores, four to six other processes, medians of the backward pass (base, head) in pairs of processes:

    spinning    2.2, 13 ms    0.30, 12 ms (39 times)    11, 0.26 ms
    sleeping    0.36, 0.34 ms    0.37, 0.38 ms

So the times here are not those of `speedup`: waking a thread is part of them, for base and head alike.

Thread i of base and thread i of head are bound to the same core, where the system lets them be: they never run at the
same time, and two cores of a shared machine have different neighbours. Six pairs of processes, neighbouring blocks for
three seconds, a layer of 784 x 500 at B = 50 on two cores: unbound the forward pass spread by 2.4% and the backward
pass by 2.4%, bound by 0.9% and 1.7%. (Whoever sets one of OpenMP's variables has a reason, and keeps it.)

Both of a pair hash with the same seed and lie at the same addresses (`measure.layout`), which are drawn anew for the
next pair: how dictionaries, code and stacks lie is then no difference between the two sides, and still not the same
throughout (common random numbers).

The workers hand over to each other (`sweep.blocks`), so that neither JSON nor this process stands between two
blocks. That is what the sharpness of the gate rests on. On a shared machine (two vCPUs of an AMD EPYC, a neighbour on
the same cores) one and the same loop of half a millisecond, which touches nothing but the first cache, took 0.41 to
0.93 ms; blocks next to each other differed by 20%, blocks 100 ms apart by 30%, and no number of processes or set-ups
averages faster than more neighbours do.

A block has a lead-in of one iteration, after which the caches are its own again, unless one iteration is as long as a
block: there the lead-in would be half of the time, for nothing that can be seen.
"""

from __future__ import annotations

import os
import random
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import meprop_bench
from meprop_bench.errors import UserError
from meprop_bench.gate.case_records import SIDES, Blocks, Facts, Side
from meprop_bench.gate.environments import worker_environment
from meprop_bench.gate.judgement import Kind
from meprop_bench.gate.targets import Measurable, MeasurementPlan
from meprop_bench.gate.worktree import Checkout
from meprop_bench.measure.affinity import chosen
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerDied, WorkerLike
from meprop_bench.sweep.function_case import FunctionCase
from meprop_bench.sweep.worker import start_worker

__all__ = [
    "Interleaving",
    "StartRevision",
    "accuracies",
    "cores_of",
    "exact_figures",
    "loops_of",
    "process_pair",
    "request",
    "start_revision",
    "timed_phases",
    "times_alone",
]

_PATIENCE_S = 600.0

_TIMED = ("forward", "backward", "update", "step")

StartRevision: TypeAlias = Callable[[Checkout, Measurable], WorkerLike]

_LONGER = 8
"""Times its own loops that a side makes for the other's sake."""
_TRAINING_S = 3600.0
"""Seconds after which a training counts as hung."""
_LEAST_PEAK = 64 << 10
"""Bytes: what is below on both sides is the interpreter's own, and is not compared."""

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how OpenMP's threads wait."""
_PLACES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables that say where they run."""


def process_pair(
    checkouts: Mapping[Side, Checkout], case: Measurable, start: StartRevision, rng: random.Random
) -> Pool[Side]:
    """Return a fresh process for each side, started in random order.

    Who comes first finds another machine: more free memory in large pages, for one.
    """
    draw = rng.getrandbits(32)
    starts = {side: partial(start, replace(checkouts[side], draw=draw), case) for side in SIDES}
    return Pool(starts, _PATIENCE_S, order=rng.sample(SIDES, 2))


def request(case: Measurable, do: str) -> str:
    """Return the name of a request as it is for this kind of case."""
    return f"{do}_function" if isinstance(case, FunctionCase) else do


def start_revision(checkout: Checkout, case: Measurable) -> WorkerLike:
    """Start a fresh process that runs the checkout's code, with a case's threads and allocator."""
    waits = {} if _is_set(_WAITING) else {"OMP_WAIT_POLICY": "PASSIVE"}
    cores = cores_of(case)
    places = {"OMP_PROC_BIND": "true", "OMP_PLACES": ",".join(f"{{{core}}}" for core in cores)} if cores else {}
    env: dict[str, str | None] = {
        **environment_of(case.allocator, case.threads),
        **waits,
        **places,
        # It keeps bytecode by path and time of change, which are the same for every revision in a slot.
        "PYTHONPYCACHEPREFIX": None,
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED") or str(checkout.draw),
    }
    if (project := checkout.project) is None:
        path = os.pathsep.join(filter(None, (str(checkout.folder), os.environ.get("PYTHONPATH"))))
        return start_worker({**env, "PYTHONPATH": path}, "-P", layout=checkout.draw)
    if project.python is not None:
        env |= worker_environment(project, borrows=not isinstance(case, FunctionCase))
    elif str(ours := Path(meprop_bench.__file__).parents[1]) not in map(sysconfig.get_path, ("purelib", "platlib")):
        # This package is not installed: it was found in a folder that another process does not start in.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ours))))
    return start_worker(env, "-P", python=project.python, cwd=checkout.folder, layout=checkout.draw)


def cores_of(case: Measurable) -> list[int]:
    """Return the core of each of a case's threads; none where they cannot be bound, or somebody else binds them."""
    if _is_set(_PLACES):
        return []
    with suppress(UserError):
        return chosen(case.threads)
    return []


def _is_set(names: tuple[str, ...]) -> bool:
    return any(os.environ.get(name) for name in names)


class Interleaving:
    """Two processes that have met, and the blocks that they take; both have set the same case up, and checked it.

    `loops` are each side's iterations behind a value of "method" and "baseline", `again` is what sets the case up once
    more.
    """

    def __init__(
        self, pool: Pool[Side], loops: Mapping[Side, Mapping[str, int]], rng: random.Random, *, again: str = "again"
    ) -> None:
        self._pool, self._loops, self._rng, self._again = pool, loops, rng, again
        self._number = 0
        pool.ask("head", "meet", port=pool.ask("base", "meet")["port"])

    def again(self) -> None:
        """Have both set the case up once more, elsewhere in memory."""
        self._pool.ask_all(self._again, each={side: {"seed": self._rng.getrandbits(32)} for side in SIDES})

    def take(self, which: str, count: int, slowdowns: Sequence[float] = (0.0,)) -> dict[float, list[Blocks]]:
        """Return neighbours of "method" or "baseline": for each slowdown of the head's blocks `count` of them.

        Each block of the head has one of the base for itself. Were there one for all slowdowns, the head would mostly
        come after itself, and find its own caches: identical code looked 3% faster. Raises `WorkerError` where one
        side could not.
        """
        order = [slowdown for _ in range(count) for slowdown in self._rng.sample(slowdowns, len(slowdowns))]
        plan = [
            (side, which, slowdown if side == "head" else 0.0)
            for slowdown in order
            for side in self._rng.sample(SIDES, 2)
        ]
        self._number += 1
        answers = self._pool.ask_all(
            "turns",
            each={
                side: {"me": side, "loops": self._loops[side], "lead": int(self._loops[side][which] > 1)}
                for side in SIDES
            },
            plan=plan,
            number=self._number,
        )
        for side in SIDES:
            if answers[side]["stopped"]:
                raise WorkerDied("lost sight of the other side's process", side, "turns")
        taken = [answers[side]["blocks"] for side in SIDES]
        found: dict[float, list[Blocks]] = {slowdown: [] for slowdown in slowdowns}
        for slowdown, base, head in zip(order, *taken, strict=True):
            found[slowdown].append({"base": base, "head": head})
        return found


def timed_phases(setup: Mapping[Side, Mapping[str, Any]]) -> tuple[list[str], dict[Side, list[str]]]:
    """Return the phases that are timed, and those of one side alone; others than `_TIMED` where it has none of them."""
    has = {side: list(setup[side]["phases"]) for side in SIDES}
    named = {side: [phase for phase in has[side] if phase in _TIMED] or has[side] for side in SIDES}
    phases = [phase for phase in named["head"] if phase in has["base"]]
    return phases, {side: [phase for phase in named[side] if phase not in phases] for side in SIDES}


def loops_of(checks: Mapping[Side, Mapping[str, Any]]) -> dict[Side, dict[str, int]]:
    """Return each side's iterations behind a value of "baseline" and "method", from what each found right for itself.

    They are the same, so that both find like caches, unless one side is so much slower that its values would be long.
    """
    found: dict[Side, dict[str, int]] = {}
    for side in SIDES:
        found[side] = {}
        for index, which in enumerate(("baseline", "method")):
            own = checks[side]["side_loops"][index]
            most = max(checks[each]["side_loops"][index] for each in SIDES)
            found[side][which] = most if most <= _LONGER * own else own
    return found


def times_alone(interleaving: Interleaving, alone: Mapping[Side, Sequence[str]]) -> Facts:
    """Return the phases that one side alone has, with a time that says what there was and is judged by nobody."""
    found: Facts = {}
    if any(alone.values()):
        (blocks,) = interleaving.take("method", 1)[0.0]
        for side in SIDES:
            for phase in alone[side]:
                value = blocks[side]["values"][phase]
                found[phase, "time", "s"] = (value, None) if side == "base" else (None, value)
    return found


def exact_figures(
    case: Measurable, pool: Pool[Side], setup: Mapping[Side, Mapping[str, Any]], *, operators: bool = True
) -> Facts:
    """Return the figures without noise; torch's `operators` say something of layers, and little of a whole model."""
    if isinstance(case, FunctionCase):
        peaks = [pool.ask(side, "peak_function")["peak"] for side in SIDES]
        if None in peaks or max(peaks) < _LEAST_PEAK:
            return {}
        return {("peak memory call", "memory", "B"): (peaks[0], peaks[1])}
    each: dict[Side, dict[Kind, float]] = {}
    for side in SIDES:
        each[side] = found = {}
        for phase, (_, (flops, moved)) in setup[side]["costs"].items():
            found[f"flops {phase}", "count", "1"] = flops
            found[f"bytes {phase}", "count", "B"] = moved
        for phase, count in (pool.ask(side, "count")["operators"] if operators else {}).items():
            found[f"operators {phase}", "count", "1"] = count
        weights = pool.ask(side, "memory", device=case.device)["weights"]
        for phase, (_, weight) in weights.items():
            found[f"peak memory {phase}", "memory", "B"] = weight["tensor_bytes"]
    return {key: (each["base"].get(key), each["head"].get(key)) for key in each["base"] | each["head"]}


def accuracies(
    case: Measurable, pool: Pool[Side], plan: MeasurementPlan
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], bool]:
    """Train the sparsified side of both revisions from the same seeds; nothing is timed meanwhile.

    Return what each seed came to in base and head, and whether these are percentages.
    """
    found: dict[Side, list[float]] = {side: [] for side in SIDES}
    percent = True
    for seed in range(1, plan.accuracy_seeds + 1):  # one by one: a training may take as long as a request may
        answers = pool.ask_all(
            "accuracy",
            timeout=_TRAINING_S,
            case=case.changed(),
            sparsified=True,
            seeds=[seed],
            steps=plan.accuracy_steps,
        )
        for side in SIDES:
            found[side].append(float(dict(answers[side]["accuracies"])[seed]))
        percent = answers["head"].get("percent", True)
    return (tuple(found["base"]), tuple(found["head"])), percent
