import math

import pytest
import torch
from torch import nn

from meprop_bench.models.mlp import MLP


def test_the_papers_network():
    model = MLP(784, 500, 10)
    linears = [module for module in model if isinstance(module, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(784, 500), (500, 500), (500, 10)]
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(3, 784)).shape == (3, 10)


@pytest.mark.parametrize("layers", [1, 4])
def test_layers_are_hidden_layers_and_dropout_follows_each(layers):
    model = MLP(7, 5, 3, layers=layers, dropout=0.1)
    assert sum(isinstance(module, nn.Linear) for module in model) == layers + 1
    assert sum(isinstance(module, nn.Dropout) for module in model) == layers
    assert isinstance(model[-1], nn.Linear)


def test_initial_weights_are_uniform_by_the_number_of_outputs():
    for module in MLP(784, 500, 10, seed=1):
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            weight = module.weight.detach()
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
            assert 0 < module.bias.abs().max() <= bound


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ({"dropout": math.nan}, "not nan"),
        ({"activation": "relo"}, "activation must be one of relu, sigmoid, tanh, cube, not 'relo'"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        MLP(**{"in_features": 4, "hidden": 3, "out_features": 2, **arguments})
