"""A small GPT, as such models are trained today: characters in, the logits of each next character out.

    x_0 = E[ids] + P[0 … T-1]                                 # (B, T, d)   token and position embeddings
    x  += out(attention(qkv(norm(x))))                        # causal: a place sees itself and those before it
    x  += down(gelu(up(norm(x))))                             # (B, T, 4d) within
    logits = norm(x_L) W_headᵀ + b                            # (B, T, V)   after L such blocks

Nearly all of its arithmetic is in four linear layers a block: 3d, d, 4d and d neurons on rows of d, d, d and 4d
entries. All four are `nn.Linear` on B T rows, so that a method converts them as it does the papers' layers. Queries,
keys and values are one product (`qkv`): its 3d neurons compete for one k. What lies between them (attention itself, the
norms, the residual sums) has no weights worth sparsifying, and stays.

Norms come first in a block ("pre-norm"), so that the residual path is free of them from the loss to the embedding.
The head is a matrix of its own, not the embedding's: it is the output layer, which a method leaves dense and which has
the error itself for a dy, and a tied matrix would get gradients of two kinds, one by rows; with a hundred characters
there is nothing to save, besides.

Initial weights are GPT-2's (Radford et al., 2019): N(0, 0.02²); of the two layers that end in the residual sum, `out`
and `down`, 0.02 / sqrt(2 L), as 2 L of them add up there; biases 0, norms 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.models import check, draw

__all__ = ["GPT"]

_SPREAD = 0.02


class SelfAttention(nn.Module):
    """Causal self-attention of several heads, each of width / heads entries."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, T, d)` of `(B, T, d)`."""
        batch, length, width = x.shape
        split = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (B, heads, T, d / heads) each
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return found


class TransformerBlock(nn.Module):
    """Attention and perceptron, each added to what it was given."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, T, d)` of `(B, T, d)`."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        found: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))
        return found


class GPT(nn.Module):
    """A GPT that returns logits `(B, T, vocabulary)` for numbers of characters `(B, T)`, int64, T at most `length`.

    `width` is d, `layers` the number of blocks. ValueError: a size below 1, heads that do not divide the width, a
    dropout outside [0, 1), or more than `length` characters.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 256,
        *,
        heads: int = 4,
        layers: int = 4,
        length: int = 128,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        check(dropout, vocabulary=vocabulary, width=width, heads=heads, layers=layers, length=length)
        if width % heads:
            raise ValueError(f"the width {width} is not a multiple of {heads} heads")
        super().__init__()
        self.length = length
        with torch.device("meta"):
            self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.dropout = nn.Dropout(dropout)
            blocks = [TransformerBlock(width, heads, dropout) for _ in range(layers)]
            self.blocks = nn.Sequential(*blocks)
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        ends = {id(layer) for block in blocks for layer in (block.attention.out, block.down)}

        def spread(module: nn.Module, parameter: Tensor) -> float:
            if parameter.ndim < 2:
                return 0.0
            return _SPREAD / math.sqrt(2 * layers) if id(module) in ends else _SPREAD

        draw(self, seed, spread, normal=True)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the character after each."""
        if ids.shape[1] > self.length:
            raise ValueError(f"{ids.shape[1]} characters are more than the {self.length} that there are positions for")
        x = self.dropout(self.embedding(ids) + self.position.weight[: ids.shape[1]])
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits
