"""Which entries survive: the k largest magnitudes, in one pass that seldom looks at an entry twice.

The bit pattern of a float32 without its sign, read as an integer, is ordered as its magnitude is, with infinity above all
numbers and NaN above infinity; so one integer comparison does the right thing for every value. A row is read in blocks: where
the largest of a block does not exceed the k-th largest so far, the block is passed over (in random order only about
k ln(n / k) entries of n ever get in). Those that do go into a buffer, which is cut back to the best k whenever it is full.

Ties are broken towards the lower index, by construction: a later equal entry does not exceed the threshold. Zeros are never
selected, since they contribute nothing: after a ReLU a row often has fewer than k entries that are not zero.
"""

from __future__ import annotations

import numpy as np

from meprop_bench.ops.kernels.native.compiler import function

BLOCK = 64
_MAGNITUDE = np.int32(0x7FFFFFFF)


@function()
def kth_largest(keys, scratch, count, k):  # type: ignore[no-untyped-def]
    """Return the k-th largest of keys[:count] (Hoare's selection on a copy)."""
    for i in range(count):
        scratch[i] = keys[i]
    low, high, want = 0, count - 1, k - 1
    while low < high:
        middle = scratch[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while scratch[i] > middle:
                i += 1
            while scratch[j] < middle:
                j -= 1
            if i <= j:
                scratch[i], scratch[j] = scratch[j], scratch[i]
                i += 1
                j -= 1
        if want <= j:
            high = j
        elif want >= i:
            low = i
        else:
            break
    return scratch[want]


@function()
def cut(keys, places, scratch, count, k):  # type: ignore[no-untyped-def]
    """Keep the k largest of `count` candidates, in order; return the smallest that was kept."""
    least = kth_largest(keys, scratch, count, k)
    larger = 0
    for i in range(count):
        larger += keys[i] > least
    equal = k - larger
    kept = 0
    for i in range(count):
        if keys[i] > least or (keys[i] == least and equal > 0):
            if keys[i] == least:
                equal -= 1
            keys[kept] = keys[i]
            places[kept] = places[i]
            kept += 1
    return least


@function()
def capacity(k):  # type: ignore[no-untyped-def]
    """Return how long the candidates' buffers must be."""
    return 2 * k + 4 * BLOCK


@function()
def largest(row, n, k, keys, places, scratch):  # type: ignore[no-untyped-def]
    """Find the k largest magnitudes of row[:n], an int32 view of float32 numbers; zeros are left out.

    Returns how many there are; `places[:count]` holds their indices, ascending. The other arrays are of `capacity(k)`.
    """
    full = capacity(k) - BLOCK
    least = np.int32(0)
    count = 0
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        best = np.int32(0)
        for j in range(start, stop):
            best = max(best, row[j] & _MAGNITUDE)
        if best > least:
            for j in range(start, stop):
                key = row[j] & _MAGNITUDE
                keys[count] = key
                places[count] = j
                count += key > least
            if count > full:
                least = cut(keys, places, scratch, count, k)
                count = k
    if count > k:
        cut(keys, places, scratch, count, k)
        count = k
    return count
