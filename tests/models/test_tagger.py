import math

import pytest
import torch
from torch import nn

from meprop_bench.models.tagger import Tagger
from meprop_bench.nn import MePropLSTM, convert


def small(**keywords):
    return Tagger(30, (4, 3), 5, **({"hidden": 12, "word_size": 6, "feature_size": 2} | keywords))


def sentences(batch=3, length=7):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(n, (batch, length), generator=generator) for n in (30, 4, 3)], -1)


def test_the_papers_network():
    model = Tagger(10_000, (10,) * 7)
    assert model.lstm.input_size == 190
    assert (model.lstm.hidden_size, model.lstm.num_layers, model.lstm.bidirectional) == (500, 1, True)
    assert (model.output.in_features, model.output.out_features) == (1000, 45)
    assert model(torch.zeros(1, 4, 8, dtype=torch.int64)).shape == (1, 4, 45)


def test_a_shorter_sentence_is_tagged_as_if_alone():
    model, ids, lengths = small(), sentences(), torch.tensor([4, 7, 1])
    together = model(ids, lengths)
    assert together.shape == (3, 7, 5)
    for e, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[e, :n], model(ids[e : e + 1, :n])[0])
    torch.testing.assert_close(model(ids, torch.tensor([7, 7, 7])), model(ids))


def test_every_embedding_counts():
    model, ids = small(), sentences()
    model(ids).sum().backward()
    for table, column in zip((model.word, *model.features), range(3), strict=True):
        used = torch.zeros(table.num_embeddings, dtype=torch.bool)
        used[ids[..., column].flatten()] = True
        assert torch.equal(table.weight.grad.ne(0).any(1), used)


def test_initial_weights():
    model = Tagger(1000, (50,), hidden=60, seed=1)
    for parameter, bound in (
        (model.word.weight, math.sqrt(3 / 50)),
        (model.features[0].weight, math.sqrt(3 / 20)),
        (model.lstm.weight_hh_l0_reverse, 1 / math.sqrt(60)),
        (model.output.weight, 1 / math.sqrt(45)),
    ):
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        ({"features": (3, 0)}, r"features\[1\] must be at least 1, not 0"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Tagger(10, **arguments)


def test_it_learns_with_few_of_the_gradients():
    """A word's tag is its number modulo 5, but for the words after a word with feature 0, which get the next one."""
    torch.manual_seed(0)
    model = small(hidden=32)
    turned = convert(model, k=8, kinds=(nn.LSTM,))
    assert list(turned) == ["lstm"]
    assert type(model.lstm) is MePropLSTM
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(100):
        ids = torch.stack([torch.randint(n, (16, 9)) for n in (30, 4, 3)], -1)
        after = nn.functional.pad(ids[:, :-1, 1] == 0, (1, 0))
        tags = (ids[..., 0] + after) % 5
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), tags.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.4
