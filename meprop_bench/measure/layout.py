"""Processes with the same memory layout: addresses are drawn once for several of them, not for each.

The problem. Linux gives each process a stack, a heap and libraries at random addresses, and some code is slower at
some of them. One and the same function of pure Python took 0.24 ms in half of its processes and 0.31 in the others (AMD
EPYC), each its life long, so that of 32 pairs of processes with identical code 16 differed by -22 or +30%. That was
neither the core, nor the seed of hashes, nor the stack, but where the interpreter's library lay.

The remedy. Of a pair neither is randomised, and both are shifted by the same drawn amounts: the libraries by pages, as
the kernel places them below the space that it leaves for the stack, and the stack by bytes, as the environment lies
above it. Common random numbers: what addresses do to both cancels, and the next pair lies elsewhere, so that no verdict
is about one layout. Of 40 such pairs of that function none differed by more than 4%, in whichever of its two times.

Where the system refuses (a container's seccomp profile may), processes are randomised as ever, and `unavailable_reason`
says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["PADDING", "alike", "unavailable_reason"]

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


_ASK = """\
import ctypes, resource
print(max(ctypes.CDLL(None).personality(0xFFFFFFFF), 0) & 0x0040000, resource.getrlimit(resource.RLIMIT_STACK)[0])
"""


def unavailable_reason() -> str | None:
    """Say why processes of one draw do not lie alike here, or lie where those of all draws do; None where all is well.

    A process is asked that was started as they are, as a refusal shows in nothing else.
    """
    if sys.platform != "linux":
        return "only Linux lets a process choose its addresses"
    argv, variables = alike([sys.executable, "-I", "-S", "-c", _ASK], 0)
    stack = argv[argv.index(_LAUNCH) + 1]
    asked = subprocess.run(argv, env=os.environ | variables, capture_output=True, text=True, check=False)
    match asked.stdout.split():
        case ["0", _]:
            return "the system does not let a process choose its personality, as some containers do not"
        case [_, limit] if limit == stack:
            return None
        case [_, _]:
            return f"a stack of {int(stack) >> 20} MiB is beyond the limit"
    return "a process that was started for it does not answer"
