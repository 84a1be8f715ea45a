"""A case taken apart: the stages of its backward passes, the price of a call, and where sparse stops paying.

A compiled kernel is one opaque call, and marks inside it would cost what they measure. So it is called for fewer
gradients, and what it spares is what the missing part costs (T: median seconds of a call):

    selection   T(db)                        selecting needs dy alone, and the bias gradient comes with it
    dx          T(db, dx) - T(db)            gather and product: the chosen rows of W are read while they are multiplied
    dW          T(db, dW as rows) - T(db)    likewise, of x
    scatter     T(db, dW) - T(db, dW as rows)    putting the rows into a dense gradient, and zeros around them; or
                T(sparse tensor of given rows), where the case has its gradient as rows
    rest        the backward pass by autograd, less all of these: dispatch, Python, fresh memory, other operators

The kernel `gather` copies what it chose before it multiplies, by operators of torch. Of that one gather and product are
timed apart: a stage `gather`, the copies of columns of dy and of rows of W, is taken out of selection and dx, which are
then what their names say. The other kernels have no such copy, so for them gather and product are one figure.

The dense side has its two products and its sum, by the operators that autograd calls. Stages are timed one by one with
warm caches, so that they need not add up: a negative rest says that together they share what each paid alone.

Where sparse breaks even is bisected on a logarithmic scale, with one short series of pairs for each point: good for
"about 200", not for the third digit, and only as long as time permits. It is the sparsified linear layers' backward
pass that is compared (or that of a layer of another kind), through autograd, on the case's own numbers (k) or on random
ones (size).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.paired import calibrate, measure_pairs
from meprop_bench.methods import METHODS
from meprop_bench.ops import linear, resolve_k, select
from meprop_bench.ops.cost import Cost, linear_stages
from meprop_bench.ops.kernels import KERNELS, hybrid_rows
from meprop_bench.results.profile import BreakEven, Stage
from meprop_bench.stats import median
from meprop_bench.workloads import Call, LayerTensors, setup
from meprop_bench.workloads.case import WORKLOADS, Case
from meprop_bench.workloads.linear import subject, timed_backward

__all__ = ["break_even_k", "break_even_size", "overhead", "stages"]

_Sides = tuple[Call, Call]

_GATHERS = ("gather", "triton_gather", "triton_kept")
"""Kernels that copy what they chose before they multiply."""

_SCATTERS = ("native", "gather", "embedding_bag", "triton", "triton_gather", "triton_atomic", "triton_kept")
"""Kernels that compute the selected rows of dW first: the others make all of it in one product."""

_LARGEST = 1 << 27
"""Entries of the largest weight that is tried: with its gradient 1 GiB in float32."""

_WIDEST = 16384
_CLOSE = 1.1
"""Factor between a value that pays and one that does not at which a search ends."""

_POINTS = 8
"""Points that a search needs at most, about: its seconds are dealt out to them."""


def stages(layers: Sequence[LayerTensors], clock: Clock, *, seconds: float) -> dict[str, list[Stage]]:
    """Time the stages of the layers' backward passes, all layers together: side -> stages, without the rest."""
    sparsified = [layer for layer in layers if layer.request is not None]
    others = [layer for layer in layers if layer.request is None]
    calls = {f"dense {name}": found for name, found in _dense_calls(sparsified).items()}
    calls |= {f"sparse {name}": found for name, found in _sparse_calls(sparsified).items()}
    calls["dense layers"] = [call for layer in others for found in _dense_calls([layer]).values() for call in found]
    taken = _medians({name: _one_after_the_other(found) for name, found in calls.items() if found}, clock, seconds)
    dense = {name: taken.get(f"dense {name}", 0.0) for name in ("selection", "dx", "dW")} if sparsified else {}
    sparse = _differences({name.removeprefix("sparse "): value for name, value in taken.items()}) if sparsified else {}
    result = {}
    for side, found in (("dense", dense), ("sparse", sparse)):
        costs = _costs(sparsified, side)
        result[side] = [_stage(name, value, costs.get(name)) for name, value in found.items()]
        if others:
            cost = sum(_costs(others, "dense").values(), Cost(0, 0))
            result[side].append(_stage("dense layers", taken["dense layers"], cost))
    return result


def overhead(
    case: Case, layers: Sequence[LayerTensors], clock: Clock, *, seconds: float
) -> dict[str, tuple[float, float]]:
    """Time forward and backward of a layer 1 -> 2 with a batch of 1: what is left is the price of the calls."""
    kernel = next((layer.kernel for layer in layers if layer.request is not None), case.kernel)
    tiny = (torch.ones(1, 1), torch.ones(2, 1), torch.ones(2), torch.tensor([[1.0, 2.0]]))
    x, w, b, dy = (tensor.to(layers[0].w) for tensor in tiny)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, w, b))

    def dense() -> Tensor:
        return F.linear(*inputs)

    def sparse() -> Tensor:
        rows = case.gradient == "rows"
        return linear(*inputs, k=1, selection=case.selection, sparse=rows, kernel=kernel)

    backward = [timed_backward(forward(), inputs, dy) for forward in (dense, sparse)]
    calls: dict[str, Call] = {"df": dense, "sf": sparse, "db": backward[0], "sb": backward[1]}
    taken = _medians(calls, clock, seconds)
    return {"forward": (taken["df"], taken["sf"]), "backward": (taken["db"], taken["sb"])}


def break_even_k(case: Case, layers: Sequence[LayerTensors], clock: Clock, *, seconds: float) -> BreakEven | None:
    """Search the k at which the sparse backward pass is no longer faster; None where there is none to compare."""
    if (sparsified := _sparsified(case, layers)) is None:
        return None
    n, what = _entries(case)

    def sides(k: int) -> _Sides:
        return _sides(case, sparsified, k) if sparsified else setup(replace(case, k=k)).memory["backward"]

    ratio = _Ratios(sides, clock, seconds)
    return _break_even("k", ratio, min(resolve_k(case.k, n), n - 1), (1, n - 1), f"of {n} {what}")


def break_even_size(case: Case, layers: Sequence[LayerTensors], clock: Clock, *, seconds: float) -> BreakEven | None:
    """Search the width from which on the sparse backward pass is faster, at the case's k; of what, see `break_even_k`.

    Inputs as wide as the layer stay as wide as it; others stay as they are.
    """
    if (sparsified := _sparsified(case, layers)) is None:
        return None
    known, inputs = case.out_features, case.in_features
    square = [layer.w.shape[1] == layer.w.shape[0] for layer in sparsified] or [inputs == known]

    def sides(width: int) -> _Sides:
        if not sparsified:
            wider = replace(case, out_features=width, in_features=width if square[0] else inputs)
            return setup(wider).memory["backward"]
        wide = zip(sparsified, square, strict=True)
        return _sides(case, [_of_width(case, layer, width, both) for layer, both in wide])

    largest = min(_WIDEST if sparsified else _WIDEST // 8, math.isqrt(_LARGEST) if any(square) else _LARGEST // inputs)
    smallest = int(case.k) + 1 if isinstance(case.k, int) and case.size is None else 2
    held = f"k={case.k:g}" + ("" if any(square) else f", {inputs} inputs")
    ends = min(smallest, known), max(known, largest)
    return _break_even("hidden", _Ratios(sides, clock, seconds), known, ends, held)


def _break_even(axis: str, ratio: _Ratios, known: int, ends: tuple[int, int], held: str) -> BreakEven:
    pays, loses = _search(ratio, known, ends, small_pays=axis == "k")
    return BreakEven(axis=axis, pays=pays, loses=loses, ends=ends, points=tuple(ratio.points), held=held)


def _entries(case: Case) -> tuple[int, str]:
    """Return what k is a part of: neurons, or a convolution's positions in a map."""
    if case.size is not None and case.filter is not None:
        return (case.size - case.filter + 1) ** 2, "positions"
    return case.out_features, "neurons"


def _sparsified(case: Case, layers: Sequence[LayerTensors]) -> list[LayerTensors] | None:
    """Return the sparsified linear layers, none for a case that is a sparsified layer of another kind; else None.

    Layers of several widths have no one k, nor one width, at which they break even.
    """
    another = not layers and not WORKLOADS[case.workload].trains and METHODS[case.method].selection is not None
    found = [layer for layer in layers if layer.request is not None]
    if any(layer.w.shape[0] != case.out_features for layer in found):
        return None
    return found if found or another else None


def _search(ratio: _Ratios, known: int, ends: tuple[int, int], *, small_pays: bool) -> tuple[int | None, int | None]:
    """Return the two values, one that pays and one that does not, nearest to each other; None where there is none."""
    found: dict[bool, int] = {ratio(known) > 1: known}
    goal = not next(iter(found))
    # Towards where the other answer lies; an end that answers the same ends the search. A size costs up to its square.
    value, end = known, max(ends) if goal != small_pays else min(ends)
    stride = 8 if small_pays or end < value else 2
    while goal not in found and value != end and not ratio.spent:
        value = min(end, stride * value) if end > value else max(end, value // stride)
        found[ratio(value) > 1] = value
    while len(found) == 2 and not ratio.spent:
        low, high = sorted(found.values())
        if high <= max(low + 1, _CLOSE * low):
            break
        value = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
        found[ratio(value) > 1] = value
    return found.get(True), found.get(False)


class _Ratios:
    """Speed-ups of one value after the other, quickly, until the seconds are spent."""

    def __init__(self, sides: Callable[[int], _Sides], clock: Clock, seconds: float) -> None:
        self._sides, self._clock, self._seconds = sides, clock, seconds
        self._deadline = clock.now() + seconds
        self.points: list[tuple[int, float]] = []

    @property
    def spent(self) -> bool:
        return self._clock.now() >= self._deadline

    def __call__(self, value: int) -> float:
        found = _quick_ratio(*self._sides(value), self._clock, self._seconds / _POINTS)
        self.points.append((value, found))
        return found


def _quick_ratio(dense: Call, sparse: Call, clock: Clock, seconds: float) -> float:
    """Return dense / sparse from the pairs of some seconds; from one pair when that takes longer."""
    subjects = [subject(backward=call) for call in (dense, sparse)]
    first = [clock.time(call, 1) for call in (dense, sparse)]  # cold
    if sum(first) > seconds / 2:
        return first[0] / first[1] if sum(first) > seconds else clock.time(dense, 1) / clock.time(sparse, 1)
    loops = max(calibrate(each, clock, most_s=seconds / 8) for each in subjects)
    pairs = measure_pairs(*subjects, seconds=seconds / 2, least_pairs=3, loops=loops, rng=random.Random(0), clock=clock)
    return median([dense_s / sparse_s for dense_s, sparse_s in (pair.phases["backward"] for pair in pairs)])


def _sides(case: Case, layers: Iterable[LayerTensors], k: float | None = None) -> _Sides:
    """Return the backward passes of all layers, dense and sparse, by autograd on graphs that stay."""
    dense, sparse = [], []
    for layer in layers:
        x, w, b = layer.x.detach().requires_grad_(layer.need_dx), layer.w.detach().requires_grad_(), layer.b.detach()
        inputs = (*((x,) if layer.need_dx else ()), w, b.requires_grad_())
        y = linear(
            x, w, b, k=case.k if k is None else k, selection=case.selection, sparse=case.gradient == "rows",
            kernel=case.kernel,
        )  # fmt: skip
        dense.append(timed_backward(F.linear(x, w, b), inputs, layer.dy))
        sparse.append(timed_backward(y, inputs, layer.dy))
    return _one_after_the_other(dense), _one_after_the_other(sparse)


def _of_width(case: Case, layer: LayerTensors, width: int, square: bool) -> LayerTensors:
    """Return a layer like this one with other outputs, of random numbers."""
    generator = torch.Generator().manual_seed(case.seed)
    batch, m = layer.x.shape[0], width if square else layer.x.shape[1]
    x, w, b, dy = (
        torch.randn(*shape, generator=generator).to(layer.w)
        for shape in ((batch, m), (width, m), (width,), (batch, width))
    )
    return LayerTensors(dy=dy, x=x, w=w, b=b, need_dx=layer.need_dx, request=layer.request, kernel=layer.kernel)


def _dense_calls(layers: Sequence[LayerTensors]) -> dict[str, list[Call]]:
    return {
        "selection": [partial(layer.dy.sum, 0) for layer in layers],
        "dx": [partial(torch.mm, layer.dy, layer.w) for layer in layers if layer.need_dx],
        "dW": [partial(torch.mm, layer.dy.t(), layer.x) for layer in layers],
    }


def _sparse_calls(layers: Sequence[LayerTensors]) -> dict[str, list[Call]]:
    """Return the calls whose differences are the stages."""
    scatter = all(layer.kernel in _SCATTERS and layer.request and not layer.request.rows for layer in layers)
    chosen = [(layer, select(layer.dy, layer.request.k, layer.request.selection)) for layer in layers if layer.request]
    found: dict[str, list[Call]] = {
        "selection": [_backward(layer) for layer in layers],
        "db+dx": [_backward(layer, dx=layer.need_dx) for layer in layers],
        "db+dW": [_backward(layer, dw=True) for layer in layers],
        "db+rows": [_backward(layer, dw=True, rows=True) for layer in layers if scatter],
        "rows": [
            partial(hybrid_rows, indices, layer.w[indices], layer.w.shape[0])
            for layer, t in chosen
            if layer.request and layer.request.rows
            for indices in [torch.unique(t)]
        ],
    }
    if all(layer.kernel in _GATHERS for layer in layers):
        found["gather dy"] = [partial(layer.dy.index_select, 1, t) for layer, t in chosen]
        found["gather w"] = [partial(layer.w.index_select, 0, t) for layer, t in chosen if layer.need_dx]
    return found


def _backward(layer: LayerTensors, *, dx: bool = False, dw: bool = False, rows: bool | None = None) -> Call:
    """Return the kernel's backward pass of some of the gradients, db among them."""
    assert layer.request is not None
    rows = layer.request.rows if rows is None else rows
    request = layer.request._replace(rows=rows, need_dx=dx, need_dw=dw, need_db=True)
    return partial(KERNELS[layer.kernel].backward, layer.dy, layer.x, layer.w, request)


def _differences(taken: Mapping[str, float]) -> dict[str, float]:
    """Return stage -> seconds from the medians of `_sparse_calls`; noise may make a difference negative, which is 0."""
    start = taken["selection"]
    rows = taken.get("rows")
    made = taken.get("db+rows", taken["db+dW"])
    gather_w = taken.get("gather w", 0.0)
    found = {"selection": max(0.0, start - taken.get("gather dy", 0.0))}
    if "gather dy" in taken:
        found["gather"] = taken["gather dy"] + gather_w
    found["dx"] = max(0.0, taken["db+dx"] - start - gather_w)
    found["dW"] = max(0.0, made - start - (rows or 0.0))
    if "db+rows" in taken:
        found["scatter"] = max(0.0, taken["db+dW"] - made)
    if rows is not None:
        found["scatter"] = rows
    return found


def _costs(layers: Iterable[LayerTensors], side: str) -> dict[str, Cost]:
    """Return stage -> cost, all layers together; rows are counted where each example has its own."""
    total: dict[str, Cost] = {}
    for layer in layers:
        (n, m), batch, request = layer.w.shape, layer.x.shape[0], layer.request
        shape = (batch, m, n, layer.w.element_size())
        if side == "dense" or request is None:
            found = linear_stages(*shape)
        else:
            unified = request.selection in ("unified", "random-unified")
            chosen = select(layer.dy, request.k, request.selection)
            counted = torch.unique(chosen).numel()
            method, gradient = "unified" if unified else "meprop", "rows" if request.rows else "dense"
            found = linear_stages(*shape, method, request.k, gradient, counted)
            if "zeros" in found:
                found["scatter"] = found.pop("zeros")
            if layer.kernel in _GATHERS:
                copied = request.k * (batch + (m if layer.need_dx else 0))
                found["gather"] = Cost(0, 2 * layer.w.element_size() * copied)
        if not layer.need_dx:
            del found["dx"]
        for name, cost in found.items():
            total[name] = total.get(name, Cost(0, 0)) + cost
    return total


def _stage(name: str, seconds: float, cost: Cost | None) -> Stage:
    flops, nbytes = (None, None) if cost is None else cost
    return Stage(name=name, seconds=seconds, flops=flops, bytes=nbytes)


def _one_after_the_other(calls: Sequence[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]

    def run() -> None:
        for call in calls:
            call()

    return run


def _medians(calls: Mapping[str, Call], clock: Clock, seconds: float) -> dict[str, float]:
    """Return the median seconds of each call; interleaved in random order, so that drift hits all alike."""
    rng = random.Random(0)
    loops = {}
    for name, call in calls.items():
        call()
        loops[name] = calibrate(subject(backward=call), clock, most_s=0.02)
    values: dict[str, list[float]] = {name: [] for name in calls}
    deadline = clock.now() + seconds
    while not all(values.values()) or clock.now() < deadline:
        for name in rng.sample(list(calls), len(calls)):
            values[name].append(clock.time(calls[name], loops[name]))
    return {name: median(found) for name, found in values.items()}
