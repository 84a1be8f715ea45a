"""Whether an optional package can be used: that it is installed does not say so.

A package may be there and not importable: built for another NumPy, without a library of its own, or half of a version
and half of the next. So what asks imports it, which whoever goes on to use it does anyway.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from meprop_bench.errors import UserError

__all__ = ["installed", "require", "said", "unavailable_reason"]


def unavailable_reason(package: str) -> str | None:
    """Say why a package, by the name that is imported, cannot be used, as in "is not installed"; None where it can."""
    try:
        import_module(package)
    except Exception as error:  # noqa: BLE001 (packages that are broken raise more kinds than ImportError)
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return "is not installed"
        return f"cannot be imported ({said(error)})"
    return None


def installed(distribution: str) -> str | None:
    """Return the version of a distribution, by its name in the registry; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def require(package: str, what: str, extra: str) -> None:
    """Raise `UserError` unless a package can be used: "WHAT, which is not installed: pip install …" of our extra."""
    if (reason := unavailable_reason(package)) is not None:
        raise UserError(f"{what}, which {reason}: pip install 'meprop-bench[{extra}]'")


def said(error: Exception) -> str:
    """Return an exception as one line: its kind, and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
