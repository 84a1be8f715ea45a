"""Arc-standard: against a slow parser of one sentence, and by replaying the oracle on random and on real trees."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meprop_bench.models.transitions import LABELLED, NONE, PLACES, States, derivations


def arrays(trees):
    """Return lengths, heads and labels of trees given as lists of (head, label)."""
    lengths = np.array([len(tree) for tree in trees], np.int32)
    heads = np.full((len(trees), lengths.max() + 1), NONE, np.int32)
    labels = heads.copy()
    for row, tree in enumerate(trees):
        heads[row, 1 : len(tree) + 1] = [head for head, _ in tree]
        labels[row, 1 : len(tree) + 1] = [label for _, label in tree]
    return lengths, heads, labels


def replay(trees, labels=3):
    """Return heads and labels as the oracle's transitions build them."""
    lengths, heads, own = arrays(trees)
    states = States(lengths, labels)
    for rows, _, _, moves in derivations(lengths, heads, own, labels):
        assert states.legal(rows)[np.arange(len(rows)), moves].all()
        states.take(rows, moves)
    assert not len(states.live)
    return states.heads, states.arc_labels


@st.composite
def projective_trees(draw):
    """Draw a projective tree with one root: a random sequence of legal transitions makes one."""
    n = draw(st.integers(1, 9))
    states = States(np.array([n], np.int32), 3)
    row = np.zeros(1, np.int32)
    while len(states.live):
        legal = np.flatnonzero(states.legal(row)[0])
        states.take(row, np.array([draw(st.sampled_from(legal.tolist()))], np.int32))
    return list(zip(states.heads[0, 1:].tolist(), states.arc_labels[0, 1:].tolist(), strict=True))


@given(st.lists(projective_trees(), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_the_oracle_builds_every_projective_tree(trees):
    _, heads, labels = arrays(trees)
    found_heads, found_labels = replay(trees)
    assert (found_heads == heads).all()
    assert (found_labels == labels).all()


def slow_features(tree, labels=3):
    """Parse one sentence with lists, step by step; yield (words, labels of the last 12, move)."""
    n = len(tree)
    gold = {i + 1: head for i, (head, _) in enumerate(tree)}
    stack, buffer, arcs = [0], list(range(1, n + 1)), {}

    def children(word):
        own = sorted(child for child, head in arcs.items() if head == word)
        left, right = [c for c in own if c < word], [c for c in own if c > word][::-1]
        return left + [NONE] * 2, right + [NONE] * 2

    def pick(word, side, which):
        return NONE if word == NONE else children(word)[side][which]

    while buffer or len(stack) > 1:
        s = [*stack[::-1], NONE, NONE, NONE][:3]
        words = s + [*buffer, NONE, NONE, NONE][:3]
        for word in s[:2]:
            words += [pick(word, 0, 0), pick(word, 1, 0), pick(word, 0, 1), pick(word, 1, 1)]
        for word in s[:2]:
            words += [pick(pick(word, 0, 0), 0, 0), pick(pick(word, 1, 0), 1, 0)]
        if s[1] > 0 and gold[s[1]] == s[0]:
            move = 1 + tree[s[1] - 1][1]
        elif s[1] >= 0 and gold[s[0]] == s[1] and all(c in arcs for c, h in gold.items() if h == s[0]):
            move = 1 + labels + tree[s[0] - 1][1]
        else:
            move = 0
        yield words, [NONE if w == NONE else tree[w - 1][1] for w in words[-LABELLED:]], move
        if move == 0:
            stack.append(buffer.pop(0))
        elif move <= labels:
            arcs[stack.pop(-2)] = stack[-1]
        else:
            child = stack.pop()
            arcs[child] = stack[-1]


@given(st.lists(projective_trees(), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_features_of_many_sentences_are_those_of_each(trees):
    lengths, heads, labels = arrays(trees)
    found = [[] for _ in trees]
    for rows, words, below, moves in derivations(lengths, heads, labels, 3):
        assert words.shape == (len(rows), PLACES)
        for row, *step in zip(rows, words.tolist(), below.tolist(), moves.tolist(), strict=True):
            found[row].append(tuple(step))
    assert found == [list(slow_features(tree)) for tree in trees]


def test_a_tree_that_is_not_projective():
    lengths, heads, labels = arrays([[(0, 0)], [(3, 0), (4, 0), (0, 0), (3, 0)]])
    with pytest.raises(ValueError, match=r"sentence 1 .*not projective"):
        list(derivations(lengths, heads, labels, 1))


def test_the_root_takes_one_word_at_the_end_and_is_nobodys_dependent():
    states = States(np.array([2], np.int32), 1)
    row = np.zeros(1, np.int32)
    assert states.legal(row).tolist() == [[True, False, False]]
    states.take(row, np.array([0], np.int32))
    assert states.legal(row).tolist() == [[True, False, False]]  # the buffer holds another word
    states.take(row, np.array([0], np.int32))
    assert states.legal(row).tolist() == [[False, True, True]]
    states.take(row, np.array([1], np.int32))
    assert states.legal(row).tolist() == [[False, False, True]]


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="needs MEPROP_BENCH_DATA")
def test_the_oracle_replayed_on_every_projective_tree_of_the_treebank_gives_100():
    from meprop_bench.data.treebank import load_treebank

    bank = load_treebank()
    for part in (bank.train, bank.dev, bank.test):
        trees = [[(word.head, 0) for word in sentence.words] for sentence in part if sentence.projective]
        assert len(trees) > 0.9 * len(part)
        heads, _ = replay(trees, 1)
        assert (heads == arrays(trees)[1]).all()
