"""The papers' part-of-speech tagger: embeddings, one bidirectional LSTM layer, and a linear layer for each word.

    e_t = [E_word w_t; E_1 f_t1; ...; E_7 f_t7]                  (B, T, 190)   50 for the word, 20 for each feature
    h_t = [LSTM→ e_t; LSTM← e_t]                                 (B, T, 1000)  500 for each direction
    logits_t = h_t W_outᵀ + b_out                                (B, T, 45)

"For POS-Tag, the input dimension is 1 (word) × 50 (dim per word) + 7 (features) × 20 (dim per feature) = 190, and the
output dimension is 45" (ICML paper, section 4.1); "the hidden size is 500 for each direction" (TKDE, section 3), one
hidden layer, a mini-batch of one sentence, no dropout but for one table, which does not say of what: here of h_t.
Neither says what the features are: any small sets of numbers that say something of a word do (how it ends, whether it
has a capital, a digit, a hyphen). The output layer stays dense, as it costs next to nothing beside the rest (ICML
paper, section 4.1), which is what

    convert(model, k=10, kinds=(nn.LSTM,))

does: there, an LSTM that selects k neurons of each gate takes the place of torch's and shares its parameters.

Initialisation: the authors' code for this model is unpublished. The output layer as in `MLP`; the LSTM from
U(±1/sqrt(h)), as PyTorch does; embeddings of d numbers from U(±sqrt(3/d)), as common for taggers, so that a vector has
length 1.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from meprop_bench.models import check, draw

__all__ = ["Tagger"]


class Tagger(nn.Module):
    """A tagger that returns the logits of each word's tags.

    Args:
        words, tags: how many there are.
        features: how many values each feature has.
        hidden: h, for each direction.
        layers: LSTM layers.
        word_size, feature_size: numbers of a word's and of a feature's vector.
        dropout: share of the LSTM's outputs that is dropped in training.
        seed: of the initial weights.

    Raises:
        ValueError: a size below 1.

    """

    def __init__(
        self,
        words: int,
        features: tuple[int, ...] = (),
        tags: int = 45,
        *,
        hidden: int = 500,
        layers: int = 1,
        word_size: int = 50,
        feature_size: int = 20,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        each = {f"features[{i}]": n for i, n in enumerate(features)}
        check(
            words=words, tags=tags, hidden=hidden, layers=layers, word_size=word_size, feature_size=feature_size, **each
        )
        super().__init__()
        with torch.device("meta"):
            self.word = nn.Embedding(words, word_size)
            self.features = nn.ModuleList(nn.Embedding(n, feature_size) for n in features)
            width = word_size + len(features) * feature_size
            self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True)
            self.dropout = nn.Dropout(dropout)
            self.output = nn.Linear(2 * hidden, tags)
        draw(self, seed, _bound)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits, `(B, T, tags)`; of what follows a sentence, they mean nothing.

        Args:
            ids: int64 `(B, T, 1 + features)`: of each word its number, and the values of its features.
            lengths: int64 `(B,)`, words of each sentence, if they differ; what follows them is not looked at.

        """
        parts = [self.word(ids[..., 0])]
        parts += [table(ids[..., 1 + i]) for i, table in enumerate(self.features)]
        embedded = torch.cat(parts, -1)
        if lengths is None:
            return cast(Tensor, self.output(self.dropout(self.lstm(embedded)[0])))
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=ids.shape[1])
        return cast(Tensor, self.output(self.dropout(hidden)))


def _bound(module: nn.Module, _: Tensor) -> float:
    if isinstance(module, nn.Embedding):
        return math.sqrt(3 / module.embedding_dim)
    return 1 / math.sqrt(module.hidden_size if isinstance(module, nn.LSTM) else cast(nn.Linear, module).out_features)
