"""Activeness: how often a neuron was among the k entries that the backward pass selected (TKDE, Algorithm 2, line 7).

    S_b  =  the k neurons selected for example b            from dy (B, n), see `meprop_bench.ops.selection`
    c_i  ←  c_i + |{b : i ∈ S_b and dy_bi ≠ 0}|             hits of neuron i, an integer
    keep i  if  c_i ≥ int(examples · p)                     at a prune; then c ← 0 and examples ← 0

Zeros do not count, by default. After a ReLU dy is exactly 0 for most neurons of an example (100 to 250 of 500 are
non-zero on MNIST), so a k of 160 often exceeds the non-zero entries. Which zeros fill the k places up is an accident of
the sort, and an accident must not decide which neurons live. The mean number of non-zero entries is recorded beside k.

An LSTM selects k of n in each of its four gates by itself, and a neuron lives or dies in all of them together (TKDE,
section 2.3.2: "the most active path across all gates are kept"). We read it as c_i = the maximum over the gates.

Kernels select within the backward pass and report nothing. For a linear layer a hook on its output sees the same dy and
selects again, which gives the kernel's selection but for entries of equal, non-zero magnitude at the k-th place. That
costs one more selection for each step, and leaves the kernels free of bookkeeping that only meSimp needs. A recurrent
layer, whose dy no hook can see, calls the record itself, once for each backward pass: `record(dy, idx)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meprop_bench.nn import MePropLinear
from meprop_bench.ops.selection import resolve_k, select

__all__ = ["Activeness", "check_recordable", "watch"]


class Activeness:
    """The record of one layer, or of one cell of a recurrent layer.

    Args:
        neurons: n.
        gates: entries of dy that belong to one neuron and are selected apart from each other: 4 for an LSTM.
        count_zeros: count an entry that was selected although it is zero.
        device: of the counts.

    """

    def __init__(
        self, neurons: int, *, gates: int = 1, count_zeros: bool = False, device: torch.device | str | None = None
    ) -> None:
        self.gates, self.count_zeros, self._device = gates, count_zeros, device
        self.enabled = True
        """A layer that calls the record may look here and spare itself the work; a call while False does nothing."""
        self.resize(neurons)

    def resize(self, neurons: int) -> None:
        """Start again with a number of neurons."""
        self._hits = torch.zeros(self.gates * neurons, dtype=torch.int64, device=self._device)
        self._nonzeros = torch.zeros((), dtype=torch.int64, device=self._device)
        self.examples = 0

    def clear(self) -> None:
        """Start again."""
        self.resize(self.neurons)

    @property
    def neurons(self) -> int:
        """How many neurons the record is of: n."""
        return self._hits.numel() // self.gates

    @property
    def counts(self) -> Tensor:
        """Hits of each neuron, `(n,)`: the maximum over its gates."""
        return self._hits.view(self.gates, -1).amax(0)

    @property
    def mean_nonzeros(self) -> float:
        """Mean number of non-zero entries in dy, for an example and a gate; NaN before the first example."""
        return int(self._nonzeros) / (self.examples * self.gates) if self.examples else float("nan")

    @torch.no_grad()
    def __call__(self, dy: Tensor, idx: Tensor) -> None:
        """Count one backward pass; ValueError for shapes that do not fit each other or the record.

        Args:
            dy: incoming gradient before selection, `(B, gates · n)`, gate after gate. Each row is one example.
            idx: which of its columns were selected, `(B, gates · k)`, or `(gates · k,)` if the same for all examples.

        """
        if not self.enabled:
            return
        if dy.dim() != 2 or dy.shape[1] != self._hits.numel() or idx.shape[:-1] not in ((), dy.shape[:1]):
            raise ValueError(
                f"a record of {self.gates} x {self.neurons} entries got dy {tuple(dy.shape)} and idx "
                f"{tuple(idx.shape)}: give (B, gates · n) and (B, gates · k)"
            )
        nonzero = dy != 0
        self._nonzeros += nonzero.sum()
        chosen = idx.expand(dy.shape[0], -1)
        hit = torch.ones_like(chosen) if self.count_zeros else nonzero.gather(1, chosen).long()
        self._hits.scatter_add_(0, chosen.flatten(), hit.flatten())
        self.examples += dy.shape[0]

    def state_dict(self) -> dict[str, Any]:
        """Return all counts, as tensors and numbers."""
        return {"hits": self._hits.clone(), "nonzeros": self._nonzeros.clone(), "examples": self.examples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over counts, of any number of neurons."""
        self._hits = state["hits"].to(self._hits.device, copy=True)
        self._nonzeros = state["nonzeros"].to(self._nonzeros.device, copy=True)
        self.examples = state["examples"]

    def enough(self, rate: float, live: Tensor, round_to: int = 1) -> int:
        """Return how many of the live neurons, bool `(n,)` on the CPU, to keep: those with c_i ≥ int(examples · rate).

        It is rounded up to a multiple of `round_to`, or all that are left; at least one.
        """
        active = int((self.counts.cpu()[live] >= int(self.examples * rate)).sum())
        return min(int(live.sum()), max(1, -(-active // round_to)) * round_to)

    def best(self, number: int, live: Tensor) -> Tensor:
        """Return which neurons to keep, bool `(n,)`: the `number` most active that are live; of equals the first."""
        ranked = self.counts.cpu().masked_fill(~live, -1).sort(descending=True, stable=True).indices
        keep = torch.zeros_like(live)
        keep[ranked[:number]] = True
        return keep


def _observe(record: Activeness, layer: MePropLinear, args: tuple[Tensor, ...], y: Tensor) -> None:
    """Have the gradient of a layer's output counted."""
    if record.enabled and y.requires_grad:
        y.register_hook(lambda dy: _count(record, layer, dy))  # type: ignore[no-untyped-call]


def _count(record: Activeness, layer: MePropLinear, dy: Tensor) -> None:
    dy = dy.detach().reshape(-1, dy.shape[-1])
    if dy.numel():
        n = dy.shape[1]
        k = resolve_k(layer.k, n)
        record(dy, torch.arange(n, device=dy.device) if k >= n else select(dy, k, layer.selection))


def check_recordable(selection: str) -> None:
    """Raise ValueError for a random selection, which says nothing about the neurons."""
    if selection not in ("example", "unified"):
        raise ValueError(
            f"activeness needs the selection 'example' or 'unified', not {selection!r}: chance tells nothing of neurons"
        )


def watch(layer: MePropLinear, record: Activeness) -> RemovableHandle:
    """Have `record` count each backward pass of a linear layer; all leading dimensions of its input are examples.

    ValueError for a random selection.
    """
    check_recordable(layer.selection)
    return nn.Module.register_forward_hook(layer, partial(_observe, record))  # copied and pickled as no closure is
