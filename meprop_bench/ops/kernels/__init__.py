"""One way to compute the sparsified backward pass of a linear layer is a *kernel*; here are the interface and registry.

For `y = x Wᵀ + b` with x `(B, m)`, W `(n, m)` and the incoming gradient dy `(B, n)`, every kernel computes, exactly,

    dx = S(dy) W          (B, m)      equations 6 and 10 of the ICML paper
    dW = S(dy)ᵀ x         (n, m)      equations 5 and 9
    db = Σ_batch dy       (n,)        in full: the authors' code does not sparsify the bias gradient

where S keeps the selected entries and puts zero elsewhere. Kernels differ in cost alone, so the tests hold all of them
against one oracle. A kernel that cannot do a case says why in `unsupported`, and its name is then an error: no kernel
is ever exchanged silently for another, except by `auto`, whose job that is.

As sparse rows, dW has a row for each neuron with a selected entry other than zero, and no others, since which neurons
without any gradient fill a selection up differs from kernel to kernel. But on a GPU, where the host would wait for
their number, a unified selection has k rows always, zeros among them, which `optim.RowAdam` does not move.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from meprop_bench.errors import nearest
from meprop_bench.ops import memory
from meprop_bench.ops.kernels import compiled

__all__ = [
    "KERNELS", "Gradients", "Kernel", "Registry", "Request", "check_supported", "get", "hybrid_rows", "is_hybrid_rows",
    "unified_rows",
]  # fmt: skip


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""(dx, dw, db); None where it was not requested."""


class Request(NamedTuple):
    """What one backward pass has to deliver (a NamedTuple: it is made on a path of some 30 microseconds)."""

    k: int  # entries selected, resolved: 1 <= k < n; of a convolution, positions of each map
    selection: str  # one of meprop_bench.ops.selection.SELECTIONS
    rows: bool  # weight gradient as sparse rows (hybrid_rows) instead of dense (n, m); of a linear layer alone
    need_dx: bool
    need_dw: bool
    need_db: bool


class Kernel(Protocol):
    """One implementation of the backward pass of a linear layer."""

    name: str

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Why this kernel cannot do the case, or None.

        Reads sizes, dtype and device of dy, which x and w share, or the settings; x and w may be None as below.
        """
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m), contiguous or not, none of them empty.

        x is None where dW is not needed, and w where dx is not: what is not read need not be saved.
        """
        ...

    def keeping(self, w: Tensor) -> Kernel:
        """Return the kernel for dense gradients of the weight w alone, whose memory it keeps if it can (`kept`)."""
        return self


_K = TypeVar("_K")
_MANY = 4096
"""Row gradients from which on those that are gone are looked for."""


class Registry(Mapping[str, _K]):
    """The kernels of one kind of layer, by name; a kernel's module is imported at its first use (Numba costs seconds).

    `places` has the module of each, in which it is `KERNEL`, or "module:NAME"; `layers` says of which layers they are,
    for the message about a wrong name. By subscript, "native" raises ImportError where it cannot be used.
    """

    def __init__(self, places: Mapping[str, str], layers: str = "") -> None:
        self._places, self._layers = places, layers
        self._loaded: dict[str, _K] = {}

    def __getitem__(self, name: str) -> _K:
        kernel = self._loaded.get(name)
        if kernel is None:
            module, _, attribute = self._places[name].partition(":")
            found = (compiled.require if name == "native" else import_module)(module)
            kernel = cast(_K, getattr(found, attribute or "KERNEL"))
            self._loaded[name] = kernel
        return kernel

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def check(self, name: str) -> None:
        """Raise ValueError if no kernel has that name; imports none."""
        if not isinstance(name, str) or name not in self._places:
            close = nearest(name, self._places)
            hint = f"did you mean {close!r}?" if close else f"choose from {', '.join(self._places)}"
            raise ValueError(f"unknown kernel {name!r}{self._layers}: {hint}")

    def usable(self, name: str) -> _K:
        """Look a kernel up; ValueError if no kernel has that name, or it cannot be used here."""
        if isinstance(name, str) and (kernel := self._loaded.get(name)) is not None:  # on the path of every call
            return kernel
        self.check(name)
        try:
            return self[name]
        except ImportError as error:
            raise ValueError(str(error)) from error


_PLACES = {name: f"operators:{name.upper()}" for name in ("masked", "coo", "embedding_bag", "gather")}
_PLACES |= {"native": "native", "triton": "triton", "triton_gather": "triton:GATHER", "triton_atomic": "triton:ATOMIC"}
_PLACES |= {"triton_kept": "triton:KEPT", "auto": "auto"}
KERNELS: Registry[Kernel] = Registry({name: f"{__name__}.{place}" for name, place in _PLACES.items()})
get = KERNELS.usable


def check_supported(name: str, reason: str | None) -> None:
    """Raise ValueError if there is a reason why a kernel that was chosen by name cannot do a case."""
    if reason:
        raise ValueError(f"kernel {name!r} does not support this case: {reason}")


_ascending: dict[int, StorageWeakRef] = {}
"""The numbers of rows that `hybrid_rows` has taken, by their storages, on devices where to look would be to wait."""


def hybrid_rows(rows: Tensor, values: Tensor, n: int) -> Tensor:
    """Return the `(n, m)` gradient whose rows `rows` are `values` and whose other rows are zero.

    The layout is the one that `nn.Embedding(sparse=True)` gives and `SGD`, `Adagrad` and `SparseAdam` accept. Rows are
    int64 `(r,)` or `(1, r)`, values `(r, m)`. That rows are sorted and unique is not checked: the check costs more than
    a small gradient.
    """
    indices = rows if rows.dim() == 2 else rows.unsqueeze(0)
    if not memory.is_read_at_once(indices):
        if len(_ascending) >= _MANY:
            for key, known in list(_ascending.items()):  # a copy at once: other threads add to it
                if known.expired():  # type: ignore[no-untyped-call]
                    _ascending.pop(key, None)
        storage = indices.untyped_storage()
        _ascending[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
    return torch.sparse_coo_tensor(indices, values, (n, values.shape[1]), is_coalesced=True, check_invariants=False)


def is_hybrid_rows(grad: Tensor) -> bool:
    """Whether a row gradient, which autograd may have made anew, has rows that `hybrid_rows` has taken: sorted and
    unique. Only said of devices where to look would be to wait.
    """
    indices = grad._indices()
    # A storage whose weak reference is there is the one it was of: that keeps its number from being given again.
    return indices.untyped_storage()._cdata in _ascending and indices.is_contiguous()


def unified_rows(rows: Tensor, values: Tensor, dy: Tensor, n: int) -> Tensor:
    """Return the gradient of a unified selection as `hybrid_rows`, without the neurons that have none: see the module.

    Rows `(k,)` are ascending; dy `(B, n)` is not empty.
    """
    if dy.device.type == "cpu":
        some = dy.index_select(1, rows).abs().amax(0) != 0  # NaN is a gradient
        if not some.all():
            rows, values = rows[some], values[some]
    return hybrid_rows(rows, values, n)
