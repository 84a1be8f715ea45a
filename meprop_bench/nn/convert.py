"""Convert layers of a model into those that are trained by sparsified back propagation, in place, and back.

A layer's class is changed, not the layer: its parameters, hooks, training flag and every reference to it (a second
place in the model, an optimizer, a plain list) stay what they were. `torch.nn.utils.parametrize` changes modules in the
same way.

Which layers: those whose class is exactly one of `kinds`, by default `nn.Linear` alone; `_KINDS` is the table of what
there is, and transformers' `Conv1D` is another. Attention is a layer of its own, since it computes its projections in
one function; those of an attention that has layers for them are linear layers as any. A subclass has its own idea of
what it does, and two of torch's show why that matters: the output projection of `nn.MultiheadAttention` is one whose
forward is never called, so that it would stay dense without a word, and a parametrized layer has a class made for it.
(Parametrize after converting.)

The papers leave the output layer dense: it has few neurons, and its gradient is the error itself. By default it is
taken to be the last linear layer, of any class, in the order of registration, which is `model.modules()`; layers of
other kinds are all converted. Where that is wrong, and wherever else, a filter decides:

    convert(model, k=0.05, filter=lambda module, name: name.startswith("encoder."))

Kinds that need different keywords are converted one call after the other.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from meprop_bench.nn import transformers
from meprop_bench.nn.attention import MePropMultiheadAttention
from meprop_bench.nn.conv import MePropConv1d, MePropConv2d
from meprop_bench.nn.conversion import Conversion, survey
from meprop_bench.nn.linear import MePropLinear
from meprop_bench.nn.recurrent import MePropGRU, MePropLSTM, MePropRNN
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops.selection import check_k

__all__ = ["convert", "convertible", "kinds_and_k", "revert"]


_KINDS: dict[type[nn.Module], Any] = {
    nn.Linear: MePropLinear,
    nn.Conv1d: MePropConv1d,
    nn.Conv2d: MePropConv2d,
    nn.LSTM: MePropLSTM,
    nn.GRU: MePropGRU,
    nn.RNN: MePropRNN,
    nn.MultiheadAttention: MePropMultiheadAttention,
}
"""What the class of a layer of torch becomes."""


def _kinds() -> dict[type[nn.Module], Any]:
    return _KINDS | transformers.kinds()


def convertible() -> tuple[type[nn.Module], ...]:
    """Return all classes of layers that can be converted."""
    return tuple(_kinds())


def convert(
    model: nn.Module,
    *,
    k: float | Mapping[str, float],
    selection: str = "example",
    sparse: bool = False,
    kernel: str = "auto",
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
    filter: Callable[[nn.Module, str], bool] | None = None,
) -> Conversion:
    """Convert the layers of `model` that are of one of the `kinds` into layers with a sparsified backward pass.

    Args:
        model: any module; changed in place.
        k: number of entries selected: of the outputs of `nn.Linear`, of the positions of a map of `nn.Conv2d`, and so
            on. An int >= 1, or a ratio in (0, 1]. Or a mapping from patterns of qualified names to such values,
            `{"blocks.*.qkv": 0.05, "blocks.*": 0.1}`, where `*` stands for any characters, dots included, and `?` and
            `[…]` for one: the first match counts, and layers without a match are left dense.
        selection, sparse, kernel: as for the converted layers, e.g. `MePropLinear`.
        kinds: classes of layers to convert; by default only linear layers. `nn.MultiheadAttention` and transformers'
            `Conv1D`, which contain linear layers or act as one, have to be listed.
        filter: called with each layer that can be converted and its qualified name; those for which it returns true are
            converted [default: all but the output layer].

    Returns:
        the converted layers by qualified name; a layer used in several places has its first name. `left` says what
        was not converted and why, `dense` which layers this k leaves dense, and `print` shows it all. If nothing was
        converted, a warning says why. To see whether the model runs the converted layers, run a batch: see
        `record_calls`.

    Raises:
        ValueError: for a kind that cannot be converted, a keyword that one of the kinds does not take, a k, selection
            or kernel that does not exist, a layer that cannot be converted (an LSTM with projections), a pattern that
            matches no layer to be converted, or if the model itself is a linear layer and there is no filter. Nothing
            is changed then.

    """
    known = _kinds()
    methods = _methods(kinds, known, selection, sparse, kernel)
    counts = _counts(k)
    output = _output(model) if filter is None and nn.Linear in kinds else None
    converted: dict[str, Any] = {}
    left: dict[str, str] = {}
    for name, layer, obstacle in survey(model, tuple(known)):
        if obstacle is not None:
            left[name] = obstacle
        elif type(layer) not in kinds:
            left[name] = f"{_name(type(layer))} is not among the kinds"
        elif layer is output:
            left[name] = "the output layer, which stays dense unless a filter takes it"
        elif filter is not None and not filter(layer, name):
            left[name] = "left out by the filter"
        elif _first(counts, name) is None:
            left[name] = "no pattern of k matches its name"
        else:
            converted[name] = layer
    for name, layer in converted.items():
        try:
            known[type(layer)].check(layer)
        except ValueError as error:
            raise ValueError(f"cannot convert {name!r}: {error}, so leave it out by the filter") from error
    if isinstance(k, Mapping):
        _check_patterns(counts, converted, left)
    for name, layer in converted.items():
        kind = type(layer)
        layer.__class__ = known[kind]
        layer.configure(k=_first(counts, name), **methods[kind])
    found = Conversion(converted, left)
    if not found:
        warnings.warn(f"no layer of {type(model).__name__} was converted: {found.reasons()}", stacklevel=2)
    return found


def kinds_and_k(model: nn.Module) -> dict[str, tuple[str, float | None]]:
    """Return the convertible and converted layers of a model: qualified name -> name of torch's class, k (None: dense).

    A layer that is used in several places is under the first name.
    """
    known = convertible()
    return {
        name: (type(layer).__name__.removeprefix("MeProp"), layer.k)
        if isinstance(layer, Sparsified)
        else (type(layer).__name__, None)
        for name, layer, _ in survey(model, known)
        if isinstance(layer, known)
    }


def revert(model: nn.Module) -> nn.Module:
    """Give a model its plain layers back, in place: the inverse of `convert`.

    For export, quantization and wherever this package is not. The layers stay the same objects, with their parameters,
    hooks and modes; layers of this package that `convert` did not make are reverted, too. Returns the model;
    `revert(copy.deepcopy(model))` leaves it as it is.

    Raises:
        ValueError: a layer's class was changed again since (parametrize, fully_shard), or is one of your own. Nothing
            is changed then.

    """
    plain: dict[type[nn.Module], type[nn.Module]] = {kind: dense for dense, kind in _kinds().items()}
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, Sparsified)}
    for name, layer in layers.items():
        if type(layer) not in plain:
            kind = type(layer).__name__
            raise ValueError(f"cannot revert {name!r}: undo first what made its class {kind}, such as parametrize")
    for layer in layers.values():
        layer._drop_method()
        layer.__class__ = plain[type(layer)]
    return model


def _methods(
    kinds: tuple[type[nn.Module], ...], known: dict[type[nn.Module], Any], selection: str, sparse: bool, kernel: str
) -> dict[type[nn.Module], dict[str, Any]]:
    """Check all keywords for all kinds, and return those that `configure` of each kind takes, but k."""
    names = ", ".join(map(_name, known))
    if not isinstance(kinds, tuple) or not kinds:
        raise ValueError(f"kinds must be a tuple of one or more of {names}, not {kinds!r}")
    methods = {}
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"no layers of the kind {kind!r} can be converted: choose from {names}")
        method: dict[str, Any] = {"selection": selection, "kernel": kernel}
        if kind is nn.Linear:
            method["sparse"] = sparse
        elif sparse:
            raise ValueError(
                f"sparse={sparse!r} does not apply to {_name(kind)}: convert that kind in a call of its own"
            )
        known[kind].check_method(selection, kernel)
        methods[kind] = method
    return methods


def _name(kind: type[nn.Module]) -> str:
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.") else f"{kind.__name__} of transformers"


def _counts(k: float | Mapping[str, float]) -> dict[str, float]:
    """Return k by pattern."""
    counts = dict(k) if isinstance(k, Mapping) else {"*": k}
    if not counts:
        raise ValueError("k must be a number, or one for each of one or more patterns of names: it is empty")
    for pattern, count in counts.items():
        if not isinstance(pattern, str):
            raise ValueError(f"k goes by patterns of names, such as 'blocks.*', not {pattern!r}")
        check_k(count)
    return counts


def _first(counts: dict[str, float], name: str) -> float | None:
    """Return the k of the first pattern that matches."""
    return next((k for pattern, k in counts.items() if fnmatchcase(name, pattern)), None)


def _check_patterns(patterns: Iterable[str], converted: Iterable[str], left: dict[str, str]) -> None:
    """Raise ValueError if a pattern matches none of the layers to be converted."""
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in converted):
            continue
        name = next((name for name in left if fnmatchcase(name, pattern)), None)
        if name is not None:
            raise ValueError(f"k: {pattern!r} matches only what is left as it is, such as {name!r}: {left[name]}")
        names = [*converted, *left]
        near = difflib.get_close_matches(pattern, names, cutoff=0.3) or names[:3]
        raise ValueError(f"k: {pattern!r} matches no layer" + (f"; there are {', '.join(near)}" if near else ""))


def _output(model: nn.Module) -> nn.Module | None:
    """Return what is taken for the output layer."""
    if isinstance(model, nn.Linear):
        raise ValueError("the model is one linear layer, its own output layer: use MePropLinear.from_linear")
    return next((layer for layer in reversed([*model.modules()]) if isinstance(layer, nn.Linear)), None)
