"""AdaGrad for dense gradients and for rows: the same algorithm as `torch.optim.Adagrad`, by either.

    s_i ← s_i + g_i²                                        (r, m)
    w_i ← w_i - η g_i / (√s_i + ε)                          (r, m)     η = lr / (1 + (steps - 1) lr_decay)

A row without a gradient has g = 0, which changes neither s nor w: so the rows that are not in the gradient need not be
read. Where float32 parameters on the CPU are moved by compiled code, their bits are those of torch's fused step for the
dense gradient; elsewhere the two agree to rounding. (Where ε and a sum are both zero, torch divides 0 by 0 at the
weights of a row without a gradient, which this class leaves alone.)

Run `python -m pytest tests/optim/test_adagrad.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.optimizer import ParamsT

from meprop_bench.optim.operators import can_be_fused, rows_taken
from meprop_bench.optim.rows import RowOptimizer
from meprop_bench.optim.table import Table, made_like

__all__ = ["RowAdagrad"]

_FUSED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class RowAdagrad(RowOptimizer):
    """AdaGrad (Duchi, Hazan and Singer) for dense gradients and, row by row, for row-sparse ones.

    It is `torch.optim.Adagrad`, whatever the gradients: the same settings, the same states (`step`, `sum`), the same
    numbers; a checkpoint of either can be loaded into the other. Weight decay moves every row in every step: with it a
    gradient by rows is made dense first, which is exact, and gains nothing. (torch refuses such gradients then.)

    Args:
        params: parameters, or parameter groups.
        lr: learning rate, at least 0; a number, or a tensor of one on the CPU.
        lr_decay: the rate is divided by 1 + (steps - 1) · lr_decay; at least 0.
        weight_decay: L2 penalty, added to the gradient; at least 0.
        initial_accumulator_value: what the sums of squares start from, at least 0.
        eps: added to the root, at least 0.
        maximize: ascend the gradient instead of descending.

    Raises:
        ValueError: see `RowOptimizer`.

    """

    _least = ("lr_decay", "weight_decay", "initial_accumulator_value", "eps")
    _states = ("sum",)
    _counts = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value, maximize=maximize,
        )  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with settings of its own where it has them."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            self._state_of(p, group)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["sum"] = made_like(p, group["initial_accumulator_value"])
        return state

    def _numbers(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        return group["eps"], group["lr_decay"], 0.0, 0.0

    def moves_all_rows(self, group: dict[str, Any]) -> bool:
        """Whether a step moves rows without a gradient; one by rows is made dense then."""
        return bool(group["weight_decay"])

    def _places(self, table: Table, p: Tensor, by_rows: bool, group: dict[str, Any]) -> tuple[int, ...]:
        state = self.state[p] or self._state_of(p, group)
        return table.native.ADAGRAD, state["sum"].data_ptr(), 0, state["step"].data_ptr(), 0, 0

    def _move_whole(self, moves: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        parameters, grads = (list(column) for column in zip(*moves, strict=True))
        states = [self._state_of(p, group) for p in parameters]
        sums, steps = ([state[name] for state in states] for name in ("sum", "step"))
        adagrad(
            parameters, grads, sums, steps, has_sparse_grad=False,
            fused=can_be_fused(("cpu",), _FUSED, parameters, grads, sums),
            **{name: group[name] for name in ("lr", "weight_decay", "lr_decay", "eps", "maximize")},
        )  # fmt: skip

    def _move_rows(self, p: Tensor, rows: Tensor, values: Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(p, group)
        state["step"] += 1
        rate = float(group["lr"]) / (1 + (state["step"].item() - 1) * group["lr_decay"])
        with rows_taken(rows, p, state["sum"]) as (w, s):
            g = values.to(w.dtype)
            s.addcmul_(g, g)
            w.addcdiv_(g, s.sqrt().add_(group["eps"]), value=rate if group["maximize"] else -rate)
