"""A simplified model by itself: what it costs, layer by layer, and how it is saved, loaded and exported.

    FLOPs of a layer  =  2 · entries of its weight matrices · positions        a multiply-add counts as two

Positions are how often the matrices are applied for one example: once for a vector through a linear layer (2 m n), T
times for T time steps, H W times for a convolution. `describe` finds them by running one batch through the model. A
look-up (embedding) costs none, and biases and activation functions are left out. Before and after simplification, the
same names stand for the same layers, so two descriptions compare line by line.

Latency is measured by whoever has a clock: `describe` takes a function that times a call, and has it time each layer on
the input that reaches it.

A simplified model has sizes that its class may not be able to make, so `save` stores the module itself. `load` rebuilds
only layers of torch and of this package, and classes the caller names: a file cannot run code of its own choosing.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.optional import unavailable_reason

__all__ = ["LayerCost", "describe", "export_onnx", "load", "save"]

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer has and does."""

    name: str
    kind: str
    neurons: int  # outputs: rows of a matrix, channels, or the hidden size of each cell
    parameters: int
    flops: int  # for one example
    latency_s: float | None = None
    """Of one call on the batch given, in evaluation mode; None if it was not timed."""


def describe(model: nn.Module, *inputs: Any, timer: Timer | None = None) -> list[LayerCost]:
    """Describe all layers that have parameters, in the order of registration.

    Args:
        model: any module; run in evaluation mode and put back.
        *inputs: one batch, as the model takes it; B is the length of the first.
        timer: times a call, e.g. the median of several runs.

    Raises:
        ValueError: a layer is not reached by this input.

    """
    layers = {n: m for n, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None}
    calls: dict[nn.Module, partial[Any]] = {}
    positions: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] = partial(module, *args, **kwargs)
        positions[module] += _positions(module, output)

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers.values()]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(*inputs)
            for handle in handles:
                handle.remove()
            missed = [name for name, layer in layers.items() if layer not in calls]
            if missed:
                raise ValueError(f"this input does not reach {', '.join(missed)}: give one that does")
            return [
                _cost(n, layer, positions[layer], len(inputs[0]), None if timer is None else timer(calls[layer]))
                for n, layer in layers.items()
            ]
    finally:
        for handle in handles:
            handle.remove()


def _cost(name: str, layer: nn.Module, positions: int, batch: int, latency_s: float | None) -> LayerCost:
    parameters = list(layer.parameters(recurse=False))
    entries = sum(p.numel() for p in parameters if p.dim() > 1)
    neurons = layer.hidden_size if isinstance(layer, nn.RNNBase) else parameters[0].shape[0]
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        entries, neurons = 0, layer.embedding_dim
    size, flops = sum(p.numel() for p in parameters), 2 * entries * positions // batch
    return LayerCost(name, type(layer).__name__, neurons, size, flops, latency_s)


def _positions(layer: nn.Module, output: Any) -> int:
    """Return how often the layer applied its matrices to the whole batch."""
    if isinstance(layer, nn.RNNBase):
        y = output[0]
        data = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else cast(Tensor, y)
        return data.numel() // data.shape[-1]
    y = cast(Tensor, output)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return y.numel() // layer.out_channels
    return y.numel() // y.shape[-1]


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a model, sizes and all, on the CPU and without hooks; a model that is being simplified stays as it is."""
    twin = _without_hooks(model).cpu()
    for module in twin.modules():
        if isinstance(module, nn.RNNBase) and hasattr(module, "activeness"):
            module.activeness = None
    torch.save(twin, path)


def load(path: str | os.PathLike[str], *, trusted: Iterable[Callable[..., Any]] = ()) -> nn.Module:
    """Load a model that `save` wrote, in the training mode it had.

    Args:
        path: the file.
        trusted: classes and functions it may use besides torch's layers and this package's, e.g. your model's.

    Raises:
        ValueError: the file uses something else.

    """
    allowed = list(trusted)
    known = {f"{item.__module__}.{item.__qualname__}" for item in allowed}
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        if name in known:
            continue
        module, _, attribute = name.rpartition(".")
        found = None
        if module.startswith(("torch.nn.modules.", "meprop_bench.")):
            found = getattr(importlib.import_module(module), attribute, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ValueError(f"{os.fspath(path)} uses {name}: if you trust the file, give it to load as trusted=[…]")
        allowed.append(found)
    with torch.serialization.safe_globals(cast("list[Any]", allowed)):
        return cast(nn.Module, torch.load(path, weights_only=True))


def export_onnx(model: nn.Module, path: str | os.PathLike[str], *inputs: Tensor) -> None:
    """Export a model in evaluation mode to ONNX.

    The first dimension of each input is the batch, of any size; the others are what they are here, time among them.
    (The exporter warns that an LSTM may hold on to this batch size. An initial state of zeros does not: the exported
    model makes it from the size of its input.)

    Raises:
        ValueError: the package onnx is not installed, or cannot be imported.

    """
    if (reason := unavailable_reason("onnx")) is not None:
        raise ValueError(f'ONNX export needs the package onnx, which {reason}: install "meprop-bench[onnx]"')
    twin = _without_hooks(model).eval()
    names = [f"input{i}" for i in range(len(inputs))]
    # The exporter built on TorchScript: it needs onnx alone, and keeps an LSTM one operator instead of T copies of it.
    with torch.no_grad():
        torch.onnx.export(
            twin, inputs, os.fspath(path), input_names=names, output_names=["output"],
            dynamic_axes={name: {0: "batch"} for name in (*names, "output")}, dynamo=False,
        )  # fmt: skip


def _without_hooks(model: nn.Module) -> nn.Module:
    """Copy a model without its hooks, and whatever they hold: as a copy of each we hand in an empty dictionary."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            memo[id(hooks)] = OrderedDict()
    return copy.deepcopy(model, memo)
