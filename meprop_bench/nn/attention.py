"""`MePropMultiheadAttention`: torch's attention, whose projections have a backward pass through k of their outputs.

It has the constructor, parameters and state dict of `nn.MultiheadAttention`, so a checkpoint fits both ways, and adds
the keywords k, selection and kernel. Torch computes its projections in one function together with the attention itself,

    q, k, v = x W_inᵀ + b_in        softmax(q kᵀ / √d + mask) v        y = … W_outᵀ + b_out

so that function is written out here, operator for operator, with `ops.linear` for the projections. What it returns is
what torch's returns, with any masks, and with weights or without; the attention between the projections stays dense.

A projection is one product as torch has it, and k is of E = embed_dim outputs: in self-attention q, k and v are one
product of 3 E outputs, of which the 3 k with the greatest gradients are selected, whichever of the three they belong
to, as in a linear layer that computes all three; in cross-attention q is one of E, k and v are one of 2 E; otherwise,
and where kdim or vdim differ, each is one of E.

Where no gradient is recorded, where k >= E, and where a tool exports or traces the layer, torch's own function runs,
with its fast path for inference.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meprop_bench.nn.sparsified import ChangingK
from meprop_bench.ops import kernels
from meprop_bench.ops.graph import is_tracing
from meprop_bench.ops.linear import linear
from meprop_bench.ops.selection import check_selection, resolve_k

__all__ = ["MePropMultiheadAttention"]

_Parts = tuple[Tensor, Tensor, Tensor]
"""Of queries `(L, B, E)`, keys and values `(S, B, E)`."""


class MePropMultiheadAttention(ChangingK, nn.MultiheadAttention):
    """Attention of several heads, whose projections are trained by sparsified back propagation.

    Args:
        *args: as for `nn.MultiheadAttention`.
        k: outputs selected in the backward pass, of each embed_dim outputs of a projection: an int >= 1, or a ratio in
            (0, 1]. k >= embed_dim is the dense layer.
        selection: "example", "unified", "random" or "random-unified", where each position of each sequence is an
            example: see `meprop_bench.ops.selection`.
        kernel: a name in `meprop_bench.ops.kernels.KERNELS`.
        **keywords: as for `nn.MultiheadAttention`.

    Raises:
        ValueError: for a k, selection or kernel that does not exist.

    """

    _project = staticmethod(linear)
    """What computes a projection of x by w and b: a check puts another in its place."""

    def __init__(self, *args: Any, k: float, selection: str = "example", kernel: str = "auto", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.configure(k=k, selection=selection, kernel=kernel)

    @staticmethod
    def check_method(selection: str, kernel: str) -> None:
        """See `Sparsified`."""
        check_selection(selection)
        kernels.get(kernel)

    def _resolved(self, k: float) -> int:
        return resolve_k(k, self.embed_dim)

    def extra_repr(self) -> str:
        """Describe the layer, which torch's own does not, and the method."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, {super().extra_repr()}"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of torch's layer."""
        k = resolve_k(self._current_k(), self.embed_dim)
        dense = is_tracing() or not torch.is_grad_enabled() or k >= self.embed_dim
        ranks = {t.dim() for t in (query, key, value)}
        odd = query.is_nested or ranks not in ({2}, {3}) or (is_causal and attn_mask is None)
        if dense or odd:  # torch's own raises for what is odd
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        batched = query.dim() == 3
        padding, mask = (_added(m, query.dtype) for m in (key_padding_mask, attn_mask))
        if not batched:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))
            padding = None if padding is None else padding.unsqueeze(0)
        elif self.batch_first:
            same_as_key, same_as_query = value is key, key is query  # and are to stay so
            query, key = query.transpose(1, 0), key.transpose(1, 0)
            key = query if same_as_query else key
            value = key if same_as_key else value.transpose(1, 0)
        self._check_shapes(query, key, value, padding, mask)
        if is_causal and padding is None and not need_weights:
            mask = None  # the function without weights makes its own
        y, weights = self._attend(self._projected(query, key, value), padding, mask, need_weights, is_causal)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return y.squeeze(1), None if weights is None else weights.squeeze(0)
        return (y.transpose(1, 0) if self.batch_first else y), weights

    def _check_shapes(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> None:
        """Raise ValueError for shapes that do not go together: queries `(L, B, E)`, keys and values `(S, B, …)`."""
        length, batch, _ = query.shape
        source = key.shape[0]
        if key.shape[:2] != (source, batch) or value.shape[:2] != (source, batch):
            shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
            raise ValueError(f"query, key and value must be (L, B, …), (S, B, …) and (S, B, …), not {shapes}")
        if padding is not None and padding.shape != (batch, source):
            raise ValueError(f"key_padding_mask must be {(batch, source)}, not {tuple(padding.shape)}")
        if mask is not None and mask.shape not in ((length, source), (batch * self.num_heads, length, source)):
            raise ValueError(
                f"attn_mask must be {(length, source)}, or that for each head of each example, not {tuple(mask.shape)}"
            )

    def _linear(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Project by one or several of the layer's projections, which w `(p E, m)` holds."""
        k = resolve_k(self._current_k(), self.embed_dim) * (w.shape[0] // self.embed_dim)
        return self._project(x, w, b, k=k, selection=self.selection, kernel=self.kernel)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> _Parts:
        """Return q, k and v, each `(…, B, E)`, by as few products as torch makes."""
        biases = self.in_proj_bias
        if not self._qkv_same_embed_dim:
            weights = cast(_Parts, (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight))
        elif key is value:
            if query is key:
                return cast(_Parts, self._split(self._linear(query, self.in_proj_weight, biases), 3))
            sizes = [self.embed_dim, 2 * self.embed_dim]
            w_q, w_kv = torch.split(self.in_proj_weight, sizes)
            b_q, b_kv = (None, None) if biases is None else torch.split(biases, sizes)
            return cast(_Parts, (self._linear(query, w_q, b_q), *self._split(self._linear(key, w_kv, b_kv), 2)))
        else:
            weights = cast(_Parts, self.in_proj_weight.chunk(3))
        each = (None,) * 3 if biases is None else biases.chunk(3)
        return cast(_Parts, tuple(map(self._linear, (query, key, value), weights, each)))

    def _split(self, y: Tensor, parts: int) -> Any:
        """Part the outputs of several projections, each contiguous as torch has it."""
        y = y.view(*y.shape[:-1], parts, self.embed_dim)
        return y.unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous().unbind()

    def _attend(
        self, parts: _Parts, padding: Tensor | None, mask: Tensor | None, need_weights: bool, is_causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output `(L, B, E)`, and the weights `(B, H, L, S)` where they are needed."""
        q, k, v = parts
        (length, batch), heads = q.shape[:2], self.num_heads
        mask = mask.unsqueeze(0) if mask is not None and mask.dim() == 2 else mask
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([t, b.repeat(1, batch, 1)]) for t, b in ((k, self.bias_k), (v, self.bias_v)))
            padding, mask = _with_one_more(padding), _with_one_more(mask)
        q, k, v = (t.view(t.shape[0], batch * heads, self.head_dim).transpose(0, 1) for t in (q, k, v))
        if self.add_zero_attn:
            zero = k.new_zeros(batch * heads, 1, self.head_dim)
            k, v = torch.cat([k, zero], 1), torch.cat([v, zero], 1)
            padding, mask = _with_one_more(padding), _with_one_more(mask)
        source = k.shape[1]
        if padding is not None:
            is_causal = False
            by_head = padding.view(batch, 1, 1, source).expand(-1, heads, -1, -1).reshape(batch * heads, 1, source)
            mask = by_head if mask is None else mask + by_head
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            if mask is not None:
                mask = mask.unsqueeze(0) if mask.shape[0] == 1 else mask.view(batch, heads, -1, source)
            q, k, v = (t.view(batch, heads, -1, self.head_dim) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
            return self._out(y.permute(2, 0, 1, 3), length, batch), None
        q = q * math.sqrt(1.0 / self.head_dim)
        scores = torch.bmm(q, k.transpose(-2, -1)) if mask is None else torch.baddbmm(mask, q, k.transpose(-2, -1))
        weights = F.softmax(scores, dim=-1)
        if dropout > 0.0:
            weights = F.dropout(weights, dropout)
        return self._out(torch.bmm(weights, v).transpose(0, 1), length, batch), weights.view(
            batch, heads, length, source
        )

    def _out(self, y: Tensor, length: int, batch: int) -> Tensor:
        y = self._linear(y.reshape(length * batch, self.embed_dim), self.out_proj.weight, self.out_proj.bias)
        return y.view(length, batch, self.embed_dim)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask as numbers to be added to the scores: a bool one is true where nothing is to be seen."""
    if mask is None or mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask must be bool or of a floating-point type, not {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _with_one_more(mask: Tensor | None) -> Tensor | None:
    """Let a key that was added at the end be seen."""
    return None if mask is None else F.pad(mask, (0, 1))
