"""The optimizers by name: class, settings, and what each can do; and how the learning rate moves. Nothing here loads
torch until one is made.

SparseAdam is left out: it moves only the rows that it is given, which is another algorithm than Adam.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import UserError, one_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "OF_DENSE", "OPTIMIZERS", "SCHEDULES", "Optimizer", "compiled", "fused", "is_fused", "make_optimizer",
    "make_schedule",
]  # fmt: skip

SCHEDULES = ("constant", "cosine")
"""Of the learning rate over a training."""
_WARM_UP = 0.05
_LONGEST_WARM_UP = 100


@dataclass(frozen=True)
class Optimizer:
    """What there is by a name."""

    module: str
    name: str  # of the class
    settings: Mapping[str, Any]
    fused: tuple[str, ...] = ()  # devices on which torch has a fused step of it
    compiled: str = ""  # the class in `meprop_bench.optim` that does the same by dense gradients, in compiled code
    rows: bool = False  # whether it takes weight gradients as rows; then by `compiled`, where there is that
    dense: str = ""  # what it is by dense gradients, by its name here, where by rows it is another algorithm

    @property
    def exact(self) -> bool:
        """Whether by rows it computes what it does by the dense gradient."""
        return not self.dense

    @property
    def note(self) -> str:
        """What a reader of its figures by rows should know."""
        if not self.rows:
            return ""
        name = self.compiled or self.name
        dense = name.removeprefix("Row")
        if self.exact:
            return f"{name} is the same algorithm as {dense}: a row without a gradient stays as it is"
        return f"{name} is another algorithm than {dense}, which also moves the rows without a gradient"


_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
_ADAMW = {**_ADAM, "weight_decay": 1e-2}
_EVERYWHERE = ("cpu", "cuda")
_OURS = "meprop_bench.optim"

OPTIMIZERS: Mapping[str, Optimizer] = {
    # The papers' settings (ICML 2017, section 4.1); AdaGrad's rate is the one they give for MNIST.
    "adam": Optimizer("torch.optim", "Adam", _ADAM, _EVERYWHERE, "RowAdam"),
    # Its epsilon stands under the root, g / sqrt(sum of g² + 1e-6), as in the parser of Chen and Manning (2014),
    # from which the papers have the number. With torch's `eps`, which is added to the root, every weight's first
    # step would be the rate.
    "adagrad": Optimizer(
        "torch.optim",
        "Adagrad",
        {"lr": 0.1, "initial_accumulator_value": 1e-6, "eps": 0.0},
        ("cpu",),
        "RowAdagrad",
        rows=True,
    ),
    # Not in the papers: the cheapest update there is. The rate is where the papers' MLP learns MNIST well.
    "sgd": Optimizer("torch.optim", "SGD", {"lr": 0.1}, _EVERYWHERE, "RowSGD", rows=True),
    # Nor this one, which language models are trained with.
    "adamw": Optimizer("torch.optim", "AdamW", _ADAMW, _EVERYWHERE, "RowAdamW"),
    # Not in the papers either, and other algorithms than dense Adam, at its settings: see `meprop_bench.optim`.
    "rowadam": Optimizer(_OURS, "RowAdam", _ADAM, rows=True, dense="adam"),
    "rowadamw": Optimizer(_OURS, "RowAdamW", _ADAMW, rows=True, dense="adamw"),
}


OF_DENSE = {name: each.dense for name, each in OPTIMIZERS.items() if each.dense}
"""One that moves rows by another algorithm -> the one that a dense side has, which it is where gradients are dense."""


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Return the same optimizer with torch's fused step, before its first one; None where it is that already, or torch
    has none for its class, its settings or its parameters.
    """
    kind, settings = type(optimizer), optimizer.defaults
    groups = optimizer.param_groups
    if not kind.__module__.startswith("torch.optim.") or "fused" not in settings:
        return None
    if is_fused(optimizer):
        return None
    if _cannot_be_fused(kind.__name__, (p for group in groups for p in group["params"])):
        return None
    own = {"fused": True, "foreach": None}
    known = signature(kind).parameters
    try:
        return kind([{**group, **own} for group in groups], **{n: v for n, v in settings.items() if n in known} | own)
    except (RuntimeError, ValueError):
        return None


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer takes torch's fused step for all of its parameters."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _cannot_be_fused(name: str, parameters: Iterable[torch.Tensor]) -> bool:
    """Whether torch's fused step, which it has for a class, must not be used for these parameters.

    In half precision torch 2.13's fused SGD moves nothing but the last few numbers, on a CPU (pytorch issue 191763).
    """
    return name == "SGD" and any(p.is_cpu and p.element_size() < 4 for p in parameters)


def compiled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Return the same optimizer with this package's compiled step, before its first one; None where it is that already,
    or there is none for its class, its settings or its parameters, or no Numba.

    By dense gradients it is the same algorithm, AdamW among them; by rows Adam and AdamW would be others.
    """
    from meprop_bench.ops.kernels import compiled as code

    kind, settings = type(optimizer), optimizer.defaults
    groups = optimizer.param_groups
    ours = {"SGD": "RowSGD", "Adagrad": "RowAdagrad", "Adam": "RowAdam", "AdamW": "RowAdamW"}.get(kind.__name__)
    if not kind.__module__.startswith("torch.optim.") or ours is None or code.unavailable_reason() is not None:
        return None
    if any(group.get(name) for group in groups for name in ("amsgrad", "differentiable", "capturable")):
        return None
    if any(not p.is_cpu or str(p.dtype) != "torch.float32" for group in groups for p in group["params"]):
        return None
    made = getattr(import_module(_OURS), ours)
    known = signature(made).parameters
    own = [{name: value for name, value in group.items() if name in known} for group in groups]
    try:
        found: torch.optim.Optimizer = made(own, **{name: value for name, value in settings.items() if name in known})
    except ValueError:
        return None
    return found


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    gradient: str = "dense",
    fused: bool = False,
    compiled: bool = False,
    rate: float | None = None,
) -> torch.optim.Optimizer:
    """Return an unmodified optimizer of torch, or one of this package, with the papers' settings.

    By rows it is one of this package: of the same algorithm, but for those that `OPTIMIZERS` calls not `exact`.

    Args:
        name: one of `OPTIMIZERS`.
        parameters: what it moves.
        gradient: "dense", or "rows" when some weights get a row-sparse gradient.
        fused: take torch's fused step where there is one: the same mathematics, rounded otherwise, in one pass over the
            parameters, which is several times as fast. Those for rows have none.
        compiled: take this package's step for dense gradients, too, where there is one: the same mathematics again, in
            one compiled call for all parameters (float32 on the CPU, with Numba). It goes before `fused`.
        rate: learning rate, for a task whose rate is another one than that of MNIST.

    Raises:
        UserError: an unknown name, or an optimizer that cannot take row gradients.

    """
    one_of("optimizer", name, OPTIMIZERS)
    if gradient not in ("dense", "rows"):
        raise ValueError(f"gradient must be 'dense' or 'rows', not {gradient!r}")
    chosen = OPTIMIZERS[name]
    if gradient == "rows" and not chosen.rows:
        able = ", ".join(other for other, each in OPTIMIZERS.items() if each.rows)
        raise UserError(
            f"{name} does not take row gradients (it moves every row at every step): use {able}, or dense gradients"
        )
    parameters, settings = list(parameters), dict(chosen.settings)
    if rate is not None:
        settings["lr"] = rate
    module, kind = chosen.module, chosen.name
    if chosen.compiled and (compiled or gradient == "rows"):
        module, kind = _OURS, chosen.compiled
    elif (
        fused
        and all(p.device.type in chosen.fused for p in parameters)
        and not _cannot_be_fused(chosen.name, parameters)
    ):
        settings["fused"] = True
    optimizer: torch.optim.Optimizer = getattr(import_module(module), kind)(parameters, **settings)
    return optimizer


def make_schedule(name: str, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
    """Return what moves the learning rate, to be stepped after each step of a training; None if it is constant.

        warm-up    rate · (t + 1) / w                                     t < w = 5% of the steps, 1 to 100
        cosine     rate · (1 + cos(π (t - w) / (steps - w))) / 2          zero once all steps are done

    Args:
        name: one of `SCHEDULES`.
        optimizer: whose rate it moves, as it is now.
        steps: of the whole training: a shorter one has a schedule of its own, and is no part of a longer one.

    Raises:
        UserError: an unknown name.

    """
    one_of("schedule", name, SCHEDULES)
    if name == "constant":
        return None
    from torch.optim.lr_scheduler import LambdaLR

    warm_up = max(1, min(_LONGEST_WARM_UP, round(_WARM_UP * steps)))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up)))) / 2

    return LambdaLR(optimizer, factor)
