"""Turn layers of a model into those that are trained by sparsified back propagation, in place.

A layer's class is changed, not the layer: its parameters, hooks, training flag and every reference to it (a second
place in the model, an optimizer, a plain list) stay what they were. `torch.nn.utils.parametrize` changes modules in the
same way.

Which layers: those whose class is exactly one of `kinds`, by default `nn.Linear` alone; `_KINDS` is the table of what
there is. A subclass has its own idea of what it does, and two of torch's show why that matters: the output projection
of `nn.MultiheadAttention` is a subclass whose forward is never called, so that it would stay dense without a word, and
a parametrized layer has a class made for it. (Parametrize after converting.)

The papers leave the output layer dense: it has few neurons, and its gradient is the error itself. By default it is
taken to be the last linear layer, of any class, in the order of registration, which is `model.modules()`; layers of
other kinds are all turned. Where that is wrong, and wherever else, a filter decides:

    convert(model, k=0.05, filter=lambda module, name: name.startswith("encoder."))

Kinds that want different keywords are turned one call after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from meprop_bench.nn.conv import MePropConv1d, MePropConv2d
from meprop_bench.nn.linear import MePropLinear
from meprop_bench.nn.recurrent import MePropGRU, MePropLSTM, MePropRNN

__all__ = ["convert"]


class _Kind(NamedTuple):
    """How one kind of layer is turned."""

    target: Any
    """What its class becomes: a subclass with `configure(*, k, …)`, which takes k and the keywords below."""
    sizes: tuple[int, ...]
    """Arguments with which one can be made, only to check the keywords."""
    keywords: frozenset[str]
    """Which of the keywords of `convert` it takes, besides k."""
    check: Callable[[Any], None] = lambda layer: None
    """Raises ValueError for a layer of this kind that cannot be turned."""


_KINDS: dict[type[nn.Module], _Kind] = {
    nn.Linear: _Kind(MePropLinear, (1, 1), frozenset({"selection", "sparse", "kernel"})),
    nn.Conv1d: _Kind(MePropConv1d, (1, 1, 1), frozenset({"selection", "kernel"})),
    nn.Conv2d: _Kind(MePropConv2d, (1, 1, 1), frozenset({"selection", "kernel"})),
    nn.LSTM: _Kind(MePropLSTM, (1, 1), frozenset({"selection", "kernel"}), MePropLSTM.check),
    nn.GRU: _Kind(MePropGRU, (1, 1), frozenset({"selection", "kernel"}), MePropGRU.check),
    nn.RNN: _Kind(MePropRNN, (1, 1), frozenset({"selection", "kernel"}), MePropRNN.check),
}

_DEFAULTS = {"selection": "example", "sparse": False, "kernel": "auto"}
"""The keywords besides k; one with its default is not asked for, hence no error where it does not apply."""


def convert(
    model: nn.Module,
    *,
    k: float,
    selection: str = "example",
    sparse: bool = False,
    kernel: str = "auto",
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
    filter: Callable[[nn.Module, str], bool] | None = None,
) -> dict[str, Any]:
    """Turn the layers of `model` that are of one of the `kinds` into those with a sparsified backward pass.

    Args:
        model: any module; changed in place.
        k: entries kept, as the kind of layer understands it: of the outputs of `nn.Linear`, of the positions of a map
            of `nn.Conv2d`. An int >= 1, or a ratio in (0, 1].
        selection: as for the layers turned, e.g. `MePropLinear`.
        sparse: as for `MePropLinear`.
        kernel: as for the layers turned.
        kinds: which classes of layers.
        filter: called with each layer that can be turned and its qualified name; turned are those for which it is true.
            By default all but the output layer.

    Returns:
        the layers that were turned, by qualified name; one that is used in several places is under the first.

    Raises:
        ValueError: for a kind that cannot be turned, a keyword that one of the kinds does not take, a k, selection or
            kernel that does not exist, a layer that cannot be turned (an LSTM with projections), or if the model itself
            is a linear layer, to be turned, and no filter says what is wanted. Nothing is changed then.

    """
    given = {"selection": selection, "sparse": sparse, "kernel": kernel}
    keywords = _check(kinds, k, given)
    candidates = _candidates(model, kinds, spare_output=filter is None)
    turned: dict[str, Any] = {name: layer for name, layer in candidates if filter is None or filter(layer, name)}
    for name, layer in turned.items():
        try:
            _KINDS[type(layer)].check(layer)
        except ValueError as error:
            raise ValueError(f"cannot turn {name!r}: {error}, so leave it out by the filter") from error
    for layer in turned.values():
        kind = type(layer)
        layer.__class__ = _KINDS[kind].target
        layer.configure(k=k, **keywords[kind])
    return turned


def _check(
    kinds: tuple[type[nn.Module], ...], k: float, given: dict[str, Any]
) -> dict[type[nn.Module], dict[str, Any]]:
    """Check all keywords for all kinds, and return those that each kind takes."""
    known = ", ".join(f"nn.{kind.__name__}" for kind in _KINDS)
    if not isinstance(kinds, tuple) or not kinds:
        raise ValueError(f"kinds must be a tuple of one or more of {known}, not {kinds!r}")
    keywords = {}
    for kind in kinds:
        entry = _KINDS.get(kind)
        if entry is None:
            raise ValueError(f"no layers of the kind {kind!r} can be turned: choose from {known}")
        for name, value in given.items():
            if name not in entry.keywords and value != _DEFAULTS[name]:
                raise ValueError(
                    f"{name}={value!r} does not apply to nn.{kind.__name__}: turn that kind in a call of its own"
                )
        keywords[kind] = {name: value for name, value in given.items() if name in entry.keywords}
        entry.target(*entry.sizes, device="meta", k=k, **keywords[kind])
    return keywords


def _candidates(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], *, spare_output: bool
) -> list[tuple[str, nn.Module]]:
    """Return the layers that can be turned, by name, and without the output layer if that is to be spared."""
    layers = list(model.named_modules())
    output = None
    if spare_output and nn.Linear in kinds:
        if isinstance(model, nn.Linear):
            raise ValueError("the model is one linear layer, its own output layer: use MePropLinear.from_linear")
        output = next((layer for _, layer in reversed(layers) if isinstance(layer, nn.Linear)), None)
    return [
        (name, layer) for name, layer in layers if layer is not output and type(layer) in kinds and _is_plain(layer)
    ]


def _is_plain(layer: nn.Module) -> bool:
    """Whether the layer uses its class's forward, which some tools replace on the instance."""
    return "forward" not in vars(layer)
