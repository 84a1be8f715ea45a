"""Registration of a convolution with autograd: see `ops.linear` for why there are several, one of them in C++ (`node`).

A convolution of one dimension is one of two dimensions with images of height 1, which is how torch computes it, too; an
example without a batch is a batch of one. What is saved is what torch saves: x and w themselves, as they were given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops import node
from meprop_bench.ops.autocast import autocast
from meprop_bench.ops.conv.auto import AutoConv
from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.conv.kernels import ConvKernel, check_kernel, check_selection, get
from meprop_bench.ops.graph import break_graph, is_plain, is_tracing, operators
from meprop_bench.ops.kernels import Gradients, Request, check_supported
from meprop_bench.ops.plain import memory, transformed, undisturbed, unwatched
from meprop_bench.ops.selection import resolve_k, survivors
from meprop_bench.ops.sparsified import sparsified

__all__ = ["conv1d", "conv2d", "conv_backward"]


def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    k: float,
    selection: str = "example",
    kernel: str = "auto",
) -> Tensor:
    """Apply `F.conv2d`, with a backward pass through k positions of each map.

    Args:
        x: images, `(B, G C, H, W)`, or one, `(G C, H, W)`.
        w: weight, `(N, C, kh, kw)`.
        b: bias, `(N,)`; its gradient stays full.
        stride, padding, dilation, groups: as for `F.conv2d`.
        k: positions selected in each map of each example: an int >= 1, or a ratio of them in (0, 1]. All of them is
            exactly the dense layer.
        selection: "example", the k greatest |dy| of a map, or "random", k positions of it drawn without replacement.
        kernel: a name in `meprop_bench.ops.conv.KERNELS`. Double backward, `torch.func` and tensors that are
            not plain memory (see `meprop_bench.ops.plain`) always take "masked".

    Raises:
        ValueError: for a k, selection or kernel that does not exist, a k larger than a map (when gradients are
            recorded), or a kernel that does not support this case.

    """
    if not torch.compiler.is_compiling():
        y: Tensor | None = _node.call(x, w, b, stride, padding, dilation, groups, k, selection, kernel)
        if y is not None:
            return y
    if is_tracing():
        return F.conv2d(x, w, b, stride, padding, dilation, groups)
    return _conv(x, w, b, _given(stride, padding, dilation, groups, w.shape[2:]), k, selection, kernel)


def conv1d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    k: float,
    selection: str = "example",
    kernel: str = "auto",
) -> Tensor:
    """Apply `F.conv1d` to x `(B, G C, L)` or `(G C, L)` with w `(N, C, kw)`; else as `conv2d`."""
    if not torch.compiler.is_compiling():
        y: Tensor | None = _node.call(x, w, b, stride, padding, dilation, groups, k, selection, kernel)
        if y is not None:
            return y
    if is_tracing() or w.dim() != 3 or x.dim() not in (2, 3):
        return F.conv1d(x, w, b, stride, padding, dilation, groups)  # which raises for such dimensions
    geometry = _given(stride, padding, dilation, groups, w.shape[2:])
    return _conv(x, w, b, geometry, k, selection, kernel)


_Given = tuple[Geometry, tuple[int, ...]]
"""The geometry, and what x is padded with before: (left, right, top, bottom)."""


def _given(
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str,
    dilation: int | tuple[int, ...],
    groups: int,
    taps: tuple[int, ...],
) -> _Given:
    """Bring the arguments into the form for two dimensions."""
    stride, dilation = _pair("stride", stride, len(taps), 1), _pair("dilation", dilation, len(taps), 1)
    if not isinstance(padding, str):
        return Geometry(stride, _pair("padding", padding, len(taps), 0), dilation, groups), ()
    if padding not in ("valid", "same"):
        raise ValueError(f"padding must be 'valid', 'same' or numbers, not {padding!r}")
    if padding == "valid":
        return Geometry(stride, (0, 0), dilation, groups), ()
    if stride != (1, 1):
        raise ValueError("padding='same' does not go with a stride: give the padding in numbers")
    total = [d * (tap - 1) for d, tap in zip(dilation, (1, *taps)[-2:], strict=True)]
    more = (0, total[1] % 2, 0, total[0] % 2)  # an odd number is larger by one at the right and at the bottom
    return Geometry(stride, (total[0] // 2, total[1] // 2), dilation, groups), more if any(more) else ()


def _pair(name: str, value: int | tuple[int, ...], dimensions: int, least: int) -> tuple[int, int]:
    """Return the value for height and width; a single dimension is the width."""
    values = (value,) * dimensions if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= dimensions
    if len(values) != dimensions or min(values) < least:
        raise ValueError(f"{name} must be one or {dimensions} integers >= {least}, not {value!r}")
    return (1 - (name == "padding"), *values)[-2:]  # type: ignore[return-value]


def _conv(x: Tensor, w: Tensor, b: Tensor | None, given: _Given, k: float, selection: str, kernel: str) -> Tensor:
    check_selection(selection)
    check_kernel(kernel)
    geometry, more = given
    if more:
        x = F.pad(x, more)
    size, taps = ((1, *t.shape[2 - w.dim() :])[-2:] for t in (x, w))
    positions = geometry.output(size[0], size[1], (taps[0], taps[1]))
    count = resolve_k(k, positions[0] * positions[1])
    if not torch.is_grad_enabled() or min(positions) < 1 or x.dim() not in (w.dim() - 1, w.dim()):
        return _torchs(x, w, b, geometry)  # which raises where the image is too small, or not an image
    if count >= positions[0] * positions[1]:
        if count > positions[0] * positions[1]:
            raise ValueError(
                f"k = {k} is more than the {positions[0]} x {positions[1]} positions of a map: give a ratio in (0, 1]"
            )
        return _torchs(x, w, b, geometry)
    if x.dim() < w.dim():
        return _recorded(x.unsqueeze(0), w, b, geometry, count, selection, kernel).squeeze(0)
    return _recorded(x, w, b, geometry, count, selection, kernel)


def _torchs(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """Apply torch's convolution, of one dimension or two."""
    if w.dim() == 4:
        return F.conv2d(x, w, b, *geometry)
    stride, padding, dilation, groups = geometry
    return F.conv1d(x, w, b, stride[1:], padding[1:], dilation[1:], groups)


def _recorded(
    x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, k: int, selection: str, kernel: str
) -> Tensor:
    """Choose the registration, for x with a batch."""
    compiling = torch.compiler.is_compiling()
    if not compiling and (transformed() or not (memory.plain(x) and memory.plain(w))):
        bias = None if b is None else b.reshape(-1, *(1,) * (w.dim() - 2))
        y = _torchs(x, w, None if b is None else b.detach(), geometry)
        return sparsified(lambda dy: (survivors(dy, k, selection, w.dim() - 2),), y, bias)[0]
    if torch._C._is_any_autocast_enabled():
        x, w, b = autocast(x, w, b)
    if not compiling:
        return _apply(x, w, b, (geometry, k, selection, get(kernel)))
    if not is_plain(x, w):
        return cast(Tensor, break_graph(_recorded, x, w, b, geometry, k, selection, kernel))
    images, filters = _in_two_dimensions(w.dim(), x, w)
    y = cast(Tensor, _conv_op(images, filters, b, *geometry, k, selection, kernel))
    return y if w.dim() == 4 else y.squeeze(-2)


def _in_two_dimensions(dimensions: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Give images of one dimension, whose weight has 3, a height of 1."""
    return tensors if dimensions == 4 else tuple(t.unsqueeze(-2) for t in tensors)


def conv_backward(
    dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request, kernel: ConvKernel
) -> Gradients:
    """Return the gradients of x `(B, G C, H, W)`, w `(N, C, kh, kw)` and the bias for dy `(B, N, OH, OW)`."""
    if dy.layout is not torch.strided:
        dy = dy.to_dense()
    if not (x.numel() and dy.numel()):
        kernel = get("masked")
    return kernel.backward(dy, x, w, geometry, request)


def _check_supported(kernel: ConvKernel, x: Tensor, w: Tensor, geometry: Geometry) -> None:
    """Raise ValueError if the kernel cannot do this."""
    if x.numel():
        check_supported(kernel.name, kernel.unsupported(x, w, geometry))


class _Conv(torch.autograd.Function):
    """Eager registration."""

    @staticmethod
    def forward(ctx, x, w, b, call):  # type: ignore[no-untyped-def]
        geometry, k, selection, kernel = call
        images, filters = _in_two_dimensions(w.dim(), x, w)
        _check_supported(kernel, images, filters, geometry)
        ctx.save_for_backward(x, w)
        ctx.set_materialize_grads(False)
        ctx.call = geometry, Request(k, selection, False, *ctx.needs_input_grad[:3]), kernel, (x.shape, w.shape)
        return F.conv2d(x, w, b, *geometry) if w.dim() == 4 else _torchs(x, w, b, geometry)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        if dy is None:
            return None, None, None, None
        *call, shapes = ctx.call
        x, w = ctx.saved_tensors
        return *_backward_of_any(dy, x, w, *call, as_saved=shapes == (x.shape, w.shape)), None


def _backward_of_any(
    dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request, kernel: ConvKernel, *, as_saved: bool
) -> Gradients:
    # Gradients are recorded under create_graph=True alone: then every step has to be differentiable itself. What was
    # saved may have got other data, or come from a hook.
    if torch.is_grad_enabled() or not (unwatched() and memory.plain(dy, x, w) and as_saved):
        kernel = get("masked")
    dimensions = w.dim()
    dy, x, w = _in_two_dimensions(dimensions, dy, x, w)
    dx, dw, db = undisturbed(conv_backward, dy, x, w, geometry, request, kernel)
    if dimensions == 3:
        dx, dw = (d if d is None else d.squeeze(-2) for d in (dx, dw))
    return dx, dw, db


# `Function.apply` serves torch.func as well, whose cases never come here; without it the call takes half the overhead.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Conv).apply


def _plan(
    threads: int, x: tuple[int, ...], w: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: int,
    k: float, name: str, need_dx: bool, need_dw: bool,
) -> tuple[int, int, int, bytes, bytes, bytes, bytes] | None:  # fmt: skip
    """Tell the C++ node what to do with a shape, x (B, G C, H, W) and w (N, C, kh, kw): see `node.load`."""
    geometry = Geometry(stride, padding, dilation, groups)
    oh, ow = geometry.output(x[2], x[3], (w[2], w[3]))
    if min(oh, ow) < 1 or (count := resolve_k(k, oh * ow)) >= oh * ow:
        return None
    shape = torch.empty(1)
    images, filters, dy = shape.expand(x), shape.expand(w), shape.expand(x[0], w[0], oh, ow)
    kernel = get(name)
    if isinstance(kernel, AutoConv):
        kernel = kernel.choose(dy, images, filters, geometry, Request(count, "example", False, need_dx, need_dw, True))
    # What the kernel cannot do is taken by another in Python, or an error says why not.
    if kernel.name != "native" or kernel.unsupported(images, filters, geometry) is not None:
        return None
    from meprop_bench.ops.conv import native

    case = native.case(images.shape, filters.shape, geometry, count, threads)
    tables = (case.words, case.places, case.slots, case.patches)
    words, places, slots, patches = (table.tobytes() for table in tables)
    return count, case.shares, case.scratch, words, places, slots, patches


def _backward_beside(
    dy: Tensor, x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, shapes: Any, *request: Any
) -> Gradients:
    """Compute what the C++ node leaves to Python."""
    geometry, (k, *needs) = Geometry(stride, padding, dilation, groups), request
    found = tuple(t.shape for t in _in_two_dimensions(w.dim(), x, w))
    whole = Request(k, "example", False, *needs)
    return _backward_of_any(dy, x, w, geometry, whole, get("native"), as_saved=found == shapes)


_node = node.Registration("conv", _plan, _backward_beside)


def _geometry(stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def _check_in_graph(x: Tensor, w: Tensor, y: Tensor, *call: Any) -> None:
    _check_supported(get(call[-1]), x, w, _geometry(*call[:4]))


def _backward_in_graph(dy: Tensor, x: Tensor, w: Tensor, *call: Any) -> Gradients:
    *arguments, k, selection, kernel, need = call
    return conv_backward(dy, x, w, _geometry(*arguments), Request(k, selection, False, *need), get(kernel))


_conv_op, _conv_backward_op = operators(
    "conv2d",
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, SymInt k, str selection, str kernel",
    lambda x, w, b, *call: F.conv2d(x, w, b, *call[:4]),
    _check_in_graph,
    _backward_in_graph,
    lambda dy, x, w: (x.shape, w.shape, w.shape[:1]),
    saves_both=True,
)
