"""The papers' tasks: real data, the model, its loss and its measure of quality, each behind one interface.

    task = load_task("mnist", batch=10, hidden=500)
    result = run(task, Recipe("mnist", method="meprop", k=30))          see `tasks.run`

A new task is a module with a subclass of `Task`, and its line in `TASKS`. Nothing here loads torch until a task is
loaded, so that the command line knows the names at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import UserError

if TYPE_CHECKING:
    from meprop_bench.tasks.task import Task

__all__ = ["TASKS", "Entry", "load_task"]


@dataclass(frozen=True)
class Entry:
    """Where a task is: its module in this package, its class there, and what it is in one line."""

    module: str
    kind: str
    about: str


TASKS: Mapping[str, Entry] = {
    "mnist": Entry("mnist", "MNIST", "MNIST, the perceptron 784-500-500-10"),
    "digits": Entry("mnist", "Digits", "the digits of scikit-learn, the same perceptron"),
    "mnist-cnn": Entry("mnist", "MNISTConvolutions", "MNIST, the convolutional network"),
    "digits-cnn": Entry("mnist", "DigitsConvolutions", "the digits of scikit-learn, a convolutional network"),
    "pos": Entry("pos", "POS", "parts of speech in UD English EWT, the bidirectional LSTM"),
    "parsing": Entry("parsing", "Parsing", "dependencies in UD English EWT, transitions chosen by a perceptron"),
    "toy-pos": Entry("pos", "ToyPOS", "parts of speech of made-up sentences, the same tagger"),
    "toy-parsing": Entry("parsing", "ToyParsing", "dependencies of made-up sentences, the same parser"),
    "translation": Entry("translation", "Translation", "Multi30k, German to English, LSTMs with attention"),
    "toy-translation": Entry("translation", "ToyTranslation", "translation of made-up sentences, the same model"),
}
"""Name -> where it is."""


def load_task(name: str, **options: Any) -> Task:
    """Load a task with its data.

    Args:
        name: a key of `TASKS`.
        **options: keywords of the task's constructor; what is not given is the papers'.

    Raises:
        UserError: an unknown name, an option that the task has not or a value it cannot have; data that are missing or
            damaged.

    """
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}: choose from {', '.join(TASKS)}")
    entry = TASKS[name]
    kind = getattr(import_module(f"{__name__}.{entry.module}"), entry.kind)
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            raise UserError(f"the task {name} has no {option.replace('_', '-')}: it has {', '.join(known)}")
    task: Task = kind(**options)
    return task
