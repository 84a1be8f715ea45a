"""A recurrent layer forward in time: the cell of a time step, and all of it where the batch is one example.

The equations are those of `ops.recurrent.cells`. The products with W_hh are left to torch, whose library packs
W_hh once for all steps; but for one example a product is no more than reading W_hh (4 MB at h = 500), which needs no
library, and then the loop over time is here as well.

The element-wise loops have one array to write and few to read each, so that LLVM's vectoriser accepts them. exp is made
for them, without a branch: 0.4 ns a number for either non-linear function (AVX-512).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.threads import body, parallel
from meprop_bench.ops.kernels.native.vectors import LANES, VECTOR, declare, fused, load, loop, offset, store

__all__ = ["ALONE", "GRU", "LSTM", "RECALL", "RELU", "STEP", "TANH", "alone", "recall", "step"]

LSTM, GRU, TANH, RELU = range(4)
"""The cells, as words."""

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693145751953125), np.float32(1.428606765330187e-06)
"""ln 2 in two parts; n times the first, which has 15 bits, is exact."""
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
_C3, _C4, _C5, _C6, _C7 = (np.float32(1 / f) for f in (6, 24, 120, 720, 5040))


@intrinsic
def _power_of_two(typingctx: Any, n: Any) -> Any:
    """Return 2ⁿ as float32 for an integer -126 <= n <= 127."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        exponent = builder.shl(builder.add(arguments[0], ir.Constant(word, 127)), ir.Constant(word, 23))
        return builder.bitcast(exponent, ir.FloatType())

    return types.float32(types.int32), codegen


@function()
def _parts_of_exp(x):
    """Return p = 2ⁿ and q with eˣ = p (1 + q) and |q| < 0.42, for |x| < 87: eʳ - 1 by Taylor, |r| <= ln 2 / 2."""
    n = np.floor(x * _LOG2E + _HALF)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    q = r * (_ONE + r * (_HALF + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
    return _power_of_two(np.int32(n)), q


@function()
def _bounded(x, bound):
    """Return x, at most `bound` from zero; NaN becomes a number, which the caller has to undo."""
    return min(max(x, -bound), bound)


@function()
def _sigmoid(x):
    p, q = _parts_of_exp(-_bounded(x, np.float32(87)))
    return _ONE / (_ONE + (p + p * q)) + (x if np.isnan(x) else np.float32(0))


@function()
def _tanh(x):
    """tanh x = (e²ˣ - 1) / (e²ˣ + 1), where e²ˣ - 1 = (p - 1) + p q does not cancel around zero."""
    p, q = _parts_of_exp(_TWO * _bounded(x, np.float32(10)))
    m = (p - _ONE) + p * q
    return m / (m + _TWO) + (x if np.isnan(x) else np.float32(0))


# The words of the parallel regions, int64 each: numbers, and addresses of contiguous float32 (0: not there). N rows are
# the examples of all time steps, one after the other; ' is the step before.
(
    _CELL,  # LSTM, GRU, TANH or RELU
    _H,
    _AT,  # the step's rows are AT, AT + 1, … of N
    _SIZE,  # how many they are
    _PRE,  # (SIZE, G H), W_hh h' + b_hh
    _STATE,  # (B, H), h' before the step and h after it
    _MEMORY,  # (B, H), c' and c of an LSTM
    _GATE,  # (N, G H), W_ih x + b_ih before the step; the gates after it
    _OTHER,  # (N, H), saved for backward: c' of an LSTM, b_n of a GRU
    _MORE,  # (N, H), likewise: tanh c of an LSTM
    _BEFORE,  # (N, H), likewise: h'
    _Y,  # (N, H), h
    _W,  # (G H, H), W_hh
    _B,  # (G H,), b_hh
    _LD,  # numbers from one row of GATE to the next, where torch's LSTM has made it
    _T,
    _REVERSE,  # whether the last time step is taken first
) = range(17)
WORDS = 17


@function()
def gates_of(cell):
    """Return G."""
    return 4 if cell == LSTM else (3 if cell == GRU else 1)


@function()
def row_of(address, row, width):
    """Return a row of a float32 array at an address."""
    return view(address + 4 * row * width, width, np.float32)


@function()
def copy(target, source):
    """Copy; a slice assignment would look first whether the two overlap."""
    for j in range(target.size):
        target[j] = source[j]


@function()
def _sigmoids(a, b):
    """a ← σ(a + b)."""
    for j in range(a.size):
        a[j] = _sigmoid(a[j] + b[j])


@function()
def _tanhs(a, b):
    """a ← tanh(a + b)."""
    for j in range(a.size):
        a[j] = _tanh(a[j] + b[j])


@function()
def _step_lstm(a, e, row, low, high):
    """i f o = σ(a + b), g = tanh(a + b), c = f c' + i g, h = o tanh c."""
    h = a[_H]
    b, gate = row_of(a[_PRE], e, 4 * h), row_of(a[_GATE], row, 4 * h)
    i, f = gate[low:high], gate[h + low : h + high]
    g, o = gate[2 * h + low : 2 * h + high], gate[3 * h + low : 3 * h + high]
    _sigmoids(i, b[low:high])
    _sigmoids(f, b[h + low : h + high])
    _tanhs(g, b[2 * h + low : 2 * h + high])
    _sigmoids(o, b[3 * h + low : 3 * h + high])
    c, t = row_of(a[_MEMORY], e, h)[low:high], row_of(a[_MORE], row, h)[low:high]
    y = row_of(a[_Y], row, h)[low:high]
    copy(row_of(a[_OTHER], row, h)[low:high], c)
    for j in range(c.size):
        c[j] = f[j] * c[j] + i[j] * g[j]
    for j in range(c.size):
        t[j] = _tanh(c[j])
    for j in range(c.size):
        y[j] = o[j] * t[j]


@function()
def _step_gru(a, e, row, low, high):
    """r z = σ(a + b), n = tanh(a + r b_n), h = n + z (h' - n)."""
    h = a[_H]
    b, gate = row_of(a[_PRE], e, 3 * h), row_of(a[_GATE], row, 3 * h)
    r, z, n = gate[low:high], gate[h + low : h + high], gate[2 * h + low : 2 * h + high]
    _sigmoids(r, b[low:high])
    _sigmoids(z, b[h + low : h + high])
    b_n, before, y = b[2 * h + low : 2 * h + high], row_of(a[_STATE], e, h)[low:high], row_of(a[_Y], row, h)[low:high]
    copy(row_of(a[_OTHER], row, h)[low:high], b_n)
    for j in range(n.size):
        n[j] = _tanh(n[j] + r[j] * b_n[j])
    for j in range(n.size):
        y[j] = n[j] + z[j] * (before[j] - n[j])


@function()
def _step_plain(a, e, row, low, high):
    """h = tanh(a + b), or max(0, a + b), which lets NaN through."""
    h = a[_H]
    b, gate = row_of(a[_PRE], e, h)[low:high], row_of(a[_GATE], row, h)[low:high]
    if a[_CELL] == TANH:
        _tanhs(gate, b)
    else:
        for j in range(gate.size):
            s = gate[j] + b[j]
            gate[j] = np.float32(0) if s <= 0 else s
    copy(row_of(a[_Y], row, h)[low:high], gate)


@function()
def _step_of(a, e, low, high):
    """Compute neurons [low, high) of the cell for one example in one time step, from the products; h' is only read."""
    row, h = a[_AT] + e, a[_H]
    copy(row_of(a[_BEFORE], row, h)[low:high], row_of(a[_STATE], e, h)[low:high])
    if a[_CELL] == LSTM:
        _step_lstm(a, e, row, low, high)
    elif a[_CELL] == GRU:
        _step_gru(a, e, row, low, high)
    else:
        _step_plain(a, e, row, low, high)


def _step(a, share, shares):
    """Compute the cell for a share of the step's examples."""
    a = carray(a, WORDS)
    h = a[_H]
    for e in range(a[_SIZE] * share // shares, a[_SIZE] * (share + 1) // shares):
        _step_of(a, e, 0, h)
        copy(row_of(a[_STATE], e, h), row_of(a[_Y], a[_AT] + e, h))


@intrinsic
def _four_dots(typingctx: Any, table: Any, stride: Any, x: Any, length: Any, out: Any) -> Any:
    """Write, for four rows of a table, out[r] = Σ row[j] x[j] over j < length, a multiple of LANES and not 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table, stride, x, length, out = arguments
        word, zero = ir.IntType(64), ir.Constant(VECTOR, [0.0] * LANES)
        rows = [table]
        for _ in range(3):
            rows.append(builder.add(rows[-1], stride))

        # LANES numbers of x at once, read once for the four rows; a row's sums stay apart, lane by lane, to the end.
        def body(j: Any, sums: list[Any]) -> list[Any]:
            at = builder.shl(j, ir.Constant(word, 2))
            part = load(builder, VECTOR, builder.add(x, at))
            return [
                fused(builder, load(builder, VECTOR, builder.add(row, at)), part, total)
                for row, total in zip(rows, sums, strict=True)
            ]

        totals = loop(builder, (ir.Constant(word, 0), length), LANES, [zero] * 4, body)
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), VECTOR])
        reduce = declare(builder, f"llvm.vector.reduce.fadd.v{LANES}f32", kind)
        for r, total in enumerate(totals):
            dot = builder.call(reduce, [ir.Constant(ir.FloatType(), 0.0), total], fastmath=("reassoc",))
            store(builder, dot, offset(builder, out, 4 * r))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@function()
def _dots(a, first, last):
    """Compute rows [first, last) of W_hh h' + b_hh for one example; `last - first` is at least 4."""
    h = a[_H]
    whole = h // LANES * LANES
    out, x = row_of(a[_PRE], 0, last), row_of(a[_STATE], 0, h)
    done = first
    while done < last:
        r = min(done, last - 4)  # the last four may overlap those before, which are then computed twice
        if whole > 0:
            _four_dots(a[_W] + 4 * r * h, 4 * h, a[_STATE], whole, a[_PRE] + 4 * r)
        else:
            out[r : r + 4] = 0
        # What is left of the row, less than a vector, and the bias.
        for i in range(r, r + 4):
            w, total = row_of(a[_W], i, h), out[i]
            for j in range(whole, h):
                total += w[j] * x[j]
            out[i] = total + (view(a[_B], last, np.float32)[i] if a[_B] != 0 else np.float32(0))
        done = r + 4


def _alone(a, share, shares):
    """Compute one time step of one example: a share of the neurons, in fours but for the last share's end."""
    a = carray(a, WORDS)
    h, gates = a[_H], gates_of(a[_CELL])
    low = h * share // shares // 4 * 4
    high = h if share == shares - 1 else h * (share + 1) // shares // 4 * 4
    if shares == 1:
        _dots(a, 0, gates * h)
    else:
        for g in range(gates):
            _dots(a, g * h + low, g * h + high)
    _step_of(a, 0, low, high)


def _recall(a, share, shares):
    """Compute h', c' and tanh c of an LSTM from its gates and outputs: of a share of the examples, step by step."""
    a = carray(a, WORDS)
    h, size, steps = a[_H], a[_SIZE], a[_T]
    low, high = size * share // shares, size * (share + 1) // shares
    for e in range(low, high):
        first = ((steps - 1) * size if a[_REVERSE] else 0) + e
        copy(row_of(a[_BEFORE], first, h), row_of(a[_STATE], e, h))
        copy(row_of(a[_OTHER], first, h), row_of(a[_MEMORY], e, h))
    for s in range(steps):
        for e in range(low, high):
            row = (steps - 1 - s if a[_REVERSE] else s) * size + e
            gate = view(a[_GATE] + 4 * a[_LD] * (s * size + e), 3 * h, np.float32)
            i, f, g = gate[:h], gate[h : 2 * h], gate[2 * h :]
            c, t = row_of(a[_OTHER], row, h), row_of(a[_MORE], row, h)
            for j in range(h):
                t[j] = f[j] * c[j] + i[j] * g[j]
            if s + 1 < steps:  # h and c are the next step's h' and c'
                following = row - size if a[_REVERSE] else row + size
                copy(row_of(a[_OTHER], following, h), t)
                copy(row_of(a[_BEFORE], following, h), row_of(a[_Y], row, h))
            for j in range(h):
                t[j] = _tanh(t[j])


STEP, ALONE, RECALL = body(_step), body(_alone), body(_recall)


@function()
def _set(w, state, memory, gate, other, more, before, y):
    """Set the words that are the same for all steps."""
    w[_STATE], w[_MEMORY], w[_GATE], w[_OTHER], w[_MORE], w[_BEFORE], w[_Y] = (
        state, memory, gate, other, more, before, y,
    )  # fmt: skip


@function(types.void(*[types.int64] * 15))
def step(openmp, run, shares, cell, h, at, size, pre, state, memory, gate, other, more, before, y):
    """Compute one time step from the products with the weights; for words of the regions, see there.

    Args:
        openmp, run: `OPENMP`, `STEP`.
        shares: into how many the examples are cut.

    """
    w = np.empty(WORDS, np.int64)
    w[_CELL], w[_H], w[_AT], w[_SIZE], w[_PRE] = cell, h, at, size, pre
    _set(w, state, memory, gate, other, more, before, y)
    parallel(openmp, shares, run, w)


@function(types.void(*[types.int64] * 17))
def alone(openmp, run, shares, cell, h, steps, reverse, w_hh, b_hh, pre, state, memory, gate, other, more, before, y):
    """Compute all time steps of a batch of one example, in which step t is row t; for words of the regions, see there.

    Args:
        openmp, run: `OPENMP`, `ALONE`.
        shares: into how many the neurons are cut; at most one for each 8 of them. w_hh has 4 rows at least.
        steps, reverse: how many time steps, and whether the last is taken first.

    """
    w = np.empty(WORDS, np.int64)
    w[_CELL], w[_H], w[_PRE], w[_W], w[_B] = cell, h, pre, w_hh, b_hh
    _set(w, state, memory, gate, other, more, before, y)
    for s in range(steps):
        t = steps - 1 - s if reverse else s
        w[_AT] = t
        parallel(openmp, shares, run, w)
        w[_STATE] = y + 4 * t * h  # which the next step reads, whose neurons all need all of it
    copy(row_of(state, 0, h), row_of(w[_STATE], 0, h))


@function(types.void(*[types.int64] * 15))
def recall(openmp, run, shares, h, size, steps, reverse, ld, gate, y, state, memory, before, other, more):
    """Compute of gates and outputs what torch's LSTM has not left for backward; for words of the regions, see there.

    Args:
        openmp, run: `OPENMP`, `RECALL`.
        shares: into how many the examples are cut.
        size: examples of each time step.
        steps, reverse: how many time steps, and whether the last is taken first.
        ld: numbers from one row of the gates to the next; the rows are in the order in which the steps were taken.
        state, memory: the initial h and c.

    """
    w = np.empty(WORDS, np.int64)
    w[_H], w[_SIZE], w[_T], w[_REVERSE], w[_LD] = h, size, steps, reverse, ld
    _set(w, state, memory, gate, other, more, before, y)
    parallel(openmp, shares, run, w)
