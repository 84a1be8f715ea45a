"""The two processes of a comparison: each runs one revision's code, on the same cores and with the same settings.

Nothing of a revision is imported here: a worker is `python -P -m meprop_bench.sweep.worker` with the revision's folder
before everything else on Python's path, and says which folder its package came from. Both use this interpreter with
its torch, so what differs is the project's own code.

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
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from meprop_bench.errors import UserError
from meprop_bench.gate.case_records import SIDES, Side
from meprop_bench.gate.worktree import Checkout
from meprop_bench.measure.affinity import chosen
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerLike
from meprop_bench.sweep.worker import start_worker
from meprop_bench.workloads.case import Case

__all__ = ["StartRevision", "cores_of", "process_pair", "start_revision"]

_PATIENCE_S = 600.0

StartRevision: TypeAlias = Callable[[Checkout, Case], WorkerLike]

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how OpenMP's threads wait."""
_PLACES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables that say where they run."""


def process_pair(
    checkouts: Mapping[Side, Checkout], case: Case, start: StartRevision, rng: random.Random
) -> Pool[Side]:
    """Return a fresh process for each side, started in random order.

    Who comes first finds another machine: more free memory in large pages, for one.
    """
    starts = {side: partial(start, checkouts[side], case) for side in SIDES}
    return Pool(starts, _PATIENCE_S, order=rng.sample(SIDES, 2))


def start_revision(checkout: Checkout, case: Case) -> WorkerLike:
    """Start a fresh process that runs the checkout's code, with a case's threads and allocator."""
    waits = {} if _is_set(_WAITING) else {"OMP_WAIT_POLICY": "PASSIVE"}
    cores = cores_of(case)
    places = {"OMP_PROC_BIND": "true", "OMP_PLACES": ",".join(f"{{{core}}}" for core in cores)} if cores else {}
    path = os.pathsep.join(filter(None, (str(checkout.folder), os.environ.get("PYTHONPATH"))))
    env = {
        **environment_of(case.allocator, case.threads),
        **waits,
        **places,
        "PYTHONPATH": path,
        # It keeps bytecode by path and time of change, which are the same for every revision in a slot.
        "PYTHONPYCACHEPREFIX": None,
    }
    return start_worker(env, "-P")


def cores_of(case: Case) -> list[int]:
    """Return the core of each of a case's threads; none where they cannot be bound, or somebody else binds them."""
    if _is_set(_PLACES):
        return []
    with suppress(UserError):
        return chosen(case.threads)
    return []


def _is_set(names: tuple[str, ...]) -> bool:
    return any(os.environ.get(name) for name in names)
