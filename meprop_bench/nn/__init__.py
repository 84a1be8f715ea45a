"""nn: drop-in modules."""

from meprop_bench.nn.linear import MePropLinear

__all__ = ["MePropLinear"]
