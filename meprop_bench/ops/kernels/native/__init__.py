"""Kernel `native`: the backward pass compiled for this processor by Numba; float32 on the CPU.

No compiler and no header is needed on the user's machine: Numba (extra `cpu`) brings LLVM with it. The first call
compiles for some seconds, later processes load the code from a cache (`compiler`).

`example` holds the selections of each example's own, `unified` those of a whole batch, `topk` the search for the k
largest, `zeros` what is done to the memory of a dense weight gradient that is used again (`kernels.kept`).
"""

from __future__ import annotations

from meprop_bench import optional

if (_reason := optional.unavailable_reason("numba")) is not None:
    raise ImportError(f"Numba {_reason} (extra `cpu`)", name=__name__)  # by its name `python -m` makes it one line

from functools import lru_cache
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from meprop_bench.ops import memory
from meprop_bench.ops.kernels import Gradients, Kernel, Request, hybrid_rows, kept, unified_rows
from meprop_bench.ops.kernels.native import example, unified
from meprop_bench.ops.kernels.native.threads import OPENMP, shares
from meprop_bench.ops.selection import select

__all__ = ["KERNEL", "Native", "plan", "uncountable"]

_SERIAL = 32768
"""Entries of dy up to which one thread selects; a parallel region costs what some thousand entries do, 1.5
microseconds. Beyond, each share of the examples has sums or counts of its own, for all neurons, which one thread then
adds up: with more shares than about the root of the number of examples that would take longer than what is shared."""
_SEARCH, _FOUND = 500, 40
"""What an example's search for its k largest takes, in entries: of its row, besides these, and for each of the k. An
entry takes 0.2 ns then, as in sums over the batch (0.1 to 0.2, one thread of Zen 5): n = 500, k = 20 0.44 to 0.58
microseconds, 2048 and 30 0.76, 8192 and 8 1.8, 8192 and 512 5.2."""
_PRODUCT = 4
"""Multiply-adds of a product of matrices in the time of one of a weighted sum of rows: 60 to 100 a nanosecond against
14 to 28 (one thread of Zen 5)."""
_STREAM = 1 << 23
"""Bytes of dx or dW from which both are written past the caches: they would push everything else out of them."""


_COUNTED = 1 << 31
"""Examples, neurons, and the pairs of them that are selected, are counted in 32 bits: half of what 64 take to move."""


def uncountable(selection: str, b: int, n: int, k: int) -> str | None:
    """Say why a case is too large to be counted, or None."""
    pairs = b * k if selection in ("example", "random") else 0
    if max(b, n, pairs) < _COUNTED:
        return None
    return f"it counts in 32 bits, and k = {k} of {n} neurons for {b} examples are too many: take another kernel"


class Native(Kernel):
    """See the module.

    Args:
        record: of the weight whose dense gradient this one computes; without one, its memory is fresh.

    """

    name = "native"

    def __init__(self, record: kept.Record | None = None) -> None:
        self._record = record

    def keeping(self, w: Tensor) -> Native:
        """Return the kernel for gradients of the weight w alone, in memory that is kept if it is worth it."""
        record = kept.record(w)
        return self if record is None else Native(record)

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Say why not: another dtype or device, or too large to be counted."""
        if dy.device.type != "cpu":
            return f"it runs on the CPU, not on {dy.device.type}"
        if dy.dtype != torch.float32:
            return f"it computes in float32, not {dy.dtype}".replace("torch.", "")
        if dy.numel() < _COUNTED:
            return None
        return uncountable(request.selection, dy.shape[:-1].numel(), dy.shape[-1], request.k)

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
        x, w = (x.contiguous() if request.need_dw else dy), (w.contiguous() if request.need_dx else dy)
        run = _example if request.selection in ("example", "random") else _unified
        dy, record = dy.contiguous(), self._record if request.need_dw and not request.rows else None
        return kept.computed(record, dy.shape[1], x.shape[1], dy, lambda target: run(dy, x, w, request, target))

    def scores(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ|dy| and Σdy over the batch, `(n,)` each, of dy `(B, n)`."""
        b, n = dy.shape
        dy, few = dy.contiguous(), plan("unified", torch.get_num_threads() if OPENMP else 1, b, n, 1, 1).few
        parts = dy.new_empty(few, 2, n)
        unified.statistics(OPENMP, unified.SUM, few, dy.data_ptr(), b, n, parts.data_ptr())
        return parts[0, 0], parts[0, 1]

    def through(self, hits: Tensor, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Return dx and dW through neurons hits, int64 `(k,)`, ascending; of all of them where dW has rows."""
        x, w = (x.contiguous() if request.need_dw else dy), (w.contiguous() if request.need_dx else dy)
        return _unified(dy.contiguous(), x, w, request._replace(need_db=False), kept.FRESH, hits)


class Plan(NamedTuple):
    """How a case is computed."""

    few: int  # shares of the selection
    shares: int  # shares of the products
    scratch: int  # bytes to work in
    streaming: bool  # whether results go past the caches


@lru_cache(maxsize=256)
def plan(selection: str, threads: int, b: int, n: int, m: int, k: int, rows: bool = False) -> Plan:
    """Return the plan for a selection, of the kernel's own or not, on so many threads; ValueError if `uncountable`.

    `rows` says that dW has its selected rows alone.
    """
    if (reason := uncountable(selection, b, n, k)) is not None:
        raise ValueError(f"kernel 'native' does not support this case: {reason}")
    work, zeros, streaming = 2 * b * k * m, 0 if rows else n * m, 4 * max(b, n) * m >= _STREAM
    few = 1
    if selection in ("example", "random"):
        most = shares(threads, work + zeros)
        if b * (n + (_SEARCH + _FOUND * k if selection == "example" else 0)) > _SERIAL:
            few = min(threads, b, isqrt(4 * b))
        return Plan(few, most, example.scratch_bytes(few, b, n, k), streaming)
    most = shares(threads, work // _PRODUCT + zeros)
    if b * n > _SERIAL:
        few = max(1, min(threads, b // 8, isqrt(b)))
    return Plan(few, most, unified.scratch_bytes(few, most, b, n, k), streaming)


def _example(dy: Tensor, x: Tensor, w: Tensor, request: Request, target: kept.Target) -> Gradients:
    # x, or w, is any tensor where nothing is read of it. Addresses are 0 for what is not needed.
    k, selection, as_rows, need_dx, need_dw, need_db = request
    dw, written, seed = target
    b, n = dy.shape
    m = (x if need_dw else w).shape[1]
    threads = torch.get_num_threads() if OPENMP else 1
    few, most, size, streaming = plan(selection, threads, b, n, m, k, as_rows)
    working = memory.scratch(size)
    idx = select(dy, k, selection) if selection == "random" else None
    db = dy.new_empty(n) if need_db else None
    rows = example.pairs(
        OPENMP, example.SELECT, example.SORT, few, dy.data_ptr(), 0 if idx is None else idx.data_ptr(), b, n, k,
        0 if db is None else db.data_ptr(), working,
    )  # fmt: skip
    dx = dy.new_empty(b, m) if need_dx else None
    if need_dw and dw is None:
        dw = dy.new_empty(rows if as_rows else n, m)
    hits = torch.empty(1, rows, dtype=torch.int64) if as_rows else None
    if need_dx or need_dw:
        example.products(
            OPENMP, example.SUMS, most, x.data_ptr(), w.data_ptr(),
            0 if dx is None else dx.data_ptr(), 0 if dw is None else dw.data_ptr(), b, n, k, m, rows,
            0 if hits is None else hits.data_ptr(), working, streaming, memory.address(written), seed,
        )  # fmt: skip
    return dx, dw if hits is None or dw is None else hybrid_rows(hits, dw, n), db


def _unified(
    dy: Tensor, x: Tensor, w: Tensor, request: Request, target: kept.Target, chosen: Tensor | None = None
) -> Gradients:
    k, selection, as_rows, need_dx, need_dw, need_db = request
    dw, written, seed = target
    b, n = dy.shape
    m = (x if need_dw else w).shape[1]
    threads = torch.get_num_threads() if OPENMP else 1
    few, most, size, streaming = plan(selection, threads, b, n, m, k, as_rows)
    given = selection != "unified" or chosen is not None
    if chosen is not None:
        hits = chosen.unsqueeze(0)
    else:
        hits = select(dy, k, selection).sort().values.unsqueeze(0) if given else torch.empty(1, k, dtype=torch.int64)
    dx = dy.new_empty(b, m) if need_dx else None
    if need_dw and dw is None:
        dw = dy.new_empty(k if as_rows else n, m)
    db = dy.new_empty(n) if need_db else None
    count = unified.backward(
        OPENMP, unified.SUM, unified.GATHER, unified.MULTIPLY, few, most,
        dy.data_ptr(), x.data_ptr(), w.data_ptr(), 0 if dx is None else dx.data_ptr(),
        0 if dw is None else dw.data_ptr(), 0 if db is None else db.data_ptr(),
        b, n, m, k, hits.data_ptr(), given, as_rows, streaming, memory.scratch(size), memory.address(written), seed,
    )  # fmt: skip
    if as_rows and dw is not None and chosen is not None:
        return dx, hybrid_rows(hits, dw, n), db
    if as_rows and dw is not None and given:
        return dx, unified_rows(hits[0], dw, dy, n), db
    if as_rows and dw is not None:
        return dx, hybrid_rows(hits, dw, n) if count == k else hybrid_rows(hits[:, :count], dw[:count], n), db
    return dx, dw, db


KERNEL = Native()
