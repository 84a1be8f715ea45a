"""BERT of transformers, made from its configuration: does sparsified back propagation pay for it?

meprop-bench speedup --model examples/bert.py --method unified --k 0.05,0.1,0.25
meprop-bench train   --model examples/bert.py --method unified --k 0.25 --steps 300

The training is BERT's own: 15% of the words are masked, and found again from those around them. No weights and no text
are downloaded; the text is the reference of Python's language, which every Python has with it (so it changes with its
version), a tenth of it held out.

Sparsified are the linear layers of each block, six of them, and the one before the decoder. The decoder itself stays
dense: its weight is that of the embedding, too.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM

import meprop_bench as mb

UNKNOWN, MASK = 0, 1


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean negative log-likelihood of a masked word, in nats."""
    words, labels = batch
    return model(input_ids=words, labels=labels).loss


def masked(windows: list[Tensor], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Mask 15% of the words, as BERT does: of these 80% by the mask, 10% by any word. Returns words and labels."""
    words = torch.stack(windows)
    draw = torch.rand(words.shape, generator=generator)
    labels = words.where(draw < 0.15, -100)  # -100: not asked for
    others = torch.randint(MASK + 1, int(words.max()) + 1, words.shape, generator=generator)
    return words.where(draw >= 0.135, others).where(draw >= 0.12, MASK), labels


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.01, fused=True)


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Warm up for a tenth of the steps, then fall to nothing in a straight line."""
    warm_up = max(1, steps // 10)
    return LambdaLR(optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up)))


def training(width: int, heads: int, layers: int, length: int, batch: int, vocabulary: int) -> mb.Training:
    """Return the training of a BERT of these sizes, with so many words known."""
    words = [word for name in sorted(topics) for word in re.findall(r"\w+|[^\w\s]", topics[name])]
    known = {word: MASK + 1 + n for n, (word, _) in enumerate(Counter(words).most_common(vocabulary - MASK - 1))}
    numbers = torch.tensor([known.get(word, UNKNOWN) for word in words])
    cut = len(numbers) * 9 // 10
    train, rest = (part.unfold(0, length, length) for part in (numbers[:cut], numbers[cut:]))
    generator = torch.Generator().manual_seed(0)
    held_out = [masked(list(windows), generator) for windows in rest.split(32)]

    def evaluate(model: nn.Module) -> float:
        asked = [int((labels >= 0).sum()) for _, labels in held_out]
        nats = sum(loss(model, windows).item() * count for windows, count in zip(held_out, asked, strict=True))
        return -nats / sum(asked) / math.log(2)

    configuration = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
    )
    return mb.Training(
        model=BertForMaskedLM(configuration),
        loss=loss,
        batches=DataLoader(train, batch_size=batch, shuffle=True, drop_last=True, collate_fn=masked),
        optimizer=optimizer,
        schedule=schedule,
        clip=1.0,
        evaluate=evaluate,
        metric="-bits/masked word",
    )


def build() -> mb.Training:
    """The size that is measured: BERT-mini, 3.8 million parameters, 2,048 words in a batch."""
    return training(width=256, heads=4, layers=4, length=128, batch=16, vocabulary=2048)


def tiny() -> mb.Training:
    """A size to try the commands with."""
    return training(width=32, heads=2, layers=2, length=32, batch=8, vocabulary=256)
