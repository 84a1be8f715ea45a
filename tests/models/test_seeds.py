"""The initial weights of every model."""

import pytest
import torch

from meprop_bench.models.cnn import CNN
from meprop_bench.models.gpt import GPT
from meprop_bench.models.mlp import MLP
from meprop_bench.models.parser import Parser
from meprop_bench.models.tagger import Tagger
from meprop_bench.models.translator import Translator

MODELS = {
    "cnn": lambda seed: CNN(seed=seed),
    "gpt": lambda seed: GPT(11, 16, heads=2, layers=2, length=8, seed=seed),
    "mlp": lambda seed: MLP(20, 30, 10, seed=seed),
    "parser": lambda seed: Parser(7, 3, 2, seed=seed),
    "tagger": lambda seed: Tagger(30, (4, 3), 5, hidden=12, word_size=6, feature_size=2, seed=seed),
    "translator": lambda seed: Translator(9, 8, embedding=5, hidden=6, layers=2, seed=seed),
}
CONSTANT = {"gpt": ("norm", "bias"), "parser": ("bias",)}
"""Model -> parts of the names of what is not drawn."""


@pytest.mark.parametrize("model", MODELS)
def test_they_follow_from_the_seed_alone(model):
    state = torch.get_rng_state()
    first, again, other = (MODELS[model](seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if not any(part in name for part in CONSTANT.get(model, ()))]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
