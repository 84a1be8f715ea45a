"""A training in words: the one description of what is trained and how, for every command and every process.

recipe = Recipe("mnist", {"batch": 10}, method="meprop", k=30, algorithm="mesimp", details={"rate": 0.1})
result = run(recipe.load(), recipe, seed=1)              see `tasks.run`

A comparison is a recipe, its dense side and seeds (`sweep.parity`); an arm of the papers' tables is a recipe and seeds
(`paper.arm`); the accuracy of a sweep's case is a short one (`sweep.accuracy`). Nothing here loads torch or data before
`load` and `sparsify`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from meprop_bench.errors import UserError, one_of
from meprop_bench.methods import METHODS
from meprop_bench.optimizers import OF_DENSE, OPTIMIZERS, SCHEDULES
from meprop_bench.tasks import TASKS, load_task
from meprop_bench.tasks.algorithm import ALGORITHMS, Algorithm, Watched
from meprop_bench.tasks.build import is_model
from meprop_bench.tasks.checks import check_count, check_k

if TYPE_CHECKING:
    from torch import nn

    from meprop_bench.tasks.task import Task

__all__ = ["Recipe", "by_layer", "by_layer_text", "check_exchange"]


def by_layer(text: str | None) -> dict[str, int | float]:
    """Return pattern of layers' names -> k of `blocks.0.*=0.25;*.up=30`, in this order; UserError for what is none."""
    found: dict[str, int | float] = {}
    for part in text.split(";") if text else ():
        pattern, equals, word = (piece.strip() for piece in part.rpartition("="))
        if not (pattern and equals and word):
            raise UserError(f"k by layer is written as 'blocks.0.*=0.25;*.up=0.1', and not as {part!r}")
        if pattern in found:
            raise UserError(f"k by layer has {pattern!r} twice: leave one out")
        try:
            k: int | float = int(word) if word.isdecimal() else float(word)
            check_k(k)
        except (ValueError, UserError):
            raise UserError(f"k of {pattern!r} must be an int >= 1 or a ratio in (0, 1], not {word!r}") from None
        found[pattern] = k
    return found


def by_layer_text(ks: Iterable[tuple[str, int | float]]) -> str | None:
    """Return what `by_layer` reads; None where there is none."""
    return ";".join(f"{pattern}={k!r}" for pattern, k in ks) or None


def check_exchange(exchange: str | None, method: str) -> None:
    """UserError unless several processes that train by a method can exchange its rows so."""
    one_of("exchange", exchange, ("gathered", "agreed"))
    if exchange == "agreed" and method != "unified":
        raise UserError(
            f"processes agree on one selection for all examples, and {method} has none: use --method unified, or"
            " --exchange gathered"
        )


@dataclass(frozen=True)
class Recipe:
    """What to train and how, as text and numbers; `UserError`, in one line, for a value that is not allowed."""

    task: str  # a name in `TASKS`, or of a user's model (`tasks.build`)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task
    method: str = "dense"  # a name in `METHODS`
    k: int | float | None = None  # a count or a ratio in (0, 1]; None for a method that leaves the layers dense
    gradient: str = "dense"  # or "rows": weight gradients as sparse rows, for optimizers that take them
    kernel: str = "auto"  # "auto" or a name; the kernels differ in rounding alone
    optimizer: str = "adam"  # a name in `OPTIMIZERS`; of a user's model also "own", the one that it comes with
    epochs: int = 20  # passes over the training examples
    evaluations: int = 1  # on the development set in each epoch, evenly spread, the last at its end
    best_after: int = 0  # epochs before the first evaluation that may be the best: when the model is simplified, say
    algorithm: str | None = None  # what goes along with training, a key of `ALGORITHMS`; by default what the method has
    details: Mapping[str, Any] = field(default_factory=dict)  # fields of the algorithm
    steps: int | None = None  # train for so many in place of epochs
    leave: str | None = None  # layers that stay dense: patterns of their qualified names, with ";" between them
    watched: bool = False  # record the mean change of the parameters at an update, which takes time
    schedule: str = "constant"  # of the learning rate, a name in `SCHEDULES`, fitted to the steps of this training
    k_by_layer: str | None = None  # k of some layers, in place of `k`: see `by_layer`; the first that fits counts
    world_size: int = 1  # trained as by so many processes, each with batches of `batch` of its own
    exchange: str | None = None  # "gathered": each of these selects by itself; or "agreed": they select together

    def __post_init__(self) -> None:
        optimizers = (*OPTIMIZERS, "own") if is_model(self.task) else tuple(OPTIMIZERS)
        for what, known in (("method", METHODS), ("optimizer", optimizers), ("schedule", SCHEDULES)):
            one_of(what, getattr(self, what), known)
        self._check_method()
        self._check_ranks()
        for name, least in (("epochs", 1), ("evaluations", 1), ("best_after", 0)):
            check_count(name.replace("_", "-"), getattr(self, name), least)
        if self.steps is not None:
            check_count("steps", self.steps)
        elif self.best_after >= self.epochs:
            raise UserError(f"best-after {self.best_after} leaves no evaluation of {self.epochs} epochs to choose from")
        _ = self.along

    def _check_method(self) -> None:
        if self.gradient not in ("dense", "rows"):
            raise UserError(f"gradient must be 'dense' or 'rows', not {self.gradient!r}")
        if METHODS[self.method].selection is None:
            if (self.k, self.gradient, self.kernel, self.k_by_layer) != (None, "dense", "auto", None):
                raise UserError(
                    f"the method {self.method} has no k, gradient or kernel: leave them out, or name another method"
                )
        elif self.k is None:
            raise UserError(f"the method {self.method} needs k: an integer of at least 1 or a ratio in (0, 1]")
        else:
            check_k(self.k)
            by_layer(self.k_by_layer)

    def _check_ranks(self) -> None:
        check_count("world-size", self.world_size)
        if self.world_size == 1:
            if self.exchange is not None:
                raise UserError(f"exchange {self.exchange!r} is for several processes: add --world-size 2")
            return
        able = [name for name, entry in TASKS.items() if entry.parted]
        if self.task not in able:
            raise UserError(f"world-size is for the tasks {', '.join(able)}: leave it out for {self.task}")
        if self.algorithm is not None or METHODS[self.method].algorithm is not None:
            raise UserError("world-size does not go with an algorithm, which sees one process: leave one of them out")
        if METHODS[self.method].selection is not None:
            if self.exchange is None:
                object.__setattr__(self, "exchange", "gathered")
            check_exchange(self.exchange, self.method)
        elif self.exchange is not None:
            raise UserError(f"the method {self.method} selects nothing: leave exchange out")

    @cached_property
    def along(self) -> Algorithm | None:
        """What goes along with training."""
        own = METHODS[self.method].algorithm
        if own is not None and self.algorithm not in (None, own):
            raise UserError(f"the method {self.method} has the algorithm {own}: name no other one")
        name, found = self.algorithm or own, None
        if name is not None:
            found = _algorithm(name, self.details)
        elif self.details:
            raise UserError(f"{next(iter(self.details)).replace('_', '-')} needs an algorithm: name it")
        if self.watched and name == "mesimp":
            raise UserError("parameters that meSimp removes cannot be watched")
        return Watched(found) if self.watched else found

    @property
    def parts(self) -> int:
        """Parts of a batch that select by themselves: those of processes that gather rows; who agrees has the whole."""
        return self.world_size if self.exchange == "gathered" else 1

    @property
    def device(self) -> str:
        """Where it is trained, as axes have it."""
        device = str(self.options.get("device") or "cpu")
        return "cuda:0" if device == "cuda" else device

    def load(self) -> Task:
        """Load the task; raises `UserError` as `load_task` does.

        With several processes its batches are those of all; otherwise it depends on `task` and `options` alone.
        """
        options = dict(self.options)
        if self.world_size > 1:
            own = options["batch"] if "batch" in options else load_task(self.task, **options).batch
            check_count("batch", own)
            options["batch"] = own * self.world_size
        return load_task(self.task, **options)

    def sparsify(
        self,
        model: nn.Module,
        kinds: tuple[type[nn.Module], ...],
        *,
        filter: Callable[[nn.Module, str], bool] | None = None,
        each: Mapping[str, float] | None = None,
        of: str | None = None,
    ) -> None:
        """Convert a model's layers of these kinds, in place; dense converts none.

        Args:
            model: in which to convert them.
            kinds: of layers. Only linear ones have weight gradients as rows.
            filter: which of them; all but the output layer by default.
            each: pattern of names -> k of these layers, in place of the recipe's, but of those that its own k by layer
                fits; the first that fits counts.
            of: name of a user's model, for messages.

        Raises:
            UserError: layers of one of these kinds do not know the method, a pattern fits none, or nothing is left.

        """
        method = METHODS[self.method]
        if method.selection is None:
            return
        module = import_module(method.module)
        chosen: dict[str, Any] = {"selection": method.selection, "kernel": self.kernel}
        chosen |= {} if filter is None else {"filter": filter}
        layers: dict[str, Any] = {}
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that none of one kind was converted
                for kind in kinds:
                    rows = self.gradient == "rows" and kind.__name__ == "Linear"
                    found = module.convert(model, k=self.k, kinds=(kind,), sparse=rows, **chosen)
                    layers |= found
            if not layers:
                choose = "" if of is None else "; kinds and filter of its Training choose them"
                raise ValueError(f"no layer can be converted: {found.reasons()}{choose}")
            for pattern in (self.leave or "").split(";") if self.leave else ():
                for name in _fitting(pattern, layers):
                    module.revert(layers.pop(name))
            # The first that fits counts, as in `convert`; what the recipe says comes before what the model brings.
            for pattern, k in reversed([*by_layer(self.k_by_layer).items(), *(each or {}).items()]):
                for name in _fitting(pattern, layers):
                    layers[name].k = k
        except ValueError as error:
            layers_of = "this task's layers" if of is None else f"the layers of {of}"
            raise UserError(f"the method {self.method} does not fit {layers_of}: {error}") from None

    @property
    def label(self) -> str:
        """What tells it apart on one line."""
        words = [self.task, self.method, *([] if self.k is None else [f"k={self.k:g}"]), self.algorithm or ""]
        words += [] if self.world_size == 1 else [f"P={self.world_size}", self.exchange or ""]
        return " ".join(word for word in words if word)

    @property
    def stem(self) -> str:
        """The same as a folder is called: of a model's path the last part, and no other sign than these."""
        return re.sub(r"[^A-Za-z0-9._=]+", "-", self.label.replace(self.task, Path(self.task).name, 1)).strip("-")

    @property
    def duration(self) -> str:
        """How long it is trained."""
        return f"{self.epochs} epochs" if self.steps is None else f"{self.steps} steps"

    def dense(self) -> Self:
        """Return the baseline: the same without method and algorithm, and with an optimizer of dense gradients."""
        plain: dict[str, Any] = {
            "k": None,
            "k_by_layer": None,
            "gradient": "dense",
            "kernel": "auto",
            "leave": None,
            "exchange": None,
            "optimizer": OF_DENSE.get(self.optimizer, self.optimizer),
        }
        return replace(self, method="dense", algorithm=None, details={}, best_after=0, **plain)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without the fields that stored ones do not know while they say nothing."""
        late: dict[str, Any] = {"steps": None, "leave": None, "watched": False, "schedule": "constant"}
        late |= {"k_by_layer": None, "world_size": 1, "exchange": None}
        return {name: value for name, value in asdict(self).items() if name not in late or value != late[name]}


def _fitting(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern fits; ValueError if there is none."""
    found = [name for name in names if fnmatchcase(name, pattern.strip())]
    if not found:
        raise ValueError(f"no sparsified layer is called {pattern.strip()!r}: there are {', '.join(names) or 'none'}")
    return found


def _algorithm(name: str, details: Mapping[str, Any]) -> Algorithm:
    """Return the algorithm of that name; UserError for a field that it has not, or lacks."""
    one_of("algorithm", name, ALGORITHMS)
    known = [spec.name for spec in fields(ALGORITHMS[name])]
    for detail in details:
        if detail not in known:
            has = ", ".join(known) or "no options"
            raise UserError(f"the algorithm {name} has no {detail.replace('_', '-')}: it has {has}")
    try:
        return ALGORITHMS[name](**details)
    except TypeError:
        missing = next(detail for detail in known if detail not in details)
        raise UserError(f"the algorithm {name} needs {missing}") from None
