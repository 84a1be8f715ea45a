"""The arms of a search: what may take the place of dense training.

    Arm("unified", 0.125)                             one method with one k in all layers that the task converts
    Arm("unified", 0.125, gradient="rows")            ... and weight gradients as rows
    Arm("unified", 0.5, end=0.0625)                   ... k moves from one to the other while training goes on
    Arm("unified", 0.125, left=("head.*",))           ... some layers are left dense
    Arm("unified", 0.125, ks=(("blocks.3.*", 0.5),))  ... some layers have another k

An arm is the whole difference between its training and the dense one: `Arm.recipe` makes the one of the other. The
order in which they are generated is that of their promise, since a short budget tries the first ones only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, Self

from meprop_bench.errors import UserError, one_of
from meprop_bench.methods import SPARSE
from meprop_bench.report.conversion import patterns
from meprop_bench.tasks.checks import check_k
from meprop_bench.tasks.recipe import Recipe, by_layer_text

__all__ = ["LADDER", "METHODS_TRIED", "Arm", "Layer", "arms_of", "by_layer", "first_of_each", "leaving", "scheduled"]

LADDER = (1 / 8, 1 / 4, 1 / 16, 1 / 2, 1 / 32, 1 / 64)
"""Ratios that are tried, the likeliest first: below a hundredth of the neurons no model of ours learned well, and at
half of them hardly a step is faster."""

METHODS_TRIED = ("unified", "meprop")
"""Methods that are tried if nothing is said, the likelier first."""


@dataclass(frozen=True)
class Arm:
    """One way to train; `UserError` for a method that selects no top k, or a k that is none."""

    method: str
    k: int | float  # where it begins, if it moves
    gradient: str = "dense"
    kernel: str = "auto"
    end: int | float | None = None  # where k ends; None for one that stays
    shape: str = "linear"  # how it gets there
    left: tuple[str, ...] = ()  # patterns of the names of layers that are left dense
    compiled: bool = False  # the step, by torch.compile: that changes its time, and of the training its rounding
    ks: tuple[
        tuple[str, int | float], ...
    ] = ()  # pattern of names, k of these layers in place of `k`; the first counts

    def __post_init__(self) -> None:
        one_of("method to tune:", self.method, SPARSE)
        one_of("gradient", self.gradient, ("dense", "rows"))
        one_of("shape of a schedule", self.shape, ("linear", "cosine"))
        for k in (self.k, self.end, *(k for _, k in self.ks)):
            if k is not None:
                check_k(k)
        if self.ks and self.end is not None:
            raise UserError("k either moves or differs by layer")

    @property
    def label(self) -> str:
        """Its name on one line, for people."""
        k = f"{self.k:.3g}" if self.end is None else f"{self.k:.3g} to {self.end:.3g}"
        if self.ks:
            places: dict[int | float, list[str]] = {}
            for pattern, own in self.ks:
                places.setdefault(own, []).append(pattern)
            k += f" ({'; '.join(f'{own:.3g} in ' + ', '.join(found) for own, found in places.items())})"
        left = [f"{', '.join(self.left)} dense"] if self.left else []
        kernel = [] if self.kernel == "auto" else [f"{self.kernel} kernel"]
        rows = ["rows"] if self.gradient == "rows" else []
        compiled = ["compiled"] if self.compiled else []
        return ", ".join((self.method, f"k = {k}", *rows, *kernel, *compiled, *left))

    @property
    def constant(self) -> bool:
        """Whether its k stays what it is, so that one step takes as long as any other."""
        return self.end is None

    @property
    def group(self) -> tuple[object, ...]:
        """What arms have in common that differ in k alone; a count and a ratio are not compared."""
        return (*self.family, self.left, self.compiled, self.ks)

    @property
    def family(self) -> tuple[object, ...]:
        """The same, whatever is special about some layers, or compiled."""
        return (self.method, self.gradient, self.kernel, isinstance(self.k, int))

    def leaves(self, layer: str) -> bool:
        """Whether it leaves the layer of that name dense."""
        return any(fnmatchcase(layer, pattern) for pattern in self.left)

    def k_of(self, layer: Layer) -> int | float | None:
        """Return the k of a layer, where it begins if it moves; None if it is left dense."""
        if not layer.converted or self.leaves(layer.name):
            return None
        own = next((k for pattern, k in self.ks if fnmatchcase(layer.name, pattern)), None)
        return own or layer.k or self.k

    def recipe(self, dense: Recipe) -> Recipe:
        """Return the training of this arm in place of the dense one."""
        moving: dict[str, Any] = {}
        if self.end is not None:
            moving = {"algorithm": "schedule", "details": {"end": self.end, "shape": self.shape}}
        if self.left:
            moving["leave"] = ";".join(self.left)
        if self.ks:
            moving["k_by_layer"] = by_layer_text(self.ks)
        return replace(dense, method=self.method, k=self.k, gradient=self.gradient, kernel=self.kernel, **moving)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without what is as usual."""
        usual = type(self)(self.method, self.k)
        found = {name: value for name, value in asdict(self).items() if value != getattr(usual, name)}
        return {"method": self.method, "k": self.k, **found, **({"left": list(self.left)} if self.left else {})}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the arm of a JSON object."""
        ks = tuple((pattern, k) for pattern, k in record.get("ks", ()))
        return cls(**{**record, "left": tuple(record.get("left", ())), "ks": ks})

    @property
    def key(self) -> str:
        """A text that equal arms, and no others, have."""
        return json.dumps(self.to_json(), sort_keys=True)


@dataclass(frozen=True)
class Layer:
    """A layer of the model that can be converted."""

    name: str  # qualified
    weights: int  # numbers in it: its share of a step's arithmetic
    converted: bool = True  # whether the task, or the user's filter, takes it
    kind: str = "Linear"  # its class, of torch.nn
    k: int | float | None = None  # that the user's own `Training` gives it, whatever the arm's is


def arms_of(
    methods: Sequence[str] = METHODS_TRIED,
    ks: Sequence[int | float] = LADDER,
    gradients: Sequence[str] = ("dense",),
    *,
    kernel: str = "auto",
) -> list[Arm]:
    """Return an arm for each method, k and layout of the gradient, the most promising first."""
    # The k first: of several methods the likeliest k of each is tried before the second of one.
    found = [Arm(method, k, gradient, kernel) for k, method, gradient in product(ks, methods, gradients)]
    if not found:
        raise UserError("there is no arm to try: name a method and a k")
    return list(dict.fromkeys(found))


def first_of_each(arms: Iterable[Arm]) -> list[Arm]:
    """Return the arm with the smallest k of each group: the fastest, and where even that gains nothing, none does.

    Arms whose k moves are left out.
    """
    groups: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        if arm.constant:
            groups.setdefault(arm.group, []).append(arm)
    return [min(group, key=lambda arm: arm.k) for group in groups.values()]


def scheduled(arms: Sequence[Arm]) -> list[Arm]:
    """Return arms whose k moves between the smallest and the largest k of a group, in both directions.

    From large to small the model learns with nearly exact gradients at first; from small to large it is the end, where
    the rate is small, that is nearly exact.
    """
    groups: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        if arm.constant and not arm.ks and isinstance(arm.k, float):
            groups.setdefault(arm.group, []).append(arm)
    found = []
    for group in groups.values():
        small, large = min(group, key=lambda arm: arm.k), max(group, key=lambda arm: arm.k)
        if small.k < large.k:
            found += [replace(large, end=small.k), replace(small, end=large.k)]
    return found


_MOST_LEAVING = 2


def leaving(arm: Arm, layers: Sequence[Layer]) -> list[Arm]:
    """Return a few variants of an arm that leave the smallest layers dense, the one nearest to it first.

    The selection has a cost of its own at each layer, which a small one does not earn back. Layers of one size stand or
    fall together. No variant leaves all of them dense.
    """
    converted = [layer for layer in layers if layer.converted and not arm.leaves(layer.name)]
    sizes = sorted({layer.weights for layer in converted})
    return [
        replace(arm, left=(*arm.left, *(layer.name for layer in converted if layer.weights <= size)))
        for size in sizes[:-1][:_MOST_LEAVING]
    ]


def by_layer(arm: Arm, ks: Iterable[int | float], layers: Sequence[Layer]) -> list[Arm]:
    """Return variants of an arm whose k is large in some layers and small in the others, where most of the time goes.

    The large k is the arm's, and the small one about a quarter of it, of those that were tried with the same method: so
    a variant is faster than the arm. Where none is smaller, the small one is the arm's. The large one is for

        the last layers     the error of their dx reaches all others
        the first ones      what they learn, the others build on
        the smallest        it costs next to nothing there

    each time for as many as have half of the arithmetic at most. None of a layer whose k is the user's own; none where
    only one k was tried.
    """
    tried = sorted({*ks, arm.k})
    small, large = _apart(tried, arm.k)
    free = [layer for layer in layers if layer.converted and layer.k is None and not arm.leaves(layer.name)]
    if arm.ks or arm.end is not None or small == large or len(free) < 2:
        return []
    by_size = sorted(free, key=lambda layer: layer.weights)
    chosen = (_half(free[::-1]), _half(free), _half(by_size, ties=True))
    names = [layer.name for layer in free]
    own = dict.fromkeys(tuple(name for name in names if name in each) for each in chosen if each)
    return [replace(arm, k=small, ks=tuple((name, large) for name in patterns(each, names))) for each in own]


_APART = 4
"""Factor between the k of two kinds of layers: two steps of the ladder."""


def _apart(tried: Sequence[int | float], k: int | float) -> tuple[int | float, int | float]:
    """Return two of the k that were tried, in order, as far apart as is wanted, k among them."""
    smaller, larger = [each for each in tried if each < k], [each for each in tried if each > k]
    if smaller:
        return max((each for each in smaller if each <= k / _APART), default=smaller[0]), k
    return k, min((each for each in larger if each >= k * _APART), default=larger[-1] if larger else k)


def _half(layers: Sequence[Layer], *, ties: bool = False) -> set[str]:
    """Return the names of the first layers that have at most half of all weights, and at least one.

    With `ties` layers of one size stand or fall together: there may be none then.
    """
    total, count, seen = sum(layer.weights for layer in layers), 0, 0
    for place, layer in enumerate(layers, 1):
        seen += layer.weights
        if 2 * seen > total:
            break
        count = place
    if not ties:
        count = max(1, count)
    else:
        while 0 < count < len(layers) and layers[count].weights == layers[count - 1].weights:
            count -= 1
    return {layer.name for layer in layers[:count]}
