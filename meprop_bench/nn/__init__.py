"""nn: drop-in modules, and `convert`, which puts them into any model."""

from meprop_bench.nn.conv import MePropConv1d, MePropConv2d
from meprop_bench.nn.convert import convert
from meprop_bench.nn.linear import MePropLinear
from meprop_bench.nn.recurrent import MePropGRU, MePropLSTM, MePropRNN

__all__ = ["MePropConv1d", "MePropConv2d", "MePropGRU", "MePropLSTM", "MePropLinear", "MePropRNN", "convert"]
