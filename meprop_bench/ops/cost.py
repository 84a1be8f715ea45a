"""What a linear layer must compute and move: operations and least bytes, from the definitions.

The layer is `y = x Wᵀ + b` with `x` of shape (B, m) and `W` of shape (n, m). Each input and each output counts once:

| pass | operations | least bytes, in elements |
| --- | --- | --- |
| forward | 2Bmn + Bn | x: Bm, W: nm, b: n, y: Bn |
| dense backward | 4Bmn + Bn | dy: Bn, x: Bm, W: nm, dx: Bm, dW: nm, db: n |
| sparse backward | 4Bkm + Bn + selection | dy: Bn, x: Bm, W: rm, dx: Bm, dW: rm (rows) or nm (dense), db: n |

`r` is how many rows of W any example selects: k when the selection is unified; for a selection of each example's own,
between k and n. There we take the expectation for picks that are uniform and independent, n(1 - (1 - k/n)^B), unless
the caller counted. Selection reads dy, which is counted already, and compares each entry at least once: Bn operations,
and Bn more to sum |dy| when unified.

These numbers make a floor (the least time for this machine's peaks) and a prediction (the ratio of two counts); they
are not a measurement. Bytes that a kernel moves twice, page faults and launches are the distance from the floor.
"""

from __future__ import annotations

from typing import NamedTuple

from meprop_bench.ops.selection import resolve_k

__all__ = ["Cost", "adam_update", "expected_rows", "linear_backward", "linear_forward"]


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
    """Return the cost of dx, dW and db.

    Args:
        batch: B, the number of examples.
        m: inputs.
        n: outputs (neurons).
        itemsize: bytes of an element.
        method: "dense", "meprop", "unified", "random" or "random-unified".
        k: neurons kept, a count or a ratio; for the sparse methods.
        gradient: "dense" writes all of dW, "rows" only the rows that were selected.
        rows: how many distinct rows were selected, when it is known.

    """
    resolved = n if method == "dense" or k is None else resolve_k(k, n)
    outside = batch * n + 2 * batch * m + n  # dy, x and dx, db
    if resolved == n:
        return Cost(4 * batch * m * n + batch * n, itemsize * (outside + 2 * n * m))
    unified = method in {"unified", "random-unified"}
    if rows is None:
        rows = resolved if unified else expected_rows(batch, n, resolved)
    selection = 2 * batch * n if unified else batch * n
    written = n if gradient == "dense" else rows
    flops = 4 * batch * resolved * m + batch * n + selection
    return Cost(flops, round(itemsize * (outside + rows * m + written * m)))


def adam_update(parameters: int, itemsize: int) -> Cost:
    """Return the cost of one dense Adam step: reads p, g and both moments, writes p and both moments."""
    return Cost(12 * parameters, 7 * parameters * itemsize)
