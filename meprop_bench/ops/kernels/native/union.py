"""The rows that any of several gradients has, each the sum of theirs: float32.

    rows = ⋃_r rows_r                    (u,)       ascending, as those of each gradient are
    values[i] = scale Σ_r values_r[j]    (u, m)     over the r with rows_r[j] = rows[i], in the order of r

Sums are added up first and scaled then, so that no processor contracts the two: processes on unlike machines get the
same bits. A row whose sum is zero stays.
"""

from __future__ import annotations

import numpy as np
from numba import types

from meprop_bench.ops.kernels.native.compiler import function, view

__all__ = ["combine", "unite"]

_ROWS, _VALUES, _COUNT = range(3)
"""The words of a gradient in the table: addresses of int64 (count,) and of float32 (count, m), and how many rows."""


@function()
def _lowest(table, at):
    """Return the lowest row that is not done yet, -1 when all are."""
    lowest = np.int64(-1)
    for r in range(len(at)):
        if at[r] < table[r, _COUNT]:
            row = view(table[r, _ROWS], table[r, _COUNT], np.int64)[at[r]]
            if lowest < 0 or row < lowest:
                lowest = row
    return lowest


@function()
def _has(table, at, r, row):
    """Whether the next row of a gradient is this one."""
    return at[r] < table[r, _COUNT] and view(table[r, _ROWS], table[r, _COUNT], np.int64)[at[r]] == row


@function(types.int64(*[types.int64] * 3))
def unite(gradients, count, rows):
    """Write the rows of `count` gradients, int64 (gradients, 3), to rows, which has room for all; return how many.

    Each gradient's own ascend from 0 or more.
    """
    table = view(gradients, (count, 3), np.int64)
    room = 0
    for r in range(count):
        room += table[r, _COUNT]
    out = view(rows, room, np.int64)
    at = np.zeros(count, np.int64)
    found = 0
    while True:
        row = _lowest(table, at)
        if row < 0:
            return found
        for r in range(count):
            if _has(table, at, r, row):
                at[r] += 1
        out[found] = row
        found += 1


@function(types.int64(*[types.int64] * 6, types.float64))
def combine(gradients, count, rows, found, values, m, scale):
    """Write the sums for the rows that `unite` has found, times scale, to values, float32 (found, m)."""
    table = view(gradients, (count, 3), np.int64)
    united = view(rows, found, np.int64)
    at, factor = np.zeros(count, np.int64), np.float32(scale)
    for i in range(found):
        out = view(values + 4 * i * m, m, np.float32)
        first = True
        for r in range(count):
            if not _has(table, at, r, united[i]):
                continue
            source = view(table[r, _VALUES] + 4 * at[r] * m, m, np.float32)
            at[r] += 1
            if first:
                for c in range(m):
                    out[c] = source[c]
            else:
                for c in range(m):
                    out[c] += source[c]
            first = False
        for c in range(m):
            out[c] *= factor
    return 0
