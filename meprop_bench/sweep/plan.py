"""A plan: axes multiplied out into cases, and how long and how closely to measure each of them.

    axes    k = 8, 32   ×   gradient = dense, rows   ×   ...   ->   one case for each combination
    preset  a TOML file: sweeps that belong together, why they were chosen, and the checks that their cases must pass

A preset is data, so that a sweep can be read, compared and extended without reading code; a misspelt key in one is an
error with a suggestion, never an axis that silently does nothing. Everything that can be wrong in a plan is found
here, before anything is measured; what this machine cannot measure is found by `sweep.feasible`.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, TypeAlias, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meprop_bench.errors import ExitCode, UserError, one_of
from meprop_bench.results.axes import AXES, OWN, default_threads
from meprop_bench.results.incoming import checked, conforming, parts
from meprop_bench.tasks import editions
from meprop_bench.tasks.build import is_model, is_pickled, source_of
from meprop_bench.workloads.case import DATA, ONE_WIDTH, TEXT, WORKLOADS, Case

__all__ = [
    "CHECKS", "Plan", "Preset", "given_axes", "load_preset", "one_case", "parse_axis", "plan_axes", "plan_of",
    "plan_preset", "preset_names", "process_of",
]  # fmt: skip

CHECKS = ("gradients", "accuracy")
"""What a preset may require. Gradients are checked always; accuracy is compared where data are learnt."""

_Axes = Mapping[str, Sequence[Any]]

_Width: TypeAlias = Annotated[float, Meta(gt=0, lt=1, description="between 0 and 1 (0.02 is ±2%)")]
_Budget: TypeAlias = Annotated[float, Meta(gt=0, lt=1e6, description="more than 0 seconds, and finite")]
_Number: TypeAlias = Annotated[int, Meta(ge=1, le=10_000, description="an integer from 1 to 10000")]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and how closely."""

    name: str  # of the sweep; a part of the results folder's name
    cases: tuple[Case, ...]  # in the order of measuring
    analysis: str = ""  # what the sweep is for and how to read it
    checks: tuple[str, ...] = CHECKS  # what its cases must pass
    target: _Width = 0.02  # half-width of the speed-up's interval at which a case is done, relative (0.02 is ±2%)
    budget: _Budget = 20.0  # seconds of timing for a case
    processes: _Number = 5  # fresh processes for a case, the replicates of its interval
    # Let the processes serve all cases that share device, threads and allocator; otherwise each case gets its own.
    # Loading torch five times costs as much as measuring a small case.
    keep_processes: bool = False
    pin: bool = False  # bind each process to as many physical cores as it has threads
    utilization: bool = True  # watch utilisation, power and energy after the timing, for 2 s of each side
    watched: tuple[str, ...] = ()  # ids of cases for which that is done although it is not for all
    compared: tuple[str, ...] = ()  # ids of cases whose accuracy is compared although that is no check of all
    accuracy_seeds: _Number = 5  # training runs of each side in the accuracy comparison
    accuracy_steps: _Number = 400  # training steps of each of those
    seed: int = 0  # of the order within pairs and of the processes; weights, data and selections have an axis

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError(f"the sweep {self.name!r} has no case")
        for check in self.checks:
            one_of("check", check, CHECKS)
        for name, kind in _settings().items():
            if name != "checks":
                conforming(name.replace("_", "-"), getattr(self, name), kind)

    @property
    def order(self) -> tuple[Case, ...]:
        """The cases in the order of measuring: where processes are kept, those that share them one after the other."""
        if not self.keep_processes:
            return self.cases
        groups = list(dict.fromkeys(map(process_of, self.cases)))
        return tuple(sorted(self.cases, key=lambda case: groups.index(process_of(case))))  # stable

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; two plans with the same one measure the same.

        What is not pinned, watched or compared does not say so: runs that were begun when there was no such choice can
        still be resumed. Users' models go with their source, as an edited one is another.
        """
        late = ("pin", "watched", "compared")
        found = {name: value for name, value in asdict(self).items() if name not in late or value}
        found |= editions(*(case.data for case in self.cases)) if self.compared or "accuracy" in self.checks else {}
        models = dict.fromkeys(case.model for case in self.cases if case.model is not None and is_model(case.model))
        return found | ({"sources": {model: source_of(model) for model in models}} if models else {})


def process_of(case: Case) -> tuple[object, ...]:
    """Return what the processes of a case are started with: cases that have it in common can share them."""
    return case.threads, case.device, case.allocator, case.world_size


@dataclass(frozen=True)
class Preset:
    """A preset as read: its settings (fields of `Plan`), the axes of each of its sweeps, and which of these have their
    cases watched, or their accuracy compared, whatever is done with the others.
    """

    settings: Mapping[str, Any]
    sweeps: tuple[_Axes, ...]
    marked: Mapping[str, tuple[bool, ...]]  # key of `_OF_A_SWEEP` -> of each sweep


_OF_A_SWEEP = {"utilization": ("watched", "utilization"), "accuracy": ("compared", "checks")}
"""What a sweep of a preset may say for its own cases, too -> field of a plan with their ids, setting of all cases."""


@cache
def _settings() -> Mapping[str, Any]:
    """Return the fields of a plan that a preset sets -> their types."""
    hints = get_type_hints(Plan, include_extras=True)
    return {name: kind for name, kind in hints.items() if name not in ("cases", "watched", "compared", "seed")}


@cache
def _file() -> type[msgspec.Struct]:
    """Return the structure of a preset's file: the settings of a plan, and the axes of each sweep."""
    axes = [(axis.field, axis.kind | GenericAlias(list, (axis.kind,)) | UnsetType, UNSET) for axis in AXES.values()]
    names = {axis.field: axis.option for axis in AXES.values()}
    sweep = msgspec.defstruct("Sweep", [*axes, *((name, bool, False) for name in _OF_A_SWEEP)], rename=names)
    settings = [
        (name, kind) if name in ("name", "analysis", "checks") else (name, kind | UnsetType, UNSET)
        for name, kind in _settings().items()
    ]
    sweeps = ("sweep", GenericAlias(list, (sweep,)))
    return msgspec.defstruct("File", [*settings, sweeps], rename="kebab", kw_only=True)


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("meprop_bench.sweep") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(name: str) -> Preset:
    """Read a preset of the package by its name, or a file of the user's by its path (one that ends in .toml).

    Raises:
        UserError: there is none, or it is not a sound preset.

    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the preset {name}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
            ) from None
    else:
        one_of("preset", name, preset_names())
        text = (resources.files("meprop_bench.sweep") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    try:
        record = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the preset {name} is not TOML: {error}") from None
    return _preset(record, f"preset {name}")


def _preset(record: Mapping[str, Any], where: str) -> Preset:
    settings = {name.replace("_", "-"): name for name in _settings()}
    for key in record:
        one_of(f"key in the {where}:", key, (*settings, "sweep"))
    sweeps = record.get("sweep")
    if not isinstance(sweeps, list) or not all(isinstance(sweep, dict) for sweep in sweeps) or not sweeps:
        raise UserError(f"the {where} has no sweep: write its axes under [[sweep]]")
    for key, value in itertools.chain(*(sweep.items() for sweep in sweeps)):
        one_of(f"axis in the {where}:", key, (*AXES, *_OF_A_SWEEP))
        if value == []:
            raise UserError(f"the axis {key!r} in the {where} is empty: give it a value")
    try:
        for name, kind in _settings().items():
            if (key := name.replace("_", "-")) in record and all(words for _, words in parts(kind)):
                conforming(key, record[key], kind)
        for place, sweep in enumerate(sweeps):
            for key in sweep.keys() - _OF_A_SWEEP.keys():
                for value in sweep[key] if isinstance(sweep[key], list) else [sweep[key]]:
                    conforming(f"sweep[{place}].{key}", value, AXES[key].kind)
        checked(record, _file())
    except (UserError, ValueError) as error:
        raise UserError(f"the {where} cannot be used: {error}") from None
    return Preset(
        {settings[key]: tuple(value) if isinstance(value, list) else value for key, value in record.items()
         if key != "sweep"},
        tuple({key: value if isinstance(value, list) else [value] for key, value in sweep.items()
               if key not in _OF_A_SWEEP} for sweep in sweeps),
        {key: tuple(sweep.get(key, False) for sweep in sweeps) for key in _OF_A_SWEEP},
    )  # fmt: skip


def parse_axis(axis: str, texts: Iterable[str]) -> list[Any]:
    """Return the values of an axis as typed: words with commas between them, as numbers where the axis has numbers.

    Those of a task's options go on until the next name, as in `files=train,dev,test`.
    """
    between = r",(?=[^,;=]*=)" if axis == "options" else ","
    return [AXES[axis].read(word.strip()) for text in texts for word in re.split(between, text)]


def given_axes(options: dict[str, Any]) -> dict[str, list[Any]]:
    """Take the axes out of a command's options, and return the values of those that were given (else `UserError`)."""
    texts = {name: options.pop(name.replace("-", "_")) for name in AXES}
    return {
        name: parse_axis(name, [text] if isinstance(text, str) else text)
        for name, text in texts.items()
        if text not in (None, ())
    }


def plan_of(record: Mapping[str, Any], models: Collection[str] = ()) -> Plan:
    """Return the plan that a results folder holds, so that the same cases are measured again.

    A result may come from anybody, and a model is code: only those of users' models that are named in `models` are run.

    `UserError`: it is that of another command; a key that this version does not know, or a value that is not allowed
    here; a model that is not named, or whose file is not the one that was measured.
    """
    known = {spec.name for spec in fields(Plan)}
    if not {"cases", "target", "budget", "processes"} <= record.keys():
        raise UserError("its plan is not one of speedup: run the command that it names again")
    if unknown := sorted(record.keys() - known - {"sources", "editions"}):
        raise UserError(f"its plan has {unknown[0]!r}, which this version does not know: use the one that measured it")
    axes, sources = {spec.name for spec in fields(Case)}, record.get("sources") or {}
    for case in record["cases"]:
        if unknown := sorted(case.keys() - axes):
            raise UserError(
                f"its cases have {unknown[0]!r}, which this version does not know: use the one that measured it"
            )
        model = case.get("model")
        if model is None or (isinstance(model, str) and not is_model(model)):
            continue
        if model not in models:
            raise UserError(f"its cases run the code of a model, {model}: if you trust it, add --model {model}")
        if is_pickled(model) or source_of(model) != sources.get(model, "none"):
            raise UserError(
                f"the file of the model {model} is not the one that was measured, or is not here: put that one there",
                ExitCode.NOT_COMPARABLE,
            )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items() if name in known
    }
    return Plan(**{**values, "cases": tuple(Case(**case) for case in record["cases"])})


def plan_axes(axes: _Axes, *, name: str = "sweep", **settings: Any) -> Plan:
    """Return the plan of a product of axes; what is not given comes from their table.

    The setting `seed` is that of all cases where there is no axis of that name.
    """
    seed = settings.get("seed", 0)
    return Plan(name=name, cases=_distinct(_cases(axes, seed)), **settings)


def one_case(axes: _Axes) -> Case:
    """Return the case of these axes; of the axes where nothing is said and `speedup` measures several, the usual value.

    Raises:
        UserError: an axis with several values.

    """
    for name, values in axes.items():
        if len(values) > 1:
            given = ", ".join(map(str, values))
            raise UserError(f"a profile takes one case: give --{name} one value, not {given}")
    # What is compiled is in no stages, as the best dense side may be; the usual method comes first.
    cases = plan_axes(axes).cases
    if "baseline" not in axes and cases[0].baseline == "best":
        cases = plan_axes({"baseline": ["same"], **axes}).cases
    return next((case for case in cases if case.k == AXES["k"].default), cases[0])


def plan_preset(preset: Preset, overrides: _Axes | None = None, **settings: Any) -> Plan:
    """Return the plan of a preset.

    Args:
        preset: as read.
        overrides: axes that take the place of the preset's own in each of its sweeps.
        settings: fields of `Plan` that take the place of the preset's.

    """
    seed = settings.get("seed", 0)
    found = [tuple(_cases({**sweep, **(overrides or {})}, seed)) for sweep in preset.sweeps]
    for key, (field, setting) in _OF_A_SWEEP.items():
        if setting not in settings:  # a case of several sweeps is watched if one of them says so
            of_sweeps = zip(found, preset.marked[key], strict=True)
            chosen = _distinct(case for cases, mark in of_sweeps if mark for case in cases)
            settings[field] = tuple(case.case_id for case in chosen)
    return Plan(**{**preset.settings, **settings, "cases": _distinct(itertools.chain(*found))})


def _cases(axes: _Axes, seed: int) -> Iterable[Case]:
    """Multiply one sweep out. An axis that no workload of it has is an error, as it would do nothing."""
    workloads = axes.get("workload", (OWN,) if "model" in axes else AXES["workload"].sweep)
    for workload in workloads:
        one_of("workload", workload, WORKLOADS)
        own = {
            "seed": (seed,),
            **_usual(workload),
            **{axis: values for axis, values in axes.items() if axis != "workload"},
        }
        for axis in [axis for axis in own if not _takes(workload, axis)]:
            owners = [other for other in WORKLOADS if _takes(other, axis)]
            if axis in axes and not set(owners) & set(workloads):
                raise UserError(
                    f"the axis {axis!r} is for the workload {', '.join(owners)}: leave it out, or add --workload "
                    f"{owners[0]}"
                )
            del own[axis]
        for values in itertools.product(*own.values()):
            chosen = dict(zip(own, values, strict=True))
            if workload == OWN and "optimizer" not in axes and not is_model(str(chosen.get("model"))):
                chosen["optimizer"] = AXES["optimizer"].default  # a task has none of its own
            _fill_in_ranks(chosen, axes)
            if "k" not in axes and workload in ONE_WIDTH and chosen["hidden"] < chosen["k"]:
                chosen["k"] = max(1, chosen["hidden"] // 4)  # of a small layer none of the usual k is a part
            yield _case(workload, chosen)


def _fill_in_ranks(chosen: dict[str, Any], axes: _Axes) -> None:
    """Let several processes share the cores, and one process of a sweep over them be without their own axes."""
    size = chosen.get("world-size", 1)
    if size > 1 and "threads" not in axes:
        chosen["threads"] = max(1, default_threads() // size)
    if size == 1 and len(axes.get("world-size", ())) > 1:
        for axis in ("exchange", "dense-exchange"):
            chosen.pop(axis, None)


def _usual(workload: str) -> dict[str, Sequence[Any]]:
    """Return the axes that are there when nothing is said."""
    found = {name: axis.swept(workload) for name, axis in AXES.items()}
    usual: dict[str, Sequence[Any]] = {name: values for name, values in found.items() if values and name != "workload"}
    methods = WORKLOADS[workload].methods
    usual["method"] = [method for method in usual["method"] if method in methods] or methods[:1]
    return usual


def _takes(workload: str, axis: str) -> bool:
    """Whether the axis can be chosen for the workload: of a perceptron, the inputs follow from the data."""
    return AXES[axis].of(workload) and not (axis == "in-features" and AXES["data"].of(workload))


def _case(workload: str, values: Mapping[str, Any]) -> Case:
    chosen = {AXES[axis].field: value for axis, value in values.items()}
    if "data" in chosen:
        data = chosen["data"] = _which_data(chosen["data"], workload)
        if data in DATA:
            chosen["in_features"] = DATA[data]
    elif AXES["in-features"].of(workload):
        chosen.setdefault("in_features", chosen["out_features"])
    return Case(workload=workload, **chosen)


def _which_data(name: object, workload: str) -> str:
    """Turn "auto" into what is here: a case names its data, since its numbers depend on them."""
    if name != "auto":
        return one_of("data", name, ("auto", *(TEXT if workload == "transformer" else DATA)))
    if workload == "transformer":
        from meprop_bench.data.characters import auto_text

        return auto_text()
    from meprop_bench.data import auto_images

    return auto_images()


def _distinct(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(dict.fromkeys(cases))
