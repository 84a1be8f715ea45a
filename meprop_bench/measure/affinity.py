"""Processes bound to cores: a measuring process on as many physical cores as it has threads, and on no others.

Left free, the scheduler moves a process between cores, each time to colder caches, and may put two of its threads on
the two halves of one physical core, where each is half as fast. Bound, it stays where it is; so it does, too, when a
neighbour comes to the same core, which a free process would have left. Which of the two weighs more depends on the
machine (reports/METHODOLOGY.md), so it is an option, `--pin`, and recorded: `bound` goes into the environment, and so
into its id.

    chosen(threads)     of the cores that this process may use, one logical core of each of the last `threads` physical
                        ones: the first serve most interrupts, and neighbours share a cache
    bind(threads)       bound to them, as is every thread that is started later: so before torch is imported
    allowed()           what this process was allowed before
    free()              for a while all of that again: where several processes work at once, and nothing is timed
    load_openmp()       OpenMP binds the thread that loads it to the first of its places, if it was given any
                        (`OMP_PLACES`): loaded before torch, it does not keep what is imported then on one core

All processes of a run are bound to the same cores, since one of them runs at any time. The control group's cpuset is in
the kernel's answer already; its quota is of time, not of cores, and no obstacle (`machine` warns of it).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meprop_bench.errors import UserError
from meprop_bench.measure import procfs
from meprop_bench.measure.procfs import Unavailable

__all__ = ["allowed", "bind", "bound", "chosen", "free", "load_openmp"]

_before: set[int] | None = None
"""What this process was allowed before it was bound."""


def chosen(threads: int) -> list[int]:
    """Return the logical cores that a process of so many threads is bound to, in order; UserError: it cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--pin: this system binds no process to cores; leave it out")
    first: dict[str, int] = {}  # physical core -> its first logical core that may be used
    for core in sorted(allowed()):
        first.setdefault(_siblings(core), core)
    if threads > len(first):
        raise UserError(
            f"--pin: {threads} threads need {threads} physical cores, and this process may use {len(first)}: use"
            f" --threads {len(first)}, or leave --pin out"
        )
    return sorted(first.values())[-threads:]


def bind(threads: int) -> None:
    """Bind this process to cores of its own, or UserError; threads that were started before stay where they are."""
    global _before  # noqa: PLW0603  what the process was allowed is a fact of the process
    cores, may = chosen(threads), allowed()
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        raise UserError(f"--pin: the system does not let processes be bound ({error.strerror}); leave it out") from None
    _before = may


def bound() -> int:
    """Return how many cores `bind` has bound this process to; `Unavailable` when it has not."""
    procfs.known(_before, "the process is not bound to cores")
    return procfs.usable_cores()


def allowed() -> set[int]:
    """Return the logical cores that this process may use, or might before it was bound."""
    return procfs.usable() if _before is None else set(_before)


@contextmanager
def free() -> Iterator[None]:
    """Let this thread, and those that it starts, run on all that was allowed for as long as the block lasts."""
    if _before is None:
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def load_openmp() -> None:
    """Load the OpenMP that torch brings with it; nothing happens where it brings none, or has been imported."""
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        for library in sorted(Path(folder, "lib").glob("libgomp*.so*")):
            with suppress(OSError):  # torch will say what is wrong with it
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _siblings(core: int) -> str:
    """Return what all logical cores of one physical core have in common."""
    folder = procfs.SYS / f"devices/system/cpu/cpu{core}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the older kernels' name
        with suppress(Unavailable):
            return procfs.search(r"\A([\d,-]+)\Z", procfs.read(folder / name))
    raise UserError("--pin: the kernel does not show which cores are physical ones; leave it out")
