"""One way to compute the sparsified backward pass of a linear layer is a *kernel*; this room is their registry.

For `y = x Wᵀ + b` with x `(B, m)`, W `(n, m)` and the incoming gradient dy `(B, n)`, every kernel computes, exactly,

    dx = S(dy) W          (B, m)      equations 6 and 10 of the ICML paper
    dW = S(dy)ᵀ x         (n, m)      equations 5 and 9
    db = Σ_batch dy       (n,)        in full: the authors' code does not sparsify the bias gradient

where S keeps the selected entries and puts zero elsewhere. Kernels differ in cost alone, so the tests hold all of them
against one oracle. A kernel that cannot do a case says why in `unsupported`, and asking for it by name is then an
error: no kernel is ever exchanged silently for another, except by `auto`, whose job that is.

As sparse rows, dW has a row for each neuron with a selected entry other than zero, and no others, since which neurons
without any gradient fill a selection up differs from kernel to kernel. But on a GPU, where the host would wait for
their number, a unified selection has k rows always, zeros among them, which `optim.RowAdam` does not move.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from meprop_bench.ops.kernels import compiled

__all__ = ["KERNELS", "Gradients", "Kernel", "Request", "get", "hybrid_rows", "unified_rows"]

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""(dx, dw, db); None where it was not asked for."""


class Request(NamedTuple):
    """What one backward pass has to deliver (a NamedTuple: it is made on a path of some 30 microseconds)."""

    k: int
    """Entries kept, resolved: 1 <= k < n."""
    selection: str
    """One of `meprop_bench.ops.selection.SELECTIONS`."""
    rows: bool
    """Weight gradient as sparse rows (`hybrid_rows`) instead of dense `(n, m)`."""
    need_dx: bool
    need_dw: bool
    need_db: bool


class Kernel(Protocol):
    """One implementation of the backward pass; modules of this room hold an instance named `KERNEL`."""

    name: str

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Why this kernel cannot do the case, or None.

        Reads sizes, dtype and device of dy, which x and w share, or the settings; x and w may be None as below.
        """
        ...

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m), contiguous or not, none of them empty.

        x is None where dW is not wanted, and w where dx is not: what is not read need not be saved.
        """
        ...


class _Registry(Mapping[str, Kernel]):
    """All names are known; a kernel's module is imported when the kernel is first asked for (Numba costs seconds).

    "native" raises ImportError where it cannot be used.
    """

    _names = ("masked", "coo", "embedding_bag", "gather", "native", "triton", "triton_gather", "triton_atomic", "auto")

    def __init__(self) -> None:
        self._loaded: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> Kernel:
        kernel = self._loaded.get(name)
        if kernel is None:
            if name not in self._names:
                raise KeyError(name)
            module = (compiled.require if name == "native" else import_module)(f"{__name__}.{name}")
            kernel = cast(Kernel, module.KERNEL)
            self._loaded[name] = kernel
        return kernel

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


KERNELS: Mapping[str, Kernel] = _Registry()


def get(name: str) -> Kernel:
    """Look a kernel up.

    Raises:
        ValueError: no kernel has that name, or it cannot be used here.

    """
    try:
        return KERNELS[name]
    except ImportError as error:
        raise ValueError(str(error)) from error
    except (KeyError, TypeError):
        close = difflib.get_close_matches(str(name), KERNELS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(KERNELS)}"
        raise ValueError(f"unknown kernel {name!r}: {hint}") from None


def hybrid_rows(rows: Tensor, values: Tensor, n: int) -> Tensor:
    """Return the `(n, m)` gradient whose rows `rows` are `values` and whose other rows are zero.

    The layout is the one that `nn.Embedding(sparse=True)` gives and `SGD`, `Adagrad` and `SparseAdam` accept.

    Args:
        rows: sorted, unique row numbers, int64, `(r,)` or `(1, r)`; not checked, as the check costs more
            than a small gradient.
        values: `(r, m)`.
        n: number of rows of the whole.

    """
    indices = rows if rows.dim() == 2 else rows.unsqueeze(0)
    return torch.sparse_coo_tensor(indices, values, (n, values.shape[1]), is_coalesced=True, check_invariants=False)


def unified_rows(rows: Tensor, values: Tensor, dy: Tensor, n: int) -> Tensor:
    """Return the gradient of a unified selection as `hybrid_rows`, without the neurons that have none: see the module.

    Args:
        rows: the neurons selected, ascending, `(k,)`.
        values: `(k, m)`.
        dy: incoming gradient, `(B, n)`, not empty.
        n: number of rows of the whole.

    """
    if dy.device.type == "cpu":
        some = dy.index_select(1, rows).abs().amax(0) != 0  # NaN is a gradient
        if not some.all():
            rows, values = rows[some], values[some]
    return hybrid_rows(rows, values, n)
