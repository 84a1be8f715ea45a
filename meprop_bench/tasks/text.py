"""What the tasks on text share: a treebank of the user's or the default one, padded batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from meprop_bench.data.grammar import made_up_treebank
from meprop_bench.data.treebank import Treebank, load_treebank, read_treebank
from meprop_bench.errors import UserError
from meprop_bench.tasks.checks import check_examples

__all__ = ["PAD", "Part", "paths", "treebank"]

PAD = -1


class Part:
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
    """Return the user's treebank, else UD English EWT or the made-up one, with the first so many training sentences.

    Raises:
        UserError: `files` is not three paths, a file is missing or damaged, or there are fewer sentences.

    """
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
