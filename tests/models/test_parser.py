"""The parser: its shapes, its seed, its features, and that it learns a grammar of three words."""

import numpy as np
import pytest
import torch
from torch import nn

from meprop_bench.models.parser import FEATURES, Parser, features
from meprop_bench.models.transitions import NONE, States, derivations
from meprop_bench.nn import MePropLinear, convert


def ints(*rows):
    return np.array(rows, np.int32)


def test_the_papers_sizes():
    parser = Parser(10, 5, 12)
    assert (parser.hidden.in_features, parser.hidden.out_features, parser.output.out_features) == (2400, 500, 25)
    assert FEATURES == 48
    assert parser(torch.zeros(3, 48, dtype=torch.int64)).shape == (3, 25)


@pytest.mark.parametrize("wrong", ["words", "tags", "labels", "hidden", "size"])
def test_sizes(wrong):
    sizes = {"words": 1, "tags": 1, "labels": 1, wrong: 0}
    with pytest.raises(ValueError, match=f"{wrong} must be at least 1, not 0"):
        Parser(**sizes)


def test_activations():
    parser = Parser(10, 5, 12, hidden=6)
    seen = parser.hidden(parser.word.weight.new_ones(1, 2400)).detach()
    assert torch.equal(parser.activation(seen), seen**3)
    assert isinstance(Parser(10, 5, 12, activation="tanh").activation, nn.Tanh)
    with pytest.raises(ValueError, match="activation must be one of relu, sigmoid, tanh, cube, not 'cubed'"):
        Parser(10, 5, 12, activation="cubed")


def test_features_name_what_stands_at_the_places():
    states = States(np.array([2], np.int32), 2)
    rows = np.zeros(1, np.int32)
    states.take(rows, np.zeros(1, np.int32))
    found = features(ints([7, 8, 9]), ints([2, 3, 4]), rows, *states.positions(rows), (10, 5, 2))[0].tolist()
    none = [10] * 12
    assert found[:18] == [8, 7, 10, 9, 10, 10, *none]  # s1, the root, none; b1, none, none
    assert found[18:36] == [3, 2, 5, 4, 5, 5, *[5] * 12]
    assert found[36:] == [2] * 12


def test_it_learns_and_parses_a_small_grammar():
    # 0 root, 1 verb, 2 noun, 3 article: article -> noun -> verb -> root, in two orders.
    words = ints([0, 3, 2, 1], [0, 1, 3, 2], [0, 1, 0, 0])
    heads = ints([NONE, 2, 3, 0], [NONE, 0, 3, 1], [NONE, 0, NONE, NONE])
    labels = np.where(heads == NONE, NONE, words - 1).astype(np.int32)
    lengths = np.array([3, 3, 1], np.int32)
    parser = Parser(words=4, tags=4, labels=3, hidden=32, size=8)
    convert(parser, k=8)
    assert isinstance(parser.hidden, MePropLinear)
    assert not isinstance(parser.output, MePropLinear)
    steps = list(derivations(lengths, heads, labels, 3))
    seen = np.concatenate([features(words, words, rows, *look, parser.sizes) for rows, *look, _ in steps])
    states = torch.from_numpy(seen).long()
    moves = torch.from_numpy(np.concatenate([moves for *_, moves in steps])).long()
    optimizer = torch.optim.Adam(parser.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(parser(states), moves).backward()
        optimizer.step()
    found = parser.parse(words, words, lengths)
    assert (found[0] == heads).all()
    assert (found[1] == labels).all()


def test_an_untrained_parser_still_makes_trees():
    lengths = np.array([1, 6, 3], np.int32)
    words = np.random.default_rng(0).integers(0, 9, (3, 7)).astype(np.int32)
    heads, labels = Parser(9, 9, 4, hidden=8, size=3, seed=3).parse(words, words, lengths)
    for row, length in enumerate(lengths):
        assert (heads[row, 1 : length + 1] >= 0).all()
        assert (heads[row, 1 : length + 1] == 0).sum() == 1
        assert (labels[row, 1 : length + 1] >= 0).all()
