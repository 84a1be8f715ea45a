"""The gate's settings: `[tool.meprop-bench.gate]` of the user's pyproject.toml, and options that take its place.

    [tool.meprop-bench.gate]
    preset = "gate"                       # which cases are measured: a preset of the package, or a TOML file
    cases = ["linear *", "mlp *"]         # globs: those of them that are judged
    margin = 0.05                         # a loss of this much, 5%, must not pass
    least-time = 1e-6                     # a smaller difference than this many seconds is none
    report-only = ["*/update"]            # globs: shown, and does not decide

    [tool.meprop-bench.gate.margins]      # glob = margin; the last that matches wins, as in .gitignore
    "*/peak memory*" = 0.02

A project that is not this package says what is measured of it (`targets`), and how it is installed (`environments`):

    models = ["my_model.py:build"]
    functions = ["bench.py:parse_large", {function = "bench.py:parse", setup = "bench.py:text", sizes = [1000, 100000]}]
    install = "python -m pip install -r requirements.lock"
    lock = ["requirements.lock"]          # the environment is kept for as long as these files are the same
    build = "python -m pip install --no-deps ."

A glob (`*`, `?`, `[...]`) is held against a figure's full name "case/figure", against its case and against its figure;
a name that is written out matches itself, brackets and all (pytest's ids have them). Points of accuracy have settings
of their own, because a margin of one percent of the time says nothing about accuracy.

A key that is not known and a value of another type are errors: a typo must not switch a gate off.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy as np

from meprop_bench.errors import UserError, one_of
from meprop_bench.gate.judgement import Quantity
from meprop_bench.gate.series import Flags, Floats

__all__ = ["KEYS", "MARGINS", "Settings", "load_settings", "matches", "settings_of"]

_KINDS = ("", "sparse/dense ", "flops ", "bytes ", "operators ", "peak memory ")
_FIGURES = (
    *(f"{kind}{phase}" for kind in _KINDS for phase in ("forward", "backward", "update", "step", "decode", "call")),
    "accuracy",
)
"""What may be measured of a case between revisions."""

_WHERE = "[tool.meprop-bench.gate]"

MARGINS: Mapping[Quantity, float] = {"time": 0.045, "ratio": 0.075, "memory": 0.01, "count": 0.01}
"""The loss that must not pass where nothing is said.

Memory and counts have no noise between revisions. Times have, and the least margin at which identical code passes is a
property of the machine: docs/gate.md, "How the margin was chosen", has the simulation, from the spreads that were
measured on shared machines with two cores, and `gate --self-test` finds it out for yours. Ratios have the noise of two
sides.
"""

_ALARM = 0.2
"""Of what the confidence leaves: one run in 200 by default. A loss is held against an eighth of its margin there, and
not against the margin, which kept alarms rarer still."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the gate judges; in the file a key has hyphens where the field has underscores.

    Raises `UserError` for a value out of its range.
    """

    preset: str | None = None  # the cases that are measured between revisions of this package; None: "gate"
    models: tuple[str | dict[str, Any], ...] = ()  # of a project of its own: names of builds, or tables of axes
    functions: tuple[str | dict[str, Any], ...] = ()  # likewise: names, or tables of what `targets` reads
    install: str = ""  # command that makes a revision's environment; none: both run in the gate's own
    lock: tuple[str, ...] = ()  # files that the command works from: the environment is kept while they are the same
    build: str = ""  # command that builds a revision in its environment, each time
    path: tuple[str, ...] = (".", "src")  # folders of the project that its modules are found in
    link: tuple[str, ...] = ()  # what git does not have of the work tree, and both revisions find: data
    accuracy_seeds: int = 5  # trainings of a model for its quality
    accuracy_steps: int = 400  # of each training
    cases: tuple[str, ...] = ("*",)  # globs of what is judged
    margin: float | None = None  # loss of times, ratios, memory and counts that must not pass; None: `MARGINS`
    margins: Mapping[str, float] = field(default_factory=dict)  # glob -> margin in its place; the last match wins
    accuracy_margin: float = 0.5  # points of accuracy that may be lost
    accuracy_margins: Mapping[str, float] = field(default_factory=dict)  # glob -> points, likewise
    least_time: float = 0.0  # least difference of times that counts, in seconds
    least_memory: float = 0.0  # of memory, in bytes
    report_only: tuple[str, ...] = ()  # globs of what is shown and does not decide
    budget: float = 60.0  # seconds of measuring for a case: what one does not need is there for the others
    pairs: int = 64  # of processes for a case at most
    confidence: float = 0.95
    """Of the intervals, two-sided: a loss of the margin passes by chance at most in (1 - confidence) / 2."""
    process_noise: float = 0.033
    """Standard deviation of the log ratio of two processes of one code, which is added where a file holds the values of
    a single process. 0.033 on a busy 2-core machine (reports/METHODOLOGY.md)."""

    window: int = 20  # runs of a history that a figure is judged by
    allow_inconclusive: float | str | None = None
    """Share of what decides that may be inconclusive in a run that passes, 0.01 or "1%"; None: none of two revisions or
    files, and 1% of a run that is judged by a history."""

    def __post_init__(self) -> None:
        plain = ("margin", "accuracy_margin", "least_time", "least_memory", "process_noise")
        amounts = {name: getattr(self, name) for name in plain}
        for name in ("margins", "accuracy_margins"):
            amounts |= {f"{name}.{glob}": value for glob, value in getattr(self, name).items()}
        for name, value in amounts.items():
            if value is not None:
                _check(name, value, 0, math.inf, "a number of at least 0")
        _check("confidence", self.confidence, 0.5, 1, "a number from 0.5 to below 1, 0.95 for 95%")
        _check("budget", self.budget, 0, math.inf, "more than 0 seconds, and finite")
        if self.budget == 0:
            raise UserError("budget must be more than 0 seconds")
        _check("pairs", self.pairs, 2, 1e4, "an integer of at least 2: one pair gives no interval")
        _check("window", self.window, 8, 1e4, "an integer of at least 8: fewer runs give no spread")
        self.inconclusive_allowed()
        for name in ("accuracy_seeds", "accuracy_steps"):
            _check(
                name, getattr(self, name), 2 if name == "accuracy_seeds" else 1, 1e9, "a count that gives an interval"
            )
        if not self.cases:
            raise UserError('cases is empty: name at least one glob, "*" for all')

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the defaults, by its key: what `settings_of` reads."""
        usual = vars(Settings())
        return {name.replace("_", "-"): value for name, value in vars(self).items() if value != usual[name]}

    @property
    def own(self) -> bool:
        """Whether a project of its own is measured, and not this package."""
        return bool(self.models or self.functions)

    @property
    def alpha(self) -> float:
        """The chance at which a figure that has lost its margin may pass by noise alone: one-sided."""
        return (1 - self.confidence) / 2

    @property
    def alarm(self) -> float:
        """The chance at which any figure of a run that was measured in pairs may fail by noise alone."""
        return _ALARM * self.alpha

    def inconclusive_allowed(self, *, history: bool = False) -> float:
        """Return the share of what decides that may be inconclusive; `history`: of a run that is judged by one."""
        given = self.allow_inconclusive
        if given is None:
            return 0.01 if history else 0.0
        try:
            percent = isinstance(given, str) and given.strip().endswith("%")
            share = float(given.strip().removesuffix("%")) / 100 if percent else float(given)  # type: ignore[union-attr]
        except ValueError:
            share = math.nan
        if not (0 <= share <= 1 and (percent or share < 1)):
            raise UserError(f"allow-inconclusive must be a share from 0 to below 1, or percent as in 1%, not {given!r}")
        return share

    def judged(self, case: str, figure: str) -> bool:
        """Whether the figure is one of `cases`."""
        return any(matches(glob, case, figure) for glob in self.cases)

    def measured(self, case: str) -> bool:
        """Whether a case may have a figure that is judged: only such a case is worth measuring."""
        return any(matches(glob, case, figure) for glob in self.cases for figure in _FIGURES)

    def margins_of(self, cases: Sequence[str], figure: str, quantity: Quantity) -> Floats:
        """Return the loss of a figure of each case that must not pass: a share, or points; the last match wins."""
        found = np.full(len(cases), self.usual_margin(quantity))
        for glob, margin in (self.accuracy_margins if quantity == "accuracy" else self.margins).items():
            found[self.matched((glob,), cases, figure)] = margin
        return found

    def usual_margin(self, quantity: Quantity) -> float:
        """Return the loss that must not pass where no glob says otherwise."""
        if quantity == "accuracy":
            return self.accuracy_margin
        return MARGINS[quantity] if self.margin is None else self.margin

    def least_of(self, quantity: Quantity) -> float:
        """Return the least difference that counts, in the quantity's unit."""
        return {"time": self.least_time, "memory": self.least_memory}.get(quantity, 0.0)

    @staticmethod
    def matched(globs: Iterable[str], cases: Sequence[str], figure: str) -> Flags:
        """Return of which cases one of the globs is about a figure: `matches` of each, for many."""
        found = np.zeros(len(cases), np.bool_)
        for glob in globs:
            if glob == figure or _compiled(glob).match(figure):  # "*" as well
                found[:] = True
                break
            match, tail = _compiled(glob).match, f"/{figure}"
            found |= [
                case == glob or match(case) is not None or case + tail == glob or match(case + tail) is not None
                for case in cases
            ]
        return found

    def idle_globs(self, names: Iterable[tuple[str, str]]) -> list[str]:
        """Return a line for each glob that matches none of the (case, figure) in `names`: probably a typo."""
        keys = {"margins": self.margins, "accuracy-margins": self.accuracy_margins, "report-only": self.report_only}
        idle = {(key, glob): None for key, globs in keys.items() for glob in globs}
        for name in names:
            if not idle:
                break
            for key, glob in [each for each in idle if matches(each[1], *name)]:
                del idle[key, glob]
        return [f"{glob!r} of {key} matches no figure" for key, glob in idle]


def matches(glob: str, case: str, figure: str) -> bool:
    """Whether a glob, or a name written out, is about a figure: its full name, its case or its figure."""
    names = (f"{case}/{figure}", case, figure)
    return glob in names or any(_compiled(glob).match(name) is not None for name in names)


@lru_cache(maxsize=1024)
def _compiled(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


_TYPES: Mapping[str, Any] = {name.replace("_", "-"): kind for name, kind in get_type_hints(Settings).items()}
KEYS = tuple(_TYPES)
"""The keys of [tool.meprop-bench.gate]."""
_WANTED = {
    **dict.fromkeys(("cases", "report-only"), "a list of globs"),
    **dict.fromkeys(("models", "functions"), 'a list of names, as "my_model.py:build", or of tables'),
    **dict.fromkeys(("install", "build"), "a command"),
    **dict.fromkeys(("lock", "path", "link"), "a list of files or folders of the project"),
    **dict.fromkeys(("accuracy-seeds", "accuracy-steps"), "an integer"),
    **dict.fromkeys(("margins", "accuracy-margins"), 'a table of globs and numbers, as "*/backward" = 0.02'),
    "preset": "a name",
    **dict.fromkeys(("pairs", "window"), "an integer"),
    "allow-inconclusive": 'a share, 0.01 or "1%"',
}
"""What a key must be; a number where nothing is said."""


def load_settings(folder: Path, **options: Any) -> Settings:
    """Return the settings of a folder's pyproject.toml, where it has some, with options in their place.

    Options are fields of `Settings`, None where the user said nothing. Raises `UserError` for a file that is not TOML,
    a key that is not known, and a value of another type or out of its range.
    """
    values = {name.replace("-", "_"): _value(name, value) for name, value in _read(folder / "pyproject.toml").items()}
    return Settings(**{**values, **{name: value for name, value in options.items() if value is not None}})


def settings_of(record: Mapping[str, Any]) -> Settings:
    """Return the settings that `Settings.to_json` gave; `UserError` for what is none."""
    return Settings(**{name.replace("-", "_"): _value(name, value) for name, value in record.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        record: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML
        raise UserError(f"{path.name} is not TOML: {error}") from None
    for key, where in (("tool", "tool"), ("meprop-bench", "tool.meprop-bench"), ("gate", "tool.meprop-bench.gate")):
        record = record.get(key, {})
        if not isinstance(record, dict):
            raise UserError(f"{where!r} in {path.name} is not a table: write {_WHERE}")
    return dict(record)


def _value(name: str, value: Any) -> Any:
    """Return a value of the file as its field has it."""
    one_of(f"key in {_WHERE}:", name, KEYS)
    try:
        return msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError:
        raise UserError(f"{name} in {_WHERE} must be {_WANTED.get(name, 'a number')}, not {value!r}") from None


def _check(name: str, value: float, least: float, below: float, wanted: str) -> None:
    if not least <= value < below:
        raise UserError(f"{name.replace('_', '-')} must be {wanted}, not {value!r}")
