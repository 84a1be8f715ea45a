import math

import pytest
import torch
from torch import nn

from meprop_bench.models.cnn import CNN
from meprop_bench.nn import MePropConv2d, convert


def test_the_papers_network():
    model = CNN()
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    linears = [m for m in model if isinstance(m, nn.Linear)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions] == [(1, 16, (5, 5)), (16, 32, (5, 5))]
    assert [(m.in_features, m.out_features) for m in linears] == [(512, 512), (512, 10)]
    assert sum(isinstance(m, nn.MaxPool2d) for m in model) == 2
    assert sum(isinstance(m, nn.ReLU) for m in model) == 3
    assert model(torch.zeros(3, 784)).shape == (3, 10)


def test_other_sizes():
    model = CNN(64, 3, maps=(4,), taps=3, hidden=7)
    assert model(torch.zeros(2, 64)).shape == (2, 3)
    assert model.linear.in_features == 4 * 3 * 3


def test_initial_weights_are_uniform():
    for module in CNN(seed=1):
        if isinstance(module, nn.Conv2d | nn.Linear):
            by = module.out_features if isinstance(module, nn.Linear) else 25 * module.in_channels
            weight = module.weight.detach()
            assert weight.abs().max() <= 1 / math.sqrt(by)
            assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * by), rel=0.05)
            assert 0 < module.bias.abs().max() <= 1 / math.sqrt(by)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        ({"maps": (16, 0)}, r"maps\[1\] must be at least 1"),
        ({"in_features": 800}, "square image, as 784 is, not 800"),
        ({"in_features": 64}, "images of 64 entries are too small for convolution 1"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        CNN(**arguments)


def test_it_learns_with_few_of_the_gradients():
    """Four kinds of stripes: a task that a few steps suffice for."""
    torch.manual_seed(0)
    model = CNN(400, 4, maps=(4, 8), hidden=16)
    turned = convert(model, k=0.05, kinds=(nn.Conv2d,))
    assert [(name, type(layer)) for name, layer in turned.items()] == [("conv0", MePropConv2d), ("conv1", MePropConv2d)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    grid = torch.arange(20)
    kinds = torch.stack([(grid[:, None] * a + grid * b) % 4 < 2 for a, b in ((1, 0), (0, 1), (1, 1), (2, 1))]).float()
    losses = []
    for _ in range(60):
        labels = torch.randint(4, (32,))
        images = kinds[labels].flatten(1) + 0.3 * torch.randn(32, 400)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.2
