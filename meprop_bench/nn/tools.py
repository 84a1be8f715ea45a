"""What the layers of this package have in common: the method, and what tools of torch see of a layer from outside.

torch.export, torch.onnx, torch.jit.trace     write down torch's own operators: see `meprop_bench.ops.graph`
torch.fx, feature extraction                  one node that calls the layer, with its sparsified backward pass
torch.jit.script                              an error that names `nn.revert`: it compiles source, not layers
"""

from __future__ import annotations

from typing import Any, NoReturn, Self

from torch import nn

from meprop_bench.ops.selection import check_k

__all__ = ["Sparsified"]


class Sparsified(nn.Module):
    """A layer of torch whose backward pass is sparsified: comes before the class of torch among the bases."""

    selection: str
    kernel: str
    _k: float

    _METHOD = ("_k", "_n", "_bits", "_sized_k", "selection", "sparse", "kernel", "activeness", "__module__")
    """What an instance has and a layer of torch has not."""

    @staticmethod
    def check(layer: Any) -> None:
        """Check that a layer of torch can become one of these; raises ValueError if not."""

    def configure(self, *, k: float, selection: str, kernel: str) -> None:
        """Set the method; it may be changed between steps, all at once here or each attribute for itself."""
        self._check(selection, kernel)
        self.k = k
        self.selection = selection
        self.kernel = kernel
        # torch.fx takes a layer for one node, hooks included, if the name of its module is torch's. The instance gives
        # this one, not the class, which is pickled under its own name; Dynamo looks for "torch.nn.", and is not meant.
        self.__module__ = "torch.nn"

    def _check(self, selection: str, kernel: str) -> None:
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
        """Share the parameters of `layer`, the very objects, and have its training flag; hooks stay with `layer`.

        Raises:
            ValueError: they are not parameters but computed from others (weight_norm, parametrize, prune), which could
                not be shared.

        """
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
        return ", ".join((super().extra_repr(), *(f"{name}={value}" for name, value in method.items())))

    def _drop_method(self) -> None:
        """Leave the instance as a layer of torch has it."""
        for name in self._METHOD:
            vars(self).pop(name, None)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse torch.jit.script, which would put what this returns into the model itself.

        Raises:
            RuntimeError: always.

        """
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: "
            "script meprop_bench.nn.revert(copy.deepcopy(model)), or use torch.jit.trace or torch.export"
        )
