"""nn: drop-in modules; `convert`, which puts them into any model, and `revert`, which takes them out again."""

from meprop_bench.nn.attention import MePropMultiheadAttention
from meprop_bench.nn.conv import MePropConv1d, MePropConv2d
from meprop_bench.nn.conversion import Conversion, record_calls
from meprop_bench.nn.convert import convert, convertible, kinds_and_k, revert
from meprop_bench.nn.linear import MePropLinear
from meprop_bench.nn.perceptron import FusedMLP
from meprop_bench.nn.recurrent import MePropGRU, MePropLSTM, MePropRNN

__all__ = [
    "Conversion", "FusedMLP", "MePropConv1d", "MePropConv2d", "MePropGRU", "MePropLSTM", "MePropLinear",
    "MePropMultiheadAttention", "MePropRNN", "convert", "convertible", "kinds_and_k", "record_calls", "revert",
]  # fmt: skip
