"""Ops: the mathematics of sparsified back propagation (selection, oracle, kernels) and the functions that use it."""

from meprop_bench.ops.linear import linear
from meprop_bench.ops.selection import SELECTIONS, check_k, resolve_k, select

__all__ = ["SELECTIONS", "check_k", "linear", "resolve_k", "select"]
