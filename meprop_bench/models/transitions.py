"""The arc-standard transition system, for many sentences at once: states, static oracle, Chen and Manning's features.

A state has a stack, which begins with the root (number 0), a buffer, which begins with all words 1 … n in order, and
the arcs made so far. With s1 the top of the stack and s2 below it (Nivre 2004; Chen and Manning 2014, section 2):

    shift          the next word of the buffer goes onto the stack
    left  (label)  s2 becomes a dependent of s1 and leaves the stack; s2 is not the root
    right (label)  s1 becomes a dependent of s2 and leaves the stack; of the root only when the buffer is empty

After 2 n transitions every word has a head. The *static oracle* gives the one sequence that builds a projective tree:
left when s2's head is s1; right when s1's head is s2 and s1 has all its own dependents; else shift. A tree that is not
projective has no such sequence.

All N sentences take a step together, as rows of arrays: 400,000 transitions of a treebank take seconds instead of
minutes. The places that a state's features look at (Chen and Manning 2014, section 3.1; 18 words, their 18 tags, and
the labels of the last 12):

    s1 s2 s3 b1 b2 b3                                               stack and buffer
    lc1(s_i) rc1(s_i) lc2(s_i) rc2(s_i)                              leftmost, rightmost, second of each; i = 1, 2
    lc1(lc1(s_i)) rc1(rc1(s_i))

Labels are numbers 0 … L - 1; transitions 0 (shift), 1 … L (left), L + 1 … 2 L (right).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["LABELLED", "NONE", "PLACES", "SHIFT", "Ints", "States", "derivations"]

Ints = NDArray[np.int32]

PLACES, LABELLED = 18, 12
"""Places that a state's features read; the last so many of them are children, which have a label."""
NONE = -1
"""Number of a word that is not there."""
SHIFT = 0


class States:
    """The states of N sentences of `lengths` words, `(N,)`, each at least 1, with L labels.

    `heads` are those of the words so far, `(N, 1 + longest)`, NONE where there is none yet, column 0 being the root;
    `arc_labels` the labels of the words' arcs, likewise.
    """

    def __init__(self, lengths: Ints, labels: int) -> None:
        count, longest = len(lengths), int(lengths.max(initial=0))
        self.lengths, self.labels = lengths.astype(np.int32), labels
        self.heads = np.full((count, longest + 1), NONE, np.int32)
        self.arc_labels = np.full((count, longest + 1), NONE, np.int32)
        self._stack = np.zeros((count, longest + 1), np.int32)
        self._size = np.ones(count, np.int32)
        self._front = np.ones(count, np.int32)
        # Leftmost, second leftmost, rightmost, second rightmost child; the last column is the child of NONE.
        self._children = np.full((4, count, longest + 2), NONE, np.int32)

    @property
    def live(self) -> Ints:
        """Rows of the sentences that are not parsed yet."""
        return np.flatnonzero((self._front <= self.lengths) | (self._size > 1)).astype(np.int32)

    def top(self, rows: Ints, depth: int) -> Ints:
        """Return the word at a depth of the stack of some rows, 1 for s1; NONE where the stack ends."""
        place = self._size[rows] - depth
        return np.where(place >= 0, self._stack[rows, np.maximum(place, 0)], NONE).astype(np.int32)

    def legal(self, rows: Ints) -> NDArray[np.bool_]:
        """Return which transitions may be taken, `(len(rows), 1 + 2 L)`."""
        more = self._front[rows] <= self.lengths[rows]
        size = self._size[rows]
        left, right = size > 2, (size > 2) | ((size == 2) & ~more)
        kinds = np.stack([more, left, right], axis=1)
        return np.repeat(kinds, [1, self.labels, self.labels], axis=1)

    def oracle(self, rows: Ints, heads: Ints, labels: Ints, pending: Ints) -> Ints:
        """Return the transitions of live sentences towards trees, whose heads and labels are given as `self.heads` is.

        `pending` are the dependents that each word does not have yet, likewise.
        """
        s1, s2 = self.top(rows, 1), self.top(rows, 2)
        left = (s2 > 0) & (heads[rows, s2] == s1)
        right = (s2 >= 0) & (heads[rows, s1] == s2) & (pending[rows, s1] == 0)
        move = np.where(right, 1 + self.labels + labels[rows, s1], SHIFT)
        return np.where(left, 1 + labels[rows, s2], move).astype(np.int32)

    def take(self, rows: Ints, moves: Ints) -> None:
        """Take one legal transition in each of some rows, which are different ones."""
        shift = moves == SHIFT
        shifting = rows[shift]
        self._stack[shifting, self._size[shifting]] = self._front[shifting]
        self._size[shifting] += 1
        self._front[shifting] += 1
        s1, s2 = self.top(rows, 1), self.top(rows, 2)
        left = ~shift & (moves <= self.labels)
        right = moves > self.labels
        self._attach(rows[left], s1[left], s2[left], moves[left] - 1, side=0)
        self._attach(rows[right], s2[right], s1[right], moves[right] - 1 - self.labels, side=2)
        self._stack[rows[left], self._size[rows[left]] - 2] = s1[left]
        self._size[rows[~shift]] -= 1

    def _attach(self, rows: Ints, heads: Ints, words: Ints, labels: Ints, *, side: int) -> None:
        """Add arcs; a new child lies further out than all children on its side before it."""
        self.heads[rows, words], self.arc_labels[rows, words] = heads, labels
        self._children[side + 1, rows, heads] = self._children[side, rows, heads]
        self._children[side, rows, heads] = words

    def positions(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the words that the features look at, `(len(rows), 18)`, and the labels of the last 12, `(…, 12)`.

        NONE stands where there is no word.
        """
        buffer = self._front[rows, None] + np.arange(3, dtype=np.int32)
        buffer = np.where(buffer <= self.lengths[rows, None], buffer, NONE)
        stack = [self.top(rows, depth) for depth in (1, 2, 3)]
        children: list[Ints] = []
        for word in stack[:2]:
            children += [self._children[side, rows, word] for side in (0, 2, 1, 3)]
        further = [self._children[side, rows, children[4 * i + side // 2]] for i in (0, 1) for side in (0, 2)]
        words = np.concatenate([np.stack(stack, 1), buffer, np.stack(children + further, 1)], axis=1).astype(np.int32)
        below = words[:, -LABELLED:]
        return words, np.where(below == NONE, NONE, self.arc_labels[rows[:, None], below])


def derivations(lengths: Ints, heads: Ints, labels: Ints, count: int) -> Iterator[tuple[Ints, Ints, Ints, Ints]]:
    """Yield, step by step, the oracle's transitions towards projective trees, given as `States` has them.

    Yields:
        The rows that take a transition, the places that their features look at `(rows, 18)`, the labels of the last
        12 of these `(rows, 12)`, and the transitions `(rows,)`.

    Raises:
        ValueError: a tree that is not projective.

    """
    states = States(lengths, count)
    has, words = np.nonzero(heads >= 0)
    # How many dependents each word does not have yet: (N, 1 + longest).
    flat = has * heads.shape[1] + heads[has, words]
    pending = np.bincount(flat, minlength=heads.size).reshape(heads.shape).astype(np.int32)
    while len(rows := states.live):
        moves = states.oracle(rows, heads, labels, pending)
        stuck = ~states.legal(rows)[np.arange(len(rows)), moves]
        if stuck.any():
            raise ValueError(f"sentence {rows[stuck][0]} (counted from 0) is not projective")
        yield rows, *states.positions(rows), moves
        made = moves != SHIFT
        done = np.where(moves <= count, states.top(rows, 2), states.top(rows, 1))[made]
        pending[rows[made], heads[rows[made], done]] -= 1
        states.take(rows, moves)
