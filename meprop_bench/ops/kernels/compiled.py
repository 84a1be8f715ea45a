"""Whether kernels that Numba compiles can be used here, and why not: decided in this one place.

Numba may be installed and not importable (another NumPy than it was built for, llvmlite missing), may be set to
compile nothing (NUMBA_DISABLE_JIT), or may fail to compile for this processor. So a module of compiled code counts as
usable when it has been imported, which compiles it. Else layers run on torch's operators, a kernel chosen by name is an
error that says why, and `meprop-bench doctor` says it, too.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from meprop_bench import optional

__all__ = ["load", "require", "unavailable_reason"]

_failed: dict[str, str] = {}
"""Module -> why it could not be compiled."""


def load(module: str) -> ModuleType | None:
    """Return a module of compiled code by its full name, or None where it cannot be used."""
    return _loaded(module)[0]


def require(module: str) -> ModuleType:
    """Return a module of compiled code by its full name; ImportError, which says why, where it cannot be used."""
    found, reason = _loaded(module)
    if found is None:
        raise ImportError(f"kernel 'native' cannot be used: {reason}")
    return found


def unavailable_reason() -> str | None:
    """Say in one line why there are no compiled kernels, or None; imports Numba, and compiles nothing."""
    return _numba() or next(iter(_failed.values()), None)


@cache
def _loaded(name: str) -> tuple[ModuleType | None, str | None]:
    """Return the module and None, or None and the reason."""
    if (reason := _numba()) is not None:
        return None, reason
    try:
        return import_module(name), None
    except Exception as error:  # noqa: BLE001 (of Numba's, LLVM's or the disk's: layers run without it)
        _failed[name] = f"Numba cannot compile it: {optional.said(error)}"
        return None, _failed[name]


@cache
def _numba() -> str | None:
    if (reason := optional.unavailable_reason("numba")) is not None:
        return f"Numba {reason} (extra `cpu`)"
    import numba

    config = getattr(numba, "config", None)
    if config is None:
        return "Numba cannot be used: what is imported by its name is something else"
    return "Numba is told to compile nothing: unset NUMBA_DISABLE_JIT" if config.DISABLE_JIT else None
