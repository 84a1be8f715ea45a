"""Agreed: the ranks select neurons together, so that all have the same rows, and add these up.

    s = Σ_r s_r             (n,)      the scores Σ_batch |dy| of all ranks, within the backward pass
    h = top k of s          (k,)      the same everywhere
    dW[h] = 1 / P Σ_r G_r   (k, m)    one dense block

These are the numbers of one process that has the whole batch, to rounding: it would select by the same sums. Where mean
losses of batches of different sizes are averaged, they have to be weighted, as always (`DataParallel.loss_weight`).

A layer's neurons are needed before its dx, and so before the layer below: backward waits for the scores of each layer,
n numbers. They are exchanged in every backward pass, also where gradients are only accumulated.

Scores are told apart by a number of their layer that is added up with them. Before the first ones, ranks compare in
which order their layers have run, and with which k: where one did not run on some rank, the others would wait for its
scores for ever; of another k they would take other neurons.
"""

from __future__ import annotations

import weakref
import zlib
from array import array

import torch
from torch import Tensor

from meprop_bench.distributed.buckets import Bucket
from meprop_bench.distributed.channel import Channel, ExchangeError, Pending
from meprop_bench.ops import memory
from meprop_bench.ops.kernels import hybrid_rows

__all__ = ["Agreed", "Agreement", "Choice"]

_ADVICE = "exchange='agreed' needs all ranks to do the same; 'gathered' does not"


class Agreement:
    """What the ranks have agreed on in one backward pass.

    `_order` has two numbers for each layer that has run forward: which one it was, and its k.
    """

    def __init__(self, channel: Channel, names: list[str]) -> None:
        self.channel, self.names = channel, names
        self.forget()

    def forget(self) -> None:
        """Begin a forward pass."""
        self._backward = False
        self._order = array("q")
        self._compared: tuple[Tensor, Pending] | None = None

    def ran(self, number: int, k: int) -> None:
        """Be informed that a layer has run forward; for a checkpoint it does so again in backward, which is not new."""
        if not self._backward:
            self._order.extend((number, k))

    def begin(self) -> None:
        """Begin a backward pass: compare which layers have run."""
        self._backward = True
        self._compared = self.channel.gather(torch.tensor([len(self._order), zlib.crc32(self._order)]))

    def end(self) -> None:
        """End a backward pass."""
        self._check()
        self._backward = False

    def _check(self) -> None:
        """Raise ExchangeError if the ranks have run different layers."""
        if self._compared is None:
            return
        (everyone, waiting), self._compared = self._compared, None
        waiting.wait()
        for rank, (count, order) in enumerate(everyone.tolist()):
            if (count, order) != (len(self._order), zlib.crc32(self._order)):
                own = len(self._order)
                what = f"{count // 2} layers, this one {own // 2}" if count != own else "another order, or another k"
                raise ExchangeError(
                    f"rank {rank} has run other layers than rank {self.channel.rank} ({what}), so that no selection can"
                    f" be agreed on: {_ADVICE}"
                )

    def choose(self, number: int, scores: Tensor, k: int) -> Tensor:
        """Return the k neurons with the greatest sums of scores `(n,)` over the ranks, ascending."""
        self._check()
        summed = torch.cat((scores, scores.new_tensor([number])))
        self.channel.sum(summed, scores=True).wait()
        if memory.is_read_at_once(summed) and summed[-1].item() != number * self.channel.size:
            raise ExchangeError(
                f"rank {self.channel.rank} was at {self.names[number]} while others were at other layers: {_ADVICE}"
            )
        return _greatest(summed[:-1], k)


class Choice:
    """What makes the selection of one layer: see `ops.chosen.Selector`.

    Copies of the layer select for themselves, and so does the layer when the model is no longer wrapped.
    """

    def __init__(self, agreement: Agreement, number: int) -> None:
        self._agreement, self._number = weakref.ref(agreement), number

    def ran(self, k: int) -> None:
        """See `ops.chosen`."""
        agreement = self._agreement()
        if agreement is not None:
            agreement.ran(self._number, k)

    def __call__(self, scores: Tensor, k: int) -> Tensor:
        """See `ops.chosen`."""
        agreement = self._agreement()
        return _greatest(scores, k) if agreement is None else agreement.choose(self._number, scores, k)

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _greatest(scores: Tensor, k: int) -> Tensor:
    """Return the places of the k greatest, ascending."""
    return scores.topk(k, sorted=False).indices.sort().values


class Agreed(Bucket):
    """A bucket whose ranks have the same rows."""

    def signature(self, gradient: Tensor) -> int:
        """Return a checksum of the rows; on a GPU, whose numbers the host would have to wait for, none."""
        idx = gradient._indices()
        return zlib.crc32(idx.contiguous().numpy().tobytes()) if memory.is_read_at_once(idx) else 0

    def send_rows(self, signatures: list[list[int]]) -> None:
        """See `Bucket`; ExchangeError where the rows are not the same."""
        self._blocks: list[Tensor | None] = [None] * len(self.entries)
        sizes = []
        for i, (entry, gradient) in enumerate(zip(self.entries, self.gradients, strict=True)):
            for rank, (count, signature) in enumerate(zip(self.rows[i], signatures[i], strict=True)):
                own = self.rows[i][self.channel.rank], signatures[i][self.channel.rank]
                if self.some[i] and (gradient is None or (count, signature) != own):
                    raise ExchangeError(
                        f"rank {rank} has other rows of {entry.name} than rank {self.channel.rank} ({count}, {own[0]}):"
                        f" {_ADVICE}"
                    )
            sizes.append(self.rows[i][0] * entry.width)
        if not sum(sizes):
            return
        flat = torch.empty(sum(sizes), dtype=self.dtype, device=self.device)
        for i, (gradient, part) in enumerate(zip(self.gradients, torch.split(flat, sizes), strict=True)):
            if gradient is not None and part.numel():
                self._blocks[i] = block = part.view(-1, gradient.shape[1])
                torch.mul(gradient._values(), 1 / self.channel.size, out=block)
        self.waiting.append(self.channel.sum(flat))

    def finish_rows(self) -> None:
        """See `Bucket`."""
        for entry, gradient, block in zip(self.entries, self.gradients, self._blocks, strict=True):
            if gradient is not None and block is not None:
                entry.parameter.grad = hybrid_rows(gradient._indices(), block, entry.parameter.shape[0])
        del self._blocks
