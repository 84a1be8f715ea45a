"""Workloads: a case, set up so that it can be checked and timed. The lowest floor that sees both the method and the instrument."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from meprop_bench.workloads.case import WORKLOADS, Case
from meprop_bench.workloads.prepared import Prepared

__all__ = ["Case", "Prepared", "setup"]


def setup(case: Case) -> Prepared:
    """Set a case up in this process; its module (and torch with it) is loaded here.

    Raises:
        ValueError: the kernel asked for cannot do the case.

    """
    assert case.workload in WORKLOADS
    make: Callable[[Case], Prepared] = import_module(f"{__name__}.{case.workload}").setup
    return make(case)
