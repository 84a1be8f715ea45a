"""The nodes of linear, convolutional and LSTM layers in autograd's graph, in C++ where there was a compiler at
installation.

    Python   `autograd.Function`: engine -> interpreter -> three tensors by operators -> kernel -> interpreter -> engine
    C++      engine -> kernel

The kernel of a small layer takes 10 to 30 microseconds, and the way through the interpreter as much again. What is
saved is that way alone: the nodes run the very machine code of the kernel `native`, at its address, so that gradients
have the same bits with and without them. An LSTM, whose kernel takes longer, is spared it in the forward pass alone:
its backward pass is Python's. What is not an ordinary case (other dtypes, devices, layouts and kernels, random
selections, subclasses, autocast, torch.func, torch.compile, modes that watch the operators, double backward) goes
through Python.

Compiled autograd (`torch._dynamo.compiled_autograd`) traces the nodes of a graph, which these refuse with a
NotImplementedError that names them: switch them off there.

Nobody needs them, so nothing fails without: `unavailable_reason()` says why they are not in use.
MEPROP_BENCH_NODE=python in the environment switches them off. They are compiled by `build`, never on the way: one
extension of `module.cpp`, which includes the rest, since torch's headers take most of the time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import torch
from torch import Tensor

from meprop_bench.ops.kernels import compiled
from meprop_bench.ops.node import build

__all__ = ["SWITCH", "Registration", "gradients", "load", "nothing", "predicate", "unavailable_reason"]

SWITCH = "MEPROP_BENCH_NODE"
"""The environment variable; its values are "cxx", the default, and "python"."""

Node = Callable[..., Any]
"""(tensors, *call) -> y, or None where the case is not the node's."""


def load(layer: str, plan_of: Callable[..., Any], backward: Callable[..., Any]) -> Node | None:
    """Return the function of a layer's node, or None where there is none.

    Args:
        layer: what the function takes follows from it. "linear": (x, w, b, k, selection, sparse, kernel). "conv": (x,
            w, b, stride, padding, dilation, groups, k, selection, kernel). "lstm": (x, h, c, w_ih, w_hh, b_ih, b_hh, k,
            selection, kernel), which gives y, h and c.
        plan_of: says what to do with a shape, None for a case that is not the native kernel's; called once for each.
            linear: (threads, x, w, k, selection, sparse, kernel) -> (k resolved, shares of the selection and of the
            products, bytes of scratch, whether results go past the caches). conv: (threads, sizes of x and w, stride,
            padding, dilation, groups, k, kernel, need_dx, need_dw) -> (k resolved, shares, bytes of scratch, the words
            of its `Plan`, and three tables of it). lstm: (threads, steps, batch, m, h, k, selection, kernel) ->
            (k resolved, leading dimension of the gates or 0, shares).
        backward: computes the gradients of what is not ordinary. linear: (dy, x, w, k, selection, rows, need_dx,
            need_dw, need_db). conv: (dy, x, w, stride, padding, dilation, groups, sizes of x and w when they were
            saved, k, need_dx, need_dw, need_db). lstm: (gradients of y, h and c, inputs, tape, steps, batch, k,
            selection, whether torch's operator ran, whether all is as it was saved, needs).

    """
    module, _ = _loaded()
    kernel, addresses = _KERNELS[layer]
    if module is None or compiled.load(kernel) is None:
        return None
    getattr(module, f"set_{layer}")(addresses(), plan_of, backward)
    return getattr(module, layer)  # type: ignore[no-any-return]


def nothing(*_: Any) -> None:
    """Take no case: there is no node."""


class Registration:
    """The C++ registration of a layer, or nothing; it is loaded when the first case comes that it might take.

    Args:
        layer, plan_of, backward: as for `load`.

    """

    def __init__(self, layer: str, plan_of: Callable[..., Any], backward: Callable[..., Any]) -> None:
        self._of = layer, plan_of, backward
        self.forget()

    def forget(self) -> None:
        """Be as at the beginning: the node is loaded anew, and asks anew what to do with a shape."""
        self.call: Node = self.first

    def first(self, x: Tensor, *call: Any) -> Any:
        """Be `call` until a case comes that the node might take; return None for those before."""
        cpu = isinstance(x, Tensor) and x.dtype == torch.float32 and x.device.type == "cpu"
        if not cpu or call[-1] not in ("auto", "native") or not torch.is_grad_enabled():
            return None
        self.call = load(*self._of) or nothing
        return self.call(x, *call)


def predicate(keys: tuple[int, int, int, int], in_python: Callable[..., bool]) -> Callable[..., bool] | None:
    """Return `ops.plain.in_python` in C++, which calls it for subclasses, or None where there is none.

    `keys` are the bits of those that are harmless, of "dense", of all devices, and of the meta device.
    """
    module, _ = _loaded()
    if module is None:
        return None
    module.set_keys(*keys, in_python)
    return module.plain  # type: ignore[no-any-return]


def gradients() -> Callable[[list[Tensor], bool], list[Any]] | None:
    """Return what looks where the gradients of parameters are, for `optim.table`, or None where there is none."""
    module, _ = _loaded()
    return None if module is None else module.gradients


def unavailable_reason() -> str | None:
    """Say in one line why layers run without the C++ node, or None when they use it."""
    return _loaded()[1]


def _loaded() -> tuple[Any, str | None]:
    """Return the extension and None, or None and the reason."""
    chosen = os.environ.get(SWITCH, "cxx")
    if chosen != "cxx":
        known = "it is switched off" if chosen == "python" else 'its values are "cxx" and "python"'
        return None, f"{known} ({SWITCH}={chosen})"
    if (reason := compiled.unavailable_reason()) is not None:
        return None, f"it runs the native kernel, and {reason}"
    file = build.built()
    if file is None:
        return None, build.unbuilt_reason()
    loader = ExtensionFileLoader(build.MODULE, str(file))
    spec = spec_from_file_location(build.MODULE, file, loader=loader)
    try:
        assert spec is not None
        module = module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        return None, f"{file} cannot be loaded, and has to be built anew: {error}".splitlines()[0]
    return module, None


def _linear_addresses() -> tuple[int, ...]:
    """Return what `Native` in linear.h holds."""
    from meprop_bench.ops.kernels import kept
    from meprop_bench.ops.kernels.native import example, unified
    from meprop_bench.ops.kernels.native.compiler import address
    from meprop_bench.ops.kernels.native.threads import OPENMP

    bodies = unified.SUM, unified.GATHER, unified.MULTIPLY, example.SELECT, example.SORT, example.SUMS
    return OPENMP, *bodies, *(address(f) for f in (unified.backward, example.pairs, example.products)), kept.smallest()


def _conv_addresses() -> tuple[int, ...]:
    """Return what `Native` in conv.h holds."""
    from meprop_bench.ops.kernels.native import conv
    from meprop_bench.ops.kernels.native.compiler import address
    from meprop_bench.ops.kernels.native.threads import OPENMP

    return OPENMP, conv.PIXELS, conv.MAPS, conv.IMAGES, address(conv.backward)


def _lstm_addresses() -> tuple[int, ...]:
    """Return what `Native` in lstm.h holds."""
    from meprop_bench.ops.kernels.native import recurrent_forward
    from meprop_bench.ops.kernels.native.compiler import address
    from meprop_bench.ops.kernels.native.threads import OPENMP

    bodies = recurrent_forward.ALONE, recurrent_forward.RECALL
    return OPENMP, *bodies, address(recurrent_forward.alone), address(recurrent_forward.recall)


_KERNELS: dict[str, tuple[str, Callable[[], tuple[int, ...]]]] = {
    "linear": ("meprop_bench.ops.kernels.native", _linear_addresses),
    "conv": ("meprop_bench.ops.conv.native", _conv_addresses),
    "lstm": ("meprop_bench.ops.recurrent.native", _lstm_addresses),
}
"""Layer -> the module that has to be compiled for it, and what gives the addresses in it."""
