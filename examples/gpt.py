"""A small GPT on real text: does sparsified back propagation pay for it, and does it learn as well?

meprop-bench speedup --model examples/gpt.py --method unified --k 0.05,0.1,0.25
meprop-bench parity  --model examples/gpt.py --method unified --k 0.25 --steps 400 --seeds 3

The training is an ordinary one: AdamW (fused) without decay of biases and norms, gradients clipped, a learning rate
that warms up and falls as a cosine, fitted to whatever number of steps is trained. The text is the reference of
Python's language, which every Python has with it (so it changes with its version), a tenth of it held out.

Sparsified are the four linear layers of each block; the head, which is the last one, stays dense. Take the unified
selection: at a position, dy is spread over all neurons, and per-example meProp learns far worse here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import meprop_bench as mb


class Block(nn.Module):
    """Attention and perceptron, each added to what it was given (B, T, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, d) of (B, T, d)."""
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (B, heads, T, d / heads) each
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Numbers of characters (B, T) -> logits of each next one (B, T, V)."""

    def __init__(self, characters: int, width: int, heads: int, layers: int, length: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                last = name.endswith(("out.weight", "down.weight"))  # 2 L of them add up
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.embedding(x) + self.position.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean negative log-likelihood of a character, in nats, of windows (B, T + 1)."""
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, which shrinks matrices alone."""
    found = list(parameters)
    matrices = {"params": [p for p in found if p.ndim > 1]}
    vectors = {"params": [p for p in found if p.ndim < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], lr=1e-3, weight_decay=0.1, fused=True)


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Warm up for a tenth of the steps, 100 at most, then fall to nothing as a cosine."""
    warm_up = max(1, min(100, steps // 10))

    def rate(step: int) -> float:
        past = min(1.0, max(0, step - warm_up) / max(1, steps - warm_up))
        return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * past)) / 2

    return LambdaLR(optimizer, rate)


def training(width: int, heads: int, layers: int, length: int, batch: int, held_out: int) -> mb.Training:
    """Return the training of a GPT of these sizes; `held_out` windows judge it."""
    text = "\n".join(topics[name] for name in sorted(topics))
    characters = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([characters[character] for character in text])
    cut = len(numbers) * 9 // 10
    train, rest = (part.unfold(0, length + 1, length) for part in (numbers[:cut], numbers[cut:]))

    def evaluate(model: nn.Module) -> float:
        losses = [loss(model, windows).item() * len(windows) for windows in rest[:held_out].split(64)]
        return -sum(losses) / min(held_out, len(rest)) / math.log(2)

    return mb.Training(
        model=GPT(len(characters), width, heads, layers, length),
        loss=loss,
        batches=DataLoader(train, batch_size=batch, shuffle=True, drop_last=True),
        optimizer=optimizer,
        schedule=schedule,
        clip=1.0,
        evaluate=evaluate,
        metric="-bits/character",
    )


def build() -> mb.Training:
    """The size that is measured: 3.2 million parameters, 2,048 characters in a batch."""
    return training(width=256, heads=4, layers=4, length=128, batch=16, held_out=360)


def tiny() -> mb.Training:
    """A size to try the commands with."""
    return training(width=32, heads=2, layers=2, length=32, batch=8, held_out=64)
