"""SGD for dense gradients and for rows: the same algorithm as `torch.optim.SGD`, by either.

    w_i ← w_i - lr g_i                                      (r, m)

A row without a gradient has g = 0 and stays, so the rows that are not in the gradient need not be read. Where float32
parameters on the CPU are moved by compiled code, their bits are those of torch's fused step for the dense gradient
(but for the momentum of a parameter's last numbers, those after the last whole vector, where torch's compiler rounded
another product); elsewhere the two agree to rounding.

Momentum and weight decay move every row in every step. There are no rows to spare then: see the class.

Run `python -m pytest tests/optim/test_sgd.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from meprop_bench.optim.operators import can_be_fused, rows_taken
from meprop_bench.optim.rows import RowOptimizer
from meprop_bench.optim.table import Table, made_like

__all__ = ["RowSGD"]

_FUSED = (torch.float32, torch.float64)
"""In half precision torch 2.13's fused SGD moves the last numbers of a parameter alone (pytorch issue 191763)."""


class RowSGD(RowOptimizer):
    """SGD for dense gradients and, row by row, for row-sparse ones.

    It is `torch.optim.SGD`, whatever the gradients: the same settings, the same state (`momentum_buffer`, if there is
    momentum), the same numbers; a checkpoint of either can be loaded into the other. Momentum and weight decay move
    every row in every step: with either a gradient by rows is made dense first, which is exact, and gains nothing.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate, at least 0; a number, or a tensor of one on the CPU.
        momentum: at least 0.
        dampening: 1 - dampening is what the momentum takes of a gradient.
        weight_decay: L2 penalty, added to the gradient; at least 0.
        nesterov: Nesterov's momentum, which needs momentum and no dampening.
        maximize: ascend the gradient instead of descending.

    Raises:
        ValueError: see `RowOptimizer`.

    """

    _least = ("momentum", "weight_decay")
    _states = ("momentum_buffer",)
    _counts = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            maximize=maximize,
        )  # fmt: skip

    def _check_settings(self, group: dict[str, Any]) -> None:
        super()._check_settings(group)
        if not isinstance(group["dampening"], int | float):
            raise ValueError(f"dampening must be a number, not {group['dampening']!r}")
        if group["nesterov"] and not (group["momentum"] and not group["dampening"]):
            raise ValueError("Nesterov's momentum needs a momentum above 0 and no dampening")

    def _restore(self, p: Tensor, loaded: dict[str, Any]) -> None:
        if loaded.get("momentum_buffer") is None:  # as without momentum
            loaded.clear()
            return
        if loaded["momentum_buffer"].is_sparse:  # of torch's, when it has had sparse gradients alone
            loaded["momentum_buffer"] = loaded["momentum_buffer"].to_dense()
        super()._restore(p, loaded)

    def _numbers(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        return 0.0, group["momentum"], group["dampening"], group["nesterov"]

    def moves_all_rows(self, group: dict[str, Any]) -> bool:
        """Whether a step moves rows without a gradient; one by rows is made dense then."""
        return bool(group["weight_decay"] or group["momentum"])

    def _places(self, table: Table, p: Tensor, by_rows: bool, group: dict[str, Any]) -> tuple[int, ...]:
        if not group["momentum"]:
            return table.native.SGD, 0, 0, 0, 0, 0
        state = self.state[p]
        momentum = state.get("momentum_buffer")
        first = momentum is None
        if first:
            momentum = made_like(p)
            table.fresh.append((p, state, "momentum_buffer", momentum))
        return table.native.MOMENTUM, momentum.data_ptr(), 0, 0, 0, first

    def _move_whole(self, moves: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        if not group["momentum"]:
            self._by_torch(moves, group)
            return
        # torch's fused step takes parameters that all have momentum, or that all have none yet.
        begun = [move for move in moves if "momentum_buffer" in self.state[move[0]]]
        self._by_torch(begun, group, [self.state[p]["momentum_buffer"] for p, _ in begun])
        self._by_torch([move for move in moves if "momentum_buffer" not in self.state[move[0]]], group)

    def _by_torch(
        self, moves: list[tuple[Tensor, Tensor]], group: dict[str, Any], momentum: list[Tensor] | None = None
    ) -> None:
        if not moves:
            return
        parameters, grads = (list(column) for column in zip(*moves, strict=True))
        buffers: list[Tensor | None] = [None] * len(moves) if momentum is None else list(momentum)
        sgd(
            parameters, grads, buffers, has_sparse_grad=False,
            fused=can_be_fused(("cpu", "cuda"), _FUSED, parameters, grads, momentum or parameters),
            **{name: group[name] for name in ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")},
        )  # fmt: skip
        if group["momentum"]:
            for p, buffer in zip(parameters, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _move_rows(self, p: Tensor, rows: Tensor, values: Tensor, group: dict[str, Any]) -> None:
        rate = float(group["lr"])
        with rows_taken(rows, p) as (w,):
            w.add_(values.to(w.dtype), alpha=rate if group["maximize"] else -rate)
