"""Which entries survive: the k largest magnitudes of a row, found by counting.

The bit pattern of a float32 without its sign, read as an integer, is ordered as its magnitude is, with infinity
above all numbers and NaN above infinity; so integer comparisons do the right thing for every value, and run eight
at a time.

Cut the row into c columns, c > k, and take the largest magnitude of each: the k-th largest of these c maxima bounds
the k-th largest entry from below, so only the entries that reach it are candidates, few more than k. Both k-th
largest values come from bisection: count how many reach the middle, halve the interval. Counting has no branch to
mispredict, which is where heaps and quickselect lose their time on rows this short (selecting and sorting 10
rows of 500, k = 20: 50 microseconds by quickselect, 21 by counting).

Ties are broken towards the lower index. Zeros are never selected, since they contribute nothing: after a ReLU a row
often has fewer than k entries that are not zero.
"""

from __future__ import annotations

import numpy as np

from meprop_bench.ops.kernels.native.compiler import function, reached_block, trailing_zeros, view

MAGNITUDE = np.int32(0x7FFFFFFF)
"""Takes the sign off a pattern, which leaves its *key*."""
BLOCK = 64
"""Entries whose comparisons make one word of bits, walked through bit by bit."""


@function()
def reaching(keys, count, least):
    """Return how many of count int32 keys at an address are >= least."""
    found = np.int32(0)
    row = view(keys, count, np.int32)
    for i in range(count):
        found += np.int32(row[i] >= least)
    return found


@function()
def kth_largest(keys, count, k, low):
    """Return a bound that exactly k of the keys reach, or, where ties prevent that, the largest that more than k reach.

    At least k keys must reach `low`.
    """
    row = view(keys, count, np.int32)
    high = np.int32(0)
    for i in range(count):
        high = max(high, row[i])
    low = np.int64(low)
    high = np.int64(high) + 1  # none reaches it
    while high - low > 1:
        middle = (low + high) >> 1
        found = reaching(keys, count, np.int32(middle))
        if found == k:
            return np.int32(middle)
        if found > k:
            low = middle
        else:
            high = middle
    return np.int32(low)


@function()
def columns(n, k):
    """Return into how many columns a row is cut: the more, the fewer candidates."""
    return min(n, (2 * k + 64) // 16 * 16)


@function()
def working_bytes(n, k):
    """Return the bytes that `largest` works in: the columns' maxima and the candidates' keys."""
    return 4 * (columns(n, k) + n)


@function()
def largest(row, n, k, working, places):
    """Find the k largest magnitudes, 1 <= k < n, of n float32 numbers at an address; zeros are left out.

    At `working` are `working_bytes(n, k)` bytes; `places`, int32 (k,), receives the indices, ascending. Returns how
    many there are, at most k.
    """
    # The largest key of each column: (n,) seen as (rows, width) -> (width,).
    width = columns(n, k)
    maxima = view(working, width, np.int32)
    maxima[:] = 0
    for start in range(0, n, width):
        length = min(width, n - start)
        part = view(row + 4 * start, length, np.int32)
        for i in range(length):
            maxima[i] = max(maxima[i], np.int32(part[i] & MAGNITUDE))
    # What at least k entries reach: the k-th largest maximum, or 1, which all but zeros reach.
    least = np.int32(1)
    if reaching(working, width, least) > k:
        least = kth_largest(working, width, k, least)
    # The candidates, and among them the k-th largest itself.
    keys = working + 4 * width
    count = _candidates(row, n, least, view(keys, n, np.int32))
    spare = 0
    if count > k:
        least = kth_largest(keys, count, k, least)
        spare = reaching(keys, count, least) - k  # ties: so many of those that equal `least` are left out
    return _places(row, n, k, least, spare, places)


@function()
def _candidates(row, n, least, keys):
    """Write the keys that reach `least`; return how many."""
    count = 0
    for start in range(0, n, BLOCK):
        mask = reached(row + 4 * start, min(BLOCK, n - start), least)
        part = view(row + 4 * start, BLOCK, np.int32)
        while mask != 0:
            keys[count] = np.int32(part[trailing_zeros(mask)] & MAGNITUDE)
            mask &= mask - np.uint64(1)
            count += 1
    return count


@function()
def _places(row, n, k, least, spare, places):
    """Write the places of the keys that reach `least`, but for the last `spare` that equal it; return how many."""
    # Without ties every key that reaches `least` is taken; with ties, of those that equal it only the first ones.
    count, equal = 0, k
    if spare > 0:
        equal = k - reaching_magnitude(row, n, least + np.int32(1))
    for start in range(0, n, BLOCK):
        mask = reached(row + 4 * start, min(BLOCK, n - start), least)
        part = view(row + 4 * start, BLOCK, np.int32)
        while mask != 0:
            i = trailing_zeros(mask)
            mask &= mask - np.uint64(1)
            if spare > 0 and np.int32(part[i] & MAGNITUDE) == least:
                if equal == 0:
                    continue
                equal -= 1
            places[count] = start + i
            count += 1
    return count


@function()
def reaching_magnitude(row, n, least):
    """Return how many of n float32 numbers at an address have a key >= least."""
    found = np.int32(0)
    numbers = view(row, n, np.int32)
    for i in range(n):
        found += np.int32(np.int32(numbers[i] & MAGNITUDE) >= least)
    return found


@function()
def reached(row, length, least):
    """Return a bit for each of up to 64 float32 numbers at an address: whether its key is >= least."""
    if length == BLOCK:
        return reached_block(row, least)
    mask = np.uint64(0)
    part = view(row, length, np.int32)
    for i in range(length):
        mask |= np.uint64(np.int32(part[i] & MAGNITUDE) >= least) << np.uint64(i)
    return mask
