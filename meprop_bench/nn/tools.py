"""What the layers of this package have in common, for the tools of torch that look at layers from outside.

torch.export, torch.onnx, torch.jit.trace     write down torch's own operators: see `meprop_bench.ops.tracing`
torch.fx, feature extraction                  one node that calls the layer, with its sparsified backward pass
torch.jit.script                              an error that names `nn.revert`: it compiles source, not layers
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Sparsified"]


class Sparsified:
    """A layer of torch whose backward pass is sparsified: comes before the class of torch among the bases."""

    _METHOD = ("_k", "_n", "_bits", "_sized_k", "selection", "sparse", "kernel", "activeness", "__module__")
    """What an instance has and a layer of torch has not."""

    def _be_one_node(self) -> None:
        """Have torch.fx take the layer for one node, as it takes those of torch, its hooks included.

        It looks at the name of the module. The instance gives this one, not the class, which is pickled under its own
        name; Dynamo looks for "torch.nn.", and is not meant.
        """
        self.__module__ = "torch.nn"

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
