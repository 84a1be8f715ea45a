"""The gate's side of a worker: a process that runs a revision's code, what it is asked, and what goes wrong.

Nothing of a revision is imported here: a worker is `python -P -m meprop_bench.sweep.worker` with the revision's folder
before everything else on Python's path, and says which folder its package came from. Both use this interpreter with
its torch, so what differs is the project's own code.

Threads that wait in OpenMP sleep here, where torch lets them spin (unless the environment says how they are to wait).
Spinning burns a thread's share of the cores, so that on a machine with other work it is left waiting for its next turn,
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
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.gate.case_records import SIDES, Side
from meprop_bench.gate.worktree import PACKAGE, Checkout
from meprop_bench.measure.affinity import chosen
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.replicate import Asked, Worker, WorkerDied
from meprop_bench.workloads.case import Case

__all__ = ["Fault", "ask", "ask_both", "cores_of", "start_worker"]

_PATIENCE_S = 600.0

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how OpenMP's threads wait."""
_PLACES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables that say where they run."""


def start_worker(checkout: Checkout, case: Case) -> Asked:
    """Start a fresh process that runs the checkout's code, with a case's threads and allocator."""
    waits = {} if _told(_WAITING) else {"OMP_WAIT_POLICY": "PASSIVE"}
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
    return Worker([sys.executable, "-P", "-m", f"{PACKAGE}.sweep.worker"], env)


def cores_of(case: Case) -> list[int]:
    """Return the core of each of a case's threads; none where they cannot be bound, or somebody else binds them."""
    if _told(_PLACES):
        return []
    with suppress(UserError):
        return chosen(case.threads)
    return []


def _told(names: tuple[str, ...]) -> bool:
    return any(os.environ.get(name) for name in names)


class Fault(Exception):
    """One side could not do what it was asked; `fatal` says that its process is gone."""

    def __init__(self, side: Side, reason: str, *, fatal: bool) -> None:
        super().__init__(reason)
        self.side, self.reason, self.fatal = side, reason, fatal


def ask(side: Side, worker: Asked, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a worker's answer; raises `Fault` where it is an error, or none comes."""
    try:
        answer = worker.request(message, _PATIENCE_S)
    except WorkerDied as died:
        raise Fault(side, died.reason, fatal=True) from None
    if "error" in answer:
        kind = "out of memory: " if answer.get("kind") == "out-of-memory" else ""
        raise Fault(side, f"{kind}{answer['error']}", fatal=False)
    return answer


def ask_both(workers: Mapping[Side, Asked], *messages: Mapping[str, Any]) -> dict[Side, dict[str, Any]]:
    """Ask both at once, the same or each its own; of two faults the base's counts."""
    pool = ThreadPoolExecutor(len(SIDES))
    try:
        asked = {
            side: pool.submit(ask, side, workers[side], messages[index % len(messages)])
            for index, side in enumerate(SIDES)
        }
        return {side: asked[side].result() for side in SIDES}
    finally:
        # Not waiting: after an interrupt the workers are closed next, and that is what ends the other request.
        pool.shutdown(wait=False, cancel_futures=True)
