"""A user's batches: moved and compared, whatever holds their tensors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["equal", "moved", "tensors"]


def moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Move a batch to a device, its floating-point tensors to a dtype, too; containers stay what they are."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if device.type == "cpu" and dtype is None:
        return value
    if isinstance(value, PackedSequence):
        return value.to(device)._replace(data=moved(value.data, device, dtype))  # type: ignore[arg-type]
    found = _rebuilt(value, lambda one: moved(one, device, dtype))
    return value.to(device) if found is value and hasattr(value, "to") else found


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, and its arrays as tensors."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, Tensor))


def equal(one: Any, other: Any) -> bool:
    """Whether two batches are the same, as far as it can be seen: what is in other objects shows in the loss."""
    pairs = itertools.zip_longest(_leaves(one), _leaves(other))
    return all(_same(a, b) if isinstance(a, Tensor) or isinstance(b, Tensor) else True for a, b in pairs)


def _rebuilt(value: Any, each: Callable[[Any], Any]) -> Any:
    """Return a container of the same class with what `each` makes of its entries; what is none as it is."""
    found = value
    if isinstance(value, MutableMapping):  # attributes may name its entries
        found = copy.copy(value)
        for key, one in value.items():
            found[key] = each(one)
    elif isinstance(value, Mapping):
        found = {key: each(one) for key, one in value.items()}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        found = type(value)(*map(each, value))
    elif isinstance(value, list | tuple):
        found = type(value)(map(each, value))
    elif _is_record(value):
        found = copy.copy(value)
        for spec in fields(value):
            object.__setattr__(found, spec.name, each(getattr(value, spec.name)))
    return found


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what a batch consists of, with arrays as tensors."""
    if isinstance(value, Mapping):
        value = value.values()
    elif _is_record(value):
        value = [getattr(value, spec.name) for spec in fields(value)]
    elif not isinstance(value, list | tuple):
        yield torch.from_numpy(value) if type(value).__module__ == "numpy" and value.dtype.kind in "biufc" else value
        return
    for one in value:
        yield from _leaves(one)


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    if one.layout is not torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return bool((one == other).logical_or(one.isnan() & other.isnan()).all())
