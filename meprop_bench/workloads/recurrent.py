"""One recurrent layer, x (T, B, m) -> y (T, B, n): torch's own LSTM or GRU, against the one that selects k neurons
of each gate.

    forward    y, as in training
    backward   the gradients of x and of all parameters for dy (T, B, n), normal, at every time step

Both sides share their parameters. How they are timed is in `linear`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from meprop_bench.measure.arithmetic import tensor_type
from meprop_bench.nn import MePropGRU, MePropLSTM
from meprop_bench.ops import resolve_k
from meprop_bench.ops.cost import recurrent_backward, recurrent_forward
from meprop_bench.ops.recurrent.function import choose
from meprop_bench.ops.recurrent.through_time import Weights
from meprop_bench.workloads import Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_layer
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.linear import LayerSides, draw

__all__ = ["setup"]

_LAYERS = {"lstm": (nn.LSTM, MePropLSTM, 4), "gru": (nn.GRU, MePropGRU, 3)}


def setup(case: Case, dense_side: DenseSide) -> Prepared:
    """Draw the numbers, build both layers, and return the two sides."""
    assert case.length is not None
    plain, sparsified, gates = _LAYERS[case.workload]
    shape = (case.in_features, case.out_features)
    k = resolve_k(case.k, case.out_features)
    kind = {"device": case.device, "dtype": tensor_type(case.dtype)}
    layer = plain(*shape, **kind)
    sparse_layer = sparsified(*shape, **kind, k=k, selection=case.selection, kernel=case.kernel)
    normal = draw(case)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(normal(*parameter.shape, scale=0.5 * case.out_features**-0.5))
    for name, parameter in layer.named_parameters():
        setattr(sparse_layer, name, parameter)
    x, dy = normal(case.length, case.batch, case.in_features), normal(case.length, case.batch, case.out_features)
    x.requires_grad_()

    def dense() -> Tensor:
        return cast(Tensor, layer(x)[0])

    def sparse() -> Tensor:
        return cast(Tensor, sparse_layer(x)[0])

    sizes = (case.length, case.batch, *shape, gates, dy.element_size())
    forward = recurrent_forward(*sizes)
    return Prepared(
        **LayerSides(case, dense_side, dense, sparse, (x, *layer.parameters()), dy).prepared(),
        check=lambda: check_layer(sparse_layer, x, dy, seed=case.seed),
        kernel="dense"
        if k >= case.out_features
        else choose(case.kernel, k, case.selection, cast(Weights, tuple(sparse_layer.parameters())), x)[1],
        k=k,
        costs={
            "forward": (forward, forward),
            "backward": (recurrent_backward(*sizes), recurrent_backward(*sizes, case.method, k)),
        },
    )
