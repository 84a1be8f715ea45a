"""The backward pass where each example has k neurons of its own.

    dx[e] = Σ_{j in S(e)} dy[e, j] W[j]              S(e): what example e selects
    dW[j] = Σ_{e : j in S(e)} dy[e, j] x[e]

Both sums run over the same B k pairs (e, j), and a pair costs two multiply-adds on rows of m numbers: there is no
product of matrices left, only weighted sums of rows. So the pairs are sorted by neuron, and each row of dx and of dW
is summed up in registers, a chunk of columns at a time, and written once, by one thread.

That a thread takes whole rows matters. Two threads with half of the columns each fetch the other's lines ahead and take
them away from one another: B = 10, 784 -> 500, k = 20 took 79 microseconds so, 72 on one thread and 32 by whole rows.
A table that exceeds the last cache, x or W, is read in panels of columns that do not, if its rows are read often
enough. (Copied to such panels they gained nothing, and small ones of tables that fit the cache do not, either.)

Four passes: over examples, select and count by neuron; sum the counts up; over examples, put the pairs in neuron order;
the sums. Rows of dW that nobody selected are written as zeros on the way, which spares the pass over fresh memory that
`torch.zeros` is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.threads import body, parallel
from meprop_bench.ops.kernels.native.topk import largest, working_bytes
from meprop_bench.ops.kernels.native.vectors import LANES, fused, load, load_f32, load_i32, loop, offset, splat, store
from meprop_bench.ops.kernels.native.zeros import blank, blank_all, look_at

CHUNK = (24 if LANES == 16 else 12) * LANES
"""Columns summed up at once, in registers: the longer the piece of a row, the better it is fetched ahead."""
PIECE = 4 * LANES
"""Columns at once of what is left: four vectors hide the latency of a multiply-add."""
_SORTED_ALONE = 4096
"""Pairs up to which one thread sorts, in the time of a parallel region or two."""
_CACHED, _PANEL, _REUSED = 24 << 20, 8 << 20, 5
"""Bytes of a table that stay in the last cache as they are; bytes of a panel; pairs for each row from which that pays.
One thread, 32 MiB of last cache, whole / panels: dW of x (1024, 8192) 1.15 at k = 8 and 1.12 at 32, of x (2048, 2048)
with k = 32 of n = 8192 1.8; dx of W (4096, 4096) 1.31 at k = 30, but with 2 pairs a row 0.94, and with 4 of W
(8192, 8192) 0.91."""


def _bag(columns: int, streaming: bool = False) -> Any:
    """Make the inner loop: out = Σ values[s] table[rows[s]] over s in [first, last), for some columns.

    All arguments are addresses but the stride of the table, in bytes, and first and last; rows is int32.
    """
    vectors, lanes = (columns // LANES, LANES) if columns >= LANES else (columns, 1)
    kind = ir.VectorType(ir.FloatType(), lanes) if lanes > 1 else ir.FloatType()
    size = 4 * lanes

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, table, stride, rows, values, first, last = arguments
        zero = ir.Constant(kind, [0.0] * lanes if lanes > 1 else 0.0)

        # One pair s: `columns` numbers of its row of the table, times its value; the sums stay in registers.
        def body(s: Any, sums: list[Any]) -> list[Any]:
            row = builder.add(table, builder.mul(load_i32(builder, rows, s), stride))
            value = splat(builder, kind, load_f32(builder, values, s))
            return [
                fused(builder, value, load(builder, kind, offset(builder, row, i * size)), total)
                for i, total in enumerate(sums)
            ]

        totals = loop(builder, (first, last), 1, [zero] * vectors, body, may_be_empty=True)
        for i, total in enumerate(totals):
            store(builder, total, offset(builder, out, i * size), streaming)
        return context.get_dummy_value()

    @intrinsic
    def bag(typingctx: Any, out: Any, table: Any, stride: Any, rows: Any, values: Any, first: Any, last: Any) -> Any:
        return types.void(*[types.int64] * 7), codegen

    return bag


_chunk, _streamed = _bag(CHUNK), _bag(CHUNK, streaming=True)
_piece, _vector, _single = _bag(PIECE), _bag(LANES), _bag(1)


@function()
def _panel(rows, m, pairs):
    """Return how many columns of a table (rows, m) are summed up for all pairs before the next."""
    if 4 * rows * m <= _CACHED or pairs < _REUSED * rows:
        return m
    return max(1, _PANEL // (4 * rows * CHUNK)) * CHUNK


@function()
def _sum_part(out, table, m, width, rows, values, first, last, streaming):
    """Write out[c] = sum over s in [first, last) of values[s] table[rows[s], c], for all c < width; all are addresses.

    m is from row to row of the table.
    """
    c = 0
    if streaming and out & 63 == 0:
        while c + CHUNK <= width:
            _streamed(out + 4 * c, table + 4 * c, 4 * m, rows, values, first, last)
            c += CHUNK
    while c + CHUNK <= width:
        _chunk(out + 4 * c, table + 4 * c, 4 * m, rows, values, first, last)
        c += CHUNK
    while c + PIECE <= width:
        _piece(out + 4 * c, table + 4 * c, 4 * m, rows, values, first, last)
        c += PIECE
    while c + LANES <= width:
        _vector(out + 4 * c, table + 4 * c, 4 * m, rows, values, first, last)
        c += LANES
    while c < width:
        _single(out + 4 * c, table + 4 * c, 4 * m, rows, values, first, last)
        c += 1


@function()
def sum_rows(out, table, m, rows, values, first, last, streaming):
    """Write out[c] = sum over s in [first, last) of values[s] table[rows[s], c], for all c < m; all are addresses."""
    _sum_part(out, table, m, m, rows, values, first, last, streaming)


# The words of all regions here, int64 each: numbers, flags, and addresses of contiguous memory (0: not there).
(
    _DY,  # float32 (B, N)
    _IDX,  # int64 (B, K), a selection made before; 0: select the K largest
    _B,
    _N,
    _K,
    _KEYS,  # `working_bytes(N, K)` for each share, which `largest` works in
    _PICKED,  # int32 (B, K), by example: the neurons it picked, COUNT[e] of them
    _VALUE,  # float32 (B, K), their gradients
    _COUNT,  # int32 (B,)
    _HIST,  # int32 (shares, N), how many of a share's examples picked each neuron; then, where it puts its next pair
    _DBS,  # float32 (shares, N), sums of dy over a share's examples; 0: no bias
    _OFFSET,  # int32 (N + 1,), where each neuron's pairs begin in the next two
    _EXAMPLE,  # int32 (B K,), by neuron: the examples that picked it
    _SORTED,  # float32 (B K,), their gradients
    _X,  # float32 (B, M)
    _W,  # float32 (N, M)
    _DX,  # float32 (B, M), written
    _DW,  # float32 (ROWS, M) if COMPACT, else (N, M), written
    _M,
    _HITS,  # int32 (N,), the neurons that any example picked, ascending
    _ROWS,  # how many they are
    _COMPACT,  # whether dW has their rows alone
    _STREAMING,  # whether dx and dW are written past the caches
    _WRITTEN,  # uint8 (N + 1,), which rows of a dW that is not compact are not zero before: see `kept.Target`; 0: any
    _SEED,  # of `kept.Target`
) = range(25)
WORDS = 25


def _select(a, share, shares):
    """Select in a share of the examples, count how often each neuron is picked, and sum dy up for the bias."""
    a = carray(a, WORDS)
    n, k, batch = a[_N], a[_K], a[_B]
    working = a[_KEYS] + share * working_bytes(n, k)
    places, values = view(a[_PICKED], (batch, k), np.int32), view(a[_VALUE], (batch, k), np.float32)
    counts, hist = view(a[_COUNT], batch, np.int32), view(a[_HIST] + 4 * share * n, n, np.int32)
    hist[:] = 0
    if a[_DBS]:
        view(a[_DBS] + 4 * share * n, n, np.float32)[:] = 0
    for e in range(batch * share // shares, batch * (share + 1) // shares):
        # db is summed while the row is in the first cache anyhow, for the selection.
        row = view(a[_DY] + 4 * e * n, n, np.float32)
        if a[_DBS]:
            db = view(a[_DBS] + 4 * share * n, n, np.float32)
            for j in range(n):
                db[j] += row[j]
        # The neurons: those given, without the zeros among them, or the largest.
        picked = places[e]
        if a[_IDX]:
            given = view(a[_IDX] + 8 * e * k, k, np.int64)
            count = 0
            for s in range(k):
                picked[count] = given[s]
                count += row[given[s]] != 0
        else:
            count = largest(a[_DY] + 4 * e * n, n, k, working, picked)
        # Their gradients, and one count more for each of them.
        counts[e] = count
        for s in range(count):
            values[e, s] = row[picked[s]]
            hist[picked[s]] += 1


def _sort(a, share, shares):
    """Put a share's pairs in the order of neurons, then examples; `starts` says where a neuron's next one goes."""
    a = carray(a, WORDS)
    n, k, batch = a[_N], a[_K], a[_B]
    places, values = view(a[_PICKED], (batch, k), np.int32), view(a[_VALUE], (batch, k), np.float32)
    counts, starts = view(a[_COUNT], batch, np.int32), view(a[_HIST] + 4 * share * n, n, np.int32)
    examples, in_order = view(a[_EXAMPLE], batch * k, np.int32), view(a[_SORTED], batch * k, np.float32)
    for e in range(batch * share // shares, batch * (share + 1) // shares):
        for s in range(counts[e]):
            j = places[e, s]
            examples[starts[j]] = e
            in_order[starts[j]] = values[e, s]
            starts[j] += 1


@function()
def _place_pairs(a, scratch):
    """Set where the pairs are, by example and by neuron; return where they end."""
    a[_EXAMPLE] = scratch
    a[_SORTED] = a[_EXAMPLE] + 4 * a[_B] * a[_K]
    a[_OFFSET] = a[_SORTED] + 4 * a[_B] * a[_K]
    a[_HITS] = a[_OFFSET] + 4 * (a[_N] + 1)
    a[_PICKED] = a[_HITS] + 4 * a[_N]
    a[_VALUE] = a[_PICKED] + 4 * a[_B] * a[_K]
    a[_COUNT] = a[_VALUE] + 4 * a[_B] * a[_K]
    return a[_COUNT] + 4 * a[_B]


@function(types.int64(*[types.int64] * 11))
def pairs(openmp, select, sort, shares, dy, idx, b, n, k, db, scratch):
    """Select in every example and sort the pairs (example, neuron) by neuron; for words of the regions, see there.

    Args:
        openmp, select, sort: `OPENMP`, `SELECT`, `SORT`.
        shares: into how many the work is cut.
        db: float32 (n,), written: the sum over the batch; or 0.
        scratch: `scratch_bytes(shares, b, n, k)` bytes; the sorted pairs stay there for `products`.

    Returns:
        how many neurons have any.

    """
    # In the scratch memory: the pairs, then what is needed here alone. One share sums straight into db.
    a = np.empty(WORDS, np.int64)
    a[_DY], a[_IDX], a[_B], a[_N], a[_K] = dy, idx, b, n, k
    a[_HIST] = _place_pairs(a, scratch)
    a[_KEYS] = a[_HIST] + 4 * n * shares
    a[_DBS] = 0 if db == 0 else (db if shares == 1 else a[_KEYS] + shares * working_bytes(n, k))
    parallel(openmp, shares, select, a)
    # Counts become places: neuron by neuron, and within one share by share, as many places as it counted.
    offset_of, hit = view(a[_OFFSET], n + 1, np.int32), view(a[_HITS], n, np.int32)
    hist = view(a[_HIST], (shares, n), np.int32)
    run, rows = 0, 0
    for j in range(n):
        offset_of[j] = run
        for t in range(shares):
            count = hist[t, j]
            hist[t, j] = run
            run += count
        hit[rows] = j
        rows += run > offset_of[j]
    offset_of[n] = run
    # The shares' sums, added up in their order: (shares, n) -> (n,).
    if db != 0 and shares > 1:
        total, parts = view(db, n, np.float32), view(a[_DBS], (shares, n), np.float32)
        total[:] = parts[0]
        for t in range(1, shares):
            for j in range(n):
                total[j] += parts[t, j]
    parallel(openmp if run > _SORTED_ALONE else 0, shares, sort, a)
    return rows


@function(types.int64(*[types.int64] * 4))
def scratch_bytes(shares, b, n, k):
    """Return how many bytes `pairs` needs."""
    return 4 * (4 * b * k + b + 2 * n * (shares + 1) + 1) + shares * working_bytes(n, k)


def _sums(a, share, shares):
    """Compute rows of dW, as many as make up a share of the pairs, then a share of the rows of dx."""
    a = carray(a, WORDS)
    batch, n, k, m, rows = a[_B], a[_N], a[_K], a[_M], a[_ROWS]
    streaming = a[_STREAMING]
    offsets, hits = view(a[_OFFSET], n + 1, np.int32), view(a[_HITS], n, np.int32)
    # A row of dW belongs to the share in whose part of the sorted pairs its first one lies, and with it the rows of
    # zeros between it and the row before.
    if a[_DW] != 0:
        low, high = offsets[n] * share // shares, offsets[n] * (share + 1) // shares
        written = view(a[_WRITTEN], n + 1, np.uint8)
        places = look_at(a[_X], batch, m if a[_WRITTEN] != 0 else 0, a[_SEED])
        panel = _panel(batch, m, np.int64(offsets[n]))
        for start in range(0, m, panel):
            width, following = min(panel, m - start), 0
            for i in range(rows):
                j = np.int64(hits[i])
                first, last = np.int64(offsets[j]), np.int64(offsets[j + 1])
                if low <= first < high:
                    if start == 0 and not a[_COMPACT]:
                        blank(a[_DW], n, m, following, j, a[_WRITTEN], places, streaming)
                        if a[_WRITTEN] != 0:
                            written[j] = 1
                    dw = a[_DW] + 4 * ((i if a[_COMPACT] else j) * m + start)
                    _sum_part(dw, a[_X] + 4 * start, m, width, a[_EXAMPLE], a[_SORTED], first, last, streaming)
                following = j + 1
            if start == 0 and share == shares - 1 and not a[_COMPACT]:
                blank(a[_DW], n, m, following, n, a[_WRITTEN], places, streaming)
    # A row of dx is a sum of as many rows of W as its example picked neurons.
    if a[_DX] != 0:
        counts = view(a[_COUNT], batch, np.int32)
        panel = _panel(n, m, np.int64(offsets[n]))
        for start in range(0, m, panel):
            width = min(panel, m - start)
            for e in range(batch * share // shares, batch * (share + 1) // shares):
                first, last = e * k, e * k + np.int64(counts[e])
                dx = a[_DX] + 4 * (e * m + start)
                _sum_part(dx, a[_W] + 4 * start, m, width, a[_PICKED], a[_VALUE], first, last, streaming)


SELECT, SORT, SUMS = body(_select), body(_sort), body(_sums)


@function(types.void(*[types.int64] * 17))
def products(
    openmp, sums, shares, x, w, dx, dw, b, n, k, m, rows, listed, scratch, streaming, written, seed
):  # fmt: skip
    """Compute dx and dW from the sorted pairs; for words of the regions, see there.

    Args:
        openmp, sums: `OPENMP`, `SUMS`.
        shares: into how many the work is cut.
        rows, scratch: as `pairs` left them.
        listed: int64 (rows,), written: which rows dw holds; 0 when it holds all.
        written, seed: of a dw that holds all: see `kept.Target`; or 0.

    """
    a = np.empty(WORDS, np.int64)
    a[_X], a[_W], a[_DX], a[_DW], a[_B], a[_N], a[_K], a[_M] = x, w, dx, dw, b, n, k, m
    a[_ROWS], a[_COMPACT], a[_STREAMING] = rows, listed != 0, streaming
    a[_WRITTEN], a[_SEED] = written, seed
    _place_pairs(a, scratch)
    if listed != 0:
        view(listed, rows, np.int64)[:] = view(a[_HITS], rows, np.int32)
    parallel(openmp, shares, sums, a)
    if dw != 0 and listed == 0:
        blank_all(dw, n, m, written)
