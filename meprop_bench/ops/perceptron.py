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
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops import kernels
from meprop_bench.ops.kernels import Gradients, Kernel, Request, check_supported, compiled, kept
from meprop_bench.ops.kernels.auto import Auto
from meprop_bench.ops.selection import check_selection, resolve_k

__all__ = ["ACTIVATIONS", "Activation", "Pass", "PerceptronLayer", "gradients", "layer_of", "run"]

_aten = torch.ops.aten
_nll_forward, _nll_backward = _aten.nll_loss_forward.default, _aten.nll_loss_backward.default
_softmax_backward = _aten._log_softmax_backward_data.default
_relu_backward = _aten.threshold_backward.grad_input
_tanh_backward, _sigmoid_backward = _aten.tanh_backward.grad_input, _aten.sigmoid_backward.grad_input
_gelu_backward = _aten.gelu_backward.grad_input

_FEW_LOGITS = 4096
"""Up to which compiled code computes the loss: torch's operators cost their launches, but have a vectorised exp."""
_NATIVE = "meprop_bench.ops.kernels.native"
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


class PerceptronLayer(NamedTuple):
    """A linear layer, and what stands behind it; tensors that need no gradient themselves."""

    w: Tensor  # (n, m)
    b: Tensor | None  # (n,)
    activation: Activation | None
    needs: tuple[bool, bool, bool]  # gradients of its input, weight and bias
    request: Request | None  # of the backward pass; None: dense
    kernel: Kernel | None  # which answers it
    record: kept.Record | None  # of the memory of a dense layer's weight gradient


def layer_of(
    w: Tensor,
    b: Tensor | None,
    activation: Activation | None,
    needs: tuple[bool, bool, bool],
    batch: int,
    method: tuple[float, str, bool, str] | None,
) -> PerceptronLayer:
    """Return a layer for a batch of so many examples: as its parameters w and b are now, whatever becomes of them.

    `method` is k, selection, rows and the kernel's name, or None for a dense layer. ValueError as `ops.linear` has it.
    """
    request, kernel, record = None, None, None
    n, m = w.shape
    if method is not None:
        k, selection, rows, name = method
        count = resolve_k(k, n)
        check_selection(selection)
        kernels.KERNELS.check(name)
        if count < n:
            request = Request(count, selection, rows, *needs)
            kernel = _chosen(name, batch, n, m, w.dtype, w.device.type, request)
            if needs[1] and not rows:
                kernel = kernel.keeping(w)
    if request is None and needs[1] and w.is_cpu and w.dtype == torch.float32:
        record = kept.record(w)
    values, bias = w.detach(), None if b is None else b.detach()
    if not values.is_contiguous():
        values = values.contiguous()
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    return PerceptronLayer(values, bias, activation, needs, request, kernel, record)


@lru_cache(maxsize=1024)
def _chosen(name: str, b: int, n: int, m: int, dtype: torch.dtype, device: str, request: Request) -> Kernel:
    """Return the kernel for a case; ValueError if it cannot do it."""
    kernel = kernels.get(name)
    if not b * m:
        return kernels.get("masked")
    one = torch.empty(1, dtype=dtype, device=device)
    dy, x, w = (one.expand(shape) for shape in ((b, n), (b, m), (n, m)))  # for their shapes
    if isinstance(kernel, Auto):
        return kernel.choose(dy, x, w, request)
    check_supported(kernel.name, kernel.unsupported(dy, x, w, request))
    return kernel


class Pass(NamedTuple):
    """A forward pass, and all that its gradients need."""

    layers: Sequence[PerceptronLayer]
    inputs: list[Tensor]  # of each layer (B, m)
    kept: list[Tensor | None]  # what each layer's activation is derived from (B, n)
    loss: Tensor  # ()
    end: Tensor | tuple[Tensor, Tensor, Tensor]  # dz of the logits (B, C); or their log softmax, labels and how many
    dense: Any  # the module of the compiled products, or None


def run(x: Tensor, y: Tensor, layers: Sequence[PerceptronLayer]) -> Pass:
    """Compute the loss of x `(B, m)` and labels y, int64 `(B,)`; IndexError for a label that is no class.

    Tensors are plain memory (`ops.plain`), of one dtype and device, and y is contiguous.
    """
    dense, cross_entropy = _compiled(x, layers)
    if dense is not None:
        x = x.contiguous()
    inputs, kept = [], []
    for w, b, activation, *_ in layers:
        inputs.append(x)
        if dense is None:
            z = F.linear(x, w, b)
            x = z if activation is None else activation.apply(z)
        else:
            relu = activation is _RELU
            x = z = dense.forward(x, w, b, relu=relu)
            if activation is not None and not relu:
                x = activation.apply(z)
        kept.append(None if activation is None else x if activation.of_output else z)
    end: Any
    if cross_entropy is not None and x.numel() <= _FEW_LOGITS:
        loss, end = cross_entropy.cross_entropy(x, y)
    else:
        log_p = x.log_softmax(1)
        loss, counted = _nll_forward(log_p, y, None, _MEAN, _IGNORED)
        end = log_p, y, counted
    return Pass(layers, inputs, kept, loss, end, dense)


def gradients(done: Pass) -> list[Gradients]:
    """Return the gradients of each layer's weight and bias, and input, where needed; what was kept is overwritten."""
    d = done.end if isinstance(done.end, Tensor) else _loss_gradient(done.loss, *done.end)
    found: list[Gradients] = [(None, None, None)] * len(done.layers)
    for i in range(len(done.layers) - 1, -1, -1):
        w, _, activation, needs, request, kernel, record = done.layers[i]
        x, saved = done.inputs[i], done.kept[i]
        if activation is not None and saved is not None:
            d = activation.derive(d, saved)
        if request is not None:
            assert kernel is not None
            found[i] = kernel.backward(d, x, w, request)
        elif done.dense is not None:
            found[i] = done.dense.backward(d.contiguous(), x, w, needs, record)
        else:
            need_dx, need_dw, need_db = needs
            found[i] = d @ w if need_dx else None, d.t() @ x if need_dw else None, d.sum(0) if need_db else None
        dx = found[i][0]
        if dx is None:
            break
        d = dx
    return found


def _loss_gradient(loss: Tensor, log_p: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    d = _nll_backward(torch.ones_like(loss), log_p, y, None, _MEAN, _IGNORED, counted)
    found: Tensor = _softmax_backward(d, log_p, 1, log_p.dtype)
    return found


def _compiled(x: Tensor, layers: Sequence[PerceptronLayer]) -> tuple[Any, Any]:
    """Return the modules of compiled products and cross entropy, or None for both where they cannot be used."""
    if (
        x.dtype != torch.float32
        or x.device.type != "cpu"
        or not (x.numel() and all(layer.w.numel() for layer in layers))
    ):
        return None, None
    return compiled.load(f"{_NATIVE}.dense"), compiled.load(f"{_NATIVE}.cross_entropy")
