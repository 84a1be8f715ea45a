"""Optim: what `torch.optim` lacks, an Adam and an AdamW that move only the rows that have a gradient."""

from meprop_bench.optim.adam import RowAdam, RowAdamW

__all__ = ["RowAdam", "RowAdamW"]
