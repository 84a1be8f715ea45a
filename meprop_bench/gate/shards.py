"""A gate whose cases several runners measure: what each of them hands on, and the one verdict over all of it.

    gate --base REV --shard I/N --save FILE     measures the cases that are its own, both revisions side by side, and
                                                saves the evidence: the pairs of processes of each figure
    gate merge FILE...                          judges all figures at once, as one run would have done

A case is measured on one runner from its first pair to its last, so nothing of a verdict is between two machines. What
belongs to all cases is the correction for many figures (Holm). A shard does not know what the others find, so it goes
on measuring until a loss is certain whatever that is: it takes them for figures that say nothing (`decide`). What a
case does not need of its time is there for the other cases of its shard.

No verdict without all of it: a shard that is missing, or a case of one, may be the one that got slower.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from meprop_bench.errors import UserError
from meprop_bench.gate.files.machine import common_machine
from meprop_bench.gate.judgement import Quantity
from meprop_bench.gate.names import shown
from meprop_bench.gate.revisions import Measured
from meprop_bench.gate.series import Series, Summary
from meprop_bench.gate.settings import Settings, settings_of
from meprop_bench.gate.worktree import Checkout
from meprop_bench.measure.environment import environment_id
from meprop_bench.results.incoming import Amount, Finite, Number, checked, parsed, refused
from meprop_bench.results.merge import contradiction
from meprop_bench.results.shards import Shard
from meprop_bench.results.store import replace_file

__all__ = ["FIGURES_OF_A_CASE", "GateShard", "Merged", "Revision", "merged", "read", "save"]

SCHEMA = "meprop-bench-gate-shard/2"
_BEGINS = f'{{\n "schema": "{SCHEMA}"'.encode()

FIGURES_OF_A_CASE = 5
"""Figures of a case that decide by their noise, at most: forward, backward, update, step and the accuracy."""


@dataclass(frozen=True)
class Revision:
    """A side of the comparison, as one runner had it."""

    name: str
    commit: str | None
    files: str | None = None  # digest of what was measured, where that is not the commit alone

    @classmethod
    def of(cls, checkout: Checkout) -> Revision:
        """Return that of a checkout, before anything is built in it."""
        return cls(checkout.name, checkout.commit, _digest(checkout.folder) if checkout.changed else None)


@dataclass(frozen=True)
class GateShard:
    """What one runner hands on."""

    shard: Shard
    cases: tuple[str, ...]  # labels of all cases of the gate, in their order
    base: Revision
    head: Revision
    settings: Mapping[str, Any]  # keys of [tool.meprop-bench.gate]
    own: bool  # whether it is a project of its own that is measured
    found: Measured
    doubts: tuple[str, ...]
    repeat: tuple[str, ...]
    seconds: float
    path: Path = field(default=Path(), compare=False)

    @property
    def labels(self) -> frozenset[str]:
        """The cases that it measures."""
        return self.shard.part(self.cases)


@dataclass(frozen=True)
class Merged:
    """All shards together, as one run would have found it."""

    base: str
    head: str
    settings: Settings
    found: Measured
    doubts: tuple[str, ...]
    machine: str
    repeat: tuple[str, ...]
    seconds: float


def save(shard: GateShard, path: Path) -> None:
    """Write a shard; `UserError` where that cannot be written."""
    found = shard.found
    record = {
        "schema": SCHEMA,
        "shard": {"index": shard.shard.index, "of": shard.shard.of},
        "cases": list(shard.cases),
        "base": asdict(shard.base),
        "head": asdict(shard.head),
        "settings": dict(shard.settings),
        "own": shard.own,
        "notes": list(found.general),
        "remarks": list(found.remarks),
        "environment": dict(found.environment),
        "rounds": found.rounds,
        "lacking": found.lacking,
        "doubts": list(shard.doubts),
        "repeat": list(shard.repeat),
        "seconds": shard.seconds,
        "series": [],
    }
    lines = ",\n  ".join(json.dumps(_record(one), allow_nan=False) for one in found.series)
    head = json.dumps(record, indent=1, allow_nan=False).removesuffix("]\n}")
    replace_file(path, [head, f"\n  {lines}\n ]\n}}\n"])


def read(path: Path) -> GateShard:
    """Read a shard; `UserError` for a file that is none."""
    name = shown(path.name, 120)
    try:
        record = checked(parsed(path.read_bytes()), _ShardFile)
        if record.schema != SCHEMA:
            raise ValueError(f"it has the schema {shown(record.schema, 40)!r}, and this reads {SCHEMA!r}")
        shard = Shard(record.shard["index"], record.shard["of"])
        settings_of(record.settings)
        series = tuple(map(_series, record.series))
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or type(error).__name__}") from None
    except (ValueError, KeyError, UserError) as error:
        raise refused(f"{name} is not what `gate --shard I/N --save` writes", error, "name a file that is") from None
    count = len(shard.part(record.cases))
    found = Measured(
        series, tuple(record.notes), record.environment, record.rounds, record.lacking, count, tuple(record.remarks)
    )
    return GateShard(
        *(shard, tuple(record.cases), record.base, record.head, record.settings, record.own, found),
        *(tuple(record.doubts), tuple(shown(word, 1000) for word in record.repeat), record.seconds, path),
    )


def merged(shards: Sequence[GateShard]) -> Merged:
    """Return what the shards of one gate come to.

    Raises:
        UserError: one comes twice, they are of different gates, or one of them is missing, or a case of it (exit code
            3); the base can do nothing of what is measured (3).

    """
    by_index: dict[int, GateShard] = {}
    for shard in shards:
        _check_same_gate(shards[0], shard)
        if (other := by_index.setdefault(shard.shard.index, shard)) is not shard:
            raise contradiction(
                f"{_name(other)} and {_name(shard)} are both shard {shard.shard}: name the one that counts"
            )
    first = by_index[min(by_index)]
    _check_complete(first, by_index)
    ordered = [by_index[index] for index in sorted(by_index)]
    found = Measured(
        tuple(_in_order(first.cases, (one for shard in ordered for one in shard.found.series))),
        tuple(_general_notes(ordered)),
        _environment(ordered),
        max(shard.found.rounds for shard in ordered),
        {label: why for shard in ordered for label, why in shard.found.lacking.items()},
        len(first.cases),
        tuple(_remarks(first.cases, ordered)),
    )
    if not first.own:
        found.check_base(first.base.name)
    return Merged(
        first.base.name,
        first.head.name,
        settings_of(first.settings),
        found,
        tuple(f"shard {shard.shard}: {line}" for shard in ordered for line in shard.doubts),
        common_machine(shard.found.environment for shard in ordered),
        first.repeat,
        sum(shard.seconds for shard in ordered),
    )


def _name(shard: GateShard) -> str:
    return shown(shard.path.name, 120)


def _check_same_gate(one: GateShard, other: GateShard) -> None:
    if one.shard.of != other.shard.of:
        raise contradiction(
            f"{_name(one)} and {_name(other)} are of different splits, {one.shard} and {other.shard}: measure all anew"
        )
    for what in ("base", "head"):
        first, second = getattr(one, what), getattr(other, what)
        if (first.commit, first.files) != (second.commit, second.files):
            raise contradiction(
                f"{_name(one)} and {_name(other)} measured different revisions: the {what} is {shown(first.name)} and"
                f" {shown(second.name)}; give all shards one commit, by --head where their work trees differ"
            )
    for what in ("settings", "cases", "own"):
        if getattr(one, what) != getattr(other, what):
            raise contradiction(
                f"{_name(one)} and {_name(other)} have different {'settings' if what == 'settings' else 'cases'}: give"
                " all shards the same options and threads"
            )


def _check_complete(first: GateShard, found: Mapping[int, GateShard]) -> None:
    """See that each case was measured by the shard that it belongs to: none is judged by being left out."""
    missing = []
    for index in range(1, first.shard.of + 1):
        shard = Shard(index, first.shard.of)
        if index not in found and (cases := shard.part(first.cases)):
            missing.append(f"{shard} ({len(cases)} of {len(first.cases)} cases)")
    if missing:
        raise contradiction(
            f"no verdict without {'shards' if len(missing) > 1 else 'shard'} {', '.join(missing)}: a job failed, or its"
            " file was not handed on"
        )
    for part in found.values():
        seen = {one.case for one in part.found.series}
        if strays := (seen & set(first.cases)) - part.labels:
            raise contradiction(f"{_name(part)} is shard {part.shard} and holds another's case, {shown(min(strays))}")
        installed = all(one.case in first.cases or one.gone for one in part.found.series)
        if installed and (left_out := part.labels - seen):
            lost = shown(min(left_out))
            raise contradiction(f"no verdict: {_name(part)} has nothing of its case {lost}; measure the shard anew")


def _in_order(cases: Sequence[str], series: Iterable[Series]) -> list[Series]:
    """Return all figures in the order of a run; what each shard says of all (a case is gone) comes once, at the end."""
    of_case: dict[str, list[Series]] = {}
    besides: dict[tuple[str, str], Series] = {}
    known = set(cases)
    for one in series:
        if one.case in known:
            of_case.setdefault(one.case, []).append(one)
        else:  # what failed stands for itself, whatever the other shards say
            name = (one.case, one.figure)
            besides[name] = one if one.failure else besides.get(name, one)
    return [*(one for case in cases for one in of_case.get(case, ())), *besides.values()]


def _general_notes(shards: Sequence[GateShard]) -> list[str]:
    """Return the notes on all of it, each once, and where it was measured."""
    lines = dict.fromkeys(note for shard in shards for note in shard.found.general)
    machines = {line for shard in shards if (line := common_machine([shard.found.environment]))}
    where = [f"its cases were measured by {len(shards)} shards, on {len(machines)} kinds of machines"]
    return [*lines, *(where if len(machines) > 1 else [])]


def _remarks(cases: Sequence[str], shards: Sequence[GateShard]) -> list[tuple[str, str]]:
    """Return the notes on cases, in the order of a run."""
    place = {case: number for number, case in enumerate(cases)}
    remarks = dict.fromkeys(remark for shard in shards for remark in shard.found.remarks)
    return sorted(remarks, key=lambda remark: place.get(remark[0], len(place)))


def _environment(shards: Sequence[GateShard]) -> Mapping[str, Any]:
    """Return the environment of all shards, or that of each by its name where they differ."""
    known = [shard for shard in shards if shard.found.environment]
    ids = {environment_id(shard.found.environment) for shard in known}
    if len(ids) <= 1:
        return known[0].found.environment if known else {}
    return {str(shard.shard): dict(shard.found.environment) for shard in known}


def _digest(folder: Path) -> str:
    """Return what tells the files of a folder from others."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        if not (data := path.read_bytes()).startswith(_BEGINS):  # another shard may have been saved in the work tree
            name = path.relative_to(folder).as_posix()
            found.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
            found.update(data)
    return found.hexdigest()[:12]


_Value: TypeAlias = Finite | Literal["nan", "inf", "-inf"]
"""JSON has no other word for what is no finite number."""


class _Series(msgspec.Struct):
    case: str
    figure: str
    quantity: Quantity
    unit: str
    pairs: list[list[tuple[_Value, _Value]]] | None = None
    base: list[_Value] = []
    head: list[_Value] = []
    own_processes: bool = False
    most: Number = 0
    failure: str = ""
    unjudged: str = ""
    gone: bool = False
    decides: bool = True
    repeats: str = ""


class _ShardFile(msgspec.Struct):
    schema: str
    shard: dict[str, int]
    cases: list[str]
    base: Revision
    head: Revision
    settings: dict[str, Any]
    own: bool
    series: list[_Series]
    notes: list[str]
    environment: dict[str, Any]
    rounds: Number
    lacking: dict[str, tuple[str, bool]]
    doubts: list[str]
    repeat: list[str]
    seconds: Amount
    remarks: list[tuple[str, str]] = []


def _record(one: Series) -> dict[str, Any]:
    """Return a figure as JSON, without what is as usual."""
    found: dict[str, Any] = {name: getattr(one, name) for name in ("case", "figure", "quantity", "unit")}
    usual = {
        "own_processes": False,
        "most": 0,
        "failure": "",
        "unjudged": "",
        "gone": False,
        "decides": True,
        "repeats": "",
    }
    found |= {name: value for name, otherwise in usual.items() if (value := getattr(one, name)) != otherwise}
    if one.pairs is not None:
        found["pairs"] = [[_values(pair) for pair in run] for run in one.pairs]
    for name in ("base", "head"):
        side = getattr(one, name)
        assert not isinstance(side, Summary)  # those are of files
        found |= {name: _values(side)} if side else {}
    return found


def _values(values: Iterable[float]) -> list[_Value]:
    return [value if math.isfinite(value) else str(float(value)) for value in values]  # type: ignore[misc]


def _series(one: _Series) -> Series:
    known = {name: getattr(one, name) for name in one.__struct_fields__ if name not in ("pairs", "base", "head")}
    pairs = None if one.pairs is None else tuple(tuple((float(b), float(h)) for b, h in run) for run in one.pairs)
    base, head = (tuple(map(float, side)) for side in (one.base, one.head))
    return Series(**known, pairs=pairs, base=base, head=head)
