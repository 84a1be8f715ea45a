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

A layer is checked by a *twin*, which shares its numbers and has nothing else of it: no hooks, no counts, no `.grad`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from meprop_bench.measure.arithmetic import adopted, is_tf32
from meprop_bench.nn import MePropConv2d, MePropLinear
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops.kernels import hybrid_rows
from meprop_bench.ops.selection import resolve_k, select
from meprop_bench.results.schema import PASSED

__all__ = ["TOLERANCES", "check_conv", "check_layer", "check_linear", "compare", "with_gap"]

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest |got - oracle| / |oracle|, in Euclidean norm over a whole gradient; the oracle is rounded to the dtype."""

_TF32 = 2e-3
"""The same where float32 products are rounded to TF32: its mantissa is float16's."""

_EXCHANGED = 1e-2
"""Tolerance where the selection follows from what a layer computes itself: rounding may exchange two of the smallest
entries selected, which changes a gradient by about this; a wrong gradient is off by tenths."""

_NAMES = ("dx", "dw", "db")

# Examples of the batch for checks that do not need all of it.
_FEW = 8

_Gradients = dict[str, Tensor]
"""By name: "dx", "dw" and "db", or for a layer with other parameters "dx" and the name of each."""


def check_layer(layer: nn.Module, x: Any, dy: Tensor, *, seed: int) -> str:
    """Check one converted layer of any model on what it got in a training step.

    The layer stays as it was, and so does the state of the random generators. What it is trained with decides what is
    compared: a frozen parameter has no gradient. Under autocast dy has the lower precision and x and the weights may
    have not; the check is then of the arithmetic of dy, to which they are cast as autocast does. dy is scaled by a
    power of two, so that neither its squares nor its double leave the range of the dtype.

    Args:
        layer: an instance of `nn.sparsified.Sparsified`.
        x: its input: a tensor as the layer takes it, with any leading dimensions; a `PackedSequence`; or a tuple of
            arguments of its `forward`, such as input and initial state.
        dy: the gradient that reached its output, in the shape of that, or of the data of a packed one; of a recurrent
            layer the outputs of all time steps, zeros if only the final state was used.
        seed: for the random selections, which both sides then draw alike, and for what is put in the place of zeros.

    Returns:
        "passed", or one line that says what is wrong.

    """
    if not dy.numel():
        return "its batch is empty: there is nothing to check"
    dy = dy.detach()
    if not dy.isfinite().all():
        return "the gradient that reached its output has a NaN or an infinity: there is nothing to compare"
    dy = torch.ldexp(dy, torch.tensor(-math.frexp(dy.abs().max().item())[1]))
    check: Callable[..., str] = _check_recurrent if isinstance(layer, nn.RNNBase) else _check_product
    generators = range(torch.cuda.device_count()) if dy.is_cuda else ()
    with (
        torch.random.fork_rng(generators, device_type="cuda"),
        torch.enable_grad(),
        torch.autocast(dy.device.type, enabled=False),
    ):
        return check(layer, x, dy, seed)


def check_linear(
    x: Tensor, w: Tensor, b: Tensor, dy: Tensor, *, k: int, selection: str, sparse: bool, kernel: str, seed: int
) -> str:
    """Check `ops.linear` for x `(B, m)`, w `(n, m)`, b `(n,)` and dy `(B, n)`: see `check_layer`."""
    n, m = w.shape
    layer = MePropLinear(m, n, device="meta", k=k, selection=selection, sparse=sparse, kernel=kernel)
    layer.weight, layer.bias = nn.Parameter(w), nn.Parameter(b)
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


def _check_product(layer: Any, x: Any, dy: Tensor, seed: int) -> str:
    """Check a linear layer, whose k is of the outputs, or a convolution, whose k is of the positions of a map."""
    (x,) = x if isinstance(x, tuple) else (x,)
    own, plain = (_twin(layer, dy.dtype, plain=plain) for plain in (False, True))
    linear = isinstance(layer, nn.Linear)
    among = 1 if linear else len(layer.kernel_size)
    n = math.prod(dy.shape[-among:])
    k = resolve_k(layer.k, n)
    if k < n:
        for rows in _versions(dy.reshape(-1, n), k, layer.selection, seed):
            given = torch.empty_like(dy).copy_(rows.view(dy.shape))  # in the memory format that dy has
            got = _gradients(own, x, given, seed)
            torch.manual_seed(seed)
            idx = select(rows, k, layer.selection)
            true = _by_definition(own, x, rows, idx) if linear else _by_masking(layer, x, given, rows, idx)
            if reason := _compared(got, true):
                return reason
    batched = linear or dy.dim() > 1 + among
    few_x, few_dy = (_few(tensor, linear) if batched else tensor for tensor in (x, dy))
    own.k = 1.0
    dense = _gradients(plain, few_x, few_dy, seed)
    if reason := _compared(_gradients(own, few_x, few_dy, seed), dense):
        return f"k = n is not the dense gradient: {reason}"
    own.k = layer.k
    shown = [name for name, d in _gradients(plain, few_x, _poisoned(few_dy, among), seed).items() if d.isnan().any()]
    got = _gradients(own, x, _poisoned(dy, among), seed)
    return _hidden_nan({name: got[name] for name in shown})


def _few(tensor: Tensor, linear: bool) -> Tensor:
    """Return the last examples, of a linear layer as a matrix."""
    return (tensor.reshape(-1, tensor.shape[-1]) if linear else tensor)[-_FEW:]


def _check_recurrent(layer: Any, x: Any, dy: Tensor, seed: int) -> str:
    """Compare a layer with itself in float64 by the kernel "masked" and, with all neurons selected, with torch's."""
    own, whole, plain = (_twin(layer, dy.dtype, plain=plain) for plain in (False, False, True))
    exact = _twin(layer, torch.float64)
    exact.kernel = "masked"
    if not dy.any():
        torch.manual_seed(seed)
        dy = torch.randn_like(dy)
    got = _gradients(own, x, dy, seed)
    expected = {name: d.to(dy.dtype) for name, d in _gradients(exact, x, dy, seed).items()}
    if reason := _compared(got, expected, max(_EXCHANGED, _tolerance(dy))):
        return reason
    dense = _gradients(plain, x, dy, seed)
    if resolve_k(layer.k, layer.hidden_size) < layer.hidden_size and _is_dense(layer, x, dy, got, dense, seed):
        return "it gives the dense gradient"  # as it would in both precisions
    whole.k = 1.0
    if reason := _compared(_gradients(whole, x, dy, seed), dense):
        return f"k = n is not the dense gradient: {reason}"
    poisoned = dy.clone()
    poisoned[..., 0] = poisoned[..., -1] = math.nan  # one neuron of each direction
    return _hidden_nan(_gradients(own, x, poisoned, seed))


def _is_dense(layer: Any, x: Any, dy: Tensor, got: _Gradients, dense: _Gradients, seed: int) -> bool:
    """Whether nothing is left out: where all others are zero anyway (a ReLU, few neurons used), k of them are all."""
    if _compared(got, {name: d.clone() for name, d in dense.items()}):
        return False
    own, plain = (_twin(layer, dy.dtype, plain=plain) for plain in (False, True))
    own.k = 1
    torch.manual_seed(seed)
    dy = torch.randn_like(dy)
    return not _compared(_gradients(own, x, dy, seed), _gradients(plain, x, dy, seed))


def _twin(layer: Any, dtype: torch.dtype, *, plain: bool = False) -> Any:
    """Return a layer of this package, or torch's own, with the numbers of `layer` and nothing that was put on it.

    Weights that are computed (parametrized, pruned) are what they are now.
    """
    package = Sparsified.__module__.rpartition(".")[0]
    kinds = [kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch." if plain else package)]
    twin: Any = object.__new__(next(kind for kind in kinds if issubclass(kind, Sparsified) != plain))
    recurrent = isinstance(layer, nn.RNNBase)
    names = layer._flat_weights_names if recurrent else ("weight", "bias")
    tensors = {name: getattr(layer, name) for name in names}
    unwanted = {"forward", "activeness", *names}
    vars(twin).update({name: value for name, value in vars(layer).items() if name not in unwanted}, **vars(nn.Module()))
    twin._parameters = {
        name: t if t is None else nn.Parameter(t.detach().to(dtype), t.requires_grad) for name, t in tensors.items()
    }
    if recurrent:
        twin.dropout = 0.0  # which both sides could not draw alike
        twin._init_flat_weights()
    return twin


def _gradients(module: Any, x: Any, dy: Tensor, seed: int) -> _Gradients:
    """Return the gradients of the input and of the parameters that are trained."""
    dtype = next((p.dtype for p in module.parameters()), dy.dtype)
    first, *others = x if type(x) is tuple else (x,)
    data = first.data if isinstance(first, PackedSequence) else first
    data = data.detach().to(dtype).requires_grad_()
    first = first._replace(data=data) if isinstance(first, PackedSequence) else data
    short = {} if isinstance(module, nn.RNNBase) else {"weight": "dw", "bias": "db"}
    leaves = {"dx": data} | {short.get(name, name): p for name, p in module.named_parameters() if p.requires_grad}
    torch.manual_seed(seed)
    y = module.forward(first, *(_cast(other, dtype) for other in others))
    y = y[0] if isinstance(y, tuple) and not isinstance(y, PackedSequence) else y
    y = y.data if isinstance(y, PackedSequence) else y
    return dict(zip(leaves, torch.autograd.grad(y, [*leaves.values()], dy.to(dtype)), strict=True))


def _cast(argument: Any, dtype: torch.dtype) -> Any:
    """Detach what a layer gets besides its input, and give its numbers a dtype."""
    if isinstance(argument, tuple):
        return tuple(_cast(each, dtype) for each in argument)
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().to(dtype if argument.is_floating_point() else argument.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def _by_definition(layer: MePropLinear, x: Tensor, dy: Tensor, idx: Tensor) -> _Gradients:
    """Return the gradients of a linear layer for dy `(B, n)`, of which idx is selected."""
    dtype, wide = dy.dtype, _wide(dy.dtype)
    matrix = x.to(dtype).reshape(-1, x.shape[-1])
    x_, w, dy = (tensor.to(wide) for tensor in (matrix, layer.weight, dy))
    each = idx if idx.dim() == 2 else idx.expand(dy.shape[0], -1)  # (B, k)
    sparse_dy = torch.zeros_like(dy).scatter_(1, each, dy.gather(1, each))  # S(dy), (B, n)
    rows = torch.unique(idx) if layer.sparse else slice(None)
    with adopted("float32"):
        dx, dw, db = ((sparse_dy @ w).to(dtype), (sparse_dy[:, rows].t() @ x_).to(dtype), dy.sum(0).to(dtype))
    if isinstance(rows, Tensor):
        dw = hybrid_rows(rows, dw, w.shape[0])
    return {"dx": dx.view(x.shape), "dw": dw, "db": db}


def _by_masking(layer: Any, x: Tensor, dy: Tensor, rows: Tensor, idx: Tensor) -> _Gradients:
    """Return the gradients of torch's layer for S(dy), and of its bias for dy; rows `(B N, P)` are dy, of which idx is
    selected.
    """
    plain = _twin(layer, _wide(dy.dtype), plain=True)
    kept = torch.zeros_like(rows).scatter_(1, idx, rows.gather(1, idx)).view(dy.shape)
    with adopted("float32"):
        found = _gradients(plain, x.to(dy.dtype), kept, 0)
    found |= {"db": dy.to(_wide(dy.dtype)).transpose(0, -1 - len(layer.kernel_size)).flatten(1).sum(1)}
    return {name: d.to(dy.dtype) for name, d in found.items()}


def _compared(got: _Gradients, true: _Gradients, tolerance: float | None = None) -> str | None:
    return compare([*got.values()], [true[name] for name in got], tuple(got), tolerance)


def compare(
    got: list[Tensor], true: list[Tensor], names: Sequence[str] = _NAMES, tolerance: float | None = None
) -> str | None:
    """Say which gradient is wrong, or None; by another tolerance than that of their arithmetic, if there is one.

    What they should be is overwritten, as another 256 MB would cost more than comparing.
    """
    for name, mine, expected in zip(names, got, true, strict=True):
        error, most = _relative_error(mine, expected), tolerance or _tolerance(mine)
        if not error <= most:  # NaN is wrong, too
            return f"{name} is off by {error:.1e}, relative; at most {most:.0e} is rounding"
    return None


def _tolerance(of: Tensor) -> float:
    return _TF32 if of.dtype == torch.float32 and is_tf32() else TOLERANCES[of.dtype]


def _relative_error(got: Tensor, true: Tensor) -> float:
    if got.is_sparse and true.is_sparse:
        got, true = got.coalesce(), true.coalesce()
        if torch.equal(got.indices(), true.indices()):
            got, true = got.values(), true.values()
    # Rows that one side left out and the other filled with zeros (a ReLU's dy has them) are equal all the same.
    got, true = (each.to_dense() if each.is_sparse else each for each in (got, true))
    wide = torch.float64 if got.dtype == torch.float64 else torch.float32
    size = torch.linalg.vector_norm(true, dtype=wide).item()
    distance = torch.linalg.vector_norm(true.sub_(got), dtype=wide).item()
    return float(distance / size if size else distance)


def _poisoned(dy: Tensor, among: int) -> Tensor:
    """Return dy with a NaN in the last example: of a map in the middle, as an edge may see nothing but padding."""
    poisoned = dy.clone()
    poisoned[(-1,) * (dy.dim() - among) + tuple(size // 2 for size in dy.shape[-among:])] = math.nan
    return poisoned


def _hidden_nan(gradients: _Gradients) -> str:
    """Return "passed" if a NaN shows in all gradients, or which it does not show in."""
    dense = {name: each.coalesce().values() if each.is_sparse else each for name, each in gradients.items()}
    # The sum of a tensor is NaN if an entry is: no mask of its size.
    hidden = [name for name, each in dense.items() if not torch.isnan(each.sum())]
    return f"a NaN in dy does not show in {', '.join(hidden)}" if hidden else PASSED
