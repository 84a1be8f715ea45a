"""What a layer must compute and move: operations and least bytes, from the definitions.

A linear layer is `y = x Wᵀ + b` with x of shape (B, m) and W of shape (n, m). Each input and each output counts once:

| pass | operations | least bytes, in elements |
| --- | --- | --- |
| forward | 2Bmn + Bn | x: Bm, W: nm, b: n, y: Bn |
| dense backward | 4Bmn + Bn | dy: Bn, x: Bm, W: nm, dx: Bm, dW: nm, db: n |
| sparse backward | 4Bkm + Bn + selection | dy: Bn, x: Bm, W: rm, dx: Bm, dW: rm (rows) or nm (dense), db: n |

`r` is how many rows of W any example selects: k when the selection is unified; for a selection of each example's own,
between k and n. There we take the expectation for picks that are uniform and independent, n(1 - (1 - k/n)^B), unless
the caller counted. Selection reads dy, which is counted already, and compares each entry at least once: Bn operations,
and Bn more to sum |dy| when unified.

Apart, the parts of a pass cost more than the whole, since each reads its own operands (`linear_stages`):

| stage | operations | least bytes, in elements |
| --- | --- | --- |
| selection (dense: db alone) | selection + Bn | dy: Bn, db: n, values: Bk |
| dx | 2Bkm | values: Bk, W: rm, dx: Bm |
| dW | 2Bkm | values: Bk, x: Bm, dW: rm |
| zeros (dense dW of a sparse pass) | 0 | dW: (n - r)m |

A convolution has P output positions with patches of m = C kh kw numbers, and N maps; x, W, y, b are its tensors:

| pass | operations | least bytes, in elements |
| --- | --- | --- |
| forward | 2BPNm + BNP | x, W, b, y |
| dense backward | 4BPNm + BNP (2BPNm without dx) | dy, x, W, dx, dW, db (without dx: dy, x, dW, db) |
| sparse backward | 4BNkm + 2BNP (2BNkm without dx) | as dense |

Each map has positions of its own, so that of x and dx nearly every pixel is in a patch of some map (all but 2% at
k = 0.01 P with 16 maps of 5x5 taps), and of W and dW every row is used: bytes are not saved.

A recurrent layer of G gates with h neurons each takes T steps; its element-wise functions are left out, as are second
readings of W_hh, which a step needs that the step before needed, too. The gates are what forward saves for backward:

| pass | operations | least bytes, in elements |
| --- | --- | --- |
| forward | 2TBGh(m + h) + 2TBGh | x: TBm, W: Gh(m + h), b: 2Gh, y: TBh, gates: TBGh |
| dense backward | 4TBGh(m + h) + TBGh | dy, y: TBh, gates: TBGh, x, dx: TBm, W, dW: Gh(m + h), db: 2Gh |
| sparse backward | 4TBGk(m + h) + TBGh + selection | dense, but W: Gr(m + h) |

Here `r` is the expectation for the TB choices of a gate (T when unified), each of k among h.

The optimizer moves every parameter that has a gradient; with rows, only those of the r rows:

| update | operations | reads | writes |
| --- | --- | --- | --- |
| SGD, p -= lr g | 2 | p, g | p |
| AdaGrad, s += g^2; p -= lr g / (sqrt(s) + eps) | 7 | p, g, s | p, s |
| Adam | 12 | p, g, both moments | p, both moments |

These numbers make a floor (the least time for this machine's peaks) and a prediction (the ratio of two counts); they
are not a measurement. Bytes that a kernel moves twice, page faults and launches are the distance from the floor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.selection import resolve_k

__all__ = [
    "Cost", "conv_backward", "conv_forward", "expected_rows", "linear_backward", "linear_forward", "linear_stages",
    "recurrent_backward", "recurrent_forward", "update",
]  # fmt: skip


class Cost(NamedTuple):
    """Operations (a multiply-add counts as two) and the least number of bytes read and written."""

    flops: int
    bytes: int

    def __add__(self, other: object) -> Cost:  # costs add up; they are not concatenated
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def expected_rows(batch: int, n: int, k: int) -> float:
    """Return how many of n rows at least one of `batch` independent, uniform choices of k rows holds, on average."""
    return n * (1.0 - (1.0 - k / n) ** batch)


def linear_forward(batch: int, m: int, n: int, itemsize: int) -> Cost:
    """Return the cost of `y = x Wᵀ + b`; it is the same for every method."""
    return Cost(2 * batch * m * n + batch * n, itemsize * (batch * m + n * m + n + batch * n))


def linear_backward(
    batch: int,
    m: int,
    n: int,
    itemsize: int,
    method: str = "dense",
    k: float | None = None,
    gradient: str = "dense",
    rows: float | None = None,
) -> Cost:
    """Return the cost of dx, dW and db, for elements of `itemsize` bytes.

    Args:
        batch, m, n: B, inputs and outputs.
        method: "dense", "meprop", "unified", "random" or "random-unified".
        k: neurons selected, a count or a ratio; for the sparse methods.
        gradient: "dense" writes all of dW, "rows" only the rows that were selected.
        rows: how many distinct rows were selected, when it is known.

    """
    resolved, selection, rows = _selected(batch, n, method, k, rows)
    outside = batch * n + 2 * batch * m + n  # dy, x and dx, db
    written = n if gradient == "dense" else rows
    flops = 4 * batch * resolved * m + batch * n + selection
    return Cost(flops, round(itemsize * (outside + rows * m + written * m)))


def linear_stages(
    batch: int,
    m: int,
    n: int,
    itemsize: int,
    method: str = "dense",
    k: float | None = None,
    gradient: str = "dense",
    rows: float | None = None,
) -> dict[str, Cost]:
    """Return the cost of each stage by itself, as the table of the module has them; arguments as `linear_backward`."""
    resolved, selection, rows = _selected(batch, n, method, k, rows)
    values = batch * resolved
    product = 2 * batch * resolved * m
    sparse = resolved < n
    stages = {
        "selection": (selection + batch * n, batch * n + n + (values if sparse else 0)),
        "dx": (product, values + rows * m + batch * m),
        "dW": (product, values + batch * m + rows * m),
    }
    if sparse and gradient == "dense":
        stages["zeros"] = (0, (n - rows) * m)
    return {name: Cost(flops, round(itemsize * elements)) for name, (flops, elements) in stages.items()}


def _selected(batch: int, n: int, method: str, k: float | None, rows: float | None) -> tuple[int, int, float]:
    """Return k as resolved, the operations of the selection, and how many rows of W are selected."""
    resolved = n if method == "dense" or k is None else min(n, resolve_k(k, n))
    if resolved == n:
        return n, 0, n
    unified = method in {"unified", "random-unified"}
    if rows is None:
        rows = resolved if unified else expected_rows(batch, n, resolved)
    return resolved, (2 if unified else 1) * batch * n, rows


_UPDATES = {"sgd": (2, 3), "adagrad": (7, 5), "adam": (12, 7), "adamw": (13, 7)}
_UPDATES |= {f"row{name}": _UPDATES[name] for name in ("adam", "adamw")}
"""Of a parameter: operations, and numbers read and written."""


def update(optimizer: str, parameters: float, itemsize: int) -> Cost:
    """Return the cost of one step of an optimizer, by its name, that moves so many parameters."""
    flops, numbers = _UPDATES[optimizer]
    return Cost(round(flops * parameters), round(numbers * parameters * itemsize))


_PLAIN = Geometry((1, 1), (0, 0), (1, 1), 1)
_Shape = tuple[int, int, int, int]


def conv_forward(x: _Shape, w: _Shape, itemsize: int, geometry: Geometry = _PLAIN) -> Cost:
    """Return the cost of a convolution of x (B, G C, H, W) with w (N, C, kh, kw) and a bias."""
    entries, m = _outputs(x, w, geometry), math.prod(w[1:])
    return Cost(2 * entries * m + entries, itemsize * (math.prod(x) + math.prod(w) + w[0] + entries))


def conv_backward(
    x: _Shape, w: _Shape, itemsize: int, k: float | None = None, dx: bool = True, geometry: Geometry = _PLAIN
) -> Cost:
    """Return the cost of dW, db and, unless a first layer leaves it out, dx, for x and w as in `conv_forward`.

    k are the positions selected of each map, a count or a ratio; None for the dense layer.
    """
    entries, m = _outputs(x, w, geometry), math.prod(w[1:])
    maps = x[0] * w[0]
    positions = entries // maps
    count = positions if k is None else min(resolve_k(k, positions), positions)
    selection = entries if count < positions else 0
    flops = (4 if dx else 2) * maps * count * m + entries + selection
    return Cost(flops, itemsize * (entries + (1 + dx) * math.prod(x) + (1 + dx) * math.prod(w) + w[0]))


def _outputs(x: _Shape, w: _Shape, geometry: Geometry) -> int:
    """Return how many entries the output has."""
    return x[0] * w[0] * math.prod(geometry.output(x[2], x[3], (w[2], w[3])))


def recurrent_forward(length: int, batch: int, m: int, h: int, gates: int, itemsize: int) -> Cost:
    """Return the cost of one direction of a recurrent layer: T time steps of B examples, m inputs, gates of h."""
    rows = length * batch
    width = gates * h
    elements = rows * (m + h + width) + width * (m + h + 2)
    return Cost(2 * rows * width * (m + h) + 2 * rows * width, itemsize * elements)


def recurrent_backward(
    length: int, batch: int, m: int, h: int, gates: int, itemsize: int, method: str = "dense", k: float | None = None
) -> Cost:
    """Return the cost of dx, both dW and both db; method and k, of each gate, as for `linear_backward`.

    `gates` are 4 for the LSTM, 3 for the GRU, 1 for the plain network.
    """
    rows = length * batch
    choices = length if method in {"unified", "random-unified"} else rows
    resolved = h if method == "dense" or k is None else min(h, resolve_k(k, h))
    selection = 0 if resolved == h else gates * _selected(rows, h, method, resolved, None)[1]
    read = gates * (h if resolved == h else expected_rows(choices, h, resolved))
    flops = 4 * rows * gates * resolved * (m + h) + rows * gates * h + selection
    elements = rows * (2 * h + gates * h + 2 * m) + (read + gates * h) * (m + h) + 2 * gates * h
    return Cost(flops, round(itemsize * elements))
