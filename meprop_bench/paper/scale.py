"""How much of a table is run: its scales, from `experiments.toml`, and the exceptions that tables make."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from meprop_bench.errors import UserError, one_of
from meprop_bench.paper.published import Setting
from meprop_bench.paper.subjects import SUBJECTS

__all__ = ["SCALES", "Scale", "reading_of", "scale_of"]

SCALES = ("smoke", "short", "full")


@dataclass(frozen=True)
class Scale:
    """How much of an experiment is run; see `experiments.toml` for what the fields mean."""

    epochs: int | None = None
    seeds: int = 1
    batch: int | None = None
    hidden: int | None = None
    layers: int | None = None
    examples: int | None = None
    epoch_s: float = 1.0
    timed_ks: tuple[float, ...] | None = None
    timed_batch: int | None = None
    timed_hidden: int | None = None
    timed_inputs: int | None = None
    budget: float = 20.0
    processes: int = 4
    set_up_s: float = 12.0

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is not None and spec.name != "timed_ks" and not value > 0:
                raise UserError(f"{spec.name} of a scale must be more than 0, not {value!r}")


@cache
def _scales() -> Mapping[str, Any]:
    text = (resources.files("meprop_bench.paper") / "experiments.toml").read_text(encoding="utf-8")
    record = tomllib.loads(text)
    known = [spec.name for spec in fields(Scale)]
    for kind in record:
        one_of("key in experiments.toml:", kind, ("task", "table", "reading"))
    for tasks in (record["task"], *record["table"].values()):
        for task, scales in tasks.items():
            one_of("task in experiments.toml:", task, tuple(SUBJECTS))
            for name, scale in scales.items():
                one_of("scale in experiments.toml:", name, SCALES)
                for key in scale:
                    one_of("key in experiments.toml:", key, known)
    for readings in record["reading"].values():
        for task, reading in readings.items():
            one_of("task in experiments.toml:", task, tuple(SUBJECTS))
            for key in reading:
                one_of("key in experiments.toml:", key, [spec.name for spec in fields(Setting)])
    return record


def scale_of(table_id: str, task: str, name: str) -> Scale:
    """Return the scale of a table's part: the task's, with the table's exceptions."""
    one_of("scale", name, SCALES)
    rule = _scales()["task"].get(task, {}).get(name, {})
    exception = _scales()["table"].get(table_id, {}).get(task, {}).get(name, {})
    found = {**rule, **exception}
    if "timed_ks" in found:
        found["timed_ks"] = tuple(found["timed_ks"])
    return Scale(**found)


def reading_of(table_id: str, task: str) -> Mapping[str, Any]:
    """Return what a paper leaves open of a table's part and how it is read here: fields of `Setting`."""
    found: Mapping[str, Any] = _scales()["reading"].get(table_id, {}).get(task, {})
    return found
