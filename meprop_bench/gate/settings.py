"""What the gate is told: `[tool.meprop-bench.gate]` of the user's pyproject.toml, and options that take its place.

    [tool.meprop-bench.gate]
    preset = "gate"                       # which cases are measured: a preset of the package, or a TOML file
    cases = ["linear *", "mlp *"]         # globs: those of them that are judged
    margin = 0.05                         # how much may be lost: 5%
    least-time = 1e-6                     # a smaller difference than this many seconds is none
    report-only = ["*/update"]            # globs: shown, and does not decide

    [tool.meprop-bench.gate.margins]      # glob = margin; the last that matches wins, as in .gitignore
    "*/peak memory*" = 0.02

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
from dataclasses import dataclass, field, fields
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import Any

from meprop_bench.errors import UserError, one_of
from meprop_bench.gate.judgement import Quantity

__all__ = ["KEYS", "MARGINS", "Settings", "load_settings", "matches"]

_PHASES = ("forward", "backward", "update", "step", "decode")
_FIGURES = (
    *_PHASES,
    *(
        f"{kind} {phase}"
        for kind in ("sparse/dense", "flops", "bytes", "operators", "peak memory")
        for phase in _PHASES
    ),
    "accuracy",
)
"""What may be measured of a case between revisions."""

_WHERE = "[tool.meprop-bench.gate]"

MARGINS: Mapping[Quantity, float] = {"time": 0.05, "ratio": 0.075, "memory": 0.01, "count": 0.01}
"""How much may be lost where nothing is said.

Memory and counts have no noise between revisions. Times have, and the least margin at which identical code passes is a
property of the machine. The reckoning is of the cases of the preset "gate" on a shared machine with two cores, whose
self-test (reports/LOG.md, 2026-11-21) found pairs of processes of identical code to spread by 2.3 to 3.5% in backward
passes and 0.5% in forward ones; the dense side of the ratio sparse/dense was taken to add 2.5%. 200 runs of the gate
each, drawn from normal distributions of these and judged by `decide` with its looks and Holm's correction (so that a
rate near 50% is known to ±7 points). "Passes": all figures of all five cases; "fails": the case whose
backward pass alone is slower by so much.

    pairs, budget   margin   identical: passes   false alarms   pairs a case   3% fails    5%     8%    10%
    14, 60 s        2%             0%            0 of 200          13.7             4%     57%   100%   100%
    14, 60 s        3%            16%            0 of 200          13.1             0%     13%    96%    99%
    14, 60 s        4%            55%            0 of 200          11.9             0%      6%    83%    99%
    14, 60 s        5%            89%            0 of 200          10.6             0%      0%    49%    92%
    14, 60 s        6%            96%            0 of 200           9.6             0%      0%    19%    74%
    20, 90 s        2%             2%            0 of 200          19.0             8%     82%   100%   100%
    20, 90 s        3%            42%            0 of 200          16.7             0%     34%    99%   100%
    20, 90 s        4%            88%            0 of 200          14.1             0%      6%    95%   100%
    20, 90 s        5%           100%            0 of 200          12.2             0%      0%    77%    99%
    20, 90 s        6%           100%            0 of 200          10.8             0%      0%    36%    96%

5% with 20 pairs is the least that passes identical code nearly always; since it mostly passes at an early look it takes
less time than 60 s a case did, all of which were spent at 1%. A slowdown of 10% or more fails with 90% probability and
more. On 2026-11-28 pairs of another machine of that kind spread by more (a layer at B = 10 by 7%), and with 20 pairs in
90 s one figure of 71 was left undecided, a ratio that lay at 1.019 [0.986, 1.052]: so what is undecided gets up to 32
pairs in 150 s, which costs nothing where it is decided early, and ratios, which have the noise of two sides, 7.5%.
Earlier looks with more of alpha (0.05, 0.15, 0.30, 0.50) saved 0.4 pairs a case: not worth a wider last interval.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the gate judges. In the file a key has hyphens where the field has underscores.

    Attributes:
        preset: the cases that are measured between revisions.
        cases: globs of what is judged.
        margin: how much may be lost of times, ratios, memory and counts, relative (0.01 is 1%); by default `MARGINS`.
        margins: glob -> margin of the figures that it matches, in place of `margin`; the last match wins.
        accuracy_margin: points of accuracy that may be lost.
        accuracy_margins: glob -> points, in its place; the last match wins.
        least_time: least difference of times that counts, in seconds.
        least_memory: least difference of memory that counts, in bytes.
        report_only: globs of what is shown and does not decide.
        budget: seconds of measuring for a case at most.
        pairs: pairs of processes for a case at most.
        confidence: of the intervals, two-sided: a figure fails, or passes, by chance at most in (1 - confidence) / 2.
        process_noise: standard deviation of the log ratio of two processes of one code, which is added where a file
            holds the values of a single process. 0.033 on a busy 2-core machine (reports/METHODOLOGY.md).

    Raises:
        UserError: a value out of its range.

    """

    preset: str = "gate"
    cases: tuple[str, ...] = ("*",)
    margin: float | None = None
    margins: Mapping[str, float] = field(default_factory=dict)
    accuracy_margin: float = 0.5
    accuracy_margins: Mapping[str, float] = field(default_factory=dict)
    least_time: float = 0.0
    least_memory: float = 0.0
    report_only: tuple[str, ...] = ()
    budget: float = 150.0
    pairs: int = 32
    confidence: float = 0.95
    process_noise: float = 0.033

    def __post_init__(self) -> None:
        for name in ("margin", "accuracy_margin", "least_time", "least_memory", "process_noise"):
            if (value := getattr(self, name)) is not None:
                _check(name, value, 0, math.inf, "a number of at least 0")
        for name in ("margins", "accuracy_margins"):
            for glob, value in getattr(self, name).items():
                _check(f"{name}.{glob}", value, 0, math.inf, "a number of at least 0")
        _check("confidence", self.confidence, 0.5, 1, "a number from 0.5 to below 1, 0.95 for 95%")
        _check("budget", self.budget, 0, math.inf, "more than 0 seconds, and finite")
        if self.budget == 0:
            raise UserError("budget must be more than 0 seconds")
        _check("pairs", self.pairs, 2, 1e4, "an integer of at least 2: one pair gives no interval")
        if not self.cases:
            raise UserError('cases is empty: name at least one glob, "*" for all')

    @property
    def alpha(self) -> float:
        """The chance at which a figure may fail, or pass, by noise alone: one-sided."""
        return (1 - self.confidence) / 2

    def judged(self, case: str, figure: str) -> bool:
        """Whether the figure is one of `cases`."""
        return any(matches(glob, case, figure) for glob in self.cases)

    def measured(self, case: str) -> bool:
        """Whether a case may have a figure that is judged: only such a case is worth measuring."""
        return any(matches(glob, case, figure) for glob in self.cases for figure in _FIGURES)

    def margin_of(self, case: str, figure: str, quantity: Quantity) -> float:
        """Return what may be lost: a share, of an accuracy points."""
        points = quantity == "accuracy"
        globs = self.accuracy_margins if points else self.margins
        found = [margin for glob, margin in globs.items() if matches(glob, case, figure)] if globs else []
        return found[-1] if found else self.usual_margin(quantity)

    def usual_margin(self, quantity: Quantity) -> float:
        """Return what may be lost where no glob says otherwise."""
        if quantity == "accuracy":
            return self.accuracy_margin
        return MARGINS[quantity] if self.margin is None else self.margin

    def least_of(self, quantity: Quantity) -> float:
        """Return the least difference that counts, in the quantity's unit."""
        return {"time": self.least_time, "memory": self.least_memory}.get(quantity, 0.0)

    def only_reported(self, case: str, figure: str) -> bool:
        """Whether the figure is shown and does not decide."""
        return any(matches(glob, case, figure) for glob in self.report_only)

    @staticmethod
    def matched(globs: Iterable[str], cases: Sequence[str], figure: str) -> list[bool]:
        """Return of which cases one of the globs is about a figure: `matches` of each, for many."""
        found = [False] * len(cases)
        for glob in globs:
            if glob == figure or _compiled(glob).match(figure):  # "*" as well
                return [True] * len(cases)
            match, tail = _compiled(glob).match, f"/{figure}"
            found = [
                one or case == glob or match(case) is not None or case + tail == glob or match(case + tail) is not None
                for one, case in zip(found, cases, strict=True)
            ]
        return found

    def idle_globs(self, names: Iterable[tuple[str, str]]) -> list[str]:
        """Return a line for each glob that matches none of the (case, figure) in `names`: probably a typo."""
        keys = {
            "margins": self.margins,
            "accuracy-margins": self.accuracy_margins,
            "report-only": self.report_only,
        }
        idle = {(key, glob): None for key, globs in keys.items() for glob in globs}
        for name in names:
            if not idle:
                break
            for key, glob in [each for each in idle if matches(each[1], *name)]:
                del idle[key, glob]
        return [f"{glob!r} of {key} matches no figure" for key, glob in idle]


def matches(glob: str, case: str, figure: str) -> bool:
    """Whether a glob, or a name written out, is about a figure: its full name, its case or its figure."""
    name = f"{case}/{figure}"
    if glob in (name, case, figure):
        return True
    compiled = _compiled(glob)
    return any(compiled.match(text) is not None for text in (name, case, figure))


@lru_cache(maxsize=1024)
def _compiled(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


KEYS = tuple(entry.name.replace("_", "-") for entry in fields(Settings))
"""The keys of [tool.meprop-bench.gate]."""


def load_settings(folder: Path, **options: Any) -> Settings:
    """Return the settings of a folder's pyproject.toml, where it has some, with options in their place.

    Args:
        folder: the user's project.
        options: fields of `Settings`; None where the user said nothing.

    Raises:
        UserError: the file is not TOML, a key is not known, a value is of another type or out of its range.

    """
    told = _read(folder / "pyproject.toml")
    values = {name.replace("-", "_"): _value(name, value) for name, value in told.items()}
    return Settings(**{**values, **{name: value for name, value in options.items() if value is not None}})


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
    usual = getattr(_DEFAULTS, name.replace("-", "_"))
    kind: type = float if usual is None else type(usual)
    if kind is dict:
        if not (isinstance(value, dict) and all(_is_number(entry) for entry in value.values())):
            raise UserError(f'{name} in {_WHERE} must be a table of globs and numbers, as "*/backward" = 0.02')
        return dict(value)
    if kind is tuple:
        if not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            raise UserError(f"{name} in {_WHERE} must be a list of globs, not {value!r}")
        return tuple(value)
    sound = isinstance(value, str) if kind is str else _is_number(value) and (kind is float or value == int(value))
    if not sound:
        wanted = {str: "a name", int: "an integer", float: "a number"}[kind]
        raise UserError(f"{name} in {_WHERE} must be {wanted}, not {value!r}")
    return kind(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: float, least: float, below: float, wanted: str) -> None:
    if not least <= value < below:
        raise UserError(f"{name.replace('_', '-')} must be {wanted}, not {value!r}")


_DEFAULTS = Settings()
