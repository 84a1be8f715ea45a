"""The subjects of the tables: which of our tasks stands for each, on which data, and how its steps are timed.

A table names its subject as the papers do (pos, parsing, mnist, …). Accuracies need a task of `meprop_bench.tasks`,
times only a workload, so that a table whose task does not exist yet may still have its times measured. The smoke scale
runs on data that come with the package. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meprop_bench.data.location import data_folder, locate
from meprop_bench.data.sources import SOURCES
from meprop_bench.errors import UserError
from meprop_bench.tasks import TASKS

__all__ = ["SUBJECTS", "Subject", "options_of", "subject"]


@dataclass(frozen=True)
class Subject:
    """What a table's part is about.

    Attributes:
        name: as the tables call it.
        task: of `tasks.TASKS`, on real data; None for what is not trained.
        smoke: the task of the smoke scale, on embedded data or a slice.
        source: of the real data, in `data.sources`.
        options: of a row's setting, what the task takes; what it does not take is what it is made for.
        timing: axes of the sweeps that time its steps; empty where nothing is timed.
        timing_note: what differs from the paper's steps.
        counted: whether its data are the paper's own, so that their sizes can be held against the paper's.

    """

    name: str
    task: str | None
    smoke: str | None
    source: str | None
    options: tuple[str, ...] = ()
    timing: Mapping[str, Any] = field(default_factory=dict)
    timing_note: str = ""
    counted: bool = False

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer alone, which nobody trains."""
        return self.task is None

    def task_name(self, scale: str) -> str:
        """Return the task of a scale."""
        assert self.task is not None
        assert self.smoke is not None
        return self.smoke if scale == "smoke" else self.task

    def data(self, scale: str) -> str:
        """Return what the examples are called."""
        return "digits" if scale == "smoke" and self.source == "mnist" else self.source or "random numbers"

    def reason_not_trained(self, scale: str) -> str | None:
        """Return why it cannot be trained here, or None."""
        name = self.task_name(scale)
        if name not in TASKS:
            return f"there is no task {name!r} yet"
        return None if scale == "smoke" and self.source == "mnist" else self._data_missing()

    def reason_not_counted(self, scale: str) -> str | None:
        """Return why its data cannot be counted, or None."""
        if not self.counted:
            return "its data are not the paper's (the Penn Treebank is not free), so their sizes say nothing about it"
        if scale == "smoke":
            return "the smoke scale has other data"
        return self._data_missing()

    def _data_missing(self) -> str | None:
        if self.source is None:
            return None
        source = SOURCES[self.source]
        try:
            folder = data_folder()
        except UserError as error:
            return str(error)
        if all(locate(folder, source, file) for file in source.files):
            return None
        return f"the data are not here: set MEPROP_BENCH_DATA, or run `meprop-bench data fetch {self.source}`"


_SIZES = ("batch", "hidden")
_PERCEPTRON = {"workload": "mlp"}
_ALONE = "timed is {} alone, on random numbers, in place of the whole model"

SUBJECTS: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("mnist", "mnist", "digits", "mnist", (*_SIZES, "layers", "dropout"), _PERCEPTRON, counted=True),
        Subject("cnn", "mnist-cnn", "digits-cnn", "mnist", ("batch",)),
        Subject(
            "pos",
            "pos",
            "pos",
            "ud-ewt",
            _SIZES,
            {"workload": "lstm", "in-features": 190, "length": 25},
            _ALONE.format("one direction of the tagger's LSTM over 25 words"),
        ),
        Subject(
            "parsing",
            "parsing",
            "parsing",
            "ud-ewt",
            _SIZES,
            {"workload": "linear", "in-features": 2400},
            _ALONE.format("the parser's hidden layer, 2400 → 500,"),
        ),
        Subject("translation", "translation", "translation", "multi30k", ("batch",)),
        Subject("layer", None, None, None, (), {"workload": "linear"}),
    )
}
"""Name -> what it is. A task that is added to `tasks.TASKS` under the name here makes its tables runnable."""


def subject(name: str) -> Subject:
    """Return a subject; `UserError` for one that is not known."""
    if name not in SUBJECTS:
        raise UserError(f"there is no subject {name!r}: choose from {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def options_of(task: str) -> tuple[str, ...]:
    """Return what a task of `tasks.TASKS` takes of a row's setting."""
    return next(about.options for about in SUBJECTS.values() if task in (about.task, about.smoke))
