"""Allocator settings of a process: fresh memory costs more than arithmetic, so they belong to every result.

The problem. By default glibc maps each large block anew and returns it when freed, so each tensor of more than 32 MB
costs a page fault for every 4 KiB touched: zeroing a new 256 MB gradient takes 95 ms, more than all the arithmetic of
a unified backward pass with k = 8. A process that trains for hours allocates the same sizes at each step and gains by
keeping them.

The settings, the same for baseline and method, recorded on every row:

    default      glibc as it comes
    kept         large blocks come from the heap too (MALLOC_MMAP_MAX_=0), the heap is never trimmed and grows in large
                 steps: freed memory stays mapped and is handed out again, warm. With huge pages too, since a heap
                 that is not yet settled hands out fresh memory for a while: zeroing a new 256 MB gradient took 12 to
                 540 ms over its first four times, and 13 ms from the second time on with huge pages
    huge-pages   torch asks for 2 MiB pages (THP_MEM_ALLOC_ENABLE=1): 512 times fewer faults, but every step has them

The trade-off of "kept": the process holds its peak memory to its end, and may fragment. All of them are read when the
process starts, hence `environment_of`, which says what to set in the environment of a process to be started; setting
them later does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from meprop_bench.errors import UserError

__all__ = ["ALLOCATORS", "current", "environment_of", "libc", "preloaded", "unavailable_reason"]

_GIB = 1 << 30

ALLOCATORS: dict[str, Mapping[str, str]] = {
    "default": {},
    "kept": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(64 * _GIB),
        "MALLOC_TOP_PAD_": str(_GIB // 4),  # address space only: untouched pages cost nothing
        "THP_MEM_ALLOC_ENABLE": "1",
    },
    "huge-pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}

_OWNED = tuple(sorted({name for settings in ALLOCATORS.values() for name in settings}))
_OTHERS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "MALLOC_PERTURB_")
# numba and OpenBLAS would otherwise take every core whatever torch has.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment_of(name: str, threads: int) -> dict[str, str | None]:
    """Return what to change in the environment of a process with so many threads; None means: remove the variable.

    Raises:
        UserError: an unknown name, or one that would do nothing on this machine.
        ValueError: fewer than one thread.

    """
    if name not in ALLOCATORS:
        raise UserError(f"unknown allocator {name!r}: choose one of {', '.join(ALLOCATORS)}")
    if threads < 1:
        raise ValueError(f"threads is at least 1, got {threads!r}")
    if (reason := unavailable_reason(name)) is not None:
        raise UserError(f"the allocator {name!r} is not available: {reason}; use --allocator default")
    return {
        **dict.fromkeys((*_OWNED, *_OTHERS)),
        **ALLOCATORS[name],
        **dict.fromkeys(_THREADS, str(threads)),
    }


def unavailable_reason(name: str) -> str | None:
    """Say in one line why an allocator setting would do nothing here, or None when it works."""
    if name == "kept":
        return _no_glibc_malloc()
    if name == "huge-pages":
        try:
            choices = _HUGE_PAGES.read_text()
        except OSError:
            return "the system has no transparent huge pages"
        return "transparent huge pages are switched off in the kernel" if "[never]" in choices else None
    return None


def current() -> str:
    """Return which of ALLOCATORS this process was started with, or "custom" when its settings are none of them."""
    if preloaded() or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return "custom"
    found = {name: os.environ[name] for name in (*_OWNED, *_OTHERS) if name in os.environ}
    return next((name for name, settings in ALLOCATORS.items() if found == dict(settings)), "custom")


def preloaded() -> list[str]:
    """Return the file names of preloaded libraries that replace the C library's malloc."""
    libraries = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return [Path(library).name for library in libraries if "malloc" in Path(library).name]


def _no_glibc_malloc() -> str | None:
    if replaced := preloaded():
        return f"LD_PRELOAD replaces glibc's malloc by {', '.join(replaced)}"
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return "GLIBC_TUNABLES already sets glibc.malloc"
    if (libc() or "").startswith("glibc"):
        return None
    return "its settings are glibc's, and this system has another C library"


def libc() -> str | None:
    """Return the C library and its version, "glibc 2.36"; None for one that does not tell."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or None
    except (AttributeError, ValueError, OSError):
        return None
