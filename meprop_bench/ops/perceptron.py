"""Loss and gradients of a perceptron as straight code: no graph is recorded, and no engine runs.

    x_0 = x                                    (B, n_0)
    z_l = x_{l-1} W_lᵀ + b_l,  x_l = f(z_l)    (B, n_l), l = 1 ... L; the logits z_L have no f behind them
    loss = mean_e -log softmax(z_L)[e, y_e]    over the examples that have a label

    dz_L = (softmax(z_L) - onehot(y)) / B
    dx_{l-1}, dW_l, db_l                       the layer's own backward pass of dz_l: dense, or sparsified by a kernel
    dz_l = f'(z_l) dx_l

Two ways compute it. By torch's operators: those that autograd would call, in its order, so that the numbers have the
same bits. In float32 on the CPU, with Numba: by compiled products (`ops.kernels.native.dense`), which round otherwise,
for the dense layers as for the sparsified ones, so that the two can be compared.

`nn.perceptron` makes it a module, and says what it is not for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Kernel, Request, compiled
from meprop_bench.ops.linear import linear_backward

__all__ = ["ACTIVATIONS", "Activation", "Layer", "Pass", "gradients", "run"]

_aten = torch.ops.aten
_nll_forward, _nll_backward = _aten.nll_loss_forward.default, _aten.nll_loss_backward.default
_softmax_backward = _aten._log_softmax_backward_data.default
_relu_backward = _aten.threshold_backward.grad_input
_tanh_backward, _sigmoid_backward = _aten.tanh_backward.grad_input, _aten.sigmoid_backward.grad_input
_gelu_backward = _aten.gelu_backward.grad_input

_FEW_LOGITS = 4096
"""Up to which compiled code computes the loss: torch's operators cost their launches, but have a vectorised exp."""
_MEAN, _IGNORED = 1, -100
"""What `F.cross_entropy` has by default: its reduction, and the label of examples that do not count."""


class Activation(NamedTuple):
    """An elementwise function f between layers, and its derivative."""

    apply: Callable[[Tensor], Tensor]
    """z -> f(z): in z's place if the derivative takes the output."""
    derive: Callable[[Tensor, Tensor], Tensor]
    """dx, z or f(z) -> dz, in dx's place."""
    of_output: bool


_RELU = Activation(torch.relu_, lambda dx, x: _relu_backward(dx, x, 0, grad_input=dx), of_output=True)
ACTIVATIONS = {
    "relu": _RELU,
    "tanh": Activation(torch.tanh_, lambda dx, x: _tanh_backward(dx, x, grad_input=dx), of_output=True),
    "sigmoid": Activation(torch.sigmoid_, lambda dx, x: _sigmoid_backward(dx, x, grad_input=dx), of_output=True),
    "gelu": Activation(F.gelu, lambda dx, z: _gelu_backward(dx, z, grad_input=dx), of_output=False),
    "gelu_tanh": Activation(
        lambda z: F.gelu(z, approximate="tanh"),
        lambda dx, z: _gelu_backward(dx, z, approximate="tanh", grad_input=dx),
        of_output=False,
    ),
}


class Layer(NamedTuple):
    """A linear layer, and what stands behind it; tensors that need no gradient themselves."""

    w: Tensor  # (n, m)
    b: Tensor | None  # (n,)
    activation: Activation | None
    needs: tuple[bool, bool, bool]  # gradients of its input, weight and bias
    sparse: tuple[int, str, bool, Kernel] | None  # k < n, selection, rows and kernel; None: dense


class Pass(NamedTuple):
    """A forward pass, and all that its gradients need."""

    layers: Sequence[Layer]
    inputs: list[Tensor]  # of each layer (B, m)
    kept: list[Tensor | None]  # what each layer's activation is derived from (B, n)
    loss: Tensor  # ()
    end: Tensor | tuple[Tensor, Tensor, Tensor]  # dz of the logits (B, C); or their log softmax, the labels, their number
    native: bool  # whether compiled products are used


def run(x: Tensor, y: Tensor, layers: Sequence[Layer]) -> Pass:
    """Compute the loss of x `(B, m)` and labels y, int64 `(B,)`; IndexError for a label that is no class.

    Tensors are plain memory (`ops.plain`), of one dtype and device.
    """
    dense = _compiled(x, "dense")
    native = dense is not None
    if native:
        x = x.contiguous()
    inputs, kept = [], []
    for w, b, activation, _, _ in layers:
        inputs.append(x)
        if dense is not None:
            relu = activation is _RELU
            x = z = dense.forward(x, w.contiguous(), b if b is None else b.contiguous(), relu=relu)
            if activation is not None and not relu:
                x = activation.apply(z)
        else:
            z = F.linear(x, w, b)
            x = z if activation is None else activation.apply(z)
        kept.append(None if activation is None else x if activation.of_output else z)
    if native and x.numel() <= _FEW_LOGITS:
        loss, end = _compiled(x, "cross_entropy").cross_entropy(x, y.contiguous())
    else:
        log_p = x.log_softmax(1)
        loss, counted = _nll_forward(log_p, y, None, _MEAN, _IGNORED)
        end = log_p, y, counted
    return Pass(layers, inputs, kept, loss, end, native)


def gradients(done: Pass) -> list[Gradients]:
    """Return the gradients of each layer's weight and bias, and input, where needed; what was kept is overwritten."""
    d = done.end if isinstance(done.end, Tensor) else _loss_gradient(done.loss, *done.end)
    found: list[Gradients] = [(None, None, None)] * len(done.layers)
    for i in range(len(done.layers) - 1, -1, -1):
        layer, x, saved = done.layers[i], done.inputs[i], done.kept[i]
        if layer.activation is not None and saved is not None:
            d = layer.activation.derive(d, saved)
        if layer.sparse is not None:
            *what, kernel = layer.sparse
            found[i] = linear_backward(d, x, layer.w, Request(*what, *layer.needs), kernel)
        elif done.native:
            found[i] = _compiled(x, "dense").backward(d.contiguous(), x, layer.w.contiguous(), layer.needs)
        else:
            found[i] = _dense(d, x, layer)
        dx, *_ = found[i]
        if dx is None:
            break
        d = dx
    return found


def _loss_gradient(loss: Tensor, log_p: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    d = _nll_backward(torch.ones_like(loss), log_p, y, None, _MEAN, _IGNORED, counted)
    found: Tensor = _softmax_backward(d, log_p, 1, log_p.dtype)
    return found


def _dense(dy: Tensor, x: Tensor, layer: Layer) -> Gradients:
    need_dx, need_dw, need_db = layer.needs
    return dy @ layer.w if need_dx else None, dy.t() @ x if need_dw else None, dy.sum(0) if need_db else None


def _compiled(x: Tensor, name: str) -> Any:
    """Return a module of compiled code, or None where it cannot be used, or not for a batch like this."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
        return None
    return compiled.load(f"meprop_bench.ops.kernels.native.{name}")
