"""What the optimizers by rows share: dense gradients and rows, mixed, in one step, compiled where it can be.

A step costs what it moves, once there is little else: AdaGrad for 30 rows of 500 x 784 is 10 microseconds of
arithmetic, and 364 in torch's sparse one. So the float32 parameters on the CPU are moved by one call of compiled code
(`ops.kernels.native.update`) for all groups, which takes a table of addresses, and Python does for each parameter no
more than look whether it can go into the table, in one to three microseconds. What stays from step to step, the
addresses of parameters and states, is compared with that of the last step, and looked at closely when it differs:
shapes, layouts, dtypes, and whether any two overlap.

All else is left to torch's operators: other devices and dtypes, subclasses of tensors, parameters that are not
contiguous or that overlap, and everything where Numba cannot be used. The numbers are the same to rounding.

The compiled code is invisible to torch, which is therefore informed that parameters changed (their version counters),
and hooks and a profiler's range cost nothing while there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import groupby
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling
from torch.optim import Optimizer
from torch.optim import optimizer as torchs
from torch.optim.optimizer import ParamsT

from meprop_bench.optim.table import Move, Place, Table, alike

__all__ = ["RowOptimizer"]


class RowOptimizer(Optimizer):
    """The base class: see the module. Each subclass is one algorithm.

    Raises:
        ValueError: for a setting out of its range, or a parameter that is sparse, complex or not floating point; when
            stepping, for a sparse gradient whose entries are not whole rows of the parameter; when loading, for a
            checkpoint of another algorithm, or one whose state does not fit.

    """

    _least: ClassVar[tuple[str, ...]]
    """Settings that are numbers of at least 0, the learning rate apart."""
    _states: ClassVar[tuple[str, ...]]
    """Names of the states that are as large as the parameter."""
    _counts: ClassVar[bool]
    """Whether there is a state `step`."""

    def __init__(self, params: ParamsT, **settings: Any) -> None:
        self._forget()
        super().__init__(params, settings)

    # Settings and checkpoints.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with settings of its own where it has them."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_settings(group)
            for p in group["params"]:
                _check_parameter(p)
        except ValueError:
            self.param_groups.pop()
            raise

    def _check_settings(self, group: dict[str, Any]) -> None:
        """ValueError for a setting out of its range."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.numel() == 1 and lr.device.type == "cpu":
            lr = lr.item()  # of one on a GPU, each step would have to wait
        for name, value in (("lr", lr), *((name, group[name]) for name in self._least)):
            if not (isinstance(value, int | float) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")

    def _check_checkpoint(self, group: dict[str, Any]) -> None:
        """ValueError for a group of a checkpoint that is of another algorithm."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What an older version or another class had no word for is as it would be without a checkpoint.
        defaults = state.get("defaults") or self.defaults
        for group in state["param_groups"]:
            self._check_checkpoint(group)
            for name, default in defaults.items():
                if name != "differentiable":  # torch puts it there
                    group.setdefault(name, default)
            for name in ("lr", *self._least):
                if isinstance(group[name], Tensor):  # as with capturable=True
                    group[name] = group[name].item()
            self._check_settings(group)
        for p, loaded in state["state"].items():
            if loaded and isinstance(p, Tensor):  # what belongs to no parameter is kept as it is
                self._restore(p, loaded)
        self._forget()
        super().__setstate__(state)

    def _forget(self) -> None:
        """Forget what was found of the last step's parameters and states."""
        self._known: list[int] = []
        self._unfit: frozenset[int] = frozenset()
        self._held: list[list[Any]] = []  # states: no others can come to be where these are

    def _restore(self, p: Tensor, loaded: dict[str, Any]) -> None:
        """Bring the state of a parameter, from a checkpoint, into the form that it has here."""
        names = (*self._states, *(("step",) if self._counts else ()))
        if missing := set(names) - loaded.keys():
            kind = type(self).__name__.removeprefix("Row")
            raise ValueError(
                f"the checkpoint is not of an {kind}: a parameter has no {' and no '.join(sorted(missing))}"
            )
        shapes: dict[str, tuple[tuple[int, ...], ...]] = dict.fromkeys(self._states, (tuple(p.shape),))
        if self._counts:
            step = torch.as_tensor(loaded["step"], dtype=torch.float32)  # a number in the checkpoints of old versions
            if step.numel() == 1 and step.shape != p.shape[:1]:
                step = step.cpu().reshape(())  # on the device with capturable=True, or fused
            loaded["step"] = step
            shapes["step"] = self._shapes_of_step(p)
        for name, fitting in shapes.items():
            if (shape := tuple(loaded[name].shape)) not in fitting:
                raise ValueError(
                    f"the checkpoint does not fit: {name} of a parameter {tuple(p.shape)} has shape {shape}"
                )

    def _shapes_of_step(self, p: Tensor) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def moves_all_rows(self, group: dict[str, Any]) -> bool:
        """Whether a step moves rows without a gradient; one by rows is made dense then."""
        return False

    # A step.

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `step` as torch does, with its hooks and a profiler's range, but at no cost while there are neither."""
        watched = Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: RowOptimizer, *args: Any, **kwargs: Any) -> Any:
            if (
                self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or torchs._global_optimizer_pre_hooks
                or torchs._global_optimizer_post_hooks
                or torch._C._autograd._profiler_enabled()
            ):
                return watched(self, *args, **kwargs)
            return func(self, *args, **kwargs)

        return step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to zero."""
        if not set_to_none or torch._C._autograd._profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move all parameters that have a gradient, by rows where it has rows; returns the loss that `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if is_compiling():
            from meprop_bench.ops.uncompiled import cannot_be_compiled

            cannot_be_compiled(self._step)
        else:
            self._step()
        return loss

    def _step(self) -> None:
        table, left = Table(), list[Move]()
        for number, group in enumerate(self.param_groups):
            sign = -1.0 if group["maximize"] else 1.0
            table.settings += group["lr"], group["weight_decay"], sign, *self._numbers(group)
            parameters = group["params"]
            if parameters:
                places = table.places(parameters, rows=not self.moves_all_rows(group))
                for p, place in zip(parameters, places, strict=True):
                    if isinstance(place, tuple):
                        self._enter(table, p, place, number, group)
                    elif place is not None:
                        left.append((number, p, place))
        # All gradients have been looked at before any parameter is moved.
        if table.moves:
            if table.known != self._known:
                self._held = [list(self.state.get(p, {}).values()) for _, p, _ in table.moves]
                self._unfit = table.unfit([self._fits(p) for _, p, _ in table.moves])
                self._known = [] if table.fresh else table.known
            if self._unfit:
                left = table.without(self._unfit) + left
            left += table.step()
        if left:
            self._by_operators(left)

    def _enter(self, table: Table, p: Tensor, place: Place, number: int, group: dict[str, Any]) -> None:
        """Put a parameter and its gradient into the table of the compiled step."""
        grad, w, size, g, rows, numbers, n = place
        algorithm, s, t, steps, counts, first = self._places(table, p, bool(n), group)
        if counts:
            n = p.size(0)
        m = size // n if n else 0
        table.known += (w, s, t, steps, size)
        table.words += (w, g, s, t, steps, rows, numbers, m, n, counts, first, number, algorithm)
        table.moves.append((number, p, grad))

    # What a subclass is.

    def _numbers(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        """Return what the compiled step takes of a group behind learning rate, weight decay and sign; 0 for nothing."""
        raise NotImplementedError

    def _places(self, table: Table, p: Tensor, by_rows: bool, group: dict[str, Any]) -> tuple[int, ...]:
        """Return the algorithm, the addresses of two states and of the steps, whether each row has its own number of
        steps, and whether this is the first one of all; 0 for what there is not.
        """
        raise NotImplementedError

    def _move_whole(self, moves: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        """Move parameters by their dense gradients, with torch's operators."""
        raise NotImplementedError

    def _move_rows(self, p: Tensor, rows: Tensor, values: Tensor, group: dict[str, Any]) -> None:
        """Move rows `(r,)` of a parameter by their gradients `(r, *)`, with torch's operators."""
        raise NotImplementedError

    def _fits(self, p: Tensor) -> bool:
        """Whether the states of a parameter are as the compiled step takes them."""
        state = self.state.get(p, {})
        steps = state.get("step")
        counted = not self._counts or (
            type(steps) is Tensor
            and steps.dtype is _FLOAT
            and steps.is_cpu
            and steps.is_contiguous()
            and (not steps.dim() or steps.shape == p.shape[:1])
        )
        return counted and not p.is_neg() and all(alike(p, state[name]) for name in self._states if name in state)

    @torch.no_grad()
    def _by_operators(self, moves: list[Move]) -> None:
        for number, of_group in groupby(sorted(moves, key=_number), key=_number):
            group, whole = self.param_groups[number], []
            for _, p, grad in of_group:
                if grad.is_sparse:
                    self._move_rows(p, grad._indices()[0], grad._values(), group)
                else:
                    whole.append((p, grad))
            if whole:
                self._move_whole(whole, group)
        increment_version([p for _, p, _ in moves])  # torch's fused steps do not


_FLOAT = torch.float32


def _number(move: Move) -> int:
    return move[0]


def _check_parameter(p: Tensor) -> None:
    if p.layout != torch.strided or not p.is_floating_point():
        raise ValueError(f"parameters must be dense and of a real floating point dtype, not {p.layout}, {p.dtype}")
