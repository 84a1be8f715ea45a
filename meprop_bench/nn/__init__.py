"""nn: drop-in modules, and `convert`, which puts them into any model."""

from meprop_bench.nn.convert import convert
from meprop_bench.nn.linear import MePropLinear

__all__ = ["MePropLinear", "convert"]
