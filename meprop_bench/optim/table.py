"""The table that a compiled step of an optimizer takes: the parameters that have a gradient, by their addresses."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from meprop_bench.ops import memory, node
from meprop_bench.ops.kernels import compiled, is_hybrid_rows

__all__ = ["Move", "Place", "Table", "alike", "each_once", "made_like"]

Move = tuple[int, Tensor, Tensor]
"""Number of a parameter's group, the parameter, its gradient."""
Place = tuple[Tensor, int, int, int, int, int, int]
"""Where a gradient is: the gradient; of its parameter, the address and how many numbers it has; the addresses of the
gradient's numbers and of its rows (0: all), and how many numbers it has; the parameter's rows, or 0 for a dense one.
"""

_NATIVE = "meprop_bench.ops.kernels.native.update"
_PLAIN = (nn.Parameter, Tensor)
_FLOAT = torch.float32
_find_gradients = cache(node.gradients)
"""Finds ordinary gradients in C++, for all parameters at once: from Python, each takes 2 to 5 microseconds."""


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

    def places(self, parameters: list[Tensor], *, rows: bool) -> list[Place | Tensor | None]:
        """Return where the gradients of parameters are; a gradient itself where compiled code cannot take it, and None
        where there is none. If not `rows`, one by rows is made dense.
        """
        first = parameters[0]
        found: list[Any] = [False] * len(parameters)
        if first.dtype is _FLOAT and first.is_cpu and type(parameters) is list and self.usable():
            find = _find_gradients()
            if find is not None:
                found = find(parameters, rows)
        return [self._place(p, rows=rows) if each is False else each for p, each in zip(parameters, found, strict=True)]

    def _place(self, p: Tensor, *, rows: bool) -> Place | Tensor | None:
        """Return one of `places`."""
        grad = p.grad
        if grad is None:
            return None
        if grad.is_sparse:
            grad = each_once(p, grad)
            if not rows:
                grad = grad.to_dense()
        return self._found(p, grad) or grad

    def _found(self, p: Tensor, grad: Tensor) -> Place | None:
        """Return where a gradient is, or None where compiled code cannot take it."""
        if type(p) not in _PLAIN or p.dtype is not _FLOAT or not p.is_cpu or not self.usable():
            return None
        held: Tensor | None
        if grad.is_sparse:
            idx = grad._indices()
            ordinary = p.is_contiguous() and idx.is_contiguous()
            at, n, held = idx.data_ptr(), p.size(0), grad._values().contiguous() if ordinary else None
        else:
            at, n, held = 0, 0, _laid_out(grad, p)
        if type(held) is not Tensor or held.dtype is not _FLOAT or not held.is_cpu or held.is_neg():
            return None
        w, g, numbers, size = p.data_ptr(), held.data_ptr(), held.numel(), p.numel()
        if not w or (numbers and not g) or (numbers != size and not n):
            return None  # empty, or without memory of its own
        self.kept.append(held)
        return grad, w, size, g, at, numbers, n

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


def each_once(p: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient by rows so that each comes once, ascending; ValueError if it is not made of rows of its
    parameter.
    """
    if grad.sparse_dim() != 1 or grad.shape != p.shape:
        raise ValueError(
            "a sparse gradient must be made of whole rows, as `nn.Embedding(sparse=True)` gives it; "
            f"that of a parameter {tuple(p.shape)} has {grad.sparse_dim()} sparse dimensions"
        )
    # Autograd forgets, as it stores a gradient, that it is coalesced. To look takes 1 microsecond, to coalesce 15; on a
    # GPU the host would wait for either.
    if grad.is_coalesced() or _ascending(grad):
        return grad
    with torch.no_grad():
        return grad.coalesce()


def _ascending(grad: Tensor) -> bool:
    """Whether rows are seen to be in order, by compiled code, or on a GPU known to be."""
    if type(grad) is not Tensor:
        return False
    idx = grad._indices()
    if not memory.is_read_at_once(idx):
        return is_hybrid_rows(grad)
    native = compiled.load(_NATIVE) if idx.is_contiguous() else None
    return native is not None and bool(native.ascending(idx.data_ptr(), idx.size(1)))


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


def _laid_out(grad: Tensor, p: Tensor) -> Tensor | None:
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
