"""The papers' tasks, and a language model: data, model, loss and measure of quality, each behind one interface.

    task = load_task("mnist", batch=10, hidden=500)
    result = run(task, Recipe("mnist", method="meprop", k=30))          see `tasks.run`

A new task is a module with a subclass of `Task`, and its line in `TASKS`; a model of the user's own is one, too, by the
name of the function that builds it (`tasks.build`). Nothing here loads torch until a task is
loaded, so that the command line knows the names at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import UserError, one_of
from meprop_bench.tasks.build import is_model

if TYPE_CHECKING:
    from meprop_bench.tasks.task import Task

__all__ = ["TASKS", "TaskEntry", "editions", "load_task", "task_options"]


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a task before it is loaded: its module in this package, its class there, what it is in one line.

    `rates`: optimizer -> learning rate, where it is not that of `optimizers.OPTIMIZERS`. `alternated`: parts of the
    model, by name, that `algorithm.Alternation` sparsifies alternately. `percent`: whether its metric is a percentage.
    `edition`: counted up where its data become others, in number or in their parts. `parted`: whether a batch is
    tensors with a row for each example, so that several processes can have a part of it each.
    """

    module: str
    kind: str
    about: str
    rates: Mapping[str, float] = field(default_factory=dict)
    alternated: tuple[str, ...] = ()
    percent: bool = True
    edition: int = 1
    parted: bool = False


_RATE = {"adagrad": 0.01}
_PARTS = ("encoder", "decoder")


TASKS: Mapping[str, TaskEntry] = {
    "mnist": TaskEntry("mnist", "MNIST", "MNIST, the perceptron 784-500-500-10", parted=True),
    "digits": TaskEntry("mnist", "Digits", "the digits of scikit-learn, the same perceptron", edition=2, parted=True),
    "mnist-cnn": TaskEntry("mnist", "MNISTConvolutions", "MNIST, the convolutional network", parted=True),
    "digits-cnn": TaskEntry(
        "mnist", "DigitsConvolutions", "the digits of scikit-learn, a convolutional network", edition=2, parted=True
    ),
    "pos": TaskEntry("pos", "POS", "parts of speech in UD English EWT, the bidirectional LSTM", _RATE),
    "parsing": TaskEntry(
        "parsing", "Parsing", "dependencies in UD English EWT, transitions chosen by a perceptron", _RATE
    ),
    "toy-pos": TaskEntry("pos", "ToyPOS", "parts of speech of made-up sentences, the same tagger", _RATE),
    "toy-parsing": TaskEntry("parsing", "ToyParsing", "dependencies of made-up sentences, the same parser", _RATE),
    "translation": TaskEntry(
        "translation", "Translation", "Multi30k, German to English, LSTMs with attention", {"adam": 0.002}, _PARTS
    ),
    "toy-translation": TaskEntry(
        "translation", "ToyTranslation", "translation of made-up sentences, the same model", {"adam": 0.002}, _PARTS
    ),
    "language": TaskEntry(
        "language", "Language", "the next character of English captions, a GPT", _RATE, percent=False, parted=True
    ),
    "toy-language": TaskEntry(
        "language",
        "ToyLanguage",
        "the next character of made-up sentences, a small GPT",
        _RATE,
        percent=False,
        parted=True,
    ),
}
"""Name -> where it is."""


def editions(*names: str | None) -> dict[str, dict[str, int]]:
    """Return what a plan says of tasks whose data have changed, so that no run goes on with figures from before."""
    found = {name: TASKS[name].edition for name in names if name is not None and name in TASKS}
    found = {name: edition for name, edition in found.items() if edition > 1}
    return {"editions": found} if found else {}


_OWN = TaskEntry("own", "Own", "a model of the user's own")


def _class(name: str) -> type[Task]:
    entry = _OWN if is_model(name) else TASKS[name]
    kind: type[Task] = getattr(import_module(f"{__name__}.{entry.module}"), entry.kind)
    return kind


def task_options(name: str) -> Collection[str]:
    """Return what a task's constructor takes; this loads torch."""
    return [option for option in inspect.signature(_class(name)).parameters if option != "name"]


def load_task(name: str, **options: Any) -> Task:
    """Load a task with its data; an option that is not given is the papers'.

    `UserError`: an unknown name, an option that the task has not, or what its constructor refuses (`task.Task`).
    """
    if is_model(name):
        options["name"] = name
    else:
        one_of("task", name, TASKS)
    known = task_options(name)
    for option in options.keys() - {"name"}:
        if option not in known:
            raise UserError(f"the task {name} has no {option.replace('_', '-')}: it has {', '.join(known)}")
    return _class(name)(**options)
