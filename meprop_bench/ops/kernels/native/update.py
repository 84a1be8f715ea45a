"""A step of an optimizer, compiled: all parameters in one call, dense gradients and rows alike; float32.

A parameter W `(n, m)` has a gradient G of its shape, or rows of it, `(r, m)` with their r numbers, ascending. A number
w of W with its gradient g and its state s, t moves by one of

    SGD        g ← g + λ w;  w ← w - η g
    MOMENTUM   g ← g + λ w;  s ← μ s + (1 - τ) g;  w ← w - η s, or w - η (g + μ s) by Nesterov
    ADAGRAD    g ← g + λ w;  s ← s + g²;  w ← w - η g / (√s + ε)
    ADAM       s ← s + (1 - β1)(g - s);  t ← β2 t + (1 - β2) g²;  w ← w - η' s / (√t + ε')

(λ and its sum are left out where λ = 0, so that infinite weights stay what they are.) The first three round as torch's
fused steps do on a processor with multiply-adds, operation by operation, so that both give the same bits. (But of
torch's momentum, the last numbers of a parameter, fewer than a vector, round as its compiler chose.) ADAM has the
corrections of both moments in η' = η √(1 - β2^c) / (1 - β1^c) and ε' = ε √(1 - β2^c), c being the number of steps: of
the parameter, or of each row.

All gradients' numbers in a line are cut into shares, at rows or at whole vectors: a number is moved by one thread, and
rounds as it would on any other. Per number, memory moves 12 bytes for SGD, 20 for ADAGRAD, 28 for ADAM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.threads import OPENMP, body, parallel, shares
from meprop_bench.ops.kernels.native.vectors import LANES, declare, fused, load, load_f32, loop, splat, store

__all__ = ["ADAGRAD", "ADAM", "ENTRY_WORDS", "MOMENTUM", "MOVE", "OPENMP", "SETTINGS", "SGD", "step"]

SGD, MOMENTUM, ADAGRAD, ADAM = range(4)
"""The algorithms."""

# The words of an entry, which is a parameter that has a gradient; addresses are of contiguous memory (0: not there).
(
    _W,  # float32 (n, m)
    _G,  # float32, as W; or (r, m)
    _S,  # float32, as W: the state
    _T,  # float32, as W: the second moment
    _STEP,  # float32: steps so far; of each row, (n,), if EACH
    _ROWS,  # int64 (r,), which rows of W the gradient has; 0: all of them
    _NUMBERS,  # of the gradient
    _M,  # numbers of a row
    _N,  # rows of W
    _EACH,  # whether each row counts its own steps (ADAM)
    _FIRST,  # whether there was no momentum before (MOMENTUM)
    _GROUP,  # which settings it has
    _ALGORITHM,  # one of those above
) = range(13)
ENTRY_WORDS = 13

# The settings of a group of parameters, float64 each.
(_RATE, _DECAY, _SIGN, _EPS, _ONE, _TWO, _FLAG) = range(7)
SETTINGS = 7
"""The learning rate; λ; 1, or -1 to maximize; ε; lr_decay, μ or β1; τ or β2; whether Nesterov, or decay as in AdamW."""

# What a step multiplies by, float32 each.
(_C_SIGN, _C_DECAY, _C_RATE, _C_EPS, _C_ONE, _C_TWO, _C_THREE, _C_KEEP) = range(8)
_CONSTANTS = 8
_SPACING = 16
"""float32 numbers from one share's own constants to the next one's: a line of the cache."""

# The words of a region.
_TABLE, _ENTRIES, _TOTAL, _VALUES, _OWN, _OF_GROUPS = range(6)
_REGION_WORDS = 6

_RUN = 64
"""Numbers of a dense gradient that stay together: whole vectors, and lines of the cache."""


Rule = Callable[[Any, list[Any], list[Any]], list[Any]]
"""(builder, the constants, [w, g, states]) -> [w, states] after the step."""


def _gradient(builder: Any, c: list[Any], w: Any, g: Any) -> Any:
    """Return the gradient with its sign, and with weight decay where there is one."""
    g = builder.fmul(g, c[_C_SIGN])
    zero = ir.Constant(w.type, None)
    return builder.select(builder.fcmp_unordered("!=", c[_C_DECAY], zero), fused(builder, w, c[_C_DECAY], g), g)


def _root(builder: Any, value: Any) -> Any:
    lanes = f"v{value.type.count}f32" if isinstance(value.type, ir.VectorType) else "f32"
    return builder.call(declare(builder, f"llvm.sqrt.{lanes}", ir.FunctionType(value.type, [value.type])), [value])


def _sgd(builder: Any, c: list[Any], numbers: list[Any]) -> list[Any]:
    w, g = numbers
    return [fused(builder, _gradient(builder, c, w, g), c[_C_RATE], w)]


def _momentum(builder: Any, c: list[Any], numbers: list[Any]) -> list[Any]:
    w, g, s = numbers
    g = _gradient(builder, c, w, g)
    s = fused(builder, g, c[_C_TWO], builder.fmul(s, c[_C_ONE]))
    zero = ir.Constant(w.type, None)
    ahead = builder.select(builder.fcmp_unordered("!=", c[_C_THREE], zero), fused(builder, s, c[_C_THREE], g), s)
    return [fused(builder, ahead, c[_C_RATE], w), s]


def _adagrad(builder: Any, c: list[Any], numbers: list[Any]) -> list[Any]:
    w, g, s = numbers
    g = _gradient(builder, c, w, g)
    s = fused(builder, g, g, s)
    moved = builder.fdiv(builder.fmul(c[_C_RATE], g), builder.fadd(_root(builder, s), c[_C_EPS]))
    return [builder.fsub(w, moved), s]


def _adam(builder: Any, c: list[Any], numbers: list[Any]) -> list[Any]:
    w, g, s, t = numbers
    g = _gradient(builder, c, w, g)
    s = fused(builder, builder.fsub(g, s), c[_C_ONE], s)
    t = fused(builder, t, c[_C_TWO], builder.fmul(builder.fmul(g, g), c[_C_THREE]))
    moved = builder.fdiv(builder.fmul(c[_C_RATE], s), builder.fadd(_root(builder, t), c[_C_EPS]))
    return [builder.fsub(builder.fmul(w, c[_C_KEEP]), moved), s, t]


def _over(rule: Rule, states: int) -> Any:
    """Make the inner loop: a rule for `count` numbers of W, of the gradient and of the states, one after the other."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        w, g, s, t, constants, count = arguments
        streams = [w, g, s, t][: 2 + states]
        numbers = [load_f32(builder, constants, ir.Constant(w.type, i)) for i in range(_CONSTANTS)]
        whole = builder.and_(count, ir.Constant(w.type, -LANES))
        for kind, lanes, bounds in (
            (ir.VectorType(ir.FloatType(), LANES), LANES, (ir.Constant(w.type, 0), whole)),
            (ir.FloatType(), 1, (whole, count)),
        ):
            c = [splat(builder, kind, number) for number in numbers]

            def some(i: Any, _: list[Any], kind: Any = kind, c: list[Any] = c) -> list[Any]:
                at = builder.shl(i, ir.Constant(w.type, 2))
                places = [builder.add(stream, at) for stream in streams]
                new = rule(builder, c, [load(builder, kind, place) for place in places])
                for value, place in zip(new, [places[0], *places[2:]], strict=True):
                    store(builder, value, place)
                return []

            loop(builder, bounds, lanes, [], some, may_be_empty=True)
        return context.get_dummy_value()

    @intrinsic
    def over(typingctx: Any, w: Any, g: Any, s: Any, t: Any, constants: Any, count: Any) -> Any:
        return types.void(*[types.int64] * 6), codegen

    return over


_over_sgd, _over_momentum, _over_adagrad, _over_adam = (
    _over(rule, states) for rule, states in ((_sgd, 0), (_momentum, 1), (_adagrad, 1), (_adam, 2))
)


@function()
def _move(e, to, of, constants, count):
    """Move `count` numbers of an entry: of W and the states from byte `to` on, by the gradient from byte `of` on."""
    w, g, s, t, algorithm = e[_W] + to, e[_G] + of, e[_S] + to, e[_T] + to, e[_ALGORITHM]
    if algorithm == SGD:
        _over_sgd(w, g, s, t, constants, count)
    elif algorithm == MOMENTUM:
        _over_momentum(w, g, s, t, constants, count)
    elif algorithm == ADAGRAD:
        _over_adagrad(w, g, s, t, constants, count)
    else:
        _over_adam(w, g, s, t, constants, count)


@function()
def _corrected(constants, settings, steps):
    """Set ADAM's constants that depend on the number of steps."""
    root = np.sqrt(1 - settings[_TWO] ** steps)  # in double: 1 - β2 has few digits in single
    constants[_C_RATE] = settings[_RATE] * root / (1 - settings[_ONE] ** steps)
    constants[_C_EPS] = settings[_EPS] * root


@function()
def _prepare(e, c, settings):
    """Count the step, and set the constants of an entry."""
    c[:] = 0
    c[_C_SIGN], c[_C_DECAY], c[_C_EPS] = settings[_SIGN], settings[_DECAY], settings[_EPS]
    c[_C_RATE] = -settings[_RATE]
    steps, algorithm = 0.0, e[_ALGORITHM]
    if e[_STEP] != 0 and not e[_EACH]:
        counted = view(e[_STEP], 1, np.float32)
        counted[0] += np.float32(1)
        steps = np.float64(counted[0])
    if algorithm == ADAGRAD:
        c[_C_RATE] = settings[_RATE] / (1 + (steps - 1) * settings[_ONE])
    elif algorithm == MOMENTUM:
        # The first momentum is the gradient, undamped: what is there before is zeros.
        c[_C_ONE] = settings[_ONE]
        c[_C_TWO] = 1 if e[_FIRST] else 1 - settings[_TWO]
        c[_C_THREE] = settings[_ONE] if settings[_FLAG] != 0 else 0
    elif algorithm == ADAM:
        c[_C_ONE], c[_C_TWO], c[_C_THREE] = 1 - settings[_ONE], settings[_TWO], 1 - settings[_TWO]
        c[_C_KEEP] = 1
        if settings[_FLAG] != 0:
            c[_C_DECAY], c[_C_KEEP] = 0, 1 - settings[_RATE] * settings[_DECAY]
        if not e[_EACH]:
            _corrected(c, settings, steps)


@function()
def _some(g, count):
    """Whether any of `count` numbers at an address is not zero; NaN is not."""
    numbers = view(g, count, np.float32)
    for i in range(count):  # noqa: SIM110 (Numba knows no generators)
        if numbers[i] != 0:
            return True
    return False


@function()
def _own_steps(e, first, last, constants, settings, own):
    """Move rows that count their own steps, from `first` to `last` of the gradient's; a listed row of zeros stays."""
    m = e[_M]
    own, shared = view(own, _CONSTANTS, np.float32), view(constants, _CONSTANTS, np.float32)
    own[:] = shared
    counts = view(e[_STEP], e[_N], np.float32)
    for i in range(first, last):
        j = i
        if e[_ROWS] != 0:
            j = view(e[_ROWS], last, np.int64)[i]
            if not _some(e[_G] + 4 * i * m, m):
                continue
        counts[j] += np.float32(1)
        _corrected(own, settings, np.float64(counts[j]))
        _move(e, 4 * j * m, 4 * i * m, own.ctypes.data, m)


def _share(a, share, shares):
    """Move one share of all numbers."""
    a = carray(a, _REGION_WORDS)
    low, high = a[_TOTAL] * share // shares, a[_TOTAL] * (share + 1) // shares
    before = 0
    for index in range(a[_ENTRIES]):
        # From the entry's numbers in [low, high) to whole rows or runs: one that begins there is this share's.
        e = view(a[_TABLE] + 8 * ENTRY_WORDS * index, ENTRY_WORDS, np.int64)
        constants = a[_VALUES] + 4 * _CONSTANTS * index
        by_rows = e[_ROWS] != 0 or e[_EACH] != 0
        unit = e[_M] if by_rows else _RUN
        first = (max(low - before, 0) + unit - 1) // unit
        last = (min(high - before, e[_NUMBERS]) + unit - 1) // unit
        before += e[_NUMBERS]
        if first >= last:
            continue
        if e[_EACH]:
            settings = view(a[_OF_GROUPS] + 8 * SETTINGS * e[_GROUP], SETTINGS, np.float64)
            _own_steps(e, first, last, constants, settings, a[_OWN] + 4 * _SPACING * share)
        elif by_rows:
            rows = view(e[_ROWS], last, np.int64)
            for i in range(first, last):
                _move(e, 4 * rows[i] * unit, 4 * i * unit, constants, unit)
        else:
            begin = first * unit
            count = min(last * unit, e[_NUMBERS]) - begin
            _move(e, 4 * begin, 4 * begin, constants, count)


MOVE = body(_share)

_COST = (2, 3, 4, 6)
"""Multiply-adds that take about as long as moving a number by each algorithm, from the second cache."""


@function(types.boolean(types.int64, types.int64))
def ascending(rows, count):
    """Whether rows, int64 (count,), ascend from 0 or more, so that each is there once."""
    before = np.int64(-1)
    for row in view(rows, count, np.int64):
        if row <= before:
            return False
        before = row
    return True


@function()
def _disorder(e):
    """Whether an entry's rows are not ascending, or not rows of W."""
    m = e[_M]
    if e[_ROWS] == 0 or m == 0:
        return False
    count = e[_NUMBERS] // m
    return not ascending(e[_ROWS], count) or (count > 0 and view(e[_ROWS], count, np.int64)[count - 1] >= e[_N])


_cut = function()(shares)


@function()
def _in_parallel(openmp, move, count, table, entries, total, values, own, of_groups):
    """Move everything, in so many shares; the arrays live as long as this call."""
    a = np.empty(_REGION_WORDS, np.int64)
    a[_TABLE], a[_ENTRIES], a[_TOTAL] = table, entries, total
    a[_VALUES], a[_OWN], a[_OF_GROUPS] = values.ctypes.data, own.ctypes.data, of_groups
    parallel(openmp, count, move, a)


@function(types.int64(*[types.int64] * 6))
def step(openmp, move, threads, table, entries, of_groups):
    """Make a step, or none where rows are out of order; return the index of the first such entry, or -1.

    Args:
        openmp, move: `threads.OPENMP`, `MOVE`.
        threads: at most.
        table: int64 (entries, ENTRY_WORDS), which are named above.
        of_groups: float64 (groups, SETTINGS).

    """
    total, work = 0, 0
    for index in range(entries):
        e = view(table + 8 * ENTRY_WORDS * index, ENTRY_WORDS, np.int64)
        if _disorder(e):
            return index
        total += e[_NUMBERS]
        work += e[_NUMBERS] * _COST[e[_ALGORITHM]]
    values = np.empty((entries, _CONSTANTS), np.float32)
    for index in range(entries):
        e = view(table + 8 * ENTRY_WORDS * index, ENTRY_WORDS, np.int64)
        _prepare(e, values[index], view(of_groups + 8 * SETTINGS * e[_GROUP], SETTINGS, np.float64))
    count = _cut(threads, work)
    own = np.empty((count, _SPACING), np.float32)
    _in_parallel(openmp, move, count, table, entries, total, values, own, of_groups)
    return -1
