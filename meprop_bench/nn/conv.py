"""`MePropConv1d` and `MePropConv2d`: convolutions whose backward pass keeps k positions of each feature map.

They have the constructors, parameters and state dicts of `nn.Conv1d` and `nn.Conv2d`, so a checkpoint fits both ways,
and add the keywords k, selection and kernel. The method is in `meprop_bench.ops.conv`; `nn.convert` converts whole
models, the papers' convolutional network by `convert(model, k=0.05, kinds=(nn.Conv2d,))`. `k` may change while
training, also under `torch.compile`: see `meprop_bench.nn.k`. Exported or traced, they are torch's: see
`meprop_bench.nn.tools`.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from meprop_bench.nn.k import ChangingK
from meprop_bench.nn.tools import Sparsified
from meprop_bench.ops.conv import check_kernel, check_selection, conv1d, conv2d
from meprop_bench.ops.selection import check_k

__all__ = ["MePropConv1d", "MePropConv2d"]

torch.fx.wrap("conv1d")  # one node, where a layer itself is what torch.fx traces
torch.fx.wrap("conv2d")


class _Conv(Sparsified, ChangingK, nn.modules.conv._ConvNd):
    """What the two have in common."""

    @classmethod
    def from_conv(cls, layer: Any, *, k: float, selection: str = "example", kernel: str = "auto") -> Self:
        """Make a layer that shares the parameters of `layer`, the very objects, and has its training flag.

        Hooks stay with `layer`.

        Raises:
            ValueError: for a k, selection or kernel that does not exist, or if the weight or bias of `layer` is not
                a parameter but computed from others (weight_norm, parametrize, prune), which could not be shared.

        """
        if set(layer._parameters) != {"weight", "bias"}:
            raise ValueError(f"parameters of {layer} are computed from others: take a plain layer, then wrap it")
        if layer.transposed or len(layer.kernel_size) != cls._dimensions():
            raise ValueError(f"{layer} is not an nn.Conv{cls._dimensions()}d")
        make: Any = cls  # the constructors of the two are alike
        new = make(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, layer.bias is not None, layer.padding_mode, "meta", k=k, selection=selection, kernel=kernel,
        )  # fmt: skip
        for name, parameter in layer._parameters.items():
            new.register_parameter(name, parameter)
        return cast(Self, new.train(layer.training))

    @classmethod
    def _dimensions(cls) -> int:
        return 1 if issubclass(cls, nn.Conv1d) else 2

    def configure(self, *, k: float, selection: str, kernel: str) -> None:
        """Set the method; it may be changed between steps, all at once here or each attribute for itself."""
        check_selection(selection)
        check_kernel(kernel)
        self.k = k
        self.selection = selection
        self.kernel = kernel
        self._be_one_node()

    @property
    def k(self) -> float:
        """Positions kept, an int or a ratio, as it was given."""
        return self._k

    @k.setter
    def k(self, k: float) -> None:
        check_k(k)
        self._set_k(k, k)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to input `(B, C, …)` or `(C, …)`."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        function = conv1d if len(self.kernel_size) == 1 else conv2d
        return function(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            k=self._current_k(),
            selection=self.selection,
            kernel=self.kernel,
        )

    def extra_repr(self) -> str:
        """Describe the layer as `nn.Conv2d` does, and the method."""
        rest = "" if self.kernel == "auto" else f", kernel={self.kernel}"
        layer = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{layer}, k={self.k}, selection={self.selection}{rest}"


class MePropConv1d(_Conv, nn.Conv1d):
    """Convolution of one dimension trained by sparsified back propagation: arguments as for `MePropConv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
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
        nn.Conv1d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype,
        )  # fmt: skip
        self.configure(k=k, selection=selection, kernel=kernel)


class MePropConv2d(_Conv, nn.Conv2d):
    """Convolution of two dimensions trained by sparsified back propagation.

    Args:
        in_channels: as for `nn.Conv2d`, like all arguments up to dtype.
        out_channels: N, the number of maps.
        kernel_size: taps, kh and kw.
        stride: an int, or for height and width.
        padding: an int, for height and width, "valid" or "same".
        dilation: an int, or for height and width.
        groups: G.
        bias: learn a bias; its gradient stays full.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: where the parameters are.
        dtype: of the parameters.
        k: positions kept in each map of each example: an int >= 1, or a ratio of the positions in (0, 1], as the paper
            has it. All of them is exactly the dense layer; more than a map has is an error in the forward pass.
        selection: "example" or "random": see `meprop_bench.ops.conv`.
        kernel: a name in `meprop_bench.ops.conv.KERNELS`.

    Raises:
        ValueError: for a k, selection or kernel that does not exist.

    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
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
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype,
        )  # fmt: skip
        self.configure(k=k, selection=selection, kernel=kernel)
