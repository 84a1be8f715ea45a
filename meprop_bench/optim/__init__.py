"""Optim: what `torch.optim` lacks, optimizers that move only the rows that have a gradient, in compiled code.

`RowAdagrad` and `RowSGD` are the same algorithms as torch's, `RowAdam` and `RowAdamW` are others: see their modules.
`clip_grad_norm_` clips rows and dense gradients together.
"""

from meprop_bench.optim.adagrad import RowAdagrad
from meprop_bench.optim.adam import RowAdam, RowAdamW
from meprop_bench.optim.clipping import clip_grad_norm_
from meprop_bench.optim.rows import RowOptimizer
from meprop_bench.optim.sgd import RowSGD

__all__ = ["RowAdagrad", "RowAdam", "RowAdamW", "RowOptimizer", "RowSGD", "clip_grad_norm_"]
