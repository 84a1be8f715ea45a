"""What is measured of a project of its own: the models and functions that `[tool.meprop-bench.gate]` names, as cases.

    models = ["my_model.py:build"]                     as it is trained: no layer is sparsified
    models = [{model = "my_model.py:build", method = "unified", k = [0.05, 0.1], threads = 2}]      axes, as of a preset
    functions = ["bench.py:parse_large"]
    functions = [{function = "bench.py:parse", setup = "bench.py:text", sizes = [1000, 100000]}]

    function     what is timed; file.py:function or package.module:function
    setup        makes its arguments, untimed: (args, kwargs), None for none, or the one argument
    each-call    whether it does so before each call, as a function that changes its arguments needs
    args kwargs  what the set-up is called with, or the function where there is no set-up
    sizes        each makes a case, and is the first argument of the same
    threads      that its libraries may use [default: the physical cores]
    name         of the case, in place of the function's

Both revisions are measured by what the head's pyproject.toml says. What the base's names and the head's does not is no
case, but has its line: a benchmark that was deleted must not look like one that did not get slower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec

from meprop_bench.errors import UserError, one_of
from meprop_bench.gate.settings import Settings, load_settings
from meprop_bench.results.axes import AXES, default_threads
from meprop_bench.sweep.function_case import FunctionCase
from meprop_bench.sweep.plan import plan_axes
from meprop_bench.tasks.build import is_model
from meprop_bench.workloads.case import Case

__all__ = ["Measurable", "MeasurementPlan", "Targets", "names_of", "targets"]

Measurable: TypeAlias = Case | FunctionCase

_WHERE = "[tool.meprop-bench.gate]"
_LEAST_PAIRS = 4


class MeasurementPlan(Protocol):
    """What `revisions.measure` is given: a plan of cases of this package (`sweep.plan.Plan`), or `Targets`."""

    @property
    def cases(self) -> Sequence[Measurable]:
        """What is measured."""

    @property
    def budget(self) -> float:
        """Seconds for a case, all included."""

    @property
    def processes(self) -> int:
        """Pairs of processes for a case at least."""

    @property
    def checks(self) -> tuple[str, ...]:
        """Whether accuracies are compared: "accuracy"."""

    @property
    def accuracy_seeds(self) -> int:
        """Trainings for that, of each side."""

    @property
    def accuracy_steps(self) -> int:
        """Of each training."""

    @property
    def seed(self) -> int:
        """Of all orders."""


@dataclass(frozen=True)
class Targets:
    """The cases of a project of its own, and how they are measured: fields as in `MeasurementPlan`."""

    cases: tuple[Measurable, ...]
    budget: float
    processes: int = _LEAST_PAIRS
    checks: tuple[str, ...] = ("gradients", "accuracy")
    accuracy_seeds: int = 5
    accuracy_steps: int = 400
    seed: int = 0


class _Function(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """A table of `functions`."""

    function: str
    setup: str | None = None
    each_call: bool = False
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    sizes: list[Any] = []
    threads: int | None = None
    name: str = ""


def targets(settings: Settings) -> Targets:
    """Return what the settings name, of it what may have a figure to judge.

    Raises:
        UserError: a name or a table that cannot be used, two cases of one name, or nothing to judge.

    """
    if settings.preset is not None:
        raise UserError(
            f"preset in {_WHERE} is of the cases of meprop-bench itself: leave it, or models and functions, out"
        )
    found = _cases(settings)
    cases = tuple(case for case in found if settings.measured(case.label))
    if not cases:
        names = ", ".join(case.label for case in found[:3])
        raise UserError(f"none of models and functions matches {', '.join(settings.cases)}: there are {names}")
    return Targets(
        cases,
        settings.budget,
        min(_LEAST_PAIRS, settings.pairs),
        accuracy_seeds=settings.accuracy_seeds,
        accuracy_steps=settings.accuracy_steps,
    )


def names_of(folder: Path) -> tuple[str, ...]:
    """Return the names of the cases that a folder's pyproject.toml names; none where it is no sound one."""
    try:
        return tuple(case.label for case in _cases(load_settings(folder)))
    except UserError:  # of another version of this package, say; what the head names is measured in any case
        return ()


def _cases(settings: Settings) -> list[Measurable]:
    every: list[Measurable] = [case for entry in settings.models for case in _models(entry)]
    every += [case for entry in settings.functions for case in _functions(entry)]
    found: dict[str, Measurable] = {}
    for case in every:
        if case.label in found:
            raise UserError(f"{_WHERE} names {case.label} twice: leave one out, or give it a name of its own")
        found[case.label] = case
    return list(found.values())


def _models(entry: str | Mapping[str, Any]) -> Sequence[Case]:
    """Return the cases of an entry of `models`: the model as it is trained, unless it names a method."""
    axes = {"model": entry} if isinstance(entry, str) else dict(entry)
    for key in axes:
        one_of(f"axis in models of {_WHERE}:", key, AXES)
    model = axes.get("model")
    if not isinstance(model, str) or not is_model(model):
        raise UserError(f'models in {_WHERE} names a function, as "my_model.py:build", not {model!r}')
    usual = {"method": "dense", "baseline": "same"} if "method" not in axes else {"baseline": "same"}
    values = {key: value if isinstance(value, list) else [value] for key, value in {**usual, **axes}.items()}
    cases = plan_axes(values).cases
    if other := next((case for case in cases if case.compile == "on" or case.baseline == "best"), None):
        raise UserError(f"the gate judges only eager code: leave compile and baseline best out of {other.label}")
    return cases


def _functions(entry: str | Mapping[str, Any]) -> Sequence[FunctionCase]:
    """Return the cases of an entry of `functions`, one for each size."""
    record = {"function": entry} if isinstance(entry, str) else entry
    try:
        one = msgspec.convert(record, _Function)
        msgspec.json.encode([one.args, one.kwargs, one.sizes])
    except (msgspec.ValidationError, TypeError, UnicodeEncodeError) as error:
        name = record.get("function", "one of its tables")
        raise UserError(f"functions in {_WHERE}: {name} cannot be used: {str(error).replace('`', '')}") from None
    for value in (*one.args, *one.kwargs.values(), *one.sizes):
        _plain(value, one.function)
    if one.threads is not None and one.threads < 1:
        raise UserError(f"functions in {_WHERE}: threads of {one.function} is at least 1, not {one.threads}")
    if one.each_call and one.setup is None:
        raise UserError(f"functions in {_WHERE}: {one.function} has no setup that each-call could run: name one")
    return [
        FunctionCase(
            function=one.function,
            threads=one.threads or default_threads(),
            setup=one.setup,
            each_call=one.each_call,
            args=tuple(one.args),
            kwargs=one.kwargs,
            sizes=sizes,
            name=one.name,
        )
        for sizes in (((size,) for size in one.sizes) if one.sizes else ((),))
    ]


def _plain(value: object, function: str) -> None:
    """Refuse what is no JSON value: a date would arrive as its text."""
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            _plain(part, function)
    elif not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(
            f"functions in {_WHERE}: {function} cannot be called with {value!r} from there: make it in a setup function"
        )
