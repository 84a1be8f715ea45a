"""What there is to convert in a model, what was converted, and whether the model uses it.

A layer can be converted where its own `forward` computes what it stands for. That is known of torch's plain classes;
but a module may read the weights of a layer inside it and never call it. torch's own that do so are known here; of all
others only a batch can tell:

    converted = convert(model, k=0.05)
    with record_calls(model) as calls:
        model(batch)
    print(converted, calls.never_ran)
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops.selection import resolve_k

__all__ = ["Calls", "Conversion", "record_calls", "survey"]

_READERS: tuple[Any, ...] = tuple(getattr(nn, name) for name in ("LinearCrossEntropyLoss",) if hasattr(nn, name))
"""Modules of torch that read the weights of layers inside them, which never run."""

_SIZES = ("out_features", "hidden_size", "embed_dim", "nf")
"""What layers call the number that k is of."""

_NO_PRODUCT = ("Embedding", "EmbeddingBag", "LayerNorm", "RMSNorm", "ParametrizationList")
"""Modules of torch whose parameters may be matrices, and are not multiplied by the module's input as such."""


class Conversion(dict[str, Any]):
    """The layers that `convert` converted, by qualified name. As a string, it is a report."""

    def __init__(self, converted: dict[str, Any], left: dict[str, str]) -> None:
        super().__init__(converted)
        self.left = left
        """Why a layer, or a parameter outside of layers, was left as it was, by qualified name."""

    @property
    def dense(self) -> dict[str, str]:
        """Why a converted layer is dense with its current k, by qualified name."""
        found = {}
        for name, layer in self.items():
            n = next((getattr(layer, size) for size in _SIZES if hasattr(layer, size)), 0)
            if n and resolve_k(layer.k, n) >= n:
                found[name] = f"k = {layer.k} keeps all of its {n}"
        return found

    def __str__(self) -> str:
        dense = self.dense
        lines = [f"{len(self)} converted, {len(self.left)} left as they were"]
        for name, layer in self.items():
            note = f"  [dense: {dense[name]}]" if name in dense else ""
            what = f"{type(layer).__name__}({layer.extra_repr()})"  # without what is inside, on lines of its own
            lines.append(f"  converted  {name or 'the model'}: {what}{note}")
        lines += [f"  left       {name or 'the model'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)

    def reasons(self) -> str:
        """Say in one line what was left and why, the most frequent reason first."""
        counted = Counter(self.left.values()).most_common()
        return "; ".join(f"{count} x {reason}" for reason, count in counted) or "it has no layers with weights"


def survey(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Yield all that has weights: qualified name, the first of several, module, and why not to convert it, or None.

    `kinds` are the classes of torch that can be converted.
    """
    readers = [module for module in model.modules() if type(module).forward in {kind.forward for kind in _READERS}]
    unused = {child for reader in readers for child in reader.modules()}
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    parts = {child for attention in attentions if _is_one(attention) for child in attention.modules()} - {*attentions}
    for name, module in model.named_modules():
        if module in parts:
            continue
        if issubclass(type(module), (*kinds, Sparsified)):
            yield name, module, _obstacle(module, kinds, module in unused)
        else:
            for own, shape in _matrices(module):
                yield f"{name}.{own}".lstrip("."), module, _parameter_left(module, shape)


def _is_one(attention: nn.MultiheadAttention) -> bool:
    """Whether attention is one layer, its projections in it, as torch has it."""
    return isinstance(attention, Sparsified) or type(attention).forward is nn.MultiheadAttention.forward


def _obstacle(layer: nn.Module, kinds: tuple[type[nn.Module], ...], unused: bool) -> str | None:
    """Say why a layer, of one of the kinds or derived from one, cannot be converted."""
    sharded = any(base.__module__.startswith("torch.distributed.") for base in type(layer).__mro__)
    lazy = isinstance(layer, nn.modules.lazy.LazyModuleMixin)
    reasons = (
        (isinstance(layer, Sparsified), "already converted"),
        (unused, "its forward never runs: the module around it reads its weight"),
        (lazy, "it has no size before its first batch: run one, then convert"),
        (parametrize.is_parametrized(layer), "its weight is computed: convert first, parametrize then"),
        (sharded, "fully_shard has changed its class: convert first, shard then"),
        (
            type(layer) not in kinds,
            f"its class {type(layer).__name__} is derived from torch's and may do something else",
        ),
        ("forward" in vars(layer), "its forward was replaced"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _matrices(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of the module's own parameters that may be factors of a matrix product."""
    if type(module).__name__ in _NO_PRODUCT and type(module).__module__.startswith("torch.nn."):
        return []
    own = ((name, p) for name, p in module._parameters.items() if p is not None)
    shapes = ((name, () if isinstance(p, nn.UninitializedParameter) else tuple(p.shape)) for name, p in own)
    return [(name, shape) for name, shape in shapes if sum(size > 1 for size in shape) > 1]


def _parameter_left(module: nn.Module, shape: tuple[int, ...]) -> str:
    """Say why a parameter of a module that is no layer to be converted is left."""
    kind = type(module)
    if kind.__module__.startswith("torch.nn.") and not isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        return f"there is no sparsified nn.{kind.__name__}"
    return f"a parameter of {kind.__name__}, {' x '.join(map(str, shape))}, and not of a layer"


class Calls:
    """Which of the converted layers of a model ran: see `record_calls`."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self._layers = layers
        self._ran: set[int] = set()

    @property
    def never_ran(self) -> list[str]:
        """Names of the converted layers whose `forward` has not run: the model uses them densely, if at all."""
        return [name for name, layer in self._layers.items() if id(layer) not in self._ran]

    def _noting(self, forward: Callable[..., Any], layer: nn.Module | None) -> Callable[..., Any]:
        """Wrap a `forward` of one layer, or one of a class, which is called with the layer first."""

        @functools.wraps(forward)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self._ran.add(id(args[0] if layer is None else layer))
            return forward(*args, **kwargs)

        return noted


@contextlib.contextmanager
def record_calls(model: nn.Module) -> Iterator[Calls]:
    """Record which converted layers run, to find those that a model never calls.

    A module that passes `layer.weight` to a function, as in Swin, BEiT and Mamba, never runs the layer, and the
    gradient stays dense. Run a batch in training mode: some modules call their layers only then
    (`nn.TransformerEncoderLayer`). Compiled models run eagerly inside this context.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Sparsified)}
    calls = Calls(layers)
    # Of the classes, so that a call is seen however it is made; and of a layer whose own was put around the class's.
    owners: set[Any] = {next(c for c in type(layer).__mro__ if "forward" in vars(c)) for layer in layers.values()}
    owners |= {layer for layer in layers.values() if "forward" in vars(layer)}
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for owner in owners:
            forward = vars(owner)["forward"]
            stack.callback(setattr, owner, "forward", forward)
            owner.forward = calls._noting(forward, owner if isinstance(owner, nn.Module) else None)
        yield calls
