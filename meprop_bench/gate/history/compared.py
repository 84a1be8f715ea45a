"""A candidate beside its history: which runs count, which figures both have, and the verdicts as an outcome.

A run counts that was made in the candidate's environment and before it (asv: whose commit is older). Those of another
environment are counted in a note, as is each figure that cannot be judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.evidence import disagreement, medians
from meprop_bench.gate.files.compared import differing
from meprop_bench.gate.files.figures import OWN_PROCESSES, Figures, Kind
from meprop_bench.gate.files.machine import common_machine
from meprop_bench.gate.history.noise import LEAST, Expected, benchmark_of, benchmarks_of, expected
from meprop_bench.gate.history.runs import FAILED, Run, where, where_of
from meprop_bench.gate.history.table import History
from meprop_bench.gate.history.verdicts import REASONS, Candidate, Found, judge
from meprop_bench.gate.judgement import ROW, VERDICTS, Judgements, Outcome
from meprop_bench.gate.names import shown
from meprop_bench.gate.past import Past, PastRuns
from meprop_bench.gate.series import Flags, Floats, Integers
from meprop_bench.gate.settings import Settings
from meprop_bench.results.store import MEASUREMENTS
from meprop_bench.stats import Verdict

__all__ = ["compare"]

_LOOKED_AT = 3
"""Windows of runs among which a figure's newest are looked for: one that only every third run has is judged, too."""
_SHOWN, _NAMED = 3, 8
"""Names that a note shows, and benchmarks that are to be measured again."""
_WHICH = ("second", "third")
"""The runs by which what stands out in the first is confirmed."""
_LARGEST = 700.0
"""e^700 is near the largest number there is."""
_SHIFT_SHOWN = 0.01
"""Common shifts of less are not worth a line."""
_RESTLESS = 1.5
_SAME = 1e-9
"""Share by which the medians of one run differ at most, by how they were reckoned."""
_EXAMPLE = 0.25
"""The slowdown of which is said in how many figures it would have stood out."""
_REASON_SHIFT = "all figures moved together: the machine or the environment moved, or what all share"

_HINT = (
    "Each figure is judged by its own last runs in this environment. It fails when it lies above the margin by more"
    " than its own run-to-run spread, and its own values, allow, among all that are judged at once; the interval is"
    " what that spread leaves open."
)


@dataclass(frozen=True)
class _Figures:
    """What is judged of the candidate; arrays are (figures,)."""

    cases: list[str]
    kinds: list[Kind]
    kind: Integers
    columns: Integers  # in the history, -1 where no run has it
    values: Floats
    disagreement: Floats

    @classmethod
    def of(cls, found: Figures, history: History, settings: Settings) -> _Figures:
        """Return all figures of a file that are among `settings.cases`, but accuracies."""
        kinds = [kind for kind in found.kinds if kind.quantity != "accuracy"]
        cases: list[str] = []
        parts: list[tuple[Integers, Integers, Floats, Floats]] = []
        for place, kind in enumerate(kinds):
            names = list(found.places(kind))
            places = np.fromiter(found.places(kind).values(), np.int64, len(names))
            wanted = settings.matched(settings.cases, names, kind.figure)
            names, places = [name for name, one in zip(names, wanted.tolist(), strict=True) if one], places[wanted]
            known = (history.columns.find(kind, name) for name in names)
            sides = found.sides(places)
            apart = disagreement(sides, found.flagged(places, OWN_PROCESSES))
            own = np.fromiter((-1 if column is None else column for column in known), np.int64, len(names))
            parts.append((np.full(len(names), place), own, medians(sides), apart))
            cases += names
        none, empty = np.zeros(0, np.int64), np.zeros(0)
        number, columns, values, disagree = map(np.concatenate, zip(*parts, (none, none, empty, empty), strict=True))
        return cls(cases, kinds, number, columns, values, disagree)

    def __len__(self) -> int:
        return len(self.cases)

    def aligned(self, other: _Figures) -> Candidate:
        """Return what another file has of these figures."""
        theirs = zip(other.cases, other.kind.tolist(), strict=True)
        numbers = {(other.kinds[kind], case): place for place, (case, kind) in enumerate(theirs)}
        places = [numbers.get((self.kinds[kind], case), -1) for case, kind in zip(self.cases, self.kind, strict=True)]
        values = np.append(other.values, np.nan)[places]
        return Candidate(_logs(values), np.append(other.disagreement, 0.0)[places])


def compare(
    history: History,
    name: str,
    head: Figures,
    settings: Settings,
    *,
    confirm: bool = False,
    again: Sequence[Figures] = (),
) -> Outcome:
    """Return the verdicts on a candidate, with up to two more runs of it; `name` is the history's."""
    if not len(head) and not head.failures:
        raise UserError(f"{head.name} holds no figures: measure first", ExitCode.NOTHING_MEASURED)
    own = _Figures.of(head, history, settings)
    others = [_Figures.of(one, history, settings) for one in again]
    rows, notes = _runs(history, name, head, [own, *others])
    for which, one in zip(_WHICH, again, strict=False):
        if reason := _elsewhere(one, head):
            raise UserError(f"the {which} run is of another environment: {reason}", ExitCode.NOT_COMPARABLE)
    window = settings.window
    recent = history.values[rows[-_LOOKED_AT * window :]]
    raw = np.where(own.columns >= 0, recent[:, own.columns], np.nan)
    apart = history.disagreement[rows[-_LOOKED_AT * window :]][:, own.columns]
    known = expected(_logs(raw), benchmarks := benchmarks_of(own.cases), window, apart)
    rules = _Rules.of(own, known, settings)
    more = [own.aligned(other) for other in others]
    second, third = (*more, None, None)[:2]
    found = judge(
        Candidate(_logs(own.values), own.disagreement),
        known,
        rules.bound,
        ~rules.report_only,
        benchmarks,
        settings.alpha,
        window,
        confirm=confirm,
        second=second,
        third=third,
    )
    lines = _Lines(own.cases, list(own.kinds), _rows(own, found, known, rules))
    firm = found.firm & ~rules.report_only
    lines.add_zeros(own, raw[-window:], rules)
    lines.add_failures(history, recent[-window:], head, again, confirm, settings)
    lines.add_shift(found.common_shift, settings)
    used = min(len(rows), window)
    return Outcome(
        f"the last {used} of {len(rows)} runs in {name}",
        head.source,
        lines.judgements(),
        tuple(dict.fromkeys((*head.notes, *notes, *_notes(found, history, recent, head)))),
        doubts=tuple(head.doubts),
        machine=common_machine(head.environments.get(key, {}) for key in head.environment_keys),
        allowed=settings.inconclusive_allowed(history=True),
        past=_past(history, rows[-_LOOKED_AT * window :], _counted(raw, window), known, found, more),
        firm=int(firm.sum()) + lines.firm,
        findings=tuple(_findings(own, found, rules, lines.firm_failures, len(again) if confirm else None)),
        hint=_HINT,
    )


def _runs(history: History, name: str, head: Figures, judged: Sequence[_Figures]) -> tuple[Integers, list[str]]:
    """Return the rows of the runs that count, and what is to be said of the others; `judged` are those that are judged
    by them.
    """
    here, when = where(where_of(head)), math.inf if head.when is None else head.when
    alike = [row for row, run in enumerate(history.runs) if run.where == here]
    rows = [row for row in alike if _before(history.runs[row], when)]
    if undated := [row for row in rows if not math.isfinite(when) or math.isnan(history.runs[row].when)]:
        copies = {row for row in undated if any(_same(history, row, one) for one in judged)}
        rows = [row for row in rows if row not in copies]
    notes = []
    if history.unread:
        first = "; ".join(f"{shown(file, 80)}: {why}" for file, why in history.unread[:_SHOWN])
        notes.append(f"{len(history.unread)} files of {name} are no runs, or cannot be read: {first}")
    elsewhere = Counter(run.where for run in history.runs if run.where != here)
    mine = where_of(head)[0] if where_of(head) else {}
    if elsewhere:
        newest = next(run.where for run in reversed(history.runs) if run.where != here)
        how = differing(history.environments[newest], mine)
        notes.append(f"{elsewhere.total()} runs of {name} are of another environment, the newest of these: {how}")
    if len(alike) > len(rows):
        notes.append(f"{len(alike) - len(rows)} runs of {name} are the candidate, or were not made before it")
    if len(rows) < LEAST:
        why = f": {'; '.join(notes)}" if notes else ""
        count = f"{len(rows)} run{'s' * (len(rows) != 1)}"
        raise UserError(
            f"{name} holds {count} before {head.name} and in its environment, {LEAST} are needed{why}",
            ExitCode.NOT_COMPARABLE,
        )
    return np.array(rows, np.int64), notes


def _before(run: Run, when: float) -> bool:
    """Whether a run was made before the candidate: that itself, and a copy of it, was made when it was."""
    return not run.when >= when  # one that does not say when, counts


def _same(history: History, row: int, one: _Figures) -> bool:
    """Whether a run has the very values of another: where no date tells, it is that run, or a copy."""
    known = one.columns >= 0
    values = history.values[row, one.columns[known]]
    return bool(known.any()) and np.allclose(values, one.values[known], rtol=_SAME, atol=0, equal_nan=True)


def _elsewhere(second: Figures, head: Figures) -> str:
    mine, other = where_of(head), where_of(second)
    if where(mine) == where(other):
        return ""
    return differing(mine[0] if mine else {}, other[0] if other else {}) or "the two describe it differently"


def _logs(values: Floats) -> Floats:
    """Return the logs of what has one, NaN of the rest: what is 0, failed or is not there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((values > 0) & np.isfinite(values), np.log(values), np.nan)


@dataclass(frozen=True)
class _Rules:
    """What each figure may lose; arrays are (figures,)."""

    margin: Floats
    least: Floats
    bound: Floats  # both, on the log scale
    report_only: Flags

    @classmethod
    def of(cls, own: _Figures, known: Expected, settings: Settings) -> _Rules:
        margin, least = np.empty(len(own)), np.empty(len(own))
        only = np.zeros(len(own), np.bool_)
        for number, kind in enumerate(own.kinds):
            places = np.flatnonzero(own.kind == number)
            cases = [own.cases[place] for place in places.tolist()]
            margin[places] = settings.margins_of(cases, kind.figure, kind.quantity)
            least[places] = settings.least_of(kind.quantity)
            only[places] = settings.matched(settings.report_only, cases, kind.figure)
        with np.errstate(over="ignore"):
            share = np.nan_to_num(least / np.exp(known.level), posinf=0.0)
        return cls(margin, least, np.log1p(np.fmax(margin, share)), only)


def _rows(own: _Figures, found: Found, known: Expected, rules: _Rules) -> npt.NDArray[np.void]:
    rows = np.zeros(len(own), ROW)
    rows["base"], rows["head"] = np.exp(known.level), own.values
    for name, values in (("estimate", found.change), ("low", found.low), ("high", found.high)):
        rows[name] = np.exp(np.minimum(values, _LARGEST))
    rows["caught"] = np.expm1(np.minimum(found.caught, _LARGEST))
    rows["margin"], rows["least"], rows["kind"] = rules.margin, rules.least, own.kind
    rows["pairs"], rows["verdict"], rows["reason"] = known.runs, found.verdict, found.reason
    rows["report_only"] = rules.report_only | found.idle
    return rows


class _Lines:
    """The lines of the table: one for each figure, and what is no figure: failures, and the whole run's shift."""

    def __init__(self, cases: list[str], kinds: list[Kind], rows: npt.NDArray[np.void]) -> None:
        self._cases, self._kinds, self._rows = list(cases), kinds, rows
        self._reasons = list(REASONS)
        self.firm = 0  # inconclusive lines that have to be looked at
        self.firm_failures = 0

    def judgements(self) -> Judgements:
        """Return them all."""
        kinds = [(kind.figure, kind.quantity, kind.unit) for kind in self._kinds]
        return Judgements(self._cases, self._rows, kinds, tuple(self._reasons))

    def add_zeros(self, own: _Figures, raw: Floats, rules: _Rules) -> None:
        """Judge what is 0, of which there is no ratio."""
        zero: Flags = (own.values == 0) | (raw == 0).any(axis=0)
        for place in np.flatnonzero(zero & (np.isfinite(raw).sum(axis=0) >= LEAST)).tolist():
            column, value = raw[:, place], float(own.values[place])
            history = column[np.isfinite(column)]
            row = self._rows[place]
            for name in ("estimate", "low", "high", "caught"):
                row[name] = math.nan
            row["base"], row["report_only"] = np.median(history), rules.report_only[place]
            if own.kinds[own.kind[place]].quantity == "time":
                self._say(place, "inconclusive", "a value of 0: too short for its clock")
            elif value <= history.max():
                self._say(place, "pass", "no more than in one of its last runs")
            elif history.max() == 0:
                self._say(place, "fail", "up from 0")
            else:
                self._say(place, "inconclusive", "some values are 0 and others are not")

    def add_failures(
        self,
        history: History,
        recent: Floats,
        head: Figures,
        again: Sequence[Figures],
        confirm: bool,
        settings: Settings,
    ) -> None:
        """Add a line for each case that failed though its last runs did not."""
        columns: dict[str, list[int]] = {}
        for column, case in enumerate(history.columns.cases if head.failures else ()):
            if case in head.failures or benchmark_of(case) in head.failures:
                columns.setdefault(case, []).append(column)
        for case, own in columns.items():
            kind = history.columns.kinds[history.columns.kind[own[-1]]]
            values = recent[:, own]
            ran: Flags = np.any(np.isfinite(values), axis=1)
            broke: Flags = np.any(values == FAILED, axis=1)
            tried = np.flatnonzero(ran | broke)
            if not len(tried) or not ran[tried[-1]] or not settings.judged(case, kind.figure):
                continue  # it did not run before either
            verdict: Verdict = "fail"
            reason = head.failures.get(case) or head.failures[benchmark_of(case)]
            if broke.any():
                verdict, reason = "inconclusive", f"{reason}, as in {int(broke.sum())} of its last {len(recent)} runs"
            elif which := [one for one, run in zip(_WHICH, again, strict=False) if not _fails(run, case)]:
                verdict, reason = "pass", f"{reason} in the first run, not in the {which[0]}"
            elif confirm and not again:
                verdict, reason = "inconclusive", f"{reason}: a second run has to confirm it"
                self.firm, self.firm_failures = self.firm + 1, self.firm_failures + 1
            self._add(case, kind, verdict, reason, int(ran.sum()))
            self._rows[-1]["margin"] = settings.margins_of([case], kind.figure, kind.quantity)[0]

    def add_shift(self, shift: float, settings: Settings) -> None:
        """Add a line for the run as a whole, where it is beyond the margin of times: if there are two, both are."""
        margin = settings.usual_margin("time")
        if shift <= math.log1p(margin):
            return
        self._add("the whole run", Kind("common shift", "ratio", "1"), "inconclusive", _REASON_SHIFT, 0)
        row = self._rows[-1]
        row["estimate"] = row["low"] = row["high"] = math.exp(shift)
        row["margin"] = margin
        self.firm += 1

    def _add(self, case: str, kind: Kind, verdict: Verdict, reason: str, runs: int) -> None:
        row = np.zeros(1, ROW)
        for name in ("base", "head", "estimate", "low", "high", "caught"):
            row[name] = math.nan
        if kind not in self._kinds:
            self._kinds.append(kind)
        row["kind"], row["pairs"] = self._kinds.index(kind), runs
        self._cases.append(case)
        self._rows = np.concatenate([self._rows, row])
        self._say(-1, verdict, reason)

    def _say(self, place: int, verdict: Verdict, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._rows[place]["verdict"] = VERDICTS.index(verdict)
        self._rows[place]["reason"] = self._reasons.index(reason)


def _fails(again: Figures, case: str) -> bool:
    """Whether another run has nothing of a case: it failed again, or was not tried."""
    return case in again.failures or not again.ran(case)


def _past(
    history: History, rows: Integers, raw: Floats, known: Expected, found: Found, more: Sequence[Candidate]
) -> Past:
    """Return what the verdicts were made of, of the runs that any figure was judged by."""
    runs = [history.runs[row] for row in rows.tolist()]
    nothing = np.full(raw.shape[1], np.nan)
    second, third = (*(np.exp(one.logs) for one in more), nothing, nothing)[:2]
    shared = [shift or 0.0 for shift in (found.shift, found.second_shift, found.third_shift)]
    names = [_called(run) for run in runs]
    return Past(PastRuns(names, known.shifts.tolist(), *shared), raw, second, third)


def _counted(raw: Floats, window: int) -> Floats:
    """Return the values that a figure is judged by, NaN in place of older ones."""
    newer = np.isfinite(raw)[::-1].cumsum(axis=0)[::-1]
    return np.where(newer <= window, raw, np.nan)


def _called(run: Run) -> str:
    """Return what a run is called where its figures are drawn: its day and commit, or its file."""
    path = Path(run.name)
    if not run.commit:
        return path.parent.name if path.name == MEASUREMENTS else path.stem
    day = "" if math.isnan(run.when) else f"{datetime.fromtimestamp(run.when, UTC):%Y-%m-%d} "
    return day + run.commit[:8]


def _findings(own: _Figures, found: Found, rules: _Rules, failures: int, again: int | None) -> Iterator[str]:
    """Yield what stands below the verdict: what there is to do, what moved together, what would have been seen."""
    waiting = int((found.firm & ~rules.report_only).sum()) + failures
    if found.moved:
        yield (
            f"{found.moved} benchmarks stand out at once, too many for a change of the code alone: the machine or the"
            " environment moved, or something that all of them use. No figure fails by itself; measure again."
        )
    elif waiting and again is not None:
        names = list(dict.fromkeys(benchmark_of(own.cases[place]) for place in np.flatnonzero(found.firm).tolist()))
        what = ", ".join([*(shown(name, 120) for name in names[:_NAMED]), *["..."][: len(names) > _NAMED]])
        which = "another" if again else "a second"
        how = "with --confirm FILE" if again < 2 else "in place of the run that lacks them"
        yield (
            f"Figures that await {which} run: {waiting}{f' ({what})' if what else ''}. Measure these"
            f" benchmarks of the same code again, and give the result {how}."
        )
    if abs(found.shift) > _SHIFT_SHOWN:
        words = "slower" if found.shift > 0 else "faster"
        others = (("second", found.second_shift), ("third", found.third_shift))
        calm = [which for which, shift in others if shift is not None and shift < _SHIFT_SHOWN < found.shift]
        once = f" The {' and the '.join(calm)} run {'are' if len(calm) > 1 else 'is'} not." if calm else ""
        yield (
            f"The run as a whole is {math.expm1(abs(found.shift)):.1%} {words} than its last ones, which is the machine"
            f" or the environment, or what all share: each figure is judged beside that.{once}"
        )
    if found.unrest > _RESTLESS:
        yield f"Its figures scatter {found.unrest:.1f} times as much as they use to, which all verdicts allow for."
    caught = np.expm1(found.caught[np.isfinite(found.caught) & ~found.idle & ~rules.report_only])
    if len(caught):
        share = np.mean(caught <= _EXAMPLE)
        yield (
            f"A slowdown of {np.median(caught):.1%} would have stood out in half of the {len(caught):,} figures judged,"
            f" one of {_EXAMPLE:.0%} in {share:.1%} of them, with 90% probability."
        )
    if noisy := int((found.noisy & ~rules.report_only).sum()):
        yield f"{noisy:,} are too noisy to be judged: their own spread would hide even twice the figure."


def _notes(found: Found, history: History, recent: Floats, head: Figures) -> Iterator[str]:
    """Yield how many figures are not judged, and why."""
    young = int((found.idle & ~found.noisy).sum())
    if young:
        yield f"{young} figures are in too few runs as yet: they are shown, and do not decide"
    ran = {history.columns.cases[column] for column in np.flatnonzero(np.isfinite(recent[-1])).tolist()}
    there = set(head.cases())
    gone = sorted(case for case in ran - there if benchmark_of(case) not in there)
    if gone:
        first = ", ".join(shown(case, 120) for case in gone[:_SHOWN])
        yield f"{len(gone)} cases of the last run are not in {head.name}: {first}"
    if before := len(head.failures.keys() - ran):
        yield f"{before} cases fail in {head.name}, and did so, or were not there, in the last run"
