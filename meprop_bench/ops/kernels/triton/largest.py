"""Which entries survive, on a GPU: the k largest magnitudes of a row that lies in the registers of one program.

The bit pattern of a float32 without its sign, read as an integer, is ordered as its magnitude is, NaN above infinity.
So the k-th largest of n is found bit by bit, from the top: with the next bit set, do k entries still reach the bound?
Then it stays. Each of at most 31 steps compares the registers and adds the results up within the program; memory is
read once, where `torch.topk` reads it again for every two bits. A step that exactly k entries reach ends the search,
which for numbers without ties is after some 15.

Ties go to the lower index, and places are ascending: a running count gives each entry that is taken its place, so that
nothing has to be sorted, and the same input gives the same indices. For more than `LIMIT` entries torch's own top-k is
called, which then has several programs for a row.

For a unified selection, one pass over dy `(B, n)` gives both what it needs and the bias gradient, `column_sums`:

    magnitudes[j] = Σ_b |dy[b, j]|        sums[j] = Σ_b dy[b, j]        added in float32, whatever dy's type is

Torch's operators read dy for the magnitudes, write and read them again to be added up, and read dy once more for the
sums: four times the bytes. A program takes columns that fill a cache line of 128 bytes, which it reads whole, and walks
down the batch. Where that makes too few programs to use all of the memory at once, the batch is cut into chunks, whose
sums whoever selects adds up. No atomic additions: their order would change the last bits of the sums from one run to
the next, and with them what is selected.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from meprop_bench.ops.selection import select

__all__ = ["LIMIT", "column_sums", "columns", "rows"]

LIMIT = 16384
"""Entries that one program holds: 16 of them in each of 1024 threads, or 32 in each of 512."""
_TILE = 1024
"""Entries of a program that takes several short rows: 8 in each thread of four warps."""
_PART = 1024
"""Entries of a row whose places are found at once: with 8192 of a row that takes 64 registers of a thread, 252 all at
once (Triton 3.7, sm_90), and so four programs fit on a multiprocessor instead of one."""
_PROGRAMS = 132
"""Multiprocessors of an H100 or H200: rows are shared out to so many programs before one takes several."""

_LINE = 128
"""Bytes of a row that a program of `column_sums` reads."""
_EXAMPLES = 128
"""Rows that it reads at once: with 8 warps, 16 numbers of 4 bytes or 32 of 2 for each thread."""
_WANTED = 384
"""Its programs where there is work for so many: three for each multiprocessor of an H200; others were not measured."""


@triton.jit
def _keys(values):
    """Integers in the order of the magnitudes; all NaN are the same, and 0x7FFFFFFF remains above them."""
    return tl.minimum(values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7FFFFFFE)


@triton.jit
def _bounds(keys, k, ROWS: tl.constexpr):
    """Find, for each row of keys, (ROWS, N) and -1 for padding, what the k largest reach.

    At least k keys reach the bound, and less than k reach the ceiling. Those in between are all needed, or they are
    equal and only so many are taken as is returned last.
    """
    bound = tl.zeros((ROWS,), tl.int32)
    ceiling = tl.full((ROWS,), 0x7FFFFFFF, tl.int32)
    over = tl.zeros((ROWS,), tl.int32)
    bit = 30
    unsettled = 1
    # Bisection over the 31 bits of the keys, all rows at once: try the bound with the next bit set; it stays where k
    # keys still reach it. `over` counts those above the ceiling, which are taken whatever happens.
    while (bit >= 0) & (unsettled > 0):
        middle = bound | (1 << bit)
        reached = tl.sum((keys >= middle[:, None]).to(tl.int32), axis=1)
        ceiling = tl.where(reached < k, middle, ceiling)
        over = tl.where(reached < k, reached, over)
        bound = tl.where(reached < k, bound, middle)
        unsettled = tl.max((reached != k).to(tl.int32), axis=0)
        bit -= 1
    return bound[:, None], ceiling[:, None], (k - over)[:, None]


@triton.jit
def _places(keys, bound, ceiling, left, above_before, between_before):
    """Say which keys are taken, and their places in order, of which the first depends on what stood before them."""
    above = (keys >= ceiling).to(tl.int32)
    between = (keys >= bound).to(tl.int32) - above
    running = tl.cumsum(above + (between << 16), axis=1)  # two counts in one, each below 1 << 15
    between_so_far = between_before + (running >> 16)
    taken = (above > 0) | ((between > 0) & (between_so_far <= left))
    return taken, above_before + (running & 0xFFFF) + tl.minimum(between_so_far, left) - 1, above, between


@triton.jit
def _select_columns(parts, totals, t, db, chunks, n, k, N: tl.constexpr, SUMS: tl.constexpr):
    # One program has all n columns in its registers, N / (32 num_warps) to a thread.
    column = tl.arange(0, N)
    inside = column < n
    # (chunks, n) -> (n,): the sums of the chunks, in their order, so that the same input gives the same bits.
    magnitude = tl.zeros((N,), tl.float32)
    for chunk in range(chunks):
        magnitude += tl.load(parts + chunk * n + column, mask=inside, other=0.0)
    if SUMS:
        total = tl.zeros((N,), tl.float32)
        for chunk in range(chunks):
            total += tl.load(totals + chunk * n + column, mask=inside, other=0.0)
        tl.store(db + column, total, mask=inside)
    # What the k largest reach, and where each of them goes: ascending, as the running count has it.
    keys = tl.where(inside, _keys(magnitude), -1)[None, :]
    bound, ceiling, left = _bounds(keys, k, 1)
    taken, place, _, _ = _places(keys, bound, ceiling, left, 0, 0)
    tl.store(t + place, tl.broadcast_to(column[None, :], place.shape), mask=taken)


@triton.jit
def _load_keys(dy, row, column, batch, n, dy_b, dy_n):
    inside = (row < batch) & (column < n)
    values = tl.load(dy + row * dy_b + column.to(tl.int64) * dy_n, mask=inside, other=0.0)
    return values, tl.where(inside, _keys(values), -1)


@triton.jit
def _select_rows(dy, t, v, batch, n, k, dy_b, dy_n, ROWS: tl.constexpr, N: tl.constexpr, PART: tl.constexpr):
    # A program has ROWS examples, one for long rows; first the whole rows, for the bound of each: (ROWS, N).
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    _, all_keys = _load_keys(dy, row, tl.arange(0, N)[None, :], batch, n, dy_b, dy_n)
    bound, ceiling, left = _bounds(all_keys, k, ROWS)
    above_before = tl.zeros((ROWS, 1), tl.int32)
    between_before = tl.zeros((ROWS, 1), tl.int32)
    for first in range(0, N, PART):  # again, out of the cache, in parts: all places at once would take all registers
        column = first + tl.arange(0, PART)[None, :]
        values, keys = _load_keys(dy, row, column, batch, n, dy_b, dy_n)
        taken, place, above, between = _places(keys, bound, ceiling, left, above_before, between_before)
        place = row * k + place
        tl.store(t + place, tl.broadcast_to(column, place.shape), mask=taken)
        tl.store(v + place, values, mask=taken)
        above_before += tl.sum(above, axis=1)[:, None]
        between_before += tl.sum(between, axis=1)[:, None]


@triton.jit
def _column_sums(
    dy, parts, totals, batch, n, dy_b, dy_n, share, SUMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    # A program has COLUMNS columns (one cache line of a row) of one chunk of `share` examples.
    chunk = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    last = tl.minimum((chunk + 1) * share, batch)
    magnitude = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    # Tiles of ROWS x COLUMNS are added up where they are: each thread has its own examples of each column.
    for first in range(chunk * share, last, ROWS):
        row = first + tl.arange(0, ROWS)
        place = row.to(tl.int64)[:, None] * dy_b + column.to(tl.int64)[None, :] * dy_n
        values = tl.load(dy + place, mask=(row < last)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        magnitude += tl.abs(values)
        if SUMS:
            total += values
    # Only now do the threads add up what they have of a column: (ROWS, COLUMNS) -> (COLUMNS,), in a fixed order.
    tl.store(parts + chunk * n + column, tl.sum(magnitude, axis=0), mask=inside)
    if SUMS:
        tl.store(totals + chunk * n + column, tl.sum(total, axis=0), mask=inside)


def column_sums(dy: Tensor, *, sums: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the magnitudes of each chunk, float32 `(chunks, n)`, and with `sums` the sums.

    The bias gradient is the last that is returned, `(n,)` in dy's type. If there are several chunks it is still empty,
    and the second holds what it will be the sum of, float32 `(chunks, n)`; else the second is None.
    """
    batch, n = dy.shape
    width = _LINE // dy.element_size()
    blocks = triton.cdiv(n, width)
    chunks = max(1, min(_WANTED // blocks, batch // _EXAMPLES))
    share = triton.cdiv(batch, chunks)
    parts = torch.empty(chunks, n, dtype=torch.float32, device=dy.device)
    totals = torch.empty_like(parts) if sums and chunks > 1 else None
    db = torch.empty(n, dtype=dy.dtype, device=dy.device) if sums else None
    target = totals if totals is not None else db
    _column_sums[(blocks, chunks)](
        dy, parts, parts if target is None else target, batch, n, dy.stride(0), dy.stride(1), share,
        SUMS=sums, ROWS=_EXAMPLES, COLUMNS=width, num_warps=8,
    )  # fmt: skip
    return parts, totals, db


def columns(parts: Tensor, totals: Tensor | None, db: Tensor | None, k: int) -> Tensor:
    """Return the k columns, 1 <= k < n, with the greatest sums, ascending: int64 `(k,)`.

    All else is as `column_sums` has it; db is written from totals where these are given.
    """
    chunks, n = parts.shape
    if n > LIMIT:
        if db is not None and totals is not None:
            db.copy_(totals.sum(0))
        return parts.sum(0).topk(k, sorted=False).indices.sort().values
    t = torch.empty(k, dtype=torch.int64, device=parts.device)
    width = triton.next_power_of_2(n)
    _select_columns[(1,)](
        parts, parts if totals is None else totals, t, t if db is None else db, chunks, n, k,
        N=width, SUMS=totals is not None, num_warps=max(4, min(32, width // 256)),
    )  # fmt: skip
    return t


def rows(dy: Tensor, k: int, selection: str) -> tuple[Tensor, Tensor]:
    """Return, for each row of dy `(B, n)`, the neurons selected and their values: both `(B, k)`.

    Neurons come in the narrowest type that holds n: sorting them costs a pass for each byte.
    """
    batch, n = dy.shape
    narrow = torch.int16 if n < 1 << 15 else torch.int32
    if selection != "example" or n > LIMIT:
        chosen = select(dy, k, selection)
        return chosen.to(narrow), dy.gather(1, chosen)
    t = torch.empty(batch, k, dtype=narrow, device=dy.device)
    v = torch.empty(batch, k, dtype=dy.dtype, device=dy.device)
    width = triton.next_power_of_2(n)
    several = max(1, min(_TILE // width, triton.next_power_of_2(batch // _PROGRAMS)))
    _select_rows[(triton.cdiv(batch, several),)](
        dy, t, v, batch, n, k, dy.stride(0), dy.stride(1),
        ROWS=several, N=width, PART=min(width, _PART), num_warps=max(4, min(16, width // 1024)),
    )  # fmt: skip
    return t, v
