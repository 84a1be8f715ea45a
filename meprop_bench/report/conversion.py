"""What was measured as code: the calls of `convert` that sparsify the same layers of a model, each with the same k.

    conversion({"0": ("Linear", 0.1), "2": ("Linear", 0.5), "4": ("Linear", None)}, method="unified", k=0.1, ...)
    ->  convert(model, k={"2": 0.5, "*": 0.1}, selection="unified")

What `convert` does by itself is left out: all linear layers but the last one. So are names where patterns say the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from meprop_bench.methods import METHODS

__all__ = ["ConversionCode", "conversion", "patterns"]

_ELSEWHERE = {"Conv1D": "transformers.pytorch_utils"}
"""Classes of layers that are none of torch.nn -> their module."""


@dataclass(frozen=True)
class ConversionCode:
    """Lines of code."""

    imports: tuple[str, ...]  # that the calls need, besides the function
    calls: tuple[str, ...]  # one, or one for each layout of the gradient


def conversion(
    layers: Mapping[str, tuple[str, float | None]] | None,
    *,
    function: str,
    method: str,
    k: float,
    rows: bool,
    kernel: str,
) -> ConversionCode:
    """Return the code that converts the layers that have a k.

    Args:
        layers: all that can be converted, in the order of the model: name -> class, and k (None: left dense). None
            where that is not known: then those that are converted by default.
        function: what to call.
        method: its selection.
        k: of the layers that have none of their own.
        rows: whether gradients of linear layers are rows.
        kernel: "auto" or a name.

    """
    words = [f"selection={_text(METHODS[method].selection or '')}"]
    own = [*words, "sparse=True"] if rows else words
    last = [] if kernel == "auto" else [f"kernel={_text(kernel)}"]
    if layers is None:
        return ConversionCode((), (f"{function}(model, {', '.join([f'k={k!r}', *own, *last])})",))
    taken = {name: (kind, count) for name, (kind, count) in layers.items() if count is not None}
    kinds = list(dict.fromkeys(kind for kind, _ in taken.values()))
    # Only linear layers have gradients as rows.
    groups = [["Linear"], [kind for kind in kinds if kind != "Linear"]] if rows and "Linear" in kinds else [kinds]
    calls, imports = [], set[str]()
    for group in filter(None, groups):
        ks = {name: count for name, (kind, count) in taken.items() if kind in group}
        given = [f"k={_ks(ks, k)}", *(own if group == ["Linear"] else words), *last]
        if group != ["Linear"]:
            given.append(f"kinds=({', '.join(map(_class, group))},)")
            imports |= {_import(kind) for kind in group}
        if (condition := _filter(list(ks), layers, group)) is not None:
            given.append(f"filter=lambda module, name: {condition}")
        calls.append(f"{function}(model, {', '.join(given)})")
    return ConversionCode(tuple(sorted(imports, reverse=True)), tuple(calls))


def _ks(ks: Mapping[str, float], usual: float) -> str:
    """Return k of layers as `convert` takes it: a number, or a dictionary of patterns."""
    by_k: dict[str, list[str]] = {}
    for name, k in ks.items():  # 1 is a count and 1.0 a ratio
        by_k.setdefault(repr(k), []).append(name)
    if len(by_k) <= 1:
        return next(iter(by_k), repr(usual))
    rest = by_k.pop(repr(usual), [])
    words = [f"{_text(pattern)}: {k}" for k, names in by_k.items() for pattern in patterns(names, list(ks))]
    words += [f'"*": {usual!r}'] if rest else []
    return f"{{{', '.join(words)}}}"


def _filter(taken: Sequence[str], layers: Mapping[str, tuple[str, float | None]], kinds: Sequence[str]) -> str | None:
    """Return the condition that picks these layers by their names; None where `convert` does so by itself."""
    candidates = [name for name, (kind, _) in layers.items() if kind in kinds]
    linear = [name for name, (kind, _) in layers.items() if kind == "Linear"]
    output = linear[-1] if linear and "Linear" in kinds else None
    if list(taken) == [name for name in candidates if name != output]:
        return None
    left = [name for name in candidates if name not in taken]
    names, verb = (taken, "in") if len(taken) <= len(left) else (left, "not in")
    return f"name {verb} {{{', '.join(map(_text, names))}}}"


def patterns(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """Return few patterns that fit these names and no others among them: what is below a module, or alike in many."""
    wanted, left, found = set(names), list(names), []
    while left:
        fitting = {
            pattern: [name for name in among if fnmatchcase(name, pattern)] for pattern in _more_general(left[0])
        }
        sound = [pattern for pattern, fits in fitting.items() if wanted.issuperset(fits)]
        best = max(sound, key=lambda pattern: (len(set(fitting[pattern]) & set(left)), -len(pattern)), default=left[0])
        if not sound or len(fitting[best]) == 1:
            best = left[0]
        found.append(best)
        left = [name for name in left if name != best and not fnmatchcase(name, best)]
    return found


def _more_general(name: str) -> list[str]:
    """Return patterns of a name: its beginning, its end, a part of it, or all but a number."""
    parts = name.split(".")
    heads = [".".join([*parts[:count], "*"]) for count in range(1, len(parts))]
    tails = [".".join(["*", *parts[count:]]) for count in range(1, len(parts))]
    numbers = [
        ".".join([*parts[:place], "*", *parts[place + 1 :]]) for place, part in enumerate(parts) if part.isdigit()
    ]
    middles = [f"*.{part}.*" for part in parts[1:-1] if not part.isdigit()]
    return [*heads, *tails, *middles, *numbers]


def _class(kind: str) -> str:
    return kind if kind in _ELSEWHERE else f"torch.nn.{kind}"


def _import(kind: str) -> str:
    return f"from {_ELSEWHERE[kind]} import {kind}" if kind in _ELSEWHERE else "import torch"


def _text(word: str) -> str:
    return json.dumps(word, ensure_ascii=False)
