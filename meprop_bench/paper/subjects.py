"""The subjects of the tables: which task stands for each, on which data, how its steps are timed, and how much is run.

A table names its subject as the papers do (pos, parsing, mnist, …). Accuracies need a task of `meprop_bench.tasks`,
times only a workload, so that a table whose task does not exist yet may still have its times measured. How much is run
is a scale of `experiments.toml`, with the exceptions that tables make; the smoke scale runs on data that come with the
package. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from meprop_bench.data.sources import SOURCES, is_here
from meprop_bench.errors import UserError, one_of
from meprop_bench.optimizers import OPTIMIZERS
from meprop_bench.paper.published import PublishedSetting, checked_as, packaged
from meprop_bench.tasks import TASKS

__all__ = ["SCALES", "SUBJECTS", "Scale", "Subject", "reading_of", "scale_of", "subject"]


@dataclass(frozen=True)
class Subject:
    """What a table's part is about."""

    name: str
    task: str | None  # of `tasks.TASKS`, on real data; None for what is not trained
    smoke: str | None  # the task of the smoke scale
    source: str | None  # of the real data, in `data.sources`
    embedded: str = ""  # what the package has in their place, for the smoke scale; empty: that needs the real data, too
    timing: Mapping[str, Any] = field(default_factory=dict)  # axes of the sweeps that time its steps, if any
    timing_note: str = ""  # what differs from the paper's steps
    counted: bool = False  # whether its data are the paper's own, so that their sizes can be held against the paper's
    dropout: bool = True  # whether the task has any
    learned_from: float = 0.0
    """The least test metric of a model that has learned something: halfway from what an answer without a look at the
    input reaches (the most frequent digit 11.4%, the most frequent tag 16.4%, each word on the next 29.8%, no BLEU) to
    what the papers print of dense models."""

    def task_name(self, scale: str) -> str:
        """Return the task of a scale."""
        assert self.task is not None
        assert self.smoke is not None
        return self.smoke if scale == "smoke" else self.task

    def data(self, scale: str) -> str:
        """Return what the examples are called."""
        return (self.embedded if scale == "smoke" else "") or self.source or "random numbers"

    def reason_not_trained(self, scale: str) -> str | None:
        """Return why it cannot be trained here, or None."""
        name = self.task_name(scale)
        if name not in TASKS:
            return f"there is no task {name!r} yet"
        return None if scale == "smoke" and self.embedded else self._data_missing()

    def rate(self, optimizer: str | None) -> float | None:
        """Return the learning rate that a training has by default, None without an optimizer."""
        if optimizer is None or optimizer not in OPTIMIZERS:
            return None
        rate: float = OPTIMIZERS[optimizer].settings["lr"]
        return TASKS[self.task or ""].rates.get(optimizer, rate)

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
            return None if is_here(source) else f"the data are not here: set MEPROP_BENCH_DATA, or {source.remedy}"
        except UserError as error:
            return str(error)


_TEXT = "made-up sentences"
_ALONE = "timed is {} alone, on random numbers, in place of the whole model"

SUBJECTS: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("mnist", "mnist", "digits", "mnist", "digits", {"workload": "mlp"}, counted=True, learned_from=55.0),
        Subject("cnn", "mnist-cnn", "digits-cnn", "mnist", "digits", dropout=False, learned_from=55.0),
        Subject(
            *("pos", "pos", "toy-pos", "ud-ewt", _TEXT),
            {"workload": "lstm", "in-features": 190, "length": 25},
            _ALONE.format("one direction of the tagger's LSTM over 25 words"),
            learned_from=57.0,
        ),
        Subject(
            *("parsing", "parsing", "toy-parsing", "ud-ewt", _TEXT),
            {"workload": "linear", "in-features": 2400},
            _ALONE.format("the parser's hidden layer, 2400 → 500,"),
            learned_from=60.0,
        ),
        Subject("translation", "translation", "toy-translation", "multi30k", _TEXT, learned_from=16.0),
        Subject("layer", None, None, None, "", {"workload": "linear"}),
    )
}
"""Name -> what it is. A task that is added to `tasks.TASKS` under the name here makes its tables runnable."""


def subject(name: str) -> Subject:
    """Return a subject; `UserError` for one that is not known."""
    return SUBJECTS[one_of("subject", name, SUBJECTS)]


SCALES = ("smoke", "short", "full")
_FILE = "experiments.toml"


_Positive: TypeAlias = Annotated[int, Meta(gt=0)]
_Seconds: TypeAlias = Annotated[float, Meta(gt=0)]


class Scale(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of an experiment is run; see `experiments.toml` for what the fields mean."""

    epochs: _Positive | None = None
    seeds: _Positive = 1
    batch: _Positive | None = None
    hidden: _Positive | None = None
    layers: _Positive | None = None
    examples: _Positive | None = None
    epoch_s: _Seconds = 1.0
    timed_ks: tuple[int | float, ...] | None = None
    timed_batch: _Positive | None = None
    timed_hidden: _Positive | None = None
    timed_inputs: _Positive | None = None
    budget: _Seconds = 20.0
    processes: _Positive = 4
    set_up_s: _Seconds = 12.0


class _Experiments(Struct, forbid_unknown_fields=True):
    """By task and scale, by table, task and scale, and fields of `PublishedSetting` by table and task."""

    task: dict[str, dict[str, dict[str, Any]]]
    table: dict[str, dict[str, dict[str, dict[str, Any]]]]
    reading: dict[str, dict[str, dict[str, Any]]]


@cache
def _experiments() -> _Experiments:
    found = checked_as(packaged(_FILE), _Experiments, _FILE)
    for tasks in (found.task, *found.table.values()):
        for task, scales in tasks.items():
            one_of(f"task in {_FILE}:", task, tuple(SUBJECTS))
            for name, scale in scales.items():
                one_of(f"scale in {_FILE}:", name, SCALES)
                checked_as(scale, Scale, _FILE)
    for readings in found.reading.values():
        for task, reading in readings.items():
            one_of(f"task in {_FILE}:", task, tuple(SUBJECTS))
            for key in reading:
                one_of(f"key in {_FILE}:", key, [spec.name for spec in fields(PublishedSetting)])
    return found


def scale_of(table_id: str, task: str, name: str) -> Scale:
    """Return the scale of a table's part: the task's, with the table's exceptions."""
    one_of("scale", name, SCALES)
    rule = _experiments().task.get(task, {}).get(name, {})
    exception = _experiments().table.get(table_id, {}).get(task, {}).get(name, {})
    return checked_as({**rule, **exception}, Scale, _FILE)


def reading_of(table_id: str, task: str) -> Mapping[str, Any]:
    """Return what a paper leaves open of a table's part and how it is read here: fields of `PublishedSetting`."""
    return _experiments().reading.get(table_id, {}).get(task, {})
