"""`FusedMLP`: a perceptron that computes its loss and its gradients itself, without autograd.

    loss = model.loss(x, y)         forward pass, cross entropy           F.cross_entropy(model(x), y)
    model.backward(loss)            gradients, into `.grad`               loss.backward()
    model.step(x, y, optimizer)     both, `optimizer.step()` and `optimizer.zero_grad()`

Up to rounding they compute the same as the expressions on the right, in less time: autograd's graph costs as much as
the arithmetic of a small layer. In all other respects the model is an `nn.Sequential` of its layers: `model(x)` is
differentiable, the state dict is the same, `nn.convert` and schedules of k apply, and so does any optimizer.

Other features hook into autograd's graph. Those that would be skipped here are refused, in one line that names them:
hooks, autocast, torch.func, anomaly detection, modes that watch operators, computed parameters, an input that needs a
gradient itself, any other layer. `model(x)` and `loss.backward()` support all of them. One case is not detected: a
wrapper that waits for autograd's gradients. Around this model, DistributedDataParallel would let each process train by
itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torchs
from torch.optim import Optimizer

from meprop_bench.nn.convert import convert
from meprop_bench.nn.linear import MePropLinear
from meprop_bench.ops.graph import break_graph
from meprop_bench.ops.perceptron import ACTIVATIONS, Activation, Pass, gradients, layer_of, run
from meprop_bench.ops.plain import memory, undisturbed, unwatched

__all__ = ["FusedMLP"]

_MODULES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
_INSTEAD = "take model(x) and loss.backward() for that"


class _Kept(NamedTuple):
    """A forward pass whose gradients have not been computed, and what tells whether they still can be."""

    done: Pass
    parameters: list[tuple[Tensor, Tensor | None]]  # weight and bias of each layer
    versions: list[tuple[Tensor, int]]


class FusedMLP(nn.Sequential):
    """A multilayer perceptron for classification that trains without autograd: see the module.

    Its layers are called `linear0`, `relu0`, `linear1`, ..., `output`.

    Args:
        widths: inputs, hidden neurons layer by layer, classes: `FusedMLP(784, 500, 500, 10)`.
        activation: behind each hidden layer: "relu", "tanh", "sigmoid" or "gelu".
        k: outputs selected in the backward pass of each hidden layer, as for `MePropLinear` [default: dense layers].
        selection, sparse, kernel: as for `MePropLinear`.
        bias, device, dtype: as for `nn.Linear`.

    Raises:
        ValueError: for fewer than two widths, an activation that does not exist, a k without hidden layers, or as
            `convert`.

    """

    _kept: _Kept | None = None

    def __init__(
        self,
        *widths: int,
        activation: str = "relu",
        k: float | None = None,
        selection: str = "example",
        sparse: bool = False,
        kernel: str = "auto",
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if activation not in _MODULES:
            raise ValueError(f"activation must be one of {', '.join(_MODULES)}, not {activation!r}")
        if len(widths) < 2 or not all(isinstance(width, int) for width in widths):
            raise ValueError(f"FusedMLP takes the inputs, the hidden neurons and the classes as integers, not {widths}")
        if k is not None and len(widths) == 2:
            raise ValueError("FusedMLP: k is of hidden layers, and there are none")
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(len(widths) - 2):
            modules[f"linear{i}"] = nn.Linear(widths[i], widths[i + 1], bias, device, dtype)
            modules[f"{activation}{i}"] = _MODULES[activation]()
        modules["output"] = nn.Linear(widths[-2], widths[-1], bias, device, dtype)
        super().__init__(modules)
        if k is not None:
            convert(self, k=k, selection=selection, sparse=sparse, kernel=kernel)

    @classmethod
    def from_modules(cls, model: nn.Sequential) -> Self:
        """Make a FusedMLP that shares the modules of a stack, such as `models.mlp.MLP`, converted or not.

        The stack consists of linear layers, each optionally followed by an activation (`nn.ReLU`, `nn.Tanh`,
        `nn.Sigmoid`, `nn.GELU`), and may begin with an `nn.Flatten`. Names, and so the state dict, stay the same.

        Raises:
            ValueError: for any other model, or one with hooks.

        """
        fused = cls.__new__(cls)
        if not isinstance(model, nn.Sequential):
            raise ValueError(f"a FusedMLP is made of an nn.Sequential, not of {type(model).__name__}")
        nn.Sequential.__init__(fused, OrderedDict(model._modules))
        fused.training = model.training
        try:
            _read(model)
        except _Refused as refused:
            raise ValueError(f"a FusedMLP cannot be made of this {type(model).__name__}: {refused}") from None
        return fused

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the mean cross entropy of a batch, and save what its gradients need, unless gradients are disabled.

        Args:
            x: input `(B, m)`, or a shape that a leading `nn.Flatten` turns into this.
            y: classes, int64 `(B,)`; examples whose class is -100 do not count.

        Returns:
            a scalar without a graph, for `backward`.

        Raises:
            IndexError: a label is not a class.
            ValueError: for shapes or dtypes that do not fit, or as `ops.linear` for a kernel.
            RuntimeError: for a feature that a step without autograd would skip: see the module.

        """
        if torch.compiler.is_compiling():
            return cast(Tensor, break_graph(self._loss, x, y))
        return undisturbed(self._loss, x, y)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        vars(self)["_kept"] = None
        if not torch.is_grad_enabled():
            return F.cross_entropy(self(x), y)
        try:
            flatten, parts = _read(self)
            _check_surroundings(x, parts)
        except _Refused as refused:
            raise RuntimeError(f"FusedMLP: {refused}; {_INSTEAD}") from None
        if flatten is not None:
            x = flatten(x)
        _check_batch(x, y)
        layers, parameters = [], []
        batch, width = x.shape
        needed = False  # whether something below has to be trained
        read = [x, y]
        for linear, activation in parts:
            own = linear._parameters
            w, b = own["weight"], own["bias"]
            width = _checked_width(w, b, width)
            needs = needed, w.requires_grad, b is not None and b.requires_grad
            if needed:
                read.append(w)
            needed = any(needs)
            method = None
            if type(linear) is MePropLinear:
                method = linear.k, linear.selection, linear.sparse, linear.kernel
            layers.append(layer_of(w, b, activation, needs, batch, method))
            parameters.append((w, b))
        done = run(x, y.contiguous(), layers)
        if needed:
            versions = [(t, t._version) for t in read if not t.is_inference()]  # those of inference have none
            vars(self)["_kept"] = _Kept(done, parameters, versions)
        return done.loss

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients for the loss that `loss` has just returned, and add them to `.grad`.

        Raises:
            RuntimeError: for any other loss (an older one, one that was scaled, one without gradients), or if the
                batch or a weight has been changed in place since.

        """
        if torch.compiler.is_compiling():
            break_graph(self._backward, loss)
        else:
            undisturbed(self._backward, loss)

    def _backward(self, loss: Tensor) -> None:
        kept, vars(self)["_kept"] = self._kept, None
        if kept is None or loss is not kept.done.loss:
            raise RuntimeError(
                "FusedMLP.backward takes the very loss that model.loss(x, y) returned last, once, and computed with"
                " gradients enabled and parameters to train"
            )
        for tensor, version in kept.versions:
            if tensor._version != version:
                raise RuntimeError(
                    "FusedMLP.backward: the batch or a weight was changed in place since model.loss(x, y)"
                )
        for (w, b), (_, dw, db) in zip(kept.parameters, gradients(kept.done), strict=True):
            if dw is not None:
                _accumulate(w, dw)
            if b is not None and db is not None:
                _accumulate(b, db)

    def step(self, x: Tensor, y: Tensor, optimizer: Optimizer) -> Tensor:
        """Take a training step on a batch, and drop the gradients; returns the loss before it.

        Arguments and errors are those of `loss`. The optimizer is any that needs no closure.
        """
        loss = self.loss(x, y)
        self.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def __getitem__(self, index: Any) -> Any:
        """Return a module, or an `nn.Sequential` of several: part of a perceptron is no perceptron."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict([*self._modules.items()][index]))
        return super().__getitem__(index)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what `loss` keeps for `backward`."""
        return {name: value for name, value in vars(self).items() if name != "_kept"}


class _Refused(Exception):
    """Why a step without autograd would compute something else."""


_KINDS: tuple[Any, ...] = (nn.Linear, MePropLinear, nn.Flatten, *_MODULES.values())
_FORWARDS: dict[type[nn.Module], Any] = {kind: kind.forward for kind in _KINDS}
"""What is known to be computed; a tool may have put something else in its place."""
_NAMES = {kind: name for name, kind in _MODULES.items()}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _read(stack: nn.Sequential) -> tuple[nn.Module | None, list[tuple[Any, Activation | None]]]:
    """Return what stands before the linear layers of a stack, and these, each with the activation behind it.

    On the path of every step, which takes some hundred microseconds in all.
    """
    if torchs._has_any_global_hook():  # type: ignore[no-untyped-call]
        raise _Refused("there are hooks of all modules")
    if type(stack).forward is not nn.Sequential.forward:
        raise _Refused(f"{type(stack).__name__} has a forward of its own")
    _check_untouched("the model", vars(stack))
    flatten: nn.Module | None = None
    parts: list[tuple[Any, Activation | None]] = []
    for name, module in stack._modules.items():
        kind: Any = type(module)
        if kind.forward is not _FORWARDS.get(kind):
            found = f"{kind.__module__}.{kind.__qualname__}"
            raise _Refused(f"{name} is {found}, not a plain linear layer or one of {', '.join(_MODULES)}")
        _check_untouched(name, vars(module))
        if kind is nn.Linear or kind is MePropLinear:
            _check_parameters(name, module._parameters)
            if kind is MePropLinear and module.choose is not None:
                raise _Refused(f"{name} selects together with other processes")
            parts.append((module, None))
        elif kind is nn.Flatten and flatten is None and not parts:
            flatten = module
        elif kind is not nn.Flatten and parts and parts[-1][1] is None:
            tanh = kind is nn.GELU and module.approximate == "tanh"
            parts[-1] = parts[-1][0], ACTIVATIONS["gelu_tanh" if tanh else _NAMES[kind]]
        else:
            raise _Refused(f"{name}, {kind.__name__}, does not stand directly behind a linear layer")
    if not parts:
        raise _Refused("it has no linear layers")
    return flatten, parts


def _check_untouched(name: str, own: dict[str, Any]) -> None:
    """Check that a module, by what its instance holds, computes what its class does, and that nobody looks on."""
    forward, before, backward, before_backward = _HOOKS
    if own[forward] or own[before] or own[backward] or own[before_backward]:
        raise _Refused(f"{name} has a hook, which would not be called")
    if "forward" in own:
        raise _Refused(f"the forward of {name} was replaced")


def _check_parameters(name: str, parameters: Mapping[str, Tensor | None]) -> None:
    if len(parameters) != 2 or parameters.get("weight") is None or "bias" not in parameters:
        raise _Refused(f"parameters of {name} are computed from others")
    for parameter in parameters.values():
        if parameter is None:
            continue
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise _Refused(f"a parameter of {name} has a hook, which would not be called")
        if not parameter.is_leaf:
            raise _Refused(f"a parameter of {name} is computed from others")


def _check_surroundings(x: Tensor, parts: list[tuple[Any, Activation | None]]) -> None:
    """Check that nothing changes, or has to see, what operators do."""
    if torch._C._is_any_autocast_enabled():
        raise _Refused("it runs without autocast")
    if not unwatched():
        raise _Refused("torch.func, forward-mode differentiation or a mode that watches operators is at work")
    if torch.is_anomaly_enabled():
        raise _Refused("anomaly detection needs autograd's graph")
    parameters = (p for layer, _ in parts for p in layer._parameters.values())
    if not memory.plain(x, *parameters) or not x.is_floating_point():
        raise _Refused("x and the parameters must be plain tensors of one floating-point dtype and on one device")
    if x.requires_grad:
        raise _Refused("x needs a gradient itself")


def _check_batch(x: Tensor, y: Tensor) -> None:
    if not memory.plain(y) or y.device != x.device:
        raise ValueError(f"FusedMLP: y must be a tensor on {x.device}, and nothing more")
    if x.dim() != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"FusedMLP takes x (B, m) and y (B,), not {tuple(x.shape)} and {tuple(y.shape)}")
    if y.dtype != torch.int64:
        raise ValueError(f"FusedMLP takes the classes y as int64 numbers, not {y.dtype}: {_INSTEAD}")


def _checked_width(w: Tensor, b: Tensor | None, width: int) -> int:
    """Return how many numbers a layer makes of so many. Compiled code reads what it is given, so this has to look."""
    shape = w.shape
    if len(shape) != 2 or shape[1] != width or (b is not None and b.shape != shape[:1]):
        found = None if b is None else tuple(b.shape)
        raise ValueError(f"FusedMLP: weight {tuple(shape)} and bias {found} of a layer do not go with {width} inputs")
    return shape[0]


def _accumulate(parameter: Tensor, grad: Tensor) -> None:
    """Add to a parameter's gradient as autograd does, dense or rows, each to each."""
    before = parameter.grad
    if before is None:
        parameter.grad = grad
        return
    with torch.no_grad():
        if before.is_sparse and not grad.is_sparse:
            parameter.grad = grad + before
        else:
            before += grad
