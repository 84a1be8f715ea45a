"""Dependency parsing of English: arc-standard transitions chosen by the papers' perceptron, UD English EWT in place of
the Penn Treebank.

    example    a state of the static oracle's derivation and its transition: 48 features (Chen and Manning 2014)
    training   on the sentences whose trees are projective (97 in 100; the others have no derivation)
    metric     UAS on *all* sentences, greedy, with the treebank's own parts of speech. Words whose part of speech is
               PUNCT are left out of the count, as is usual since CoNLL-X; `scores` also gives UAS with them, and LAS

B = 10,000 transitions, h = 500, Adam or AdaGrad at 0.01, no dropout but for the tables that add it, 0.5 (ICML 4, TKDE
4). Transitions are labelled: the features hold labels of arcs, so somebody has to choose them. A label is the universal
relation without its subtype (nsubj of nsubj:pass). The hidden layer is sparsified, the output layer is dense.

`toy-parsing` is the same on sentences that a grammar makes up (`data.treebank`), for machines without a treebank.

An epoch is a permutation of all examples in batches, the last one smaller. Everything is encoded once, when the task is
loaded: 385,000 states of 48 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.data.treebank import Sentence, Word
from meprop_bench.errors import UserError
from meprop_bench.models.parser import Parser, features
from meprop_bench.models.transitions import NONE, Ints, derivations
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.tasks.checks import check_model, on_device
from meprop_bench.tasks.task import Split, Task
from meprop_bench.tasks.text import Vocabulary, treebank

__all__ = ["Parsing", "Scores", "ToyParsing"]

_LEAST = 2
_Batch = tuple[Tensor, Tensor, Tensor]
"""Features (B, 48), transitions (B,), numbers of the examples (B,)."""


class Scores(NamedTuple):
    """Shares of words, in percent: with the right head; with punctuation counted; with the right label, too."""

    uas: float
    uas_with_punctuation: float
    las: float


class _Part(NamedTuple):
    """Sentences as arrays, `(N, 1 + longest)` each but for the lengths; column 0 is the root."""

    lengths: Ints
    words: Ints
    tags: Ints
    heads: Ints
    labels: Ints
    counted: np.ndarray[Any, np.dtype[np.bool_]]


class Parsing(Task):
    """Parsing.

    `batch` are transitions, `examples` *sentences*, `files` "train.conllu,dev.conllu,test.conllu" in place of UD EWT.
    """

    name = "parsing"
    metric = "UAS"

    def __init__(
        self,
        *,
        batch: int = 10_000,
        hidden: int = 500,
        dropout: float = 0.0,
        activation: str = "cube",
        examples: int | None = None,
        files: str | None = None,
        device: str = "cpu",
    ) -> None:
        check_model(batch=batch, hidden=hidden, dropout=dropout, activation=activation)
        self.device = on_device(device)
        bank = treebank(files, examples, made_up=self.made_up)
        self.batch = batch
        self._model: dict[str, Any] = {"hidden": hidden, "dropout": dropout, "activation": activation}
        data = {"examples": len(bank.train), "files": files, "device": str(self.device)}
        self.options = {"batch": batch, **self._model, **data}
        words = [word for sentence in bank.train for word in sentence.words]
        self.words = Vocabulary((word.form.lower() for word in words), least=_LEAST)
        self.tags = Vocabulary(word.xpos if word.xpos != "_" else word.upos for word in words)
        self.labels = Vocabulary(map(_label, words))
        if not (projective := [sentence for sentence in bank.train if sentence.projective]):
            raise UserError(f"{bank.name} has no projective training tree, and the parser learns from no others")
        left_out = len(bank.train) - len(projective)
        self.data_published = bank.published
        self.notes = (*bank.notes, f"{left_out:,} of {len(bank.train):,} training trees are not projective: left out")
        self._dev, self._test = self._encode(bank.dev), self._encode(bank.test)
        if not (self._dev.counted.any() and self._test.counted.any()):
            raise UserError(f"{bank.name} has nothing but punctuation to develop or test on, which is not counted")
        self._features, self._moves = self._derive(self._encode(projective))
        self.examples = len(self._moves)

    def build(self, seed: int) -> nn.Module:
        """Return the parser."""
        sizes = (len(self.words) + 1, len(self.tags) + 1, len(self.labels))
        return Parser(*sizes, **self._model, seed=seed).to(self.device)

    def epoch(self, seed: int, epoch: int) -> Iterator[_Batch]:
        """Yield the batches of one epoch."""
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(self.examples))
        for places in torch.split(order, self.batch):
            here = places.to(self.device)
            yield self._features[here].long(), self._moves[here], here

    def loss(self, model: nn.Module, batch: _Batch) -> Tensor:
        """Return the mean cross entropy of the transitions."""
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return UAS, punctuation left out."""
        return self.scores(model, split).uas

    def scores(self, model: nn.Module, split: Split) -> Scores:
        """Parse a part and return its scores."""
        assert isinstance(model, Parser)
        part = self._dev if split == "dev" else self._test
        with evaluation_mode(model):
            heads, labels = model.parse(part.words, part.tags, part.lengths)
        real = part.heads != NONE
        attached = real & (heads == part.heads)
        labelled = attached & (labels == part.labels) & part.counted
        counted = part.counted.sum()
        return Scores(
            100 * float((attached & part.counted).sum() / counted),
            100 * float(attached.sum() / real.sum()),
            100 * float(labelled.sum() / counted),
        )

    def numbers(self, batch: _Batch) -> Tensor:
        """Return the numbers of a batch's transitions."""
        return batch[2]

    def _encode(self, sentences: Sequence[Sentence]) -> _Part:
        lengths = np.array([len(sentence) for sentence in sentences], np.int32)
        shape = (len(sentences), 1 + int(lengths.max(initial=0)))
        words, tags = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        words[:, 0], tags[:, 0] = len(self.words), len(self.tags)
        heads, labels = np.full(shape, NONE, np.int32), np.full(shape, NONE, np.int32)
        counted = np.zeros(shape, np.bool_)
        for row, sentence in enumerate(sentences):
            own = slice(1, 1 + len(sentence))
            words[row, own] = [self.words[word.form.lower()] for word in sentence.words]
            tags[row, own] = [self.tags[word.xpos if word.xpos != "_" else word.upos] for word in sentence.words]
            heads[row, own] = [word.head for word in sentence.words]
            labels[row, own] = [self.labels[_label(word)] for word in sentence.words]
            counted[row, own] = [word.upos != "PUNCT" for word in sentence.words]
        return _Part(lengths, words, tags, heads, labels, counted)

    def _derive(self, part: _Part) -> tuple[Tensor, Tensor]:
        """Return the features `(examples, 48)`, int32, and the transitions `(examples,)` of all derivations."""
        found, moves = [], []
        sizes = (len(self.words) + 1, len(self.tags) + 1, len(self.labels))
        for rows, places, below, taken in derivations(part.lengths, part.heads, part.labels, len(self.labels)):
            found.append(features(part.words, part.tags, rows, places, below, sizes))
            moves.append(taken)
        return (
            torch.from_numpy(np.concatenate(found)).to(self.device),
            torch.from_numpy(np.concatenate(moves)).long().to(self.device),
        )


class ToyParsing(Parsing):
    """Parsing of sentences that a small grammar makes up."""

    name = "toy-parsing"
    made_up = True


def _label(word: Word) -> str:
    return word.relation.partition(":")[0]
