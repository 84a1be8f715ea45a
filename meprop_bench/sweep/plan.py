"""A plan: axes multiplied out into cases, and how long and how closely to measure each of them.

    axes    k = 8, 32   ×   gradient = dense, rows   ×   ...   ->   one case for each combination
    preset  a TOML file: sweeps that belong together, why they were chosen, and the checks that their cases must pass

A preset is data, so that a sweep can be read, compared and extended without reading code; a misspelt key in one is an
error with a suggestion, never an axis that silently does nothing. Everything that can be wrong in a plan is found
here, before anything is measured.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.workloads.case import DATA, WORKLOADS, Case, one_of

__all__ = [
    "AXES",
    "CHECKS",
    "DEFAULT_AXES",
    "Plan",
    "Preset",
    "load_preset",
    "parse_axis",
    "plan_axes",
    "plan_preset",
    "preset_names",
]

AXES = {
    "workload": "workload",
    "method": "method",
    "k": "k",
    "in-features": "in_features",
    "hidden": "out_features",
    "batch": "batch",
    "device": "device",
    "threads": "threads",
    "dtype": "dtype",
    "kernel": "kernel",
    "gradient": "gradient",
    "allocator": "allocator",
    "data": "data",
    "layers": "layers",
    "optimizer": "optimizer",
    "size": "size",
    "filter": "filter",
    "length": "length",
    "rate": "rate",
    "share": "share",
    "slowdown": "slowdown",
    "caches": "caches",
    "launch": "launch",
    "seed": "seed",
}
"""Axis, as options and presets spell it -> the field of a case."""

_INTEGERS = ("in-features", "hidden", "batch", "threads", "layers", "size", "filter", "length", "seed")
_RATIOS = ("rate", "share", "slowdown")
_OF_SOME = tuple(dict.fromkeys(name for workload in WORKLOADS.values() for name in workload.fields))

DEFAULT_AXES: Mapping[str, tuple[Any, ...]] = {
    "workload": ("linear",),
    "method": ("meprop", "unified"),
    "k": (10, 30, 100),
    "hidden": (500,),
    "batch": (50,),
}
"""What `speedup` measures when it is told nothing: a hidden layer of the papers' MNIST model."""

_OTHERWISE: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    # The papers' second convolution, 16 -> 32 maps with filters of 5 x 5, on what pooling left of an image.
    "conv": {"k": (0.01, 0.05, 0.1), "hidden": (32,), "in-features": (16,), "batch": (10,)},
    "lstm": {"in-features": (190,), "batch": (1, 10)},  # the papers' tagger: 50 + 7 x 20 dimensions
    "gru": {"in-features": (190,), "batch": (1, 10)},
    "seq2seq": {"batch": (20,), "k": (30,)},
    "mesimp": {"k": (80,), "batch": (50,)},
    "meact": {"k": (1,)},  # it has none
}
"""Workload -> what it is measured with when nothing is said, where that is not the same."""

CHECKS = ("gradients", "accuracy")
"""What a preset may require. Gradients are checked always; accuracy is compared where data are learnt."""

_Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and how closely.

    Attributes:
        name: of the sweep; a part of the results folder's name.
        cases: in the order of measuring.
        analysis: what the sweep is for and how to read it.
        checks: what its cases must pass.
        target: half-width of the speed-up's interval at which a case is done, relative (0.02 is ±2%).
        budget: seconds of timing for a case.
        processes: fresh processes for a case, the replicates of its interval.
        keep_processes: let the processes serve all cases that share device, threads and allocator; otherwise each
            case gets
            its own. Loading torch five times costs as much as measuring a small case.
        pin: bind each process to as many physical cores as it has threads.
        utilization: watch utilisation, power and energy after the timing, for 2 s of each side.
        watched: ids of cases for which that is done although it is not for all.
        accuracy_seeds: training runs of each side in the accuracy comparison.
        accuracy_steps: training steps of each of those.
        seed: of the order within pairs and the order of the processes. That of weights, data and selections is an
            axis of the cases.

    """

    name: str
    cases: tuple[Case, ...]
    analysis: str = ""
    checks: tuple[str, ...] = CHECKS
    target: float = 0.02
    budget: float = 20.0
    processes: int = 5
    keep_processes: bool = False
    pin: bool = False
    utilization: bool = True
    watched: tuple[str, ...] = ()
    accuracy_seeds: int = 5
    accuracy_steps: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError(f"the sweep {self.name!r} has no case")
        for check in self.checks:
            one_of("check", check, CHECKS)
        _check_number("target", self.target, lambda value: 0 < value < 1, "between 0 and 1 (0.02 is ±2%)")
        _check_number("budget", self.budget, lambda value: 0 < value < 1e6, "more than 0 seconds, and finite")
        for name in ("processes", "accuracy_seeds", "accuracy_steps"):
            value = getattr(self, name)
            _check_number(
                name.replace("_", "-"), value, lambda v: isinstance(v, int) and 1 <= v <= 10_000, "an integer from 1"
            )
        for name in ("keep_processes", "pin", "utilization"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"{name.replace('_', '-')} must be true or false, not {value!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; two plans with the same one measure the same.

        What is not pinned or watched does not say so: runs that were begun when there was no such choice can still be
        resumed.
        """
        return {name: value for name, value in asdict(self).items() if name not in ("pin", "watched") or value}


@dataclass(frozen=True)
class Preset:
    """A preset as read: its settings (fields of `Plan`), the axes of each of its sweeps, and which have their cases
    watched whatever is done with the others.
    """

    settings: Mapping[str, Any]
    sweeps: tuple[_Axes, ...]
    watched: tuple[bool, ...]


_SETTINGS = {
    "name": str,
    "analysis": str,
    "checks": list,
    "target": float,
    "budget": float,
    "processes": int,
    "keep-processes": bool,
    "pin": bool,
    "utilization": bool,
    "accuracy-seeds": int,
    "accuracy-steps": int,
}


_WATCHED = "utilization"
"""What a sweep of a preset may say for its own cases, too."""


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
    settings: dict[str, Any] = {}
    for key, value in record.items():
        one_of(f"key in the {where}:", key, (*_SETTINGS, "sweep"))
        if key != "sweep":
            settings[key.replace("-", "_")] = _setting(key, value, where)
    for key in ("name", "analysis", "checks"):
        if key not in settings:
            raise UserError(
                f"the {where} has no {key!r}: a preset says its name, what it is for and what its cases must pass"
            )
    sweeps = record.get("sweep")
    if not isinstance(sweeps, list) or not all(isinstance(sweep, dict) for sweep in sweeps) or not sweeps:
        raise UserError(f"the {where} has no sweep: write its axes under [[sweep]]")
    watched = tuple(_setting(_WATCHED, sweep.pop(_WATCHED, False), where) for sweep in sweeps)
    return Preset(settings, tuple(_axes_of(sweep, where) for sweep in sweeps), watched)


def _setting(key: str, value: Any, where: str) -> Any:
    wanted = _SETTINGS[key]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and float(value) == wanted(value) if wanted in (int, float) else isinstance(value, wanted)):
        raise UserError(f"{key} in the {where} must be of type {wanted.__name__}, not {value!r}")
    return tuple(value) if isinstance(value, list) else value


def _axes_of(sweep: Mapping[str, Any], where: str) -> _Axes:
    axes: dict[str, list[Any]] = {}
    for key, value in sweep.items():
        one_of(f"axis in the {where}:", key, tuple(AXES))
        axes[key] = value if isinstance(value, list) else [value]
        if not axes[key]:
            raise UserError(f"the axis {key!r} in the {where} is empty")
    return axes


def parse_axis(axis: str, texts: Iterable[str]) -> list[Any]:
    """Return the values of an axis as typed: words with commas between them, as numbers where the axis has numbers."""
    words = [word.strip() for text in texts for word in text.split(",")]
    return [_parse(axis, word) for word in words]


def _parse(axis: str, word: str) -> Any:
    kinds = (int, float) if axis == "k" else (int,) if axis in _INTEGERS else (float,) if axis in _RATIOS else ()
    for kind in kinds:
        try:
            return kind(word)
        except ValueError:
            continue
    if not kinds:
        return word
    wanted = {
        int: f"an integer of at least {int(axis != 'seed')}",
        float: "a share, 0.03 for 3%" if axis == "slowdown" else "a ratio in (0, 1]",
    }
    raise UserError(f"{axis} must be {', or '.join(wanted[kind] for kind in kinds)}, not {word!r}")


def plan_axes(axes: _Axes, *, name: str = "sweep", **settings: Any) -> Plan:
    """Return the plan of a product of axes; what is not given comes from `DEFAULT_AXES` and the defaults of `Case`.

    The setting `seed` is that of all cases where there is no axis of that name.
    """
    seed = settings.get("seed", 0)
    return Plan(name=name, cases=_distinct(_cases(axes, seed)), **settings)


def plan_preset(preset: Preset, overrides: _Axes | None = None, **settings: Any) -> Plan:
    """Return the plan of a preset.

    Args:
        preset: as read.
        overrides: axes that take the place of the preset's own in each of its sweeps.
        settings: fields of `Plan` that take the place of the preset's.

    """
    seed = settings.get("seed", 0)
    found = [tuple(_cases({**sweep, **(overrides or {})}, seed)) for sweep in preset.sweeps]
    if _WATCHED not in settings:  # a case of several sweeps is watched if one of them says so
        chosen = _distinct(case for cases, watch in zip(found, preset.watched, strict=True) if watch for case in cases)
        settings["watched"] = tuple(case.case_id for case in chosen)
    return Plan(**{**preset.settings, **settings, "cases": _distinct(itertools.chain(*found))})


def _cases(axes: _Axes, seed: int) -> Iterable[Case]:
    """Multiply one sweep out. An axis that no workload of it has is an error, as it would do nothing."""
    workloads = axes.get("workload", DEFAULT_AXES["workload"])
    for workload in workloads:
        one_of("workload", workload, tuple(WORKLOADS))
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
            yield _case(workload, dict(zip(own, values, strict=True)))


def _usual(workload: str) -> dict[str, Sequence[Any]]:
    """Return the axes that are there when nothing is said."""
    usual: dict[str, Sequence[Any]] = {**DEFAULT_AXES, **_OTHERWISE.get(workload, {})}
    methods = WORKLOADS[workload].methods
    usual["method"] = [method for method in usual["method"] if method in methods] or methods[:1]
    if "data" in WORKLOADS[workload].fields:
        usual["data"] = ["auto"]
    del usual["workload"]
    return usual


def _takes(workload: str, axis: str) -> bool:
    """Whether the axis can be chosen for the workload: of a perceptron, the inputs follow from the data."""
    field, has = AXES[axis], WORKLOADS[workload].fields
    return field not in _OF_SOME or (field in has and not (field == "in_features" and "data" in has))


def _case(workload: str, values: Mapping[str, Any]) -> Case:
    chosen = {AXES[axis]: value for axis, value in values.items()}
    if "data" in chosen:
        chosen["data"] = _which_data(chosen["data"])
        chosen["in_features"] = DATA[chosen["data"]]
    elif "in_features" in WORKLOADS[workload].fields:
        chosen.setdefault("in_features", chosen["out_features"])
    return Case(workload=workload, **chosen)


def _which_data(name: object) -> str:
    """Turn "auto" into what `data.load_images` would load: a case names its data, since its numbers depend on them."""
    if name != "auto":
        return one_of("data", name, ("auto", *DATA))
    from meprop_bench.data import auto_images

    return auto_images()


def _distinct(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(dict.fromkeys(cases))


def _check_number(name: str, value: Any, sound: Any, wanted: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not sound(value):
        raise UserError(f"{name} must be {wanted}, not {value!r}")
