"""Processes with the same memory layout: addresses are drawn once for several of them, not for each.

The problem. Linux gives each process a stack, a heap and libraries at random addresses, and some code is slower at
some of them. One and the same function of pure Python took 0.24 ms in half of its processes and 0.31 in the others (AMD
EPYC), each its life long, so that of 32 pairs of processes with identical code 16 differed by -22 or +30%. That was
neither the core, nor the seed of hashes, nor the stack, but where the interpreter's library lay.

The remedy. Of a pair neither is randomised, and both are shifted by the same drawn amounts: the libraries by pages, as
the kernel places them below the space that it leaves for the stack, and the stack by bytes, as the environment lies
above it. Common random numbers: what addresses do to both cancels, and the next pair lies elsewhere, so that no verdict
is about one layout. Of 40 such pairs of that function none differed by more than 4%, in whichever of its two times.

Where the system refuses (a container's seccomp profile may), processes are randomised as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["PADDING", "alike"]

PADDING = "MEPROP_BENCH_LAYOUT"
"""The variable that shifts the stack by its length."""

_LEAST_STACK = 128 << 20
"""Bytes for the stack below which the kernel does not place libraries any nearer."""
_PAGE, _PAGES, _BYTES = 4096, 4096, 4096

_LAUNCH = """\
import os, sys
try:
    import ctypes, resource
    ctypes.CDLL(None).personality(0x0040000)
    resource.setrlimit(resource.RLIMIT_STACK, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_STACK)[1]))
except (ImportError, AttributeError, OSError, ValueError):
    pass
os.execv(sys.argv[2], sys.argv[2:])
"""
"""ADDR_NO_RANDOMIZE holds from the next program on, and so does the limit."""


def alike(argv: Sequence[str], draw: int) -> tuple[list[str], dict[str, str]]:
    """Return a command that runs another one at the addresses of a draw, and the variables that go with it.

    Commands of one draw lie alike if they are as long, and so are their environments. Elsewhere than on Linux it is the
    command itself.
    """
    if sys.platform != "linux":
        return list(argv), {}
    shift, rest = divmod(draw, _BYTES)
    stack = _LEAST_STACK + (1 + shift % _PAGES) * _PAGE
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(stack), *argv], {PADDING: "x" * rest}
