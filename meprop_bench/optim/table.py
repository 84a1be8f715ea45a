"""The table that a compiled step of an optimizer takes: the parameters that have a gradient, by their addresses."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from meprop_bench.ops.kernels import compiled

__all__ = ["Move", "Table", "alike", "laid_out", "made_like"]

Move = tuple[int, Tensor, Tensor]
"""Number of a parameter's group, the parameter, its gradient."""

_NATIVE = "meprop_bench.ops.kernels.native.update"


class Table:
    """What one step moves; lists are added to by the optimizer."""

    __slots__ = ("fresh", "kept", "known", "moves", "native", "settings", "words")

    def __init__(self) -> None:
        self.native: Any = None
        self.settings: list[Any] = []  # of the groups
        self.moves: list[Move] = []
        self.words: list[int] = []  # of the entries, one for each move
        self.known: list[int] = []  # those that stay as they are from step to step
        self.kept: list[Tensor] = []  # whose memory is read
        self.fresh: list[tuple[Tensor, dict[str, Any], str, Tensor]] = []
        """States that exist from the end of this step on: a parameter, its states, name and tensor."""

    def usable(self) -> bool:
        """Whether there is compiled code; loads it at the first parameter that it is for."""
        if self.native is None:
            self.native = compiled.load(_NATIVE) or False
        return bool(self.native)

    def rows_of(self, p: Tensor, grad: Tensor) -> Tensor:
        """Return a gradient by rows so that each comes once; ValueError if it is not made of rows of its parameter."""
        if grad.sparse_dim() != 1 or grad.shape != p.shape:
            raise ValueError(
                "a sparse gradient must be made of whole rows, as `nn.Embedding(sparse=True)` gives it; "
                f"that of a parameter {tuple(p.shape)} has {grad.sparse_dim()} sparse dimensions"
            )
        # Autograd, when it stores a gradient, forgets that it is coalesced; to look costs 1 microsecond, to coalesce 15.
        if grad.is_coalesced() or self._ascending(grad):
            return grad
        with torch.no_grad():
            return grad.coalesce()

    def _ascending(self, grad: Tensor) -> bool:
        """Whether rows are seen to be in order, by compiled code."""
        idx = grad._indices()
        return (
            type(grad) is Tensor
            and idx.is_cpu
            and idx.is_contiguous()
            and self.usable()
            and bool(self.native.ascending(idx.data_ptr(), idx.size(1)))
        )

    def unfit(self, fits: Sequence[bool]) -> frozenset[int]:
        """Return which entries cannot be moved: those that do not fit, or all, where any two share memory."""
        size = self.native.ENTRY_WORDS
        spans = []
        for index in range(len(self.moves)):
            w, s, t, steps, count = self.known[5 * index : 5 * index + 5]
            spans += [(at, at + 4 * count) for at in (w, s, t) if at]
            if steps:
                n, counts = self.words[size * index + 8 : size * index + 10]
                spans.append((steps, steps + 4 * (n if counts else 1)))
        spans.sort()
        if any(end > begin for (_, end), (begin, _) in pairwise(spans)):
            return frozenset(range(len(self.moves)))
        return frozenset(index for index, fit in enumerate(fits) if not fit)

    def without(self, indices: Collection[int]) -> list[Move]:
        """Take entries out, and return their moves."""
        size, all_words = self.native.ENTRY_WORDS, self.words
        out = [self.moves[index] for index in sorted(indices)]
        stay = [index for index in range(len(self.moves)) if index not in indices]
        self.words = [word for index in stay for word in all_words[size * index : size * index + size]]
        self.moves = [self.moves[index] for index in stay]
        staying = {id(p) for _, p, _ in self.moves}
        self.fresh = [each for each in self.fresh if id(each[0]) in staying]
        return out

    def step(self) -> list[Move]:
        """Make the step; return the moves that it leaves: by rows that were not in order, and now are.

        ValueError, before anything is moved, where a gradient has rows that its parameter has not.
        """
        native, left = self.native, []
        settings = array("d", self.settings)
        while self.moves:
            words = array("q", self.words)
            wrong = native.step(
                native.OPENMP, native.MOVE, torch.get_num_threads(), words.buffer_info()[0], len(self.moves),
                settings.buffer_info()[0],
            )  # fmt: skip
            if wrong < 0:
                for _, state, name, tensor in self.fresh:
                    state[name] = tensor
                increment_version([p for _, p, _ in self.moves])
                break
            ((number, p, grad),) = self.without({wrong})
            left.append((number, p, _in_order(p, grad)))
        return left


def alike(p: Tensor, state: Any) -> bool:
    """Whether a state lies in memory as its parameter does."""
    return (
        type(state) is Tensor
        and state.dtype == p.dtype
        and state.device == p.device
        and state.shape == p.shape
        and state.stride() == p.stride()
        and not state.is_neg()
    )


def made_like(p: Tensor, value: float = 0.0) -> Tensor:
    """Return a new state, filled with a number, that lies in memory as its parameter does."""
    state = torch.zeros_like(p, memory_format=torch.preserve_format, requires_grad=False)
    return state.fill_(value) if value else state


def laid_out(grad: Tensor, p: Tensor) -> Tensor | None:
    """Return a dense gradient with its numbers in memory as its parameter's are, or None where that is not simple."""
    if grad.layout != torch.strided or grad.shape != p.shape:
        return None
    if p.is_contiguous():
        return grad.contiguous()
    if p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last):
        return grad.contiguous(memory_format=torch.channels_last)
    return None


def _in_order(p: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient whose rows are not ascending, though it says that it is coalesced, as one where they are."""
    idx = grad._indices()
    low, high = int(idx.min()), int(idx.max())
    if low < 0 or high >= p.shape[0]:
        raise ValueError(
            f"a sparse gradient of a parameter {tuple(p.shape)} has row {low if low < 0 else high}, which that has not"
        )
    return torch.sparse_coo_tensor(idx, grad._values(), grad.shape, check_invariants=False).coalesce()
