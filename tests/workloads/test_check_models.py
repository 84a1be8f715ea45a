"""`check_layer` on what reaches the layers of models in training, and on layers of today's models that are wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.nn import MePropLinear, MePropLSTM, MePropMultiheadAttention, convert
from meprop_bench.ops.recurrent import through_time
from meprop_bench.workloads.check import check_layer

_KINDS = (nn.Linear, nn.Conv2d, nn.LSTM, nn.GRU, nn.MultiheadAttention)
_WORDS = 30


class Attention(nn.Module):
    """Projections apart, whose keys' bias has no gradient but for rounding."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return out + x


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.layer = kind(16, 12, 2, dropout=0.3, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        last: Tensor = y[:, -1]  # so that dy is zero for all other steps
        return last


def _words(*layers: nn.Module, width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Embedding(_WORDS, 16), *layers, nn.Linear(width, 5))


def _encoder(**keywords: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **keywords)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


_MODELS = {
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 5)
    ),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 2, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5),
    ),
    "decoder": lambda: _words(Attention(16), nn.LayerNorm(16), Attention(16)),
    "encoder": lambda: _words(_encoder()),
    "encoder, norm first": lambda: _words(_encoder(norm_first=True, activation="gelu")),
    "lstm": lambda: _words(Recurrent(nn.LSTM), width=24),
    "gru": lambda: _words(Recurrent(nn.GRU), width=24),
}  # fmt: skip


def _recorded(
    model: nn.Module, layers: list[Any], x: Tensor, autocast: torch.dtype | None
) -> Iterator[tuple[Any, ...]]:
    """Run a step, and yield what each layer got, by position and by name, and the gradient of its first output."""
    seen = []

    def keep(layer: nn.Module, args: Any, keywords: Any, output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        y.retain_grad()
        seen.append((layer, args, keywords, y))

    hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
        y = model(x)
    targets = torch.zeros(y.shape[:-1], dtype=torch.int64).flatten()
    F.cross_entropy(y.float().flatten(0, -2), targets).backward()
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(layers)
    for layer, args, keywords, y in seen:
        yield layer, args, keywords, y.grad


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("selection", ["example", "unified", "random"])
@pytest.mark.parametrize("name", _MODELS)
def test_all_layers_of_models_in_training_pass(name: str, selection: str, autocast: torch.dtype | None) -> None:
    kinds = tuple(kind for kind in _KINDS if selection != "unified" or kind is not nn.Conv2d)
    for k in (2, 0.7):
        torch.manual_seed(1)
        model = _MODELS[name]()
        x = torch.randint(_WORDS, (6, 9)) if isinstance(model[0], nn.Embedding) else torch.randn(6, 3, 8, 8)
        layers = convert(model, k=k, selection=selection, kinds=kinds, filter=lambda *_: True)
        for layer, args, keywords, dy in _recorded(model, list(layers.values()), x, autocast):
            assert check_layer(layer, args, dy, seed=1, keywords=keywords) == "passed"


@pytest.mark.parametrize("selection", ["example", "unified", "random", "random-unified"])
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True, "bias": False}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 7}]
)
def test_attention(options: dict[str, Any], selection: str) -> None:
    torch.manual_seed(0)
    layer = MePropMultiheadAttention(8, 2, dropout=0.3, **options, k=3, selection=selection)
    q, k, v = torch.randn(3, 5, 8), torch.randn(3, 5, layer.kdim), torch.randn(3, 5, layer.vdim)
    cases = [(q, k, v)] if options.get("kdim") else [(q, q, q), (q, k, k), (q, k, v)]
    for inputs in cases:
        for dy in (torch.randn(3, 5, 8), torch.zeros(3, 5, 8)):
            assert check_layer(layer, inputs, dy, seed=1) == "passed"
    mask = torch.ones(5, 5, dtype=torch.bool) if options.get("batch_first") else torch.ones(3, 3, dtype=torch.bool)
    keywords = {"attn_mask": mask.triu(1), "need_weights": False, "is_causal": True}
    assert check_layer(layer, cases[-1], torch.randn(3, 5, 8), seed=1, keywords=keywords) == "passed"
    layer.requires_grad_(False)
    assert check_layer(layer, cases[0], torch.randn(3, 5, 8), seed=1) == "passed"
    layer.k = 8
    assert check_layer(layer, cases[0], torch.randn(3, 5, 8), seed=1) == "passed"


def test_attention_that_runs_torchs_own_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MePropMultiheadAttention, "forward", nn.MultiheadAttention.forward)
    x = torch.randn(4, 3, 8)
    found = check_layer(MePropMultiheadAttention(8, 2, k=3), (x, x, x), torch.randn(4, 3, 8), seed=1)
    assert found == "it gives the dense gradient"


def test_attention_that_is_another_between_its_projections_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MePropMultiheadAttention._attend
    monkeypatch.setattr(
        MePropMultiheadAttention, "_attend", lambda self, parts, *args: right(self, (1.1 * parts[0], *parts[1:]), *args)
    )
    x = torch.randn(4, 3, 8)
    found = check_layer(MePropMultiheadAttention(8, 2, k=3), (x, x, x), torch.randn(4, 3, 8), seed=1)
    assert found.startswith("with dense projections it is not torch's: dx is off by")


def test_a_wrong_projection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3, 8)
    layer = MePropMultiheadAttention(8, 2, k=3)
    right = MePropLinear._current_k
    monkeypatch.setattr(MePropLinear, "_current_k", lambda self: right(self) + (right(self) < self.out_features))
    found = check_layer(layer, (x, x, x), torch.randn(4, 3, 8), seed=1)
    assert found.startswith("projection 1 of 2: dx is off by")


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"k": 2}, "it does not select 3 neurons of each gate"),
        ({"selection": "random"}, "it selects others than the 3 greatest of a gate"),
        ({"selection": "unified"}, "it selects others than the 3 greatest of a gate"),
    ],
)
def test_a_wrong_selection_of_a_recurrent_layer_is_found(
    wrong: dict[str, Any], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a layer that runs its cells by another method than it says."""
    right = MePropLSTM._stack

    def stack(self: Any, *args: Any) -> Any:
        cell = self._cell
        self._cell = lambda *a, **how: cell(*a, **(how | wrong))
        try:
            return right(self, *args)
        finally:
            self._cell = cell

    monkeypatch.setattr(MePropLSTM, "_stack", stack)
    assert check_layer(MePropLSTM(5, 7, k=3), torch.randn(4, 3, 5), torch.randn(4, 3, 7), seed=1) == found


def test_a_wrong_gradient_of_a_recurrent_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = through_time.backward

    def wrong(*args: Any) -> Any:
        (dx, dw, *others), *rest = right(*args)
        return (dx, dw * 1.001, *others), *rest

    monkeypatch.setattr(through_time, "backward", wrong)
    layer = MePropLSTM(5, 7, k=3, kernel="masked")
    found = check_layer(layer, torch.randn(4, 3, 5), torch.randn(4, 3, 7), seed=1)
    assert found == "weight_ih_l0 is off by 1.0e-03, relative; at most 3e-05 is rounding"
