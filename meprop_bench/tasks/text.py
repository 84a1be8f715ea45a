"""What the tasks on text share: the user's treebank or the default one, numbers for words, batches of like lengths.

A batch has sentences of like lengths, so that little of it is padding, in an order of seed and epoch: all sentences are
permuted; each run of `_POOL` batches is sorted by length and cut into batches; these are permuted. The last batch of an
epoch may be smaller.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meprop_bench.data.treebank import Treebank, load_treebank, made_up_treebank, read_treebank
from meprop_bench.errors import UserError
from meprop_bench.tasks.checks import check_examples

__all__ = ["PAD", "UNKNOWN", "TextPart", "Vocabulary", "bucketed", "in_order_of_length", "paths", "treebank"]

PAD = -1


class TextPart:
    """Encoded sentences, each `(T, columns)` or `(T,)`, int64."""

    def __init__(self, sentences: Sequence[Tensor]) -> None:
        self.sentences = tuple(sentences)
        self.lengths = [len(sentence) for sentence in sentences]

    def pad(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return some sentences as one tensor `(B, longest, …)`, filled up with `PAD`, and their lengths `(B,)`."""
        chosen = [self.sentences[place] for place in places]
        padded = pad_sequence(chosen, batch_first=True, padding_value=PAD)
        return padded, torch.tensor([len(sentence) for sentence in chosen])


def treebank(files: str | None, examples: int | None, *, made_up: bool = False) -> Treebank:
    """Return the user's treebank, else UD English EWT or the made-up one, with the first so many training sentences."""
    if files is None:
        bank = made_up_treebank() if made_up else load_treebank()
    else:
        bank = read_treebank(files, *paths(files, ("train", "dev", "test")))
    return replace(bank, train=bank.train[: check_examples(examples, len(bank.train), f"sentences of {bank.name}")])


def paths(files: str, parts: Sequence[str]) -> list[Path]:
    """Return the paths in a comma list, one for each part; UserError if there are not as many."""
    found = [Path(os.path.expanduser(name.strip())) for name in files.split(",")]
    if len(found) != len(parts) or not all(name.strip() for name in files.split(",")):
        raise UserError(
            f"files must be {len(parts)} paths with commas between them ({', '.join(parts)}), not {files!r}"
        )
    return found


UNKNOWN = 0


class Vocabulary:
    """A numbering of words, the same for the same words in any order.

    It is made of the words of the training part that occur `least` times or more; all others have the number 0.
    """

    def __init__(self, words: Iterable[str], *, least: int = 1) -> None:
        counts = Counter(words)
        frequent = sorted(
            (word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word)
        )
        self.words = (None, *frequent)
        self._numbers = {word: number for number, word in enumerate(frequent, start=1)}

    def __len__(self) -> int:
        """How many numbers there are, that of unknown words included."""
        return len(self.words)

    def __getitem__(self, word: str) -> int:
        """Return the word's number, `UNKNOWN` if it has none."""
        return self._numbers.get(word, UNKNOWN)


_POOL = 50


def bucketed(lengths: Sequence[int], batch: int, *, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the places of each batch's sentences, of so many words each: all of them once; `epoch` counts from 0."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    sizes = np.asarray(lengths)
    batches = []
    for start in range(0, len(order), batch * _POOL):
        pool = order[start : start + batch * _POOL]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        batches += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    for place in rng.permutation(len(batches)):
        yield batches[place].tolist()


def in_order_of_length(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Yield the places of each batch's sentences, the shortest first: for evaluation, where order is of no matter."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch):
        yield order[start : start + batch].tolist()
