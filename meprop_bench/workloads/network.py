"""What ranks send in a step, and what that takes: bytes from the definitions, seconds by a model of the network.

A step leaves gradients of N numbers in all. Of a layer `y = x Wᵀ + b`, W of shape (n, m), k of whose rows have a
gradient, P ranks exchange, in numbers of 4 bytes (row numbers: 8) that each rank sends:

| exchange | sent by a rank | messages, one after the other |
| --- | --- | --- |
| dense, a ring | 2 (P - 1) / P · N | 2 (P - 1) for each bucket of 25 MiB |
| dense, in 16 bits | half of that | as many |
| dense, PowerSGD | 2 (P - 1) / P · (n + m) of each W that this makes half as large | 6 (P - 1) |
| gathered | (P - 1) (k m + row numbers) | P - 1 |
| agreed | 2 (P - 1) / P · (n scores + k m) | 2 (P - 1), twice; between two ranks 1, twice |

What is no such W (biases, output layers, embeddings) goes as a dense ring beside either. Gathered rows travel together
with their number (`distributed.gathered`), and two ranks sum by one message in each direction. A rank's link carries
`bandwidth` in each direction and takes `latency` for a message:

    seconds = bytes sent / bandwidth + messages · latency

Gathered rows grow with P, and agreed ones do not: agreeing sends less once (P - 1) k m > 2 (P - 1) / P (k m + n), from
three ranks on where n is small beside k m. A dense ring sends more than gathered rows below k = 2 n / P.

The model is of the exchange alone. What the ranks compute is measured (`sweep.profile`), and a step lies between that
of which all of the exchange is hidden behind the backward pass and that of which nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Load", "Network", "Tensors", "agreed", "dense", "gathered"]

_NUMBER, _ROW, _HALF = 4, 8, 2
"""Bytes of a number, of a row's number, and of a number in 16 bits."""
_BUCKET = 25 << 20
"""Bytes of a bucket of DistributedDataParallel."""
_WORTH = 2
"""PowerSGD's least factor of compression."""


class Tensors(NamedTuple):
    """Gradients that are exchanged alike: of a weight (n, m), or of others, n numbers (m = 1)."""

    n: int
    m: int
    k: float | None  # rows that have a gradient on each rank; None where it is dense

    @property
    def numbers(self) -> int:
        """How many there are in all."""
        return self.n * self.m


class Load(NamedTuple):
    """What a rank sends in a step."""

    bytes: float
    messages: float  # that follow one another

    def __add__(self, other: object) -> Load:  # loads add up; they are not concatenated
        if not isinstance(other, Load):
            return NotImplemented
        return Load(self.bytes + other.bytes, self.messages + other.messages)


@dataclass(frozen=True)
class Network:
    """Ranks, and the link of each: bits per second in each direction, seconds for a message."""

    ranks: int
    bandwidth: float
    latency: float = 0.0

    def seconds(self, load: Load) -> float:
        """Return what a load takes, where nothing else is sent."""
        return 8 * load.bytes / self.bandwidth + load.messages * self.latency


def dense(tensors: Sequence[Tensors], ranks: int, exchange: str = "ddp") -> Load:
    """Return what is sent of dense gradients: "ddp", "fp16", "bf16" or "powersgd"."""
    if exchange != "powersgd":
        size = _NUMBER if exchange == "ddp" else _HALF
        numbers = sum(one.numbers for one in tensors)
        return _ring(size * numbers, ranks, math.ceil(_NUMBER * numbers / _BUCKET))
    total = Load(0.0, 0.0)
    for one in tensors:
        low = one.n + one.m
        total += _ring(_NUMBER * (low if one.m > 1 and _WORTH * low < one.numbers else one.numbers), ranks, 0)
    return total + Load(0.0, 3 * 2 * (ranks - 1))


def gathered(tensors: Sequence[Tensors], ranks: int) -> Load:
    """Return what is sent where each rank's rows go to all others, and the rest as a dense ring."""
    total = _rest(tensors, ranks)
    for one in tensors:
        if one.k is not None:
            total += Load((ranks - 1) * one.k * (_NUMBER * one.m + _ROW), ranks - 1)
    return total


def agreed(tensors: Sequence[Tensors], ranks: int) -> Load:
    """Return what is sent where ranks sum their scores, and then the rows of one selection, and the rest."""
    total = _rest(tensors, ranks)
    for one in tensors:
        if one.k is not None:
            total += _sum(_NUMBER * one.n, ranks) + _sum(_NUMBER * one.k * one.m, ranks)
    return total


def _rest(tensors: Sequence[Tensors], ranks: int) -> Load:
    left = [one for one in tensors if one.k is None]
    return dense(left, ranks) if left else Load(0.0, 0.0)


def _sum(nbytes: float, ranks: int) -> Load:
    """Return what is sent when this package sums bytes: two ranks swap them whole, more go round a ring."""
    return Load(nbytes, 1) if ranks == 2 else _ring(nbytes, ranks, 1)


def _ring(nbytes: float, ranks: int, rounds: int) -> Load:
    """Return what is sent when bytes are summed in a ring, in so many pieces one after the other."""
    return Load(2 * (ranks - 1) / ranks * nbytes, 2 * (ranks - 1) * rounds)
