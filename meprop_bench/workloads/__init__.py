"""Workloads: a case, set up to be checked and timed. The lowest layer that sees both the method and the instrument."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from meprop_bench.workloads.case import WORKLOADS, Case

if TYPE_CHECKING:
    from meprop_bench.workloads.prepared import Prepared

__all__ = ["Case", "setup"]


def setup(case: Case) -> Prepared:
    """Set a case up in this process; its module (and torch with it) is loaded here, and torch set to its arithmetic.

    Raises:
        ValueError: the kernel requested cannot do the case.

    """
    from meprop_bench.measure.arithmetic import adopt

    adopt(case.dtype)
    module = WORKLOADS[case.workload].module or case.workload
    prepared: Prepared = import_module(f"{__name__}.{module}").setup(case)
    return prepared
