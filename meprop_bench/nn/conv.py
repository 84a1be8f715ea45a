"""`MePropConv1d` and `MePropConv2d`: convolutions whose backward pass uses k positions of each feature map.

They have the constructors, parameters and state dicts of `nn.Conv1d` and `nn.Conv2d`, so a checkpoint fits both ways,
and add the keywords k, selection and kernel. The method is in `meprop_bench.ops.conv`; `nn.convert` converts whole
models, the papers' convolutional network by `convert(model, k=0.05, kinds=(nn.Conv2d,))`. For a `k` that changes, and
what tools that export or trace see, read `meprop_bench.nn.sparsified`.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from meprop_bench.nn.sparsified import ChangingK
from meprop_bench.ops.conv import check_kernel, check_selection, conv1d, conv2d

__all__ = ["MePropConv1d", "MePropConv2d"]

torch.fx.wrap("conv1d")  # one node, where a layer itself is what torch.fx traces
torch.fx.wrap("conv2d")


class _MePropConv(ChangingK, nn.modules.conv._ConvNd):
    """What the two have in common."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        k: float,
        selection: str = "example",
        kernel: str = "auto",
    ) -> None:
        torchs: Any = super().__init__  # that of nn.Conv1d or nn.Conv2d, which takes other arguments than _ConvNd's
        torchs(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.configure(k=k, selection=selection, kernel=kernel)

    @classmethod
    def from_conv(cls, layer: Any, *, k: float, selection: str = "example", kernel: str = "auto") -> Self:
        """Make a layer that shares the parameters of `layer`, and its training flag: as `MePropLinear.from_linear`."""
        dimensions = 1 if issubclass(cls, nn.Conv1d) else 2
        if layer.transposed or len(layer.kernel_size) != dimensions:
            raise ValueError(f"{layer} is not an nn.Conv{dimensions}d")
        return cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, layer.bias is not None, layer.padding_mode, "meta", k=k, selection=selection, kernel=kernel,
        )._adopt(layer)  # fmt: skip

    @staticmethod
    def check_method(selection: str, kernel: str) -> None:
        """See `Sparsified`."""
        check_selection(selection)
        check_kernel(kernel)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to input `(B, C, …)` or `(C, …)`."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        function = conv1d if len(self.kernel_size) == 1 else conv2d
        return function(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
            k=self._current_k(), selection=self.selection, kernel=self.kernel,
        )  # fmt: skip


class MePropConv1d(_MePropConv, nn.Conv1d):
    """Convolution of one dimension trained by sparsified back propagation: arguments as for `MePropConv2d`."""


class MePropConv2d(_MePropConv, nn.Conv2d):
    """Convolution of two dimensions trained by sparsified back propagation.

    Args:
        in_channels: as for `nn.Conv2d`, like all arguments up to dtype; the gradient of a bias stays full.
        k: positions selected in each map of each example: an int >= 1, or a ratio in (0, 1], as in the paper. All
            of them is exactly the dense layer; more than a map has is an error in the forward pass.
        selection: "example" or "random": see `meprop_bench.ops.conv`.
        kernel: a name in `meprop_bench.ops.conv.KERNELS`.

    Raises:
        ValueError: for a k, selection or kernel that does not exist.

    """
