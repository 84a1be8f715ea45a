"""The GPT: its shape, that no place sees those after it, its initial weights, and that a method converts it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meprop_bench.models.gpt import GPT
from meprop_bench.nn import MePropLinear, convert

_SMALL = {"vocabulary": 11, "width": 16, "heads": 2, "layers": 2, "length": 8}


def _ids(batch=3, length=8, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_the_layers_of_a_block():
    model = GPT(**_SMALL)
    sizes = {name: (m.in_features, m.out_features) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert sizes == {
        **{
            f"blocks.{i}.{name}": size
            for i in range(2)
            for name, size in {
                "attention.qkv": (16, 48), "attention.out": (16, 16), "up": (16, 64), "down": (64, 16),
            }.items()
        },
        "head": (16, 11),
    }  # fmt: skip
    assert model(_ids()).shape == (3, 8, 11)
    assert model(_ids(length=5)).shape == (3, 5, 11)


def test_a_place_sees_itself_and_those_before_it():
    model, ids = GPT(**_SMALL).eval(), _ids()
    other = ids.clone()
    other[:, 5] = (ids[:, 5] + 1) % 11
    before, after = model(ids), model(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(dim=2).all()


def test_it_is_what_the_equations_say():
    """The fused, permuted attention against one head after the other, a row of scores at a time."""
    model, ids = GPT(**_SMALL, seed=3).eval(), _ids()
    x = model.embedding.weight[ids] + model.position.weight
    for block in model.blocks:
        y = block.norm1(x)
        q, k, v = block.attention.qkv(y).split(16, dim=2)
        heads = []
        for h in (slice(0, 8), slice(8, 16)):
            scores = q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(8)
            scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(dim=2) @ v[..., h])
        x = x + block.attention.out(torch.cat(heads, dim=2))
        x = x + block.down(F.gelu(block.up(block.norm2(x))))
    torch.testing.assert_close(model(ids), model.head(model.norm(x)))


def test_initial_weights_are_those_of_gpt2():
    model = GPT(50, 128, layers=8, seed=1)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert (parameter == ("norm" in name and name.endswith("weight"))).all(), name
        else:
            wanted = 0.02 / 4 if "out" in name or "down" in name else 0.02
            assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.1 * wanted, name
    loss = F.cross_entropy(model(_ids(8)).flatten(0, 1), _ids(8, seed=1).flatten())
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)


def test_a_method_converts_all_but_the_head_and_keeps_the_embedding():
    model = GPT(**_SMALL)
    found = convert(model, k=0.25, selection="unified")
    assert len(found) == 8
    assert type(model.head) is nn.Linear
    assert sum(isinstance(module, MePropLinear) for module in model.modules()) == 8
    F.cross_entropy(model(_ids()).flatten(0, 1), _ids(seed=1).flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_is_of_training_alone():
    model = GPT(**_SMALL, dropout=0.5)
    torch.manual_seed(1)
    assert not torch.equal(model(_ids()), model(_ids()))
    model.eval()
    assert torch.equal(model(_ids()), model(_ids()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"vocabulary": 0}, "vocabulary must be at least 1"),
        ({"heads": 3}, "the width 16 is not a multiple of 3 heads"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        GPT(**{**_SMALL, **arguments})


def test_more_characters_than_positions_are_refused():
    with pytest.raises(ValueError, match="9 characters are more than the 8"):
        GPT(**_SMALL)(_ids(length=9))
