"""Adam over rows ("lazy Adam"): a step moves the rows of W `(n, m)` that have a gradient, and touches no others.

Once the backward pass is cheap the optimizer dominates: Adam on 8192 x 8192 weights moves 1.9 GB a step, though k = 32
rows had a gradient. `nn.Embedding(sparse=True)` and our layers with `sparse=True` give only those, as r sorted row
numbers and values `(r, m)`. For each such row i, with c_i the number of its updates so far,

    c_i ← c_i + 1                                           (r,)
    m_i ← β1 m_i + (1 - β1) g_i                             (r, m)
    v_i ← β2 v_i + (1 - β2) g_i²                            (r, m)
    w_i ← w_i - lr · m_i / (1 - β1^c_i) / (√(v_i / (1 - β2^c_i)) + ε)

so **each row is a parameter of its own, with an Adam of its own that runs in the steps in which the row has a
gradient**. A row whose gradient is zero throughout has none, listed or not: it is not moved. So training does not
depend on which neurons without a gradient a kernel lists beside the others (on a GPU a unified selection lists k rows
always, see `meprop_bench.ops.linear`), where their momentum would move them. Everything else follows from the first
sentence:

* It is a different algorithm from dense Adam, which also moves a row without gradient, by its momentum, and forgets
  while it does so. Where every row has a gradient in every step, the two are equal; so are they for dense gradients
  (biases, dense layers), which the same optimizer takes.
* The bias correction counts the row's own updates. `torch.optim.SparseAdam` counts the optimizer's steps: a row first
  touched late then has moments near zero and no correction for it, and moves by lr (1 - β1) / √(1 - β2) = 3.2 lr
  instead of lr. (It also adds ε before the correction, not after.) With equal rows in all steps the two agree.
* Weight decay acts on a row when the row moves. To catch up on the steps missed would not be exact either: a layer's
  forward pass reads all rows all the time, unlike an embedding's. So a row that has a gradient in a tenth of the steps
  decays a tenth as much as under `torch.optim.AdamW`: raise `weight_decay` accordingly if that matters.

A weight may get dense gradients at one time and rows at another, as when a schedule raises k to all neurons: a dense
gradient is an update of every row. Half precision weights are computed in float32 and rounded once per step.

Cost: float32 on the CPU is moved by compiled code, in one pass over the rows. By torch's operators it is gathers,
scatters and a dozen operations on `(r, m)`: 0.24 and 0.59 ms for a step of 32 rows of 2048 x 2048 and of 8192 x 8192,
where `torch.optim.Adam(fused=True)` on the dense gradient takes 1.6 and 31 ms (x86-64, 2 cores, torch 2.13). The state
is as large as dense Adam's. Run `python -m pytest tests/optim/test_adam.py`.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from meprop_bench.optim.rows import RowOptimizer
from meprop_bench.optim.table import Table, made_like

__all__ = ["RowAdam", "RowAdamW"]


class RowAdam(RowOptimizer):
    """Adam (Kingma and Ba, Algorithm 1) for dense gradients and, row by row, for row-sparse ones.

    With row gradients it is a different algorithm from `torch.optim.Adam`: see the module. The state of a parameter has
    torch's names: `step`, `exp_avg`, `exp_avg_sq`. `step` is a scalar until the parameter gets its first row gradient,
    and then counts the updates of each row, `(n,)`. So training can continue from a checkpoint of `torch.optim.Adam`:
    of any version, with a step that is a number, capturable or with a tensor for lr.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate, at least 0; a number, or a tensor of one on the CPU.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: L2 penalty, added to the gradient of the rows that have one; at least 0.
        maximize: ascend the gradient instead of descending.

    Raises:
        ValueError: see `RowOptimizer`; of checkpoints also those of an Adam that this one is not (amsgrad, or the other
            kind of weight decay).

    """

    decoupled_weight_decay: ClassVar[bool] = False
    """Whether weight decay scales the weights (AdamW) instead of adding to the gradient."""
    _least = ("eps", "weight_decay")
    _states = ("exp_avg", "exp_avg_sq")
    _counts = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)

    def _check_settings(self, group: dict[str, Any]) -> None:
        super()._check_settings(group)
        for beta in group["betas"]:
            if not (isinstance(beta, int | float) and 0 <= beta < 1):
                raise ValueError(f"betas must be two numbers in [0, 1), not {group['betas']!r}")

    def _check_checkpoint(self, group: dict[str, Any]) -> None:
        if group.get("amsgrad"):
            raise ValueError("the checkpoint is of an Adam with amsgrad=True, which keeps a state that rows lack")
        if group.get("decoupled_weight_decay", self.decoupled_weight_decay) != self.decoupled_weight_decay:
            raise ValueError("the checkpoint has the other weight decay: RowAdam goes with Adam, RowAdamW with AdamW")
        if "betas" in group:
            group["betas"] = tuple(float(beta) for beta in group["betas"])

    def _shapes_of_step(self, p: Tensor) -> tuple[tuple[int, ...], ...]:
        return (), tuple(p.shape[:1])

    def _numbers(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        return group["eps"], *group["betas"], self.decoupled_weight_decay

    def _places(self, table: Table, p: Tensor, by_rows: bool, group: dict[str, Any]) -> tuple[int, ...]:
        state = self._state_of(p, by_rows)
        steps = state["step"]
        first, second = state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()
        return table.native.ADAM, first, second, steps.data_ptr(), steps.dim(), 0

    def _state_of(self, p: Tensor, by_rows: bool) -> dict[str, Tensor]:
        """Return the state of a parameter, made if there is none yet, with a step for each row if it moves by rows."""
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = made_like(p), made_like(p)
        if by_rows and state["step"].dim() == 0:
            state["step"] = state["step"].to(p.device).repeat(p.shape[0])
        return state

    def _move_whole(self, moves: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        triples = []
        for p, grad in moves:
            state = self._state_of(p, by_rows=False)
            if state["step"].dim():
                self._move(self._all(p, state), grad, group)
            else:
                triples.append((p, grad, state))
        if not triples:
            return
        parameters, grads, states = (list(column) for column in zip(*triples, strict=True))
        averages, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        (adamw if self.decoupled_weight_decay else adam)(
            parameters, grads, averages, squares, [], steps, amsgrad=False,
            beta1=group["betas"][0], beta2=group["betas"][1],
            **{name: group[name] for name in ("lr", "weight_decay", "eps", "maximize")},
        )  # fmt: skip

    def _move_rows(self, p: Tensor, rows: Tensor, values: Tensor, group: dict[str, Any]) -> None:
        """Gather the rows that have a gradient, move them, and write them back."""
        state = self._state_of(p, by_rows=True)
        if not values.numel():
            return
        here, some = p.device.type == "cpu", _not_zero(values)
        if here and some is not None:
            rows, values = rows[some], values[some]
        whole = self._all(p, state)
        taken = [t.index_select(0, rows) for t in whole]
        # How many rows move is known on a GPU alone, and the host shall not wait: all do, and some are put back.
        before = [] if here else [t.clone() for t in taken]
        self._move(taken, values, group)
        for t, moved, old in zip_longest(whole, taken, before):
            t.index_copy_(0, rows, moved if some is None or old is None else torch.where(_each(some, old), moved, old))

    def _all(self, p: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
        """Return the weights, both moments and the counts of the rows."""
        state["step"] = state["step"].to(p.device)  # a checkpoint's is wherever it was loaded to
        return [p, state["exp_avg"], state["exp_avg_sq"], state["step"]]

    def _move(self, tensors: list[Tensor], grad: Tensor, group: dict[str, Any]) -> None:
        """Update weights `(r, *)`, both moments `(r, *)` and counts `(r,)` in place for the gradient `(r, *)`."""
        *stored, counts = tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        w, m, v, g = (t.to(wide) for t in (*stored, grad))
        beta1, beta2 = group["betas"]
        counts += 1
        lr = float(group["lr"])
        c = counts.double()  # in the first steps β2^c is so close to 1 that the difference needs the digits
        # m / (1 - β1^c) / (√(v / (1 - β2^c)) + ε) with the second root multiplied out: one pass over v less.
        root = (1 - beta2**c).sqrt_()
        step_size = _each((lr * root / (1 - beta1**c)).to(wide), w)
        eps = _each((group["eps"] * root).to(wide), w)
        if group["maximize"]:
            g = -g
        if self.decoupled_weight_decay:
            w.mul_(1 - lr * group["weight_decay"])
        elif group["weight_decay"]:
            g = g.add(w, alpha=group["weight_decay"])
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w.addcdiv_(m * step_size, v.sqrt().add_(eps), value=-1)
        for old, new in zip(stored, (w, m, v), strict=True):
            if old is not new:
                old.copy_(new)


class RowAdamW(RowAdam):
    """AdamW (Loshchilov and Hutter, Algorithm 2): as `RowAdam`, but weight decay scales the weights.

    A row is multiplied by 1 - lr · weight_decay when it moves, that is, when it has a gradient: see the module.
    Arguments are those of `RowAdam`.
    """

    decoupled_weight_decay: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize)


def _each(of_row: Tensor, t: Tensor) -> Tensor:
    """Have numbers `(r,)` broadcast with a tensor of r rows."""
    return of_row.view(-1, *[1] * (t.dim() - 1))


def _not_zero(values: Tensor) -> Tensor | None:
    """Say of each row `(r, *)` whether it is not zero throughout, NaN among it; None where none is, if easily seen."""
    flat = values.unsqueeze(-1).flatten(1)
    # The norm reads half as much memory, and squares may vanish, so only its yes counts. On a GPU, checking would wait.
    if values.device.type == "cpu" and bool((torch.linalg.vector_norm(flat, dim=1) != 0).all()):
        return None
    return flat.abs().amax(1) != 0
