"""Which character comes next: a small GPT on real text, as language models are trained, at the size of a table here.

    example    a window of T characters, "A dog runs ."  ->  the T characters that follow each
    training   the mean negative log-likelihood of those, teacher forcing; B windows make B T rows for each layer
    metric     bits per character, on average over a part's text, negated: higher is better, as of every task

A model that takes the 80 characters of the captions for equally likely has -6.32, one that counts how often each occurs
-4.33 (of UD English EWT -6.71 and -4.60, of the made-up sentences -4.86 and -4.23): what is no better has learnt
nothing of their order. Windows lie side by side, those of a part that is evaluated, too; a character is predicted from
those before it in its window. A character that occurs once in the training text counts as unknown, which is how the
model learns what to do with one.

The text is Multi30k's English captions, or, with `data`, UD English EWT's words, or your own. `toy-language` has
sentences that a grammar makes up (`data.treebank`), and a smaller model.

The method sees B T rows in place of the papers' B: meProp chooses k outputs for each character, the unified selection k
for all of a batch together. The rate is constant. What is sparsified are the four linear layers of each block
(`models.gpt`), the head is not. meSimp does not fit: removing a neuron would have to keep what the residual sum and the
norms tie together; nor does meAct, whose examples are the same ones in every epoch and a row each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.data.characters import Text, load_text, made_up_text, read_text
from meprop_bench.data.order import example_numbers
from meprop_bench.errors import UserError
from meprop_bench.models.gpt import GPT
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.tasks.checks import check_examples, check_model, on_device
from meprop_bench.tasks.task import Split, Task
from meprop_bench.tasks.text import Vocabulary, paths

__all__ = ["Language", "ToyLanguage"]

_TOGETHER = 16  # batches that are gathered at a time
_EVALUATED = 64  # windows at a time
_LEAST = 2
_KEPT = 14  # inputs of qkv (d), q, k, v (3 d), attention's (d), of up (d), its activation's and down's (8 d)

_Batch = tuple[Tensor, Tensor]
"""Numbers of characters, and of those that follow them, (B, T) each."""


class Language(Task):
    """Language modelling by characters.

    `batch` are windows of `length` characters, `hidden` is the width, `layers` are blocks; `examples` are windows of
    the training text, the first; `data` is "multi30k" or "ud-ewt", `files` "train.txt,dev.txt,test.txt" in its place.
    """

    name = "language"
    metric = "-bits/character"

    def __init__(
        self,
        *,
        batch: int = 16,
        hidden: int = 256,
        heads: int = 4,
        layers: int = 4,
        length: int = 128,
        dropout: float = 0.0,
        examples: int | None = None,
        data: str | None = None,
        files: str | None = None,
        device: str = "cpu",
    ) -> None:
        sizes: dict[str, Any] = {"heads": heads, "layers": layers, "length": length, "dropout": dropout}
        check_model(batch=batch, hidden=hidden, **sizes)
        if hidden % heads:
            raise UserError(f"hidden must be a multiple of the {heads} heads, not {hidden}")
        self.device = on_device(device)
        text = self._text(data, files)
        self.characters = Vocabulary(text.train, least=_LEAST)
        train = self._encode(text.train)
        if len(train) <= length:
            raise UserError(f"{text.name} has {len(train)} characters to train on: take a smaller --length")
        windows = train.unfold(0, length + 1, length)  # (N, T + 1), each beginning with the last of the one before
        self.examples = check_examples(examples, len(windows), f"windows of {text.name}")
        self.batch, self._windows, self._sizes = batch, windows[: self.examples], sizes
        self._check_memory(min(batch, self.examples), hidden)
        self._parts: Mapping[Split, Tensor] = {"dev": self._encode(text.dev), "test": self._encode(text.test)}
        self.options = {
            "batch": batch,
            "hidden": hidden,
            **sizes,
            "examples": self.examples,
            "device": str(self.device),
        }
        self.options |= self._source(data, files)
        self.data_published, self.notes = text.published, text.notes

    def _check_memory(self, batch: int, hidden: int) -> None:
        """Refuse what the kernel would end the process for: a step needs more memory than the machine has.

        Counted is what a forward pass keeps at least for the backward pass, in 4 bytes each: of a block `_KEPT` numbers
        of each of its width, of the head the logits and their softmax.
        """
        if self.device.type != "cpu":  # CUDA has errors for that
            return
        import psutil

        each = self._sizes["layers"] * _KEPT * hidden + 2 * len(self.characters)
        needed, there = 4 * batch * self._sizes["length"] * each, psutil.virtual_memory().total
        if needed > there:
            raise UserError(
                f"a step on windows of {self._sizes['length']:,} characters, {batch} at a time, needs at least"
                f" {needed / 2**30:,.0f} GiB of memory, and this machine has {there / 2**30:,.0f}: take a smaller"
                " --length or --batch"
            )

    def _text(self, data: str | None, files: str | None) -> Text:
        if files is None:
            return load_text(data or "multi30k")
        if data is not None:
            raise UserError(f"the text is that of --data {data} or of --files, not of both: leave one out")
        return read_text(files, *paths(files, ("train", "dev", "test")))

    def _source(self, data: str | None, files: str | None) -> Mapping[str, str | None]:
        return {"data": None if files else data or "multi30k", "files": files}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches among the windows, and at least one."""
        return max(1, self.examples // self.batch)

    def build(self, seed: int) -> nn.Module:
        """Return the GPT."""
        return GPT(len(self.characters), self.options["hidden"], **self._sizes, seed=seed).to(self.device)

    def epoch(self, seed: int, epoch: int) -> Iterator[_Batch]:
        """Yield the batches of one epoch."""
        steps = self.steps_per_epoch
        order = example_numbers(
            self.examples, self.batch, seed=seed, steps=steps, start=epoch * steps, together=_TOGETHER
        )
        for numbers in order:
            for windows in torch.split(self._windows[numbers.to(self.device)], self.batch):
                yield windows[:, :-1], windows[:, 1:]

    def loss(self, model: nn.Module, batch: _Batch) -> Tensor:
        """Return the mean negative log-likelihood of a character, in nats."""
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return minus the mean bits of all characters of a part's text but the first."""
        text, length = self._parts[split], self._sizes["length"]
        count = (len(text) - 1) // length
        whole = text[: count * length + 1]
        parts = list(torch.split(whole.unfold(0, length + 1, length), _EVALUATED)) if count else []
        if len(text) > len(whole):
            parts.append(text[max(0, len(whole) - 1) :][None])
        nats = 0.0
        with evaluation_mode(model):
            for windows in parts:
                logits = model(windows[:, :-1]).flatten(0, 1)
                nats += F.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum").item()
        return -nats / math.log(2) / (len(text) - 1)

    def _encode(self, text: str) -> Tensor:
        return torch.tensor([self.characters[character] for character in text], device=self.device)


class ToyLanguage(Language):
    """Sentences that a small grammar makes up, and a model that learns them in seconds."""

    name = "toy-language"
    made_up = True

    def __init__(
        self,
        *,
        batch: int = 16,
        hidden: int = 64,
        heads: int = 2,
        layers: int = 2,
        length: int = 32,
        dropout: float = 0.0,
        examples: int | None = None,
        device: str = "cpu",
    ) -> None:
        sizes: dict[str, Any] = {"heads": heads, "layers": layers, "length": length, "dropout": dropout}
        super().__init__(batch=batch, hidden=hidden, **sizes, examples=examples, device=device)

    def _text(self, data: str | None, files: str | None) -> Text:
        return made_up_text()

    def _source(self, data: str | None, files: str | None) -> Mapping[str, str | None]:
        return {}
