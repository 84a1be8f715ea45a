"""A recurrent layer backward through time: gradients of the gates, selection and dh', in one call for all time steps.

Where each example has k entries of each gate for itself, the examples have nothing to do with one another:

    for each example, dealt out to the threads
        for each of its time steps, from its last
            d = gradients at the pre-activations            (G h,)
            S(d) = the k largest of each gate               G k pairs of a row of W_hh and a value
            dh' = Σ over the pairs of value · row           (h,)

so no thread waits for another before the end. What a step needs of W_hh are G k rows of G h. With the unified selection
the threads meet three times a step.
"""

from __future__ import annotations

import numpy as np
from numba import carray, types

from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.example import sum_rows
from meprop_bench.ops.kernels.native.recurrent_forward import GRU, LSTM, TANH, copy, gates_of, row_of
from meprop_bench.ops.kernels.native.threads import body, parallel
from meprop_bench.ops.kernels.native.topk import largest, working_bytes

__all__ = ["BACK_ROWS", "CHAINS", "PASS_BACK_ROWS", "scratch_bytes", "through_time"]

_ONE = np.float32(1)

# The words of the parallel regions, int64 each: numbers, and addresses of contiguous memory, float32 but for what says
# otherwise (0: not there). N, ' and the first of these arrays as in `recurrent_forward`, which wrote them.
(
    _CELL,
    _B,
    _H,
    _K,  # entries of each gate
    _T,
    _REVERSE,  # whether forward ran from the last step to the first
    _SIZES,  # int64 (T,), examples of each step
    _STARTS,  # int64 (T,), the first row of each step
    _GATE,  # (N, G H)
    _OTHER,  # (N, H)
    _MORE,  # (N, H)
    _BEFORE,  # (N, H)
    _Y,  # (N, H), dy
    _STATE,  # (B, H), dh: of the last states first, in the end of the initial ones
    _MEMORY,  # (B, H), dc likewise
    _W,  # (G H, H), W_hh
    _D,  # (N, G H), written: the gradient of a
    _DB,  # (N, G H), written: that of b, the same but for a GRU
    _IDX,  # int64 (N, G K), written: the rows of the weights that were selected
    _AT,  # the step's rows are AT, AT + 1, … of N, where all examples of a step share the selection
    _SIZE,  # how many they are
    _SCRATCH,  # what `_shared` says, then `_own_bytes` for each share
    _COUNT,  # how many rows were selected for the step, zeros left out
    _LD,  # numbers from one row of GATE to the next of an LSTM: 4 H, or more where torch's left them
    _AS_TAKEN,  # whether the rows of GATE begin with the step that was taken first, all of B examples
) = range(25)
WORDS = 25


@function()
def _gates_of(a, e, row):
    """Return i f g o of an LSTM's example e in a row."""
    place = (a[_T] - 1) * a[_B] - row + 2 * e if a[_AS_TAKEN] and a[_REVERSE] else row
    return view(a[_GATE] + 4 * a[_LD] * place, 4 * a[_H], np.float32)


@function()
def _back_lstm(a, e, row):
    """dc += dh o (1 - t²), the gradients at i f g o, and dc' = dc f; loop by loop, each with one array to write."""
    h = a[_H]
    gate, d = _gates_of(a, e, row), row_of(a[_D], row, 4 * h)
    i, f, g, o = gate[:h], gate[h : 2 * h], gate[2 * h : 3 * h], gate[3 * h :]
    d_i, d_f, d_g, d_o = d[:h], d[h : 2 * h], d[2 * h : 3 * h], d[3 * h :]
    dh, dc = row_of(a[_STATE], e, h), row_of(a[_MEMORY], e, h)
    c, t = row_of(a[_OTHER], row, h), row_of(a[_MORE], row, h)
    for j in range(h):
        dc[j] += dh[j] * o[j] * (_ONE - t[j] * t[j])
    for j in range(h):
        d_i[j] = dc[j] * g[j] * i[j] * (_ONE - i[j])
    for j in range(h):
        d_f[j] = dc[j] * c[j] * f[j] * (_ONE - f[j])
    for j in range(h):
        d_g[j] = dc[j] * i[j] * (_ONE - g[j] * g[j])
    for j in range(h):
        d_o[j] = dh[j] * t[j] * o[j] * (_ONE - o[j])
    for j in range(h):
        dc[j] *= f[j]


@function()
def _back_gru(a, e, row):
    """The gradients at r z n, for b with d_n r in the place of d_n, and the part z dh of dh'."""
    h = a[_H]
    gate, d_a, d_b = row_of(a[_GATE], row, 3 * h), row_of(a[_D], row, 3 * h), row_of(a[_DB], row, 3 * h)
    r, z, n = gate[:h], gate[h : 2 * h], gate[2 * h :]
    d_r, d_z, d_n = d_a[:h], d_a[h : 2 * h], d_a[2 * h :]
    dh, b_n, before = row_of(a[_STATE], e, h), row_of(a[_OTHER], row, h), row_of(a[_BEFORE], row, h)
    for j in range(h):
        d_n[j] = dh[j] * (_ONE - z[j]) * (_ONE - n[j] * n[j])
    for j in range(h):
        d_z[j] = dh[j] * (before[j] - n[j]) * z[j] * (_ONE - z[j])
    for j in range(h):
        d_r[j] = d_n[j] * b_n[j] * r[j] * (_ONE - r[j])
    copy(d_b[: 2 * h], d_a[: 2 * h])
    last = d_b[2 * h :]
    for j in range(h):
        last[j] = d_n[j] * r[j]
    for j in range(h):
        dh[j] *= z[j]  # what goes to h' past the products


@function()
def _back_plain(a, e, row):
    """dh (1 - h²), or dh where h > 0 or is NaN."""
    h = a[_H]
    gate, d, dh = row_of(a[_GATE], row, h), row_of(a[_D], row, h), row_of(a[_STATE], e, h)
    if a[_CELL] == TANH:
        for j in range(h):
            d[j] = dh[j] * (_ONE - gate[j] * gate[j])
    else:
        for j in range(h):
            d[j] = np.float32(0) if gate[j] <= 0 else dh[j]


@function()
def _back(a, e, row):
    """Compute the gradients at the pre-activations of a row, from those of the states of example e."""
    h = a[_H]
    dh, dy = row_of(a[_STATE], e, h), row_of(a[_Y], row, h)
    for j in range(h):
        dh[j] += dy[j]
    if a[_CELL] == LSTM:
        _back_lstm(a, e, row)
    elif a[_CELL] == GRU:
        _back_gru(a, e, row)
    else:
        _back_plain(a, e, row)


@function()
def _choose(source, h, k, first, working, picked, chosen, count):
    """Select k entries of a gate whose rows of the weights begin at `first`.

    They are appended to picked[count:]. chosen, (k,), gets them too, and is filled up, where the gate has fewer than k
    entries that are not zero, with the first that are: they contribute nothing.
    """
    places = picked[count : count + k]
    found = largest(source, h, k, working, places)
    for s in range(found):
        places[s] += first
        chosen[s] = places[s]
    if found < k:
        gate = view(source, h, np.float32)
        j = 0
        for s in range(found, k):
            while gate[j] != 0:
                j += 1
            chosen[s] = first + j
            j += 1
    return count + found


@function()
def _pass_back(a, e, row, gates, picked, count, values):
    """Compute dh' of example e from the selected entries of its row; `values` is followed by space for h numbers."""
    h = a[_H]
    d = row_of(a[_DB], row, gates * h)
    value = view(values, count, np.float32)
    for s in range(count):
        value[s] = d[picked[s]]
    target = a[_STATE] + 4 * e * h
    if a[_CELL] == GRU:
        through = values + 4 * gates * a[_K]
        sum_rows(through, a[_W], h, picked.ctypes.data, values, 0, count, False)
        dh, added = view(target, h, np.float32), view(through, h, np.float32)
        for j in range(h):
            dh[j] += added[j]
    else:
        sum_rows(target, a[_W], h, picked.ctypes.data, values, 0, count, False)


@function()
def _own_bytes(h, k, gates):
    """Return the bytes a share works in: the search's, picked rows, values, a row of h."""
    return working_bytes(h, k) + 4 * (2 * gates * k + h)


@function()
def _shared_bytes(h, k, gates):
    """Return the bytes of what the examples of a time step have in common, see `_shared`."""
    return 4 * gates * (3 * k + h)


@function()
def _own(a, share, gates):
    """Return where a share works."""
    h, k = a[_H], a[_K]
    return a[_SCRATCH] + _shared_bytes(h, k, gates) + share * _own_bytes(h, k, gates)


def _chains(a, share, shares):
    """Take whole examples back through time."""
    a = carray(a, WORDS)
    h, k, cell = a[_H], a[_K], a[_CELL]
    gates = gates_of(cell)
    sizes, starts = view(a[_SIZES], a[_T], np.int64), view(a[_STARTS], a[_T], np.int64)
    working = _own(a, share, gates)
    picked = view(working + working_bytes(h, k), gates * k, np.int32)
    values = working + working_bytes(h, k) + 4 * gates * k
    # Every shares-th example: lengths do not increase, so that each share has long and short ones.
    for e in range(share, a[_B], shares):
        length = 0
        while length < a[_T] and sizes[length] > e:
            length += 1
        for s in range(length):
            row = starts[s if a[_REVERSE] else length - 1 - s] + e
            _back(a, e, row)
            chosen = view(a[_IDX] + 8 * row * gates * k, gates * k, np.int64)
            count = 0
            for g in range(gates):
                source = a[_D] + 4 * h * (row * gates + g)
                count = _choose(source, h, k, g * h, working, picked, chosen[g * k : (g + 1) * k], count)
            _pass_back(a, e, row, gates, picked, count, values)


CHAINS = body(_chains)


def _back_rows(a, share, shares):
    """Compute the gradients at the pre-activations for one time step: a share of its examples."""
    a = carray(a, WORDS)
    for e in range(a[_SIZE] * share // shares, a[_SIZE] * (share + 1) // shares):
        _back(a, e, a[_AT] + e)


@function()
def _shared(a, gates):
    """Return where the selection of a whole time step is: the sums over its examples, rows picked, and all chosen."""
    chosen = a[_SCRATCH]
    picked = chosen + 8 * gates * a[_K]
    sums = picked + 4 * gates * a[_K]
    return sums, view(picked, gates * a[_K], np.int32), view(chosen, gates * a[_K], np.int64)


def _pass_back_rows(a, share, shares):
    """Compute dh' for one time step whose selection is made: a share of its examples."""
    a = carray(a, WORDS)
    h, k, cell = a[_H], a[_K], a[_CELL]
    gates = gates_of(cell)
    values = _own(a, share, gates) + working_bytes(h, k) + 4 * gates * k
    _, picked, all_chosen = _shared(a, gates)
    for e in range(a[_SIZE] * share // shares, a[_SIZE] * (share + 1) // shares):
        row = a[_AT] + e
        chosen = view(a[_IDX] + 8 * row * gates * k, gates * k, np.int64)
        for s in range(gates * k):
            chosen[s] = all_chosen[s]
        _pass_back(a, e, row, gates, picked, a[_COUNT], values)


BACK_ROWS, PASS_BACK_ROWS = body(_back_rows), body(_pass_back_rows)


@function()
def _choose_for_all(a, gates):
    """Select, for one time step, k neurons of each gate by the sum of |d| over the examples; return how many."""
    h, k = a[_H], a[_K]
    sums, picked, chosen = _shared(a, gates)
    total = view(sums, gates * h, np.float32)
    total[:] = 0
    for e in range(a[_SIZE]):
        d = row_of(a[_D], a[_AT] + e, gates * h)
        for j in range(gates * h):
            total[j] += abs(d[j])
    count = 0
    for g in range(gates):
        count = _choose(sums + 4 * g * h, h, k, g * h, _own(a, 0, gates), picked, chosen[g * k : (g + 1) * k], count)
    return count


@function(types.void(*[types.int64] * 28))
def through_time(
    openmp, chains, back, pass_back, shares, unified, cell, b, h, k, steps, reverse, sizes, starts,
    dy, gate, other, more, before, w_hh, d_state, d_memory, d_a, d_b, idx, scratch, ld, as_taken,
):  # fmt: skip
    """Compute the gradients at all pre-activations and select of them; for words of the regions, see there.

    Args:
        openmp, chains, back, pass_back: `OPENMP`, `CHAINS`, `BACK_ROWS`, `PASS_BACK_ROWS`.
        shares: into how many the examples are cut.
        unified: whether all examples of a time step share the selection.
        steps: T.
        scratch: `scratch_bytes(shares, h, k, G)` bytes, on a multiple of 8.

    """
    w = np.empty(WORDS, np.int64)
    w[_CELL], w[_B], w[_H], w[_K], w[_T], w[_REVERSE] = cell, b, h, k, steps, reverse
    w[_SIZES], w[_STARTS], w[_Y], w[_GATE], w[_OTHER], w[_MORE], w[_BEFORE] = (
        sizes, starts, dy, gate, other, more, before,
    )  # fmt: skip
    w[_W], w[_STATE], w[_MEMORY], w[_D], w[_DB] = w_hh, d_state, d_memory, d_a, d_b
    w[_IDX], w[_SCRATCH], w[_LD], w[_AS_TAKEN] = idx, scratch, ld, as_taken
    if not unified:
        parallel(openmp, shares, chains, w)
        return
    gates = gates_of(cell)
    size, start = view(sizes, steps, np.int64), view(starts, steps, np.int64)
    # Three regions or parts for each step: the gradients by all threads, the selection by this one, dh' by all.
    for s in range(steps):
        t = s if reverse else steps - 1 - s
        w[_AT], w[_SIZE] = start[t], size[t]
        parallel(openmp, shares, back, w)
        w[_COUNT] = _choose_for_all(w, gates)
        parallel(openmp, shares, pass_back, w)


@function(types.int64(*[types.int64] * 4))
def scratch_bytes(shares, h, k, gates):
    """Return how many bytes `through_time` needs."""
    return _shared_bytes(h, k, gates) + shares * _own_bytes(h, k, gates)
