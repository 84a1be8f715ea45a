"""Is the gradient right? Checked in the process that is about to be timed, on the very shapes, by the very layer.

Every kernel must return exactly

    dx = S(dy) W        dW = S(dy)ᵀ x        db = Σ dy

and here it is computed in the obvious way, by dense products of the masked dy: the oracle of the tests
(`ops.reference`) goes entry by entry, which takes hours at the papers' sizes; this costs one dense backward pass, in
float32 where the layer's own arithmetic is coarser: a library may add up long sums of 16-bit numbers in 16 bits. Two
correct kernels may still differ, in rounding (hence tolerances) and in S where two entries tie (hence a *gap*: before
the comparison the entries that the oracle selects are doubled, so that whoever selects otherwise is wrong and not
unlucky).

A dy that a model made itself has zeros: behind a ReLU that is dead for a whole example, all of a row. What a kernel
does with such rows does not show in any gradient, so where zeros are selected, numbers are put in their place and all
is compared once more.

Two more things have gone wrong in other implementations, silently: k >= n must be the dense gradient, and a NaN in dy
must be seen in the result.

What a recurrent layer or attention selects follows from what it computes itself, and rounding may exchange two of the
smallest entries. So what its cells, or its projections, got and selected is recorded and checked by itself, and the
rest for just that selection.

What runs is a *twin* of the layer: see `twin`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.measure.arithmetic import adopted, is_tf32
from meprop_bench.nn import MePropConv2d, MePropLinear
from meprop_bench.nn.transformers import TransposedLinear
from meprop_bench.ops import linear
from meprop_bench.ops.kernels import hybrid_rows
from meprop_bench.ops.selection import resolve_k, select
from meprop_bench.results.schema import PASSED
from meprop_bench.workloads.selected import Selected, recording
from meprop_bench.workloads.twin import Gradients, gradients, twin

__all__ = ["TOLERANCES", "check_conv", "check_layer", "check_linear", "compare", "losses_differ", "with_gap"]

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest |got - oracle| / |oracle|, in Euclidean norm over a whole gradient; the oracle is rounded to the dtype."""

_TF32 = 2e-3
"""The same where float32 products are rounded to TF32: its mantissa is float16's."""

_THROUGH_TIME = 3.0
"""Times the tolerance for a recurrent layer, whose forward pass rounds at each step, and the reference's does not. Of
1800 layers in training, T = 12, two layers and directions, the worst were 4e-7, 2.1e-2 and 2.7e-3 off in float32,
bfloat16 and float16; a wrong gradient is off by tenths."""

_NAMES = ("dx", "dw", "db")

# Examples of the batch for checks that do not need all of it.
_FEW = 8


def check_layer(layer: nn.Module, x: Any, dy: Tensor, *, seed: int, keywords: Mapping[str, Any] | None = None) -> str:
    """Check one converted layer of any model on what it got in a training step.

    The layer stays as it was, and so does the state of the random generators. What it is trained with decides what is
    compared: a frozen parameter has no gradient. Under autocast dy has the lower precision and x and the weights may
    have not; the check is then of the arithmetic of dy, to which they are cast as autocast does. dy is scaled by a
    power of two, so that neither its squares nor its double leave the range of the dtype.

    Args:
        layer: an instance of `nn.sparsified.Sparsified`.
        x: its input: a tensor as the layer takes it, with any leading dimensions; a `PackedSequence`; or a tuple of all
            positional arguments of its `forward`, such as input and initial state, or query, key and value.
        dy: the gradient that reached its first output, in the shape of that, or of the data of a packed one; zeros if
            only another was used, such as the final state.
        seed: for the random selections, which both sides then draw alike, and for what is put in the place of zeros.
        keywords: what else its `forward` got, by name.

    Returns:
        "passed", or one line that says what is wrong.

    """
    if not dy.numel():
        return "its batch is empty: there is nothing to check"
    dy = dy.detach()
    if not dy.isfinite().all():
        return "the gradient that reached its output has a NaN or an infinity: there is nothing to compare"
    dy = torch.ldexp(dy, torch.tensor(-math.frexp(dy.abs().max().item())[1]))
    kinds = {nn.RNNBase: _check_recurrent, nn.MultiheadAttention: _check_attention}
    check = next((check for kind, check in kinds.items() if isinstance(layer, kind)), _check_product)
    generators = range(torch.cuda.device_count()) if dy.is_cuda else ()
    with (
        torch.random.fork_rng(generators, device_type="cuda"),
        torch.enable_grad(),
        torch.autocast(dy.device.type, enabled=False),
    ):
        if check is not _check_product and not dy.any():
            torch.manual_seed(seed)
            dy = torch.randn_like(dy)
        return check(layer, x, keywords or {}, dy, seed)


def check_linear(
    x: Tensor, w: Tensor, b: Tensor, dy: Tensor, *, k: int, selection: str, sparse: bool, kernel: str, seed: int
) -> str:
    """Check `ops.linear` for x `(B, m)`, w `(n, m)`, b `(n,)` and dy `(B, n)`: see `check_layer`."""
    layer = _linear(w, b, k=k, selection=selection, sparse=sparse, kernel=kernel)
    return check_layer(layer, x, dy, seed=seed)


def check_conv(x: Tensor, w: Tensor, b: Tensor, dy: Tensor, *, k: int, selection: str, kernel: str, seed: int) -> str:
    """Check `ops.conv.conv2d` without padding for x `(B, m, H, W)`, w `(n, m, f, f)`, b `(n,)` and dy
    `(B, n, OH, OW)`: see `check_layer`.
    """
    n, m, *size = w.shape
    layer = MePropConv2d(m, n, tuple(size), device="meta", k=k, selection=selection, kernel=kernel)
    layer.weight, layer.bias = nn.Parameter(w), nn.Parameter(b)
    return check_layer(layer, x, dy, seed=seed)


def with_gap(dy: Tensor, k: int, selection: str) -> Tensor:
    """Return dy `(B, n)` with its greatest k entries doubled, so that no rounding can change which they are."""
    idx = select(dy, k, "example" if selection == "random" else selection.replace("random-", ""))
    each = idx if idx.dim() == 2 else idx.expand(dy.shape[0], -1)  # (B, k)
    return dy.scatter(1, each, 2 * dy.gather(1, each))


def _versions(dy: Tensor, k: int, selection: str, seed: int) -> Iterator[Tensor]:
    """Yield dy `(B, n)` with a gap and, if zeros are among what is selected, once more with numbers in their place."""
    yield with_gap(dy, k, selection)
    some = dy != 0
    counted = some.any(0).sum() if "unified" in selection else some.sum(1).min()
    if counted < k:
        torch.manual_seed(seed)
        yield with_gap(torch.where(some, dy, torch.randn_like(dy)), k, selection)


def _check_product(layer: Any, inputs: Any, keywords: Any, dy: Tensor, seed: int) -> str:
    """Check a linear layer, whose k is of the outputs, or a convolution, whose k is of the positions of a map."""
    (x,) = (*inputs, *keywords.values()) if isinstance(inputs, tuple) else (inputs,)
    own, plain = (twin(layer, dy.dtype, plain=plain) for plain in (False, True))
    linear = not isinstance(layer, nn.modules.conv._ConvNd)
    among = 1 if linear else len(layer.kernel_size)
    n = math.prod(dy.shape[-among:])
    k, fan_in = resolve_k(layer.k, n), own.weight.numel() // (n if linear else len(own.weight))
    if k < n:
        for rows in _versions(dy.reshape(-1, n), k, layer.selection, seed):
            given = torch.empty_like(dy).copy_(rows.view(dy.shape))  # in the memory format that dy has
            got = gradients(own, x, given, seed)
            torch.manual_seed(seed)
            idx = select(rows, k, layer.selection)
            true = _by_definition(own, x, rows, idx) if linear else _by_masking(layer, x, given, rows, idx)
            kept = rows.gather(1, idx if idx.dim() == 2 else idx.expand(len(rows), -1))
            if reason := _compared(got, true, _by_chance(rows, kept, x.to(dy.dtype), fan_in)):
                return reason
    batched = linear or dy.dim() > 1 + among
    few_x, few_dy = (_few(tensor, linear) if batched else tensor for tensor in (x, dy))
    own.k = 1.0
    if reason := _compared(gradients(own, few_x, few_dy, seed), gradients(plain, few_x, few_dy, seed)):
        return f"k = n is not the dense gradient: {reason}"
    own.k = layer.k
    shown = gradients(plain, few_x, _poisoned(few_dy, among), seed)
    return _hidden_nan(gradients(own, x, _poisoned(dy, among), seed), shown)


def _few(tensor: Tensor, linear: bool) -> Tensor:
    """Return the last examples, of a linear layer as a matrix."""
    return (tensor.reshape(-1, tensor.shape[-1]) if linear else tensor)[-_FEW:]


def _check_recurrent(layer: Any, inputs: Any, keywords: Any, dy: Tensor, seed: int) -> str:
    """Check what each cell selects, then the gradients against those in float64 for the same selection."""
    own, plain = (twin(layer, dy.dtype, plain=plain) for plain in (False, True))
    k = resolve_k(layer.k, layer.hidden_size)
    if k < layer.hidden_size:
        cells: list[Selected] = []
        own._cell = recording(cells)
        got = gradients(own, inputs, dy, seed, keywords)
        if not cells:
            return "it gives the dense gradient"
        for cell in cells:
            if reason := cell.fault(k, layer.selection, layer.hidden_size):
                return reason
        exact, following = twin(layer, torch.float64), iter(cells)
        exact._cell = lambda *args, **how: next(following).run(*args, **how)
        true = gradients(exact, inputs, dy, seed, keywords)
        if reason := _compared(got, {name: d.to(dy.dtype) for name, d in true.items()}, times=_THROUGH_TIME):
            return reason
        del own._cell
    own.k = 1.0
    dense = gradients(plain, inputs, dy, seed, keywords)
    if reason := _compared(gradients(own, inputs, dy, seed, keywords), dense):
        return f"k = n is not the dense gradient: {reason}"
    own.k = layer.k
    poisoned = dy.clone()
    poisoned[..., 0] = poisoned[..., -1] = math.nan  # one neuron of each direction
    shown = gradients(plain, inputs, poisoned, seed, keywords)
    return _hidden_nan(gradients(own, inputs, poisoned, seed, keywords), shown)


def _check_attention(layer: Any, inputs: Any, keywords: Any, dy: Tensor, seed: int) -> str:
    """Check each projection on what reaches it within the layer, and the layer around them against torch's."""
    own, plain = (twin(layer, dy.dtype, plain=plain) for plain in (False, True))
    if resolve_k(layer.k, layer.embed_dim) < layer.embed_dim:
        calls: list[tuple[MePropLinear, Tensor, Tensor]] = []

        def project(x: Tensor, w: Tensor, b: Tensor | None, **method: Any) -> Tensor:
            y = linear(x, w, b, **method)
            if y.requires_grad:
                y.retain_grad()
            calls.append((_linear(w, b, **method), x.detach(), y))
            return y

        own._project = project
        gradients(own, inputs, dy, seed, keywords)
        if not calls:
            return "it gives the dense gradient"
        for number, (each, x, y) in enumerate(calls, 1):
            if y.grad is not None and (found := _check_product(each, x, {}, y.grad, seed)) != PASSED:
                return f"projection {number} of {len(calls)}: {found}"
        own._project = lambda x, w, b, **_: F.linear(x, w, b)
        dense = gradients(plain, inputs, dy, seed, keywords)
        if reason := _compared(gradients(own, inputs, dy, seed, keywords), dense):
            return f"with dense projections it is not torch's: {reason}"
        del own._project
    shown = gradients(plain, inputs, _poisoned(dy, 1), seed, keywords)
    return _hidden_nan(gradients(own, inputs, _poisoned(dy, 1), seed, keywords), shown)


def _linear(w: Tensor, b: Tensor | None, **method: Any) -> MePropLinear:
    """Return a layer of these numbers, which are trained if they require gradients."""
    layer: Any = MePropLinear(w.shape[1], w.shape[0], b is not None, device="meta", **method)
    layer.weight = nn.Parameter(w.detach(), w.requires_grad)
    layer.bias = b if b is None else nn.Parameter(b.detach(), b.requires_grad)
    return cast(MePropLinear, layer)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def _by_definition(layer: Any, x: Tensor, dy: Tensor, idx: Tensor) -> Gradients:
    """Return the gradients of a linear layer for dy `(B, n)`, of which idx is selected."""
    dtype, transposed, rows = dy.dtype, isinstance(layer, TransposedLinear), getattr(layer, "sparse", False)
    w = layer.weight.t() if transposed else layer.weight
    matrix = x.to(dtype).reshape(-1, x.shape[-1])
    x_, w, dy = (tensor.to(_wide(dtype)) for tensor in (matrix, w, dy))
    each = idx if idx.dim() == 2 else idx.expand(dy.shape[0], -1)  # (B, k)
    sparse_dy = torch.zeros_like(dy).scatter_(1, each, dy.gather(1, each))  # S(dy), (B, n)
    some = torch.unique(idx) if rows else slice(None)
    with adopted("float32"):
        dx, dw, db = ((sparse_dy @ w).to(dtype), (sparse_dy[:, some].t() @ x_).to(dtype), dy.sum(0).to(dtype))
    if isinstance(some, Tensor):
        dw = hybrid_rows(some, dw, w.shape[0])
    return {"dx": dx.view(x.shape), "dw": dw.t() if transposed else dw, "db": db}


def _by_masking(layer: Any, x: Tensor, dy: Tensor, rows: Tensor, idx: Tensor) -> Gradients:
    """Return the gradients of torch's layer for S(dy), and of its bias for dy; rows `(B N, P)` are dy, of which idx is
    selected.
    """
    plain = twin(layer, _wide(dy.dtype), plain=True)
    kept = torch.zeros_like(rows).scatter_(1, idx, rows.gather(1, idx)).view(dy.shape)
    with adopted("float32"):
        found = gradients(plain, x.to(dy.dtype), kept, 0)
    found |= {"db": dy.to(_wide(dy.dtype)).transpose(0, -1 - len(layer.kernel_size)).flatten(1).sum(1)}
    return {name: d.to(dy.dtype) for name, d in found.items()}


def _by_chance(dy: Tensor, kept: Tensor, x: Tensor, fan_in: int) -> dict[str, float]:
    """Return a tenth of the size that sums of such numbers have whose signs are chance.

    Before a normalization Σ dy is zero but for rounding, and so is Σ dy xᵀ where all of x is alike. Rounding shows by
    the size of what is summed; a tenth of that changes nothing for sums that do not vanish.
    """
    size, spread, chosen = (torch.linalg.vector_norm(t, dtype=_wide(dy.dtype)).item() for t in (dy, x, kept))
    return {"db": 0.1 * size, "dw": 0.1 * chosen * spread * math.sqrt(fan_in / x.numel())}


def _compared(
    got: Gradients, true: Gradients, least: Mapping[str, float] = MappingProxyType({}), times: float = 1.0
) -> str | None:
    return compare([*got.values()], [true[name] for name in got], tuple(got), least, times)


def compare(
    got: list[Tensor],
    true: list[Tensor],
    names: Sequence[str] = _NAMES,
    least: Mapping[str, float] = MappingProxyType({}),
    times: float = 1.0,
) -> str | None:
    """Say which gradient is wrong, relative to the size of what is true, or None if none is.

    The tolerance is that of their arithmetic, a number of `times`.
    `least` is a size for those that may be zero but for rounding. What they should be is overwritten, as another 256 MB
    would cost more than comparing.
    """
    for name, mine, expected in zip(names, got, true, strict=True):
        error, most = _relative_error(mine, expected, least.get(name, 0.0)), times * _tolerance(mine)
        if not error <= most:  # NaN is wrong, too
            return f"{name} is off by {error:.1e}, relative; at most {most:.0e} is rounding"
    return None


def losses_differ(dense: float, sparse: float, most: float = 1e-5) -> str | None:
    """Say that two losses of the same weights and batch differ by more than the order of additions; `most` is relative.

    None where they do not.
    """
    if abs(dense - sparse) <= most * abs(dense):
        return None
    return f"the first losses differ: {dense:.7g} and {sparse:.7g}"


def _tolerance(of: Tensor) -> float:
    return _TF32 if of.dtype == torch.float32 and is_tf32() else TOLERANCES[of.dtype]


def _relative_error(got: Tensor, true: Tensor, least: float = 0.0) -> float:
    if got.is_sparse and true.is_sparse:
        got, true = got.coalesce(), true.coalesce()
        if torch.equal(got.indices(), true.indices()):
            got, true = got.values(), true.values()
    # Rows that one side left out and the other filled with zeros (a ReLU's dy has them) are equal all the same.
    got, true = (each.to_dense() if each.is_sparse else each for each in (got, true))
    wide = torch.float64 if got.dtype == torch.float64 else torch.float32
    size = max(torch.linalg.vector_norm(true, dtype=wide).item(), least)
    distance = torch.linalg.vector_norm(true.sub_(got), dtype=wide).item()
    return float(distance / size if size else distance)


def _poisoned(dy: Tensor, among: int) -> Tensor:
    """Return dy with a NaN in the last example: of a map in the middle, as an edge may see nothing but padding."""
    poisoned = dy.clone()
    poisoned[(-1,) * (dy.dim() - among) + tuple(size // 2 for size in dy.shape[-among:])] = math.nan
    return poisoned


def _hidden_nan(got: Gradients, shown: Gradients) -> str:
    """Return "passed" if a NaN shows in all gradients in which it is shown, or in which it is not."""
    dense = {name: each.coalesce().values() if each.is_sparse else each for name, each in got.items()}
    # The sum of a tensor is NaN if an entry is: no mask of its size.
    hidden = [name for name, each in dense.items() if shown[name].isnan().any() and not torch.isnan(each.sum())]
    return f"a NaN in dy does not show in {', '.join(hidden)}" if hidden else PASSED
