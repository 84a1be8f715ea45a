"""Part-of-speech tagging of English: the papers' bidirectional LSTM, UD English EWT in place of the Penn Treebank.

    input    a word (50 numbers) and 7 features (20 numbers each): 190; the papers do not say which features these are:
             here the last 1, 2, 3 and 4 letters, the first 2 and 3, and the shape (capitals, digits, hyphen)
    output   one of the universal tags (17), or of the language's own (50, near the papers' 45)
    metric   per-word accuracy: of all words, punctuation included

B = 1 sentence in the papers, h = 500 for each direction, Adam or AdaGrad at 0.01, no dropout but for the tables that
add it, 0.5 (ICML 4, TKDE 4). Words that occur once in the training part are unknown words, which is how the model
learns what to do with one. The LSTM is sparsified, the output layer is not (ICML paper, section 4.1).

`toy-pos` is the same on sentences that a grammar makes up (`data.treebank`), for machines without a treebank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.data.treebank import Sentence
from meprop_bench.errors import UserError
from meprop_bench.models.tagger import Tagger
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.tasks.checks import check_model, on_device
from meprop_bench.tasks.task import Split, Task
from meprop_bench.tasks.text import TextPart, Vocabulary, bucketed, in_order_of_length, treebank

__all__ = ["POS", "ToyPOS", "features", "shape"]

_IGNORED = -100
_EVALUATED = 64  # sentences at a time
_LEAST = 2

_Batch = tuple[Tensor, Tensor, Tensor]
"""Numbers of words and features (B, T, 8), lengths (B,) on the CPU, tags (B, T)."""


def shape(word: str) -> str:
    """Return what a word looks like: "Xx" for a capital first letter, "X" for capitals; with digits, with a hyphen."""
    case = "X" if word.isupper() and len(word) > 1 else "Xx" if word[:1].isupper() else "x" if word.islower() else "-"
    return case + ("0" if any(c.isdigit() for c in word) else "") + ("-" if "-" in word[1:] else "")


def features(word: str) -> tuple[str, ...]:
    """Return the seven features of a word."""
    low = word.lower()
    return (low[-1:], low[-2:], low[-3:], low[-4:], low[:2], low[:3], shape(word))


class POS(Task):
    """Tagging.

    `batch` are sentences, `hidden` is of each direction, `dropout` of the LSTM's output, `tags` "universal" or
    "language" (UPOS or XPOS), `files` "train.conllu,dev.conllu,test.conllu" in place of UD English EWT.
    """

    name = "pos"
    metric = "accuracy"
    kinds = (nn.LSTM,)

    def __init__(
        self,
        *,
        batch: int = 1,
        hidden: int = 500,
        dropout: float = 0.0,
        tags: str = "universal",
        examples: int | None = None,
        files: str | None = None,
        device: str = "cpu",
    ) -> None:
        check_model(batch=batch, hidden=hidden, dropout=dropout)
        if tags not in ("universal", "language"):
            raise UserError(f"tags must be 'universal' or 'language', not {tags!r}")
        bank = treebank(files, examples, made_up=self.made_up)
        self.batch, self.tags, self.examples = batch, tags, len(bank.train)
        self.data_published, self.notes = bank.published, bank.notes
        self.device = on_device(device)
        self._model: dict[str, Any] = {"hidden": hidden, "dropout": dropout}
        data = {"examples": self.examples, "files": files, "device": str(self.device)}
        self.options = {"batch": batch, **self._model, "tags": tags, **data}
        words = [word.form for sentence in bank.train for word in sentence.words]
        self.words = Vocabulary((word.lower() for word in words), least=_LEAST)
        columns = zip(*map(features, words), strict=True)
        self.features = tuple(Vocabulary(column, least=_LEAST) for column in columns)
        self.labels = Vocabulary(self._tag(word) for sentence in bank.train for word in sentence.words)
        if self.labels.words[1:] == ("_",):
            raise UserError(
                f"the words of {bank.name} have no {tags} tags, only '_': choose other --tags, or other files"
            )
        known: dict[str, list[int]] = {}
        self._train, self._dev, self._test = (
            TextPart([self._encode(sentence, known) for sentence in part]) for part in (bank.train, bank.dev, bank.test)
        )

    def build(self, seed: int) -> nn.Module:
        """Return the tagger."""
        sizes = tuple(len(feature) for feature in self.features)
        counts = (len(self.words), sizes, len(self.labels))
        return Tagger(*counts, **self._model, seed=seed).to(self.device)

    def epoch(self, seed: int, epoch: int) -> Iterator[_Batch]:
        """Yield the batches of one epoch."""
        for places in bucketed(self._train.lengths, self.batch, seed=seed, epoch=epoch):
            yield self._collate(self._train, places)

    def loss(self, model: nn.Module, batch: _Batch) -> Tensor:
        """Return the mean cross entropy of the words."""
        ids, lengths, tags = batch
        logits = model(ids, None if len(lengths) == 1 else lengths)
        return F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=_IGNORED)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return the accuracy of the words in percent; a tag that training has not is never right."""
        part = self._dev if split == "dev" else self._test
        hits = 0
        with evaluation_mode(model):
            for places in in_order_of_length(part.lengths, _EVALUATED):
                ids, lengths, tags = self._collate(part, places)
                found = model(ids, lengths).argmax(dim=2)
                hits += int(((found == tags) & (tags > 0)).sum())
        return 100 * hits / sum(part.lengths)

    def _tag(self, word: Any) -> str:
        return str(word.upos if self.tags == "universal" else word.xpos)

    def _encode(self, sentence: Sentence, known: dict[str, list[int]]) -> Tensor:
        """Return `(T, 9)`: word, features, tag."""
        rows = []
        for word in sentence.words:
            if (numbers := known.get(word.form)) is None:
                own = [table[value] for table, value in zip(self.features, features(word.form), strict=True)]
                numbers = known[word.form] = [self.words[word.form.lower()], *own]
            rows.append([*numbers, self.labels[self._tag(word)]])
        return torch.tensor(rows)

    def _collate(self, part: TextPart, places: Sequence[int]) -> _Batch:
        rows, lengths = part.pad(places)
        rows = rows.to(self.device)
        tags = rows[..., -1].masked_fill(rows[..., -1] < 0, _IGNORED)
        return rows[..., :-1].clamp_min(0), lengths, tags


class ToyPOS(POS):
    """Tagging of sentences that a small grammar makes up."""

    name = "toy-pos"
    made_up = True
