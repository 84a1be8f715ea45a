"""How much of a table is run: its scales, from `experiments.toml`, and the exceptions that tables make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from meprop_bench.errors import one_of
from meprop_bench.paper.published import Setting, checked_as, packaged
from meprop_bench.paper.subjects import SUBJECTS

__all__ = ["SCALES", "Scale", "reading_of", "scale_of"]

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
    """By task and scale, by table, task and scale, and fields of `Setting` by table and task."""

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
                one_of(f"key in {_FILE}:", key, [spec.name for spec in fields(Setting)])
    return found


def scale_of(table_id: str, task: str, name: str) -> Scale:
    """Return the scale of a table's part: the task's, with the table's exceptions."""
    one_of("scale", name, SCALES)
    rule = _experiments().task.get(task, {}).get(name, {})
    exception = _experiments().table.get(table_id, {}).get(task, {}).get(name, {})
    return checked_as({**rule, **exception}, Scale, _FILE)


def reading_of(table_id: str, task: str) -> Mapping[str, Any]:
    """Return what a paper leaves open of a table's part and how it is read here: fields of `Setting`."""
    return _experiments().reading.get(table_id, {}).get(task, {})
