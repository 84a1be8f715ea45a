"""Beam search: the likeliest sequence, nearly, without looking at all V^T of them.

A step function gives log p(next token | tokens so far), one row for each hypothesis. Per sentence the search holds the
`beam` likeliest hypotheses that have not ended, and in each step ranks all their continuations:

    total (beam, V) = live (beam, 1) + log p (beam, V)

Of the first `beam` ranks, those that end with EOS are finished; the first `beam` that do not end live on. Finished ones
are compared by their log-probability over the length penalty of Wu et al. (2016, equation 14), with |Y| counting EOS:

    score = log p(Y) / ((5 + |Y|) / 6)^α                    α = 0: no normalisation; short outputs win

A sentence is done when `beam` hypotheses have finished, or when no live one can overtake the best: its log-probability
only falls, and no length divides it by more than `max_length` does. At `max_length` tokens all have to end. With a beam
of 1 this is greedy decoding; with one as large as the number of prefixes, exhaustive search.

All sentences and hypotheses are rows of one batch, `beam` rows for each sentence, in the order of the sentences. A
sentence that is done is computed along until all are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Hypothesis", "beam_search"]

State = TypeVar("State")


class Hypothesis(NamedTuple):
    """A finished sequence."""

    tokens: list[int]  # without the first (BOS) and the last (EOS)
    score: float  # log-probability, EOS included, over the length penalty


@dataclass
class _Finished:
    """What has finished of one sentence."""

    best: Hypothesis | None = None
    count: int = 0
    done: bool = False

    def add(self, hypothesis: Hypothesis) -> None:
        self.count += 1
        # NaN replaces, and nothing replaces NaN: it has to show.
        if self.best is None or hypothesis.score > self.best.score or math.isnan(hypothesis.score):
            self.best = hypothesis


def beam_search(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    select: Callable[[State, Tensor], State],
    state: State,
    *,
    sentences: int,
    beam: int,
    bos: int,
    eos: int,
    max_length: int,
    length_penalty: float = 0.0,
    device: torch.device | str = "cpu",
) -> list[Hypothesis]:
    """Return the best hypothesis found for each sentence.

    Args:
        step: takes the last tokens `(N,)` and the state of N rows; returns log-probabilities `(N, V)` and a new state.
        select: takes a state and row numbers `(sentences · beam,)`, `beam` for each sentence and of its own rows, which
            may repeat; returns the state of these rows.
        state: one row for each sentence.
        sentences: how many.
        beam: hypotheses for each, at least 1.
        bos, eos: tokens that begin and end each sequence.
        max_length: tokens of a sequence at most, EOS counted and BOS not; at least 1.
        length_penalty: α, at least 0.
        device: of the tokens.

    Raises:
        ValueError: a number below its bound, or a sentence none of whose sequences has a probability above zero.

    """
    for name, value, least in (("beam", beam, 1), ("max_length", max_length, 1), ("length_penalty", length_penalty, 0)):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    first = torch.arange(sentences, device=device).unsqueeze(1) * beam  # row of each sentence's first hypothesis
    state = select(state, torch.arange(sentences, device=device).repeat_interleave(beam))
    tokens = torch.full((sentences * beam, 1), bos, device=device)
    live = torch.full((sentences, beam), -torch.inf, device=device)  # log-probabilities; one hypothesis to begin with
    live[:, 0] = 0
    found = [_Finished() for _ in range(sentences)]
    for length in range(1, max_length + 1):
        logp, state = step(tokens[:, -1], state)
        total = live.view(-1, 1) + logp
        if length == max_length:
            total = total.masked_fill(torch.arange(logp.shape[1], device=device) != eos, -torch.inf)
        total = total.view(sentences, -1)
        # Each hypothesis ends in one way, so that of twice as many ranks at least `beam` do not end.
        ranked, where = total.topk(min(2 * beam, total.shape[1]), dim=1)
        origin, word = where // logp.shape[1], where % logp.shape[1]
        ended = word == eos
        _finish(found, ranked, ended, tokens, first + origin, beam, _penalty(length, length_penalty))
        live, chosen = ranked.masked_fill(ended, -torch.inf).topk(beam, dim=1)
        rows = (first + origin.gather(1, chosen)).flatten()
        tokens = torch.cat([tokens[rows], word.gather(1, chosen).view(-1, 1)], dim=1)
        state = select(state, rows)
        bounds = (live[:, 0] / _penalty(max_length, length_penalty)).tolist()
        for sentence, bound in zip(found, bounds, strict=True):
            settled = sentence.best is not None and bound <= sentence.best.score
            sentence.done = sentence.done or sentence.count >= beam or settled
        if all(sentence.done for sentence in found):
            break
    if any(sentence.best is None for sentence in found):
        raise ValueError(f"no sequence of at most {max_length} tokens has a probability above zero")
    return [sentence.best for sentence in found if sentence.best is not None]


def _penalty(length: int, alpha: float) -> float:
    return float(((5 + length) / 6) ** alpha)


def _finish(
    found: list[_Finished], ranked: Tensor, ended: Tensor, tokens: Tensor, rows: Tensor, beam: int, penalty: float
) -> None:
    """Record those of the first `beam` ranks that end, for the sentences that are not done."""
    ends = (ended & (ranked != -torch.inf))[:, :beam]  # what is left of -inf are places without a hypothesis
    for i, rank in ends.nonzero().tolist():
        if not found[i].done:
            score = ranked[i, rank].item() / penalty
            found[i].add(Hypothesis(tokens[rows[i, rank], 1:].tolist(), score))
