"""`MePropLinear`: an `nn.Linear` whose backward pass uses k of its n outputs.

It has the constructor, parameters and state dict of `nn.Linear`, so a checkpoint fits both ways, and adds the keywords
k, selection, sparse and kernel. The method is in `meprop_bench.ops.linear`; `nn.convert` converts whole models. For a
`k` that changes, and what tools that export or trace see, read `meprop_bench.nn.sparsified`.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meprop_bench.nn.sparsified import ChangingK
from meprop_bench.ops import kernels
from meprop_bench.ops.chosen import Selector
from meprop_bench.ops.linear import linear
from meprop_bench.ops.selection import check_selection, resolve_k

__all__ = ["MePropLinear"]

torch.fx.wrap("linear")  # one node, where a layer itself is what torch.fx traces


class MePropLinear(ChangingK, nn.Linear):
    """Linear layer trained by sparsified back propagation.

    Args:
        in_features, out_features: m and n.
        bias: whether to learn a bias; its gradient stays full.
        device, dtype: as for `nn.Linear`.
        k: outputs selected in the backward pass: an int >= 1, or a ratio of n in (0, 1]. k >= n is the dense layer.
        selection: "example", "unified", "random" or "random-unified": see `meprop_bench.ops.selection`.
        sparse: give the weight gradient as sparse rows, as `nn.Embedding(sparse=True)` does. Not under
            DistributedDataParallel, FullyShardedDataParallel, fully_shard or tensor parallel, which reduce dense
            gradients: `meprop_bench.distributed` exchanges rows.
        kernel: a name in `meprop_bench.ops.kernels.KERNELS`.

    Raises:
        ValueError: for a k, selection or kernel that does not exist.
        RuntimeError: in the forward pass, for sparse rows that would have to be reduced.

    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        k: float,
        selection: str = "example",
        sparse: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.configure(k=k, selection=selection, sparse=sparse, kernel=kernel)

    _n = 0
    """Outputs for which k was made a count."""
    choose: Selector | None = None
    """What makes a unified selection in place of this layer: several processes, see `meprop_bench.distributed`."""

    @classmethod
    def from_linear(
        cls, layer: nn.Linear, *, k: float, selection: str = "example", sparse: bool = False, kernel: str = "auto"
    ) -> Self:
        """Make a layer that shares the parameters of `layer` and copies its training flag, but not its hooks.

        Raises:
            ValueError: for a k, selection or kernel that does not exist, or if the weight or bias of `layer` is not
                a parameter but computed from others (weight_norm, parametrize, prune), which could not be shared.

        """
        method: dict[str, Any] = {"k": k, "selection": selection, "sparse": sparse, "kernel": kernel}
        return cls(layer.in_features, layer.out_features, layer.bias is not None, "meta", **method)._adopt(layer)

    def configure(self, *, k: float, selection: str, sparse: bool, kernel: str) -> None:  # type: ignore[override]
        """Set the method; it may be changed between steps, all at once here or each attribute for itself."""
        super().configure(k=k, selection=selection, kernel=kernel)
        self.sparse = sparse

    @staticmethod
    def check_method(selection: str, kernel: str) -> None:
        """See `Sparsified`."""
        check_selection(selection)
        kernels.get(kernel)

    def _resolved(self, k: float) -> int:
        self._n = self.out_features
        return resolve_k(k, self.out_features)

    def _outdated(self) -> bool:
        return self.weight.shape[0] != self._n  # neurons were removed since

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to input `(*, m)`; returns `(*, n)`."""
        if self.sparse:
            self._check_not_reduced()
        return linear(
            input, self.weight, self.bias,
            k=self._current_k(), selection=self.selection, sparse=self.sparse, kernel=self.kernel, choose=self.choose,
        )  # fmt: skip

    def _check_not_reduced(self) -> None:
        """Raise RuntimeError before rows are made that torch could not reduce over processes."""
        ddp = DistributedDataParallel._active_ddp_module
        sharded, parts = getattr(self, "_is_fsdp_managed_module", False), hasattr(self.weight, "device_mesh")
        if (ddp is None or self.weight in getattr(ddp, "reduced_beside", ())) and not sharded and not parts:
            return
        rows = torch.is_grad_enabled() and self.weight.requires_grad
        if rows and resolve_k(self.k, self.out_features) < self.out_features:
            wrapper = "FullyShardedDataParallel or fully_shard" if sharded else "DistributedDataParallel"
            wrapper = "tensor parallel" if parts and not sharded else wrapper
            raise RuntimeError(f"{wrapper} cannot reduce the sparse rows of this layer: set its sparse=False ({self})")
