"""Alternating top-k selection for sequence-to-sequence models (TKDE, section 3.3.3).

From an output word to an input word the error passes all of the decoder and all of the encoder. Sparsified at every
step of that way, the paper finds training unstable; so it sparsifies one part at a time:

    epoch       0         1         2         3         …
    encoder     k         all       k         all               k:   its schedule's
    decoder     all       k         all       k                 all: the dense layer, to the bit

The price is that half of the backward pass is dense: with shares a and b of its time, a + b = 1, and speed-ups s of the
both, two epochs take (a / s + b) + (a + b / s), so that the whole gets faster by 2 / (1 + 1 / s): by less than 2.

    k = Constant(0.0625)
    alternating = Alternating({"encoder": KScheduler(model.encoder, k), "decoder": KScheduler(model.decoder, k)})
    for epoch in range(epochs):
        alternating.start_epoch(epoch)
        ...
"""

from __future__ import annotations

from collections.abc import Mapping

from meprop_bench.algorithms.schedule import KScheduler

__all__ = ["Alternating"]


class Alternating:
    """Sparsifies one part of a model in each epoch and leaves the others dense.

    Args:
        parts: the parts by name, each with the schedule of its layers, in their order.

    Raises:
        ValueError: fewer than two parts, or a layer in two of them.

    """

    def __init__(self, parts: Mapping[str, KScheduler]) -> None:
        if len(parts) < 2:
            raise ValueError(f"two parts or more can alternate, not {len(parts)}")
        owner: dict[int, str] = {}
        for part, scheduler in parts.items():
            for name, layer in scheduler.layers.items():
                if owner.setdefault(id(layer), part) != part:
                    raise ValueError(f"layer {name!r} of {part!r} belongs to {owner[id(layer)]!r}, too")
        self.parts = dict(parts)
        self.active = next(iter(self.parts))
        """The part that is sparsified, the others being dense."""
        self._step = 0

    def start_epoch(self, epoch: int) -> str:
        """Set k of all layers for an epoch, counted from 0, and return the part that is sparsified in it."""
        self.active = list(self.parts)[epoch % len(self.parts)]
        self.start_step(self._step)
        return self.active

    def start_step(self, step: int) -> None:
        """Set k of all layers for a training step, counted from 0 and through all epochs.

        Only schedules that change with the step need it; after it, `start_epoch` goes on from that step.
        """
        self._step = step
        for part, scheduler in self.parts.items():
            if part == self.active:
                scheduler.start_step(step)
            else:
                for layer in scheduler.layers.values():
                    layer.k = 1.0
