"""Physical removal of neurons during training; and its twin, which only holds them at zero.

    remove   every axis is cut to the neurons that stay: parameters, buffers, and the optimizer's state for them
    mask     every parameter is multiplied by 0 along the neurons removed, and so is each gradient from then on

The two compute the same: a neuron that no layer reads gets no gradient, so its own rows would not change anything, and
columns at zero with gradients at zero stay there in every optimizer that works element by element. (What draws for each
feature, as dropout does, draws other numbers when there are fewer.) Removal is faster; the mask is what the authors'
code does, and the check of removal.

Parameters stay the same objects, in the model, in the optimizer and wherever else they are referred to, and get new,
smaller data. Their gradients are dropped. State of the optimizer that has the parameter's shape follows its rows and
columns, numbers stay, and anything else is refused.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from meprop_bench.algorithms.structure import Group, Structure

__all__ = ["Masks", "remove", "reset_state"]


def remove(structure: Structure, keep: dict[Group, Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Remove all neurons but those of `keep`, bool `(n,)` for each group, from a model, and from its optimizer's state.

    A group that is not named is left alone. ValueError if one would be empty, or for state that cannot follow: nothing
    is changed then. The sizes of the groups are brought up to date.
    """
    for group, mask in keep.items():
        if not mask.any():
            raise ValueError(f"no neuron would be left of {group.name!r}")
    cuts = _cuts(structure, keep)
    state = {} if optimizer is None else optimizer.state
    _check_state(cuts, state, optimizer)
    for (owner, name), dims in cuts.items():
        tensor = getattr(owner, name)
        if not isinstance(tensor, nn.Parameter):
            setattr(owner, name, _cut(tensor, dims))
            continue
        for key, value in state.get(tensor, {}).items():
            if isinstance(value, Tensor) and value.shape == tensor.shape and value.dim():
                state[tensor][key] = _cut(value, dims)
        _replace(tensor, _cut(tensor.detach(), dims))
    for group, mask in keep.items():
        group.size = int(mask.sum())
    for owner in {owner for owner, _ in cuts}:
        _describe(owner)


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the state of a new one with the same parameters and settings, in place; ValueError if none can
    be made from these.
    """
    known = inspect.signature(type(optimizer)).parameters
    groups = [dict(group) for group in optimizer.param_groups]
    try:
        fresh = type(optimizer)(groups, **{k: v for k, v in optimizer.defaults.items() if k in known})
    except TypeError as error:
        raise ValueError(f"cannot reset the state of {type(optimizer).__name__}: {error}") from error
    optimizer.state = defaultdict(dict, fresh.state)


_DIVISORS = ("sum", "exp_avg_sq", "max_exp_avg_sq")
"""State of Adagrad and Adam that divides a step, and so moves nothing. A mask leaves it alone: at zero it would make
0 / 0 of the masked entries where there is no epsilon beside it."""


class Masks:
    """Holds removed neurons at zero, from `add` on, until `release`."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self.live = {g: torch.ones(g.size, dtype=torch.bool) for g in structure.groups}
        """Which neurons of each group are left, `(n,)`."""
        self._masks: dict[Tensor, Tensor] = {}
        self._hooks: dict[Tensor, torch.utils.hooks.RemovableHandle] = {}

    @torch.no_grad()
    def add(self, keep: dict[Group, Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
        """Mask all neurons but those of `keep`; arguments as for `remove`."""
        state = {} if optimizer is None else optimizer.state
        for group, mask in keep.items():
            self.live[group] &= mask.cpu()
        cuts = _cuts(self._structure, self.live)
        _check_state(cuts, state, optimizer)
        for (owner, name), dims in cuts.items():
            tensor = getattr(owner, name)
            if not isinstance(tensor, nn.Parameter):
                continue  # statistics of features that nobody reads
            mask = torch.ones_like(tensor)
            for dim, idx in dims.items():
                along = torch.zeros_like(mask).index_fill_(dim, idx.to(mask.device), 1)
                mask *= along
            self._masks[tensor] = mask
            moving = [value for key, value in state.get(tensor, {}).items() if key not in _DIVISORS]
            for value in (tensor, *moving):
                if isinstance(value, Tensor) and value.shape == tensor.shape and value.dim():
                    value.mul_(mask)
            if tensor not in self._hooks:
                hook = tensor.register_post_accumulate_grad_hook(self._mask_gradient)  # type: ignore[no-untyped-call]
                self._hooks[tensor] = hook

    def release(self) -> None:
        """Leave gradients alone from now on."""
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()

    @torch.no_grad()
    def _mask_gradient(self, parameter: Tensor) -> None:
        grad, mask = parameter.grad, self._masks[parameter]
        assert grad is not None
        if grad.is_sparse:
            grad._values().mul_(mask[grad._indices()[0]])
        else:
            grad.mul_(mask)


_Cuts = dict[tuple[nn.Module, str], dict[int, Tensor]]
"""For each tensor, by owner and name, the indices that stay along some of its dimensions."""


def _cuts(structure: Structure, keep: dict[Group, Tensor]) -> _Cuts:
    cuts: _Cuts = {}
    for axis in structure.axes:
        if any(group in keep for group in axis.parts):
            cuts.setdefault((axis.owner, axis.tensor), {})[axis.dim] = axis.keep(keep).nonzero().flatten()
    return cuts


def _cut(tensor: Tensor, dims: dict[int, Tensor]) -> Tensor:
    for dim, idx in dims.items():
        tensor = tensor.index_select(dim, idx.to(tensor.device))
    return tensor


def _check_state(cuts: _Cuts, state: Any, optimizer: torch.optim.Optimizer | None) -> None:
    for owner, name in cuts:
        tensor = getattr(owner, name)
        for key, value in state.get(tensor, {}).items() if isinstance(tensor, nn.Parameter) else ():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != tensor.shape:
                raise ValueError(
                    f"the state {key!r} of {type(optimizer).__name__} {tuple(value.shape)} cannot follow the rows of a "
                    f"parameter {tuple(tensor.shape)}: use SGD, Adam, AdamW or Adagrad"
                )


def _replace(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter data of another shape.

    A graph that is still alive, say because of a loss that has not been dropped, holds on to the node that accumulates
    this parameter's gradient, with the shape of old, and the next backward pass would meet it. Data of another type
    make torch forget that node.
    """
    parameter.grad = None
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data


def _describe(owner: nn.Module) -> None:
    """Bring the sizes a module knows of itself up to date."""
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, nn.BatchNorm1d):
        known = owner.weight if owner.weight is not None else owner.running_mean
        assert known is not None
        owner.num_features = known.shape[0]
    elif isinstance(owner, nn.RNNBase):
        owner.input_size = owner.get_parameter("weight_ih_l0").shape[1]
        owner.hidden_size = owner.get_parameter("weight_hh_l0").shape[1]
        owner.flatten_parameters()
