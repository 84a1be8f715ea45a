"""A linear layer of which each example has its own active neurons: the others are not there for it.

    forward     y  = (x Wᵀ + b) ⊙ a                            a (B, n): 1 where neuron j is active for example e
    backward    dx = (dy ⊙ a) W,  dW = (dy ⊙ a)ᵀ x,  db = Σ_batch dy ⊙ a

What is not active is 0 and has no gradient, whatever the product would have given (also inf and NaN). The masks of all
N examples are bits, eight neurons to a byte (`pack`), and a batch names its examples by number.

The kernel `native` (Numba, float32 on the CPU) computes what is active alone, forward and backward: see
`meprop_bench.ops.kernels.native.active`. Everything else, more than `DENSE_FROM` of the neurons active included, is
torch's own operators, which compute all of y and mask it: `masks`. Double backward is that, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops.graph import is_tracing
from meprop_bench.ops.kernels import Gradients, compiled
from meprop_bench.ops.memory import address
from meprop_bench.ops.plain import memory, undisturbed, unwatched
from meprop_bench.ops.saved import attached, fit, pinned

__all__ = ["DENSE_FROM", "active_linear", "kernel_name", "pack", "unpack"]

DENSE_FROM = 0.5
"""Share of active neurons above which torch's dense products are as fast (784 -> 500, B = 10 to 256)."""
_COUNTED = 1 << 31
"""Examples and neurons are counted in 32 bits."""
_NATIVE = "meprop_bench.ops.kernels.native.active"


def pack(active: Tensor) -> Tensor:
    """Pack masks, bool `(N, n)`, into bits, uint8 `(N, ⌈n / 8⌉)`, the lowest bit of a byte first."""
    places = torch.arange(8, dtype=torch.uint8, device=active.device)
    padded = F.pad(active.to(torch.uint8), (0, -active.shape[1] % 8))
    return (padded.view(len(active), -1, 8) << places).sum(2, dtype=torch.uint8)


def unpack(bits: Tensor, n: int) -> Tensor:
    """Return the masks, bool `(*, n)`, of bits `(*, ⌈n / 8⌉)`."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(-1) >> places) & 1).flatten(-2)[..., :n].bool()


def active_linear(x: Tensor, w: Tensor, b: Tensor | None, bits: Tensor, ids: Tensor) -> Tensor:
    """Apply `F.linear(x, w, b)` through the active neurons of each example; the others are 0.

    Args:
        x: input, `(B, m)`, a row for each example.
        w: weight, `(n, m)`.
        b: bias, `(n,)`.
        bits: masks of all examples, uint8 `(N, ⌈n / 8⌉)`.
        ids: which examples the batch holds, int64 `(B,)`, in [0, N): not checked here.

    """
    batch = None if torch.compiler.is_compiling() else _gathered(x, w, b, bits, ids)
    if batch is None:
        return F.linear(x, w, b).masked_fill(~unpack(bits[ids], w.shape[0]), 0)
    return _apply(x, w, b, batch)


def kernel_name(x: Tensor, w: Tensor, b: Tensor | None, bits: Tensor, ids: Tensor) -> str:
    """Return what computes this case here: "native", or "masks"."""
    return "masks" if _gathered(x, w, b, bits, ids) is None else "native"


class _Batch(NamedTuple):
    """The masks of a batch."""

    words: Tensor  # int64: see the kernel's `words`
    pairs: int  # how many bits are set in them
    b: int
    n: int

    def masks(self) -> Tensor:
        """Return them as bool, `(B, n)`."""
        across = -(-self.n // 64)
        return unpack(self.words[: self.b * across].view(self.b, across).view(torch.uint8), self.n)


def _gathered(x: Tensor, w: Tensor, b: Tensor | None, bits: Tensor, ids: Tensor) -> _Batch | None:
    """Gather the masks of a batch for the kernel; None for a case that is not the kernel's."""
    if not (_ordinary(x, w, b, bits, ids) and unwatched()) or (native := compiled.load(_NATIVE)) is None:
        return None
    (batch, _), n = x.shape, w.shape[0]
    bits, ids = bits.contiguous(), ids.contiguous()
    words = ids.new_empty(native.words(batch, n))
    pairs = native.gather(bits.data_ptr(), ids.data_ptr(), *bits.shape[:1], batch, n, bits.shape[1], words.data_ptr())
    return _Batch(words, pairs, batch, n) if 0 <= pairs <= DENSE_FROM * batch * n else None


def _ordinary(x: Tensor, w: Tensor, b: Tensor | None, bits: Tensor, ids: Tensor) -> bool:
    """Whether the kernel can read these, and nobody else wants to see the operators."""
    return (
        not is_tracing()
        and x.dtype == torch.float32
        and x.device.type == bits.device.type == ids.device.type == "cpu"
        and ids.dim() == 1
        and x.shape == (len(ids), w.shape[1])
        and x.numel() > 0
        and max(len(ids), w.shape[0]) < _COUNTED
        and (b is None or b.shape == w.shape[:1])
        and (bits.dtype, bits.shape[1:]) == (torch.uint8, (-(-w.shape[0] // 8),))
        and not torch._C._is_any_autocast_enabled()
        and memory.plain(x, w, b)
        and memory.plain(bits)
        and memory.plain(ids)
    )


def _shares(native: Any, batch: _Batch, m: int) -> tuple[int, int]:
    """Return torch's threads, as the kernel takes them, and into how many shares its work is cut."""
    openmp = native.OPENMP
    return openmp, native.shares(torch.get_num_threads() if openmp else 1, batch.pairs * m)


class _Active(torch.autograd.Function):
    """The kernel's registration with autograd."""

    @staticmethod
    def forward(ctx, x, w, b, batch):  # type: ignore[no-untyped-def]
        native = compiled.require(_NATIVE)
        need_dx, need_dw, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_dw else None, pinned(w) if need_dx else None)
        ctx.set_materialize_grads(False)
        ctx.batch = batch
        x, w, b = x.contiguous(), w.contiguous(), b if b is None else b.contiguous()
        y, m = x.new_empty(batch.b, batch.n), x.shape[1]
        openmp, shares = _shares(native, batch, m)
        native.forward(
            openmp, native.FORWARD, shares, batch.words.data_ptr(), batch.pairs,
            x.data_ptr(), w.data_ptr(), address(b), y.data_ptr(), batch.b, batch.n, m,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        if dy is None:
            return None, None, None, None
        x, w = ctx.saved_tensors
        if torch.is_grad_enabled():
            x, w = attached(x, ctx.next_functions[0]), attached(w, ctx.next_functions[1])
        return *undisturbed(_backward, dy, x, w, ctx.batch, ctx.needs_input_grad), None


def _backward(dy: Tensor, x: Tensor | None, w: Tensor | None, batch: _Batch, need: tuple[bool, ...]) -> Gradients:
    if dy.layout is not torch.strided:
        dy = dy.to_dense()
    need_dx, need_dw, need_db, *_ = need
    # Gradients are recorded under create_graph=True alone: then every step has to be differentiable itself.
    if torch.is_grad_enabled() or not (unwatched() and memory.plain(dy, x, w) and fit(dy, x, w)):
        dy = dy.masked_fill(~batch.masks(), 0)
        dx = dy @ w if need_dx and w is not None else None
        dw = dy.t() @ x if need_dw and x is not None else None
        return dx, dw, dy.sum(0) if need_db else None
    native = compiled.require(_NATIVE)
    dy, x, w = dy.contiguous(), x if x is None else x.contiguous(), w if w is None else w.contiguous()
    m = cast(Tensor, w if x is None else x).shape[1] if need_dx or need_dw else 0
    dx = dy.new_empty(batch.b, m) if need_dx else None
    dw = dy.new_empty(batch.n, m) if need_dw else None
    db = dy.new_empty(batch.n) if need_db else None
    openmp, shares = _shares(native, batch, m)
    native.backward(
        openmp, native.BACKWARD, shares, batch.words.data_ptr(), batch.pairs, dy.data_ptr(), address(x), address(w),
        address(dx), address(dw), address(db), batch.b, batch.n, m,
    )  # fmt: skip
    return dx, dw, db


# As for `ops.linear`: torch.func's cases never come here.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Active).apply
