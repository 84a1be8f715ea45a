"""Which tensors are plain memory: the one question that decides between a kernel and torch's operators.

A kernel reads numbers at addresses, writes into buffers, counts. That is right for memory that is what it looks like,
and for nothing else: a subclass (`FakeTensor`, `DTensor`, quantized weights), a level of torch.func, a lazily negated
view or a tensor on the meta device has no such memory, or means something else by it. There the same mathematics is
done in torch's operators, which each of them has a meaning for.

Torch itself decides by a tensor's *dispatch keys*, so they decide here, not a list of known exceptions. Forward and
backward both look: which dy will come is not known before it does. From Python, keys cost some 0.6 microseconds for
each tensor, of the 30 that a layer takes; so where the C++ node is built, it looks instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["in_python", "memory", "transformed", "undisturbed", "unwatched"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_keys = torch._C._dispatch_keys


def _bits(*names: str) -> int:
    """Return the bits of those keys that this torch has."""
    bits = 0
    for name in names:
        key = getattr(torch._C.DispatchKey, name, None)
        bits |= 0 if key is None else torch._C.DispatchKeySet(key).raw_repr()
    return bits


_DENSE = _bits("CPU") & _bits("CUDA")
_DEVICES = _DENSE - 1
_META = _bits("Meta") & _DEVICES
_HARMLESS = _bits("ADInplaceOrView", "AutogradCPU", *(f"Autocast{d}" for d in ("CPU", "CUDA", "MPS", "XPU", "HPU")))
_HARMLESS &= ~(_DENSE | _DEVICES)
"""What ordinary tensors have beside "dense" and a device: that autograd may record, and autocast cast."""
_TELLING = ~_HARMLESS
_EXACT = (Tensor, torch.nn.Parameter)


def in_python(*tensors: Any) -> bool:
    """Whether tensors are strided memory of real numbers, of one dtype and on one device, and nothing changes what
    operators mean by it: no subclass, no wrapper, no lazy negation. None is passed over.
    """
    first, expected = None, 0
    for t in tensors:
        if t is None:
            continue
        if type(t) not in _EXACT and not _is_tensor(t):
            return False
        keys = _keys(t).raw_repr() & _TELLING
        if first is None:
            first, expected = t, keys
            if keys & ~_DEVICES != _DENSE or keys & _META or t.is_complex():
                return False
        elif keys != expected or t.dtype is not first.dtype:
            return False
    return True


def _is_tensor(t: Any) -> bool:
    """Whether torch's functions do with it what they do with a tensor: a subclass may override them."""
    override = getattr(type(t), "__torch_function__", None)
    override = getattr(override, "__func__", override)
    return override in (Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)  # type: ignore[attr-defined]


class _Memory:
    """The predicate in C++ or in Python, chosen at the first call."""

    def __init__(self) -> None:
        self.plain: Callable[..., bool] = self._first

    def _first(self, *tensors: Any) -> bool:
        from meprop_bench.ops import node

        self.plain = node.predicate((_HARMLESS, _DENSE, _DEVICES, _META), in_python) or in_python
        return self.plain(*tensors)


memory = _Memory()
"""`memory.plain` is `in_python`, or the same in C++."""


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_mode._current_level >= 0


def unwatched() -> bool:
    """Whether nothing transforms operators, and no dispatch mode has to see them."""
    return (not torch._C._len_torch_dispatch_stack() or _only_observed()) and not transformed()


def _only_observed() -> bool:
    """Whether each dispatch mode says, by an attribute `observes`, that it changes nothing: it sees what a kernel runs
    of torch's operators, and not what the kernel does by itself.
    """
    return all(getattr(mode, "observes", False) for mode in _get_current_dispatch_mode_stack())


def undisturbed(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call a function unseen by modes for torch's functions, as torch's own backward passes are: with a default device,
    which is such a mode, scratch memory would be made elsewhere.
    """
    if not torch._C._is_torch_function_mode_enabled():
        return function(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        return function(*args, **kwargs)
