"""`MePropLSTM`, `MePropGRU`, `MePropRNN`: torch's recurrent layers, whose backward pass uses k neurons of each gate.

They have the constructors, parameters and state dicts of `nn.LSTM`, `nn.GRU` and `nn.RNN`, so a checkpoint fits both
ways, and add the keywords k, selection and kernel. One direction of one layer is `meprop_bench.ops.recurrent`; here are
the rest of the interface and the stack:

    input of layer l + 1 = dropout(concatenation of the directions of layer l)        (N, D h)

Where there is nothing to sparsify (k >= hidden_size, or no gradient is recorded) torch's own implementation runs, so
that this is exactly the dense layer, and evaluation is as fast as ever; also where a tool exports or traces the layer
(`meprop_bench.nn.sparsified`). An LSTM's forward pass is torch's own kernel too, for several examples of one length
(`ops.recurrent.fused`). Otherwise outputs differ from torch's by rounding: the sums come in another order.
Dropout draws what torch's own layers draw on the CPU. Under autocast all of a layer computes in the lower precision and
returns it, as torch's LSTM does (its GRU returns float32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops.graph import is_tracing
from meprop_bench.ops.recurrent import check_kernel, recurrent
from meprop_bench.ops.recurrent.cells import Tensors
from meprop_bench.ops.recurrent.function import SelectionRecord, lstm
from meprop_bench.ops.recurrent.through_time import Weights
from meprop_bench.ops.selection import check_selection, resolve_k

__all__ = ["MePropGRU", "MePropLSTM", "MePropRNN"]

_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "tanh", "RNN_RELU": "relu"}


class _Recurrent(Sparsified, nn.RNNBase):
    """What the three have in common."""

    _cell = staticmethod(recurrent)
    """What runs one direction of one layer: a check puts another in its place."""

    activeness: Mapping[str, SelectionRecord] | None = None
    """What counts the neurons selected, by cell: "l0", "l0_reverse", "l1", …: see `algorithms.activeness`."""

    def __init__(self, *args: Any, k: float, selection: str = "example", kernel: str = "auto", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.configure(k=k, selection=selection, kernel=kernel)

    @staticmethod
    def check(layer: nn.RNNBase) -> None:
        """Check that a layer can become one of these; ValueError if it has projections."""
        if layer.proj_size:
            raise ValueError(f"proj_size must be 0, not {layer.proj_size}: layers with projections are not supported")

    @staticmethod
    def check_method(selection: str, kernel: str) -> None:
        """See `Sparsified`."""
        check_selection(selection)
        check_kernel(kernel)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run the layer; arguments and results are those of torch's layer."""
        if self.mode == "LSTM" and (result := self._at_once(input, hx)) is not None:
            return result
        dense = resolve_k(self._k, self.hidden_size) >= self.hidden_size or not torch.is_grad_enabled() or is_tracing()
        if dense or not (input.data if isinstance(input, PackedSequence) else input).numel():
            return super().forward(input, hx)
        self._update_flat_weights()
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        batched = input.dim() == 3
        if input.dim() not in (2, 3):
            raise ValueError(f"input must have 2 dimensions (time, feature) or 3 with a batch, not {input.dim()}")
        states = self._states(hx)
        if states is not None and any(s.dim() != input.dim() for s in states):
            raise ValueError(f"initial states must have {input.dim()} dimensions, as the input has")
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            states = None if states is None else tuple(s.unsqueeze(1) for s in states)
        x = input.transpose(0, 1) if self.batch_first else input
        steps, batch = x.shape[:2]
        states = self._checked(input, states, batch, None)
        y, states = self._stack(x.flatten(0, 1), states, (batch,) * steps)
        y = y.view(steps, batch, -1)
        if not batched:
            return y.squeeze(1), self._result(tuple(s.squeeze(1) for s in states))
        return (y.transpose(0, 1) if self.batch_first else y), self._result(states)

    def _at_once(self, input: Any, hx: Any) -> Any:
        """Run a single LSTM in one call, or return None where that cannot be done."""
        one = self.num_layers == 1 and not (self.bidirectional or self.batch_first)
        if not one or self.activeness is not None or self._cell is not recurrent:
            return None
        if hx is not None and not (isinstance(hx, tuple) and len(hx) == 2):
            return None
        weights: Any = [getattr(self, name) for name in self._all_weights[0]]
        weights = weights if self.bias else (*weights, None, None)
        found = lstm(input, hx, weights, k=self._k, selection=self.selection, kernel=self.kernel)
        return None if found is None else (found[0], found[1:])

    def _forward_packed(self, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        data, batch_sizes, order, back = input
        states = self._states(hx)
        if states is not None and order is not None:
            states = tuple(s.index_select(1, order) for s in states)
        sizes = tuple(batch_sizes.tolist())
        y, states = self._stack(data, self._checked(data, states, sizes[0], batch_sizes), sizes)
        if back is not None:
            states = tuple(s.index_select(1, back) for s in states)
        return PackedSequence(y, batch_sizes, order, back), self._result(states)

    def _states(self, hx: Any) -> Tensors | None:
        """Return the initial states that were given, as a tuple."""
        if hx is None:
            return None
        return tuple(hx) if self.mode == "LSTM" else (hx,)

    def _checked(self, input: Tensor, states: Tensors | None, batch: int, batch_sizes: Tensor | None) -> Tensors:
        """Return the initial states, zeros if none were given, after torch's own checks of all arguments."""
        if states is None:
            directions = 2 if self.bidirectional else 1
            zeros = input.new_zeros(self.num_layers * directions, batch, self.hidden_size)
            states = (zeros,) * (2 if self.mode == "LSTM" else 1)
        self.check_forward_args(input, self._result(states), batch_sizes)
        return states

    def _result(self, states: Tensors) -> Any:
        """Return states as torch's layer takes and gives them."""
        return states if self.mode == "LSTM" else states[0]

    def _stack(self, x: Tensor, states: Tensors, sizes: tuple[int, ...]) -> tuple[Tensor, Tensors]:
        """Run all layers and directions on packed input; returns the packed output and the final states."""
        directions = 2 if self.bidirectional else 1
        last: list[Tensors] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                i, suffix = layer * directions + direction, ("", "_reverse")[direction]
                parameters = [getattr(self, name) for name in self._all_weights[i]]
                y, final = self._cell(
                    _CELLS[self.mode], x, tuple(s[i] for s in states), cast(Weights, (*parameters, None, None)[:4]),
                    sizes=sizes, reverse=direction == 1, k=self._k, selection=self.selection, kernel=self.kernel,
                    record=None if self.activeness is None else self.activeness.get(f"l{layer}{suffix}"),
                )  # fmt: skip
                outputs.append(y)
                last.append(final)
            x = outputs[0] if directions == 1 else torch.cat(outputs, 1)
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout)
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


class MePropLSTM(_Recurrent, nn.LSTM):
    """LSTM trained by sparsified back propagation (TKDE, section 2.3.2).

    Args:
        *args: as for `nn.LSTM`.
        k: neurons of each gate selected in the backward pass, at each time step: an int >= 1, or a ratio of
            hidden_size in (0, 1]. k >= hidden_size is exactly the dense layer.
        selection: "example", "unified", "random" or "random-unified", for each gate and time step anew.
        kernel: "auto", "native", "embedding_bag" or "masked": see `meprop_bench.ops.recurrent`.
        **keywords: as for `nn.LSTM`; projections (proj_size > 0) are not supported.

    Raises:
        ValueError: for a k, selection or kernel that does not exist, or projections.

    """


class MePropGRU(_Recurrent, nn.GRU):
    """GRU trained by sparsified back propagation; arguments as for `nn.GRU` and `MePropLSTM`."""


class MePropRNN(_Recurrent, nn.RNN):
    """Elman network (tanh or ReLU) trained by sparsified back propagation; arguments as for `nn.RNN`, `MePropLSTM`."""
