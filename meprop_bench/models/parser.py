"""The papers' dependency parser: Chen and Manning's perceptron, which chooses the next transition from 48 features.

    e = [E_word w_1..18; E_tag t_1..18; E_label l_1..12]           (B, 2400)   50 numbers for each feature
    h = (e W_1ᵀ + b_1)³                                            (B, 500)
    logits = h W_outᵀ + b_out                                      (B, 1 + 2 L)

"For Parsing, the input dimension is 48 (features) × 50 (dim per feature) = 2400" (ICML paper, section 4.1); "an MLP
with two layers in total, except that the hidden size is set to 500 and we do not use dropout" (TKDE, section 3); one
table adds it, and does not say of what: here of h, as Chen and Manning do.
The cube is Chen and Manning's (2014, section 2.2), and so are the features; the papers name no other, so there is a
choice of what stands in the cube's place. `States.positions` gives the places, this module the numbers of what stands
there.

Parsing is greedy: of the legal transitions the one with the greatest logit, for all sentences side by side.

Initialisation: the authors' code for this model is unpublished. Embeddings from U(-0.01, 0.01) as Chen and Manning's
(section 3.2); linear layers from U(±sqrt(6 / (m + n))), Glorot's, as in their code.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from meprop_bench.models import check, draw
from meprop_bench.models.activations import activation_of
from meprop_bench.models.transitions import LABELLED, NONE, PLACES, Ints, States

__all__ = ["FEATURES", "Parser", "features"]

FEATURES = 2 * PLACES + LABELLED


def features(words: Ints, tags: Ints, rows: Ints, places: Ints, below: Ints, sizes: tuple[int, int, int]) -> Ints:
    """Return the 48 features of some states, `(rows, 48)`.

    Args:
        words, tags: numbers of the sentences' words and their tags, `(N, 1 + longest)`, the root's first.
        rows: which sentences.
        places, below: from `States.positions`.
        sizes: how many words, tags and labels there are; these numbers stand for "none".

    """
    found = []
    for numbers, none in ((words, sizes[0]), (tags, sizes[1])):
        there = numbers[rows[:, None], places]  # of NONE, the last word: replaced
        found.append(np.where(places == NONE, none, there))
    found.append(np.where(below == NONE, sizes[2], below))
    return np.concatenate(found, axis=1).astype(np.int32)


class Parser(nn.Module):
    """A parser that returns the logits of the next transition.

    Args:
        words, tags: how many there are; one more is added, for "no word". The root is one of each.
        labels: L, labels of arcs.
        hidden, size: h, and numbers of a feature's vector.
        dropout: share of the hidden activations that is dropped in training.
        activation: a name in `models.activations`.
        seed: of the initial weights.

    Raises:
        ValueError: a size below 1, or an unknown activation.

    """

    def __init__(
        self,
        words: int,
        tags: int,
        labels: int,
        *,
        hidden: int = 500,
        size: int = 50,
        dropout: float = 0.0,
        activation: str = "cube",
        seed: int = 0,
    ) -> None:
        check(words=words, tags=tags, labels=labels, hidden=hidden, size=size)
        super().__init__()
        self.sizes = (words, tags, labels)
        with torch.device("meta"):
            self.word, self.tag, self.label = (nn.Embedding(count + 1, size) for count in (words, tags, labels))
            self.hidden = nn.Linear(FEATURES * size, hidden)
            self.activation = activation_of(activation)
            self.dropout = nn.Dropout(dropout)
            self.output = nn.Linear(hidden, 1 + 2 * labels)
        draw(self, seed, _bound)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `(B, 1 + 2 L)` of features, int64 `(B, 48)`, as the function `features` gives them."""
        # Slices, not torch.split: what traces the model, as meSimp does, cannot iterate over the parts of a tensor.
        words, tags, labels = (features[:, :PLACES], features[:, PLACES : 2 * PLACES], features[:, 2 * PLACES :])
        tables = ((self.word, words), (self.tag, tags), (self.label, labels))
        e = torch.cat([table(part).flatten(1) for table, part in tables], dim=1)
        return cast(Tensor, self.output(self.dropout(self.activation(self.hidden(e)))))

    @torch.no_grad()
    def parse(self, words: Ints, tags: Ints, lengths: Ints) -> tuple[Ints, Ints]:
        """Parse sentences, of `lengths` words `(N,)` without the root, greedily; words and tags as for `features`.

        Returns heads and labels, `(N, 1 + longest)` each; NONE for the root and after a sentence.
        """
        states = States(lengths, self.sizes[2])
        device = self.output.weight.device
        while len(rows := states.live):
            seen = torch.from_numpy(features(words, tags, rows, *states.positions(rows), self.sizes)).long()
            logits = self(seen.to(device)).float().cpu().numpy()
            legal = np.where(states.legal(rows), logits, -np.inf)
            states.take(rows, legal.argmax(axis=1).astype(np.int32))
        return states.heads, states.arc_labels


def _bound(module: nn.Module, parameter: Tensor) -> float:
    if isinstance(module, nn.Embedding):
        return 0.01
    return math.sqrt(6 / sum(parameter.shape)) if parameter.dim() == 2 else 0
