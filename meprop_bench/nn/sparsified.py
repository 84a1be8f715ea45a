"""What the layers of this package have in common: the method, of which k may change, and what tools of torch see.

torch.export, torch.onnx, torch.jit.trace     write down torch's own operators: see `meprop_bench.ops.graph`
torch.fx, feature extraction                  one node that calls the layer, with its sparsified backward pass
torch.jit.script                              an error that names `nn.revert`: it compiles source, not layers

*k may change* while training, also under `torch.compile`. Dynamo takes a number on a module for a constant and would
compile anew for each value, but the size of a tensor only until it first differs, and then as a variable of the graph.
So a layer holds its k as the size of an empty tensor, too: of all changes only the first compiles again (and the first
to k >= n, where the graph is that of the dense layer, and the first from a count to a ratio).

    count k      size = k                    a linear layer, which knows its n, makes any k a count
    ratio k      size = k · 2^bits           a convolution, whose maps have the size that their input gives them

A ratio is held exactly: a float is 53 binary digits, which are all there with bits = 62 down to k = 2^-10 (and bits is
10 more for each factor of 2^10 below, which is a constant to Dynamo). The graph divides by 2^bits, which is exact, too,
and counts what the ratio means as `resolve_k` does: it keeps as many as the same layer that is not compiled.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, NoReturn, Self

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from meprop_bench.ops.graph import is_tracing
from meprop_bench.ops.selection import check_k

__all__ = ["ChangingK", "Sparsified"]

_LEAST = 2.0**-60
"""A smaller ratio keeps one entry of whatever there is, as this one does."""


class Sparsified(nn.Module):
    """A layer of torch whose backward pass is sparsified: comes before the class of torch among the bases."""

    selection: str
    kernel: str
    _k: float

    _METHOD = (
        "_k", "_n", "_bits", "_sized_k", "selection", "sparse", "kernel", "choose", "activeness", "__module__",
    )  # fmt: skip
    """What an instance has and a layer of torch has not."""

    @staticmethod
    def check(layer: Any) -> None:
        """Check that a layer of torch can become one of these; raises ValueError if not."""

    def configure(self, *, k: float, selection: str, kernel: str) -> None:
        """Set the method; it may be changed between steps, all at once here or each attribute for itself."""
        self.check(self)
        self.check_method(selection, kernel)
        self.k = k
        self.selection = selection
        self.kernel = kernel
        # torch.fx takes a layer for one node, hooks included, if the name of its module is torch's. The instance gives
        # this one, not the class, which is pickled under its own name; Dynamo looks for "torch.nn.", and is not meant.
        self.__module__ = "torch.nn"

    @staticmethod
    def check_method(selection: str, kernel: str) -> None:
        """Raise ValueError if layers of this kind have no such selection, or no such kernel."""
        raise NotImplementedError

    @property
    def k(self) -> float:
        """What is selected in the backward pass, an int or a ratio, as it was given."""
        return self._k

    @k.setter
    def k(self, k: float) -> None:
        check_k(k)
        self._set_k(k)

    def _set_k(self, k: float) -> None:
        self._k = k

    def _adopt(self, layer: nn.Module) -> Self:
        """Share the parameters of `layer`, and have its training flag; ValueError if they are computed from others."""
        if set(layer._parameters) != {"weight", "bias"}:
            raise ValueError(f"parameters of {layer} are computed from others: take a plain layer, then wrap it")
        for name, parameter in layer._parameters.items():
            self.register_parameter(name, parameter)
        return self.train(layer.training)

    def extra_repr(self) -> str:
        """Describe the layer as torch does, and the method."""
        method: dict[str, Any] = {
            name: getattr(self, name) for name in ("k", "selection", "sparse", "kernel") if hasattr(self, name)
        }
        if method.get("kernel") == "auto":
            del method["kernel"]
        parts = (super().extra_repr(), *(f"{name}={value}" for name, value in method.items()))
        return ", ".join(part for part in parts if part)

    def _drop_method(self) -> None:
        """Leave the instance as a layer of torch has it."""
        for name in self._METHOD:
            vars(self).pop(name, None)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse torch.jit.script, which would put what this returns into the model itself."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: "
            "script meprop_bench.nn.revert(copy.deepcopy(model)), or use torch.jit.trace or torch.export"
        )


class ChangingK(Sparsified):
    """A layer whose k is read within `forward` by `_current_k`."""

    _sized_k: torch.Tensor
    _bits: int

    def _set_k(self, k: float) -> None:
        held = self._resolved(k)
        if isinstance(held, Integral):
            size, bits = int(held), 0
        else:
            held = max(float(held), _LEAST)
            bits = 62 + max(0, -math.frexp(held)[1]) // 10 * 10
            size = int(math.ldexp(held, bits))
        # One more: sizes 0 and 1 are always constants.
        self._k, self._bits, self._sized_k = k, bits, torch.empty(size + 1, 0)

    def _resolved(self, k: float) -> float:
        """Return what the layer's function gets of a k that was given."""
        return k

    def _outdated(self) -> bool:
        """Whether what was resolved is of another layer than this is by now."""
        return False

    def _current_k(self) -> float:
        """Return k; in a graph, as one of its variables."""
        if not is_dynamo_compiling() or is_tracing() or self._outdated():
            return self._k
        size = self._sized_k.shape[0] - 1
        return size / 2.0**self._bits if self._bits else size
