"""`MePropConv1D`: the linear layer of transformers' GPT-2, whose backward pass uses k of its n outputs.

    y = x V + b        V (m, n), the transpose of what a linear layer has

The kernels gather rows of W = Vᵀ, `(n, m)`, and make a dW of that shape. Were V laid out row by row, each of these rows
would be strided, and each step would transpose V for the kernel and dW for V, which costs more than a small k saves. So
a layer that is converted has V laid out column by column: the same numbers in the same shape, under the same name in
its state dict, whose transpose is contiguous; dW has that layout, too, and so has what an optimizer makes like V. What
is computed is exactly `ops.linear` of Vᵀ. `nn.revert` lays V out by rows again. Do both before an optimizer's first
step and before anything flattens parameters (FSDP); safetensors takes such a V after `.contiguous()`.

Its base is a class of another library, which is not loaded for it: as long as no one has loaded transformers, nothing
can be one. So the class is made where it is first needed.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from torch import Tensor, nn

from meprop_bench.nn.linear import MePropLinear
from meprop_bench.nn.sparsified import ChangingK
from meprop_bench.ops.graph import is_tracing
from meprop_bench.ops.linear import linear
from meprop_bench.ops.selection import resolve_k

__all__ = ["TransposedLinear", "kinds"]

_MODULE = "transformers.pytorch_utils"
_NAME = "MePropConv1D"


class TransposedLinear(ChangingK):
    """What comes before transformers' class among the bases."""

    nf: int
    nx: int
    weight: Tensor
    bias: Tensor

    check_method = staticmethod(MePropLinear.check_method)

    def __init__(self, nf: int, nx: int, *, k: float, selection: str = "example", kernel: str = "auto") -> None:
        super().__init__(nf, nx)
        self.configure(k=k, selection=selection, kernel=kernel)

    def configure(self, *, k: float, selection: str, kernel: str) -> None:
        """Set the method; it may be changed between steps, all at once here or each attribute for itself."""
        super().configure(k=k, selection=selection, kernel=kernel)
        if not self.weight.t().is_contiguous():
            self.weight.data = self.weight.data.t().contiguous().t()

    def _drop_method(self) -> None:
        super()._drop_method()
        self.weight.data = self.weight.data.contiguous()

    def _resolved(self, k: float) -> int:
        return resolve_k(k, self.nf)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x `(*, m)`; returns `(*, n)`."""
        if is_tracing():
            return super().forward(x)  # type: ignore[no-any-return]
        return linear(x, self.weight.t(), self.bias, k=self._current_k(), selection=self.selection, kernel=self.kernel)

    __repr__ = nn.Module.__repr__

    def extra_repr(self) -> str:
        """Describe the layer as transformers does, and the method."""
        return f"nf={self.nf}, nx={self.nx}, {super().extra_repr()}"


def kinds() -> dict[type[nn.Module], Any]:
    """Return transformers' Conv1D and what becomes of it, if that library is loaded."""
    plain = getattr(sys.modules.get(_MODULE), "Conv1D", None)
    return {} if plain is None else {plain: _derived(plain)}


@functools.cache
def _derived(plain: type[nn.Module]) -> type[nn.Module]:
    about = "Linear layer of transformers' GPT-2, trained by sparsified back propagation; k as for `MePropLinear`."
    return type(_NAME, (TransposedLinear, plain), {"__module__": __name__, "__doc__": about})


def __getattr__(name: str) -> Any:
    """Return the class, as who unpickles a layer asks for it."""
    if name != _NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _derived(importlib.import_module(_MODULE).Conv1D)
