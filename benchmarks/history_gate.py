"""What the gate's memory is worth on a real history: false alarms, slowdowns that it catches, quiet runs that pass.

    git clone https://github.com/pv/scipy-bench
    python -m benchmarks.history_gate scipy-bench/results/i7 scipy-bench/results/atom --part second

Each run of a folder of asv results, in the order of the commits, is judged by the runs before it in its environment,
by the rule of `meprop-bench gate --history FOLDER --candidate RUN`; the runs of the next two commits stand for the
second and the third that `--confirm` takes. Printed for each environment and for all:

    one run       pairs of neighbours in which something fails that the next run does not confirm: there, no such figure
                  lies beyond its margin
    two runs      the same of what fails in both; what does not confirm it is the next run that has any of these figures
    three runs    the same of what fails in all three
    quiet         the share that ends with exit code 0 of the pairs in which no change is confirmed
    slowdown      25% put into the results of single benchmarks, of each run: how many of these tries fail; of all, and
                  of those in which a test could see it

A test of one run at the same error over all figures sees it, if noise is normal, where

    log 1.25 > log(1 + margin) + (z(1 - alpha / figures) + z(0.95)) sd

with sd the standard deviation from the differences of neighbouring runs (median, so that steps do not count), and where
none of its last runs lay as far above the median. That is a property of the benchmark, in which the gate has no part.

The runs are taken from the gate's table of the history, which spares reading each file four times, and what failed to
run is left out, as no measurement. `--check N` judges each N-th pair from its files as well, by all that the command
does, and says in how many the exit code is the same.

Nothing is fitted here. The constants of `gate/history` were chosen on the first halves of scipy's environments and of
django's (github.com/django/django-asv, results/ubuntu-latest); github.com/pv/numpy-bench and the others of the gate's
page were kept back.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from meprop_bench.errors import UserError
from meprop_bench.gate.history import History, judge_run, read_history
from meprop_bench.gate.history.noise import LEAST, Expected, benchmarks_of, expected
from meprop_bench.gate.history.verdicts import Candidate, Found, judge
from meprop_bench.gate.judgement import VERDICTS
from meprop_bench.gate.series import Flags, Floats, Integers
from meprop_bench.gate.settings import Settings

SLOWDOWN = np.log(1.25)
TRIES, SHARE = 5, 0.02
"""Benchmarks into which it is put at once, and the most of all: so few that each is as good as alone."""
_LOOKED_AT = 3
"""Windows of runs that are looked at, as `gate.history.compared` does."""
_RUNS = ("one run", "two runs", "three runs")
_LATER = 10
"""Runs among which the next one that has a figure is looked for."""


def _by_runs() -> Integers:
    return np.zeros(len(_RUNS), np.int64)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "none"


def _each(parts: Integers, whole: int) -> str:
    return ", ".join(f"with {name} {_share(part, whole)}" for name, part in zip(_RUNS, parts.tolist(), strict=True))


@dataclass
class Count:
    """What was counted of one environment."""

    pairs: int = 0
    failed: Integers = field(default_factory=_by_runs)
    unconfirmed: Integers = field(default_factory=_by_runs)
    quiet: int = 0
    quiet_zero: Integers = field(default_factory=_by_runs)
    tries: int = 0
    caught: Integers = field(default_factory=_by_runs)
    visible: int = 0
    caught_of_visible: Integers = field(default_factory=_by_runs)
    checked: int = 0
    same: int = 0

    def add(self, other: Count) -> None:
        """Add what another has counted."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def lines(self) -> Iterator[str]:
        """Yield the figures as text."""
        for name, failed, unconfirmed in zip(_RUNS, self.failed.tolist(), self.unconfirmed.tolist(), strict=True):
            refuted = _share(unconfirmed, self.pairs)
            yield f"{name + ':':11} failure in {_share(failed, self.pairs)}, not confirmed by the next {refuted}"
        yield f"quiet:      exit code 0 {_each(self.quiet_zero, self.quiet)}"
        yield f"slowdown:   caught {_each(self.caught, self.tries)}"
        yield f"            a test could see it in {_share(self.visible, self.tries)} of these tries; of them"
        yield f"            caught {_each(self.caught_of_visible, self.visible)}"
        if self.checked:
            yield f"check:      the command's exit code is the same in {_share(self.same, self.checked)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of some folders."""
    parser = argparse.ArgumentParser(description="What the gate's memory is worth on a history of asv.")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--part", choices=("first", "second", "all"), default="all", help="half of each environment")
    parser.add_argument("--every", type=int, default=1, help="judge each N-th pair alone")
    parser.add_argument("--least", type=int, default=60, help="runs of an environment that is judged")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="judge each N-th pair from its files, too")
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--margin", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    settings = Settings(window=chosen.window, margin=chosen.margin)
    every = Count()
    for folder in chosen.folders:
        history = read_history(folder)
        for number, place in enumerate(dict.fromkeys(run.where for run in history.runs)):
            rows = [row for row, run in enumerate(history.runs) if run.where == place]
            bounds = {"first": (0, len(rows) // 2), "second": (len(rows) // 2, len(rows)), "all": (0, len(rows))}
            first, last = bounds[chosen.part]
            pairs = range(max(first, settings.window), min(last, len(rows) - 3), chosen.every)
            if not pairs or len(rows) < chosen.least:
                continue
            rng = random.Random(f"{chosen.seed} {number}")
            count = Count()
            for done, pair in enumerate(pairs):
                found = _Pair.of(history, rows, pair, settings)
                if found is None:
                    continue
                found.count(count, rng)
                if chosen.check and done % chosen.check == 0:
                    found.check(count, folder)
            print(f"{folder.name}, environment {number + 1}: {len(rows)} runs, {count.pairs} pairs")
            print(*(f"    {line}" for line in count.lines()), sep="\n", flush=True)
            every.add(count)
    print(f"all: {every.pairs} pairs", *(f"    {line}" for line in every.lines()), sep="\n")


@dataclass(frozen=True)
class _Pair:
    """A run with those before and after it; arrays are (figures,), of the figures that the run has."""

    history: History
    settings: Settings
    rows: Sequence[int]  # of its environment
    place: int  # of the run, in these
    columns: Integers
    benchmarks: Integers
    known: Expected
    bound: Floats
    times: Flags
    last: Floats  # (runs, figures), logs

    @classmethod
    def of(cls, history: History, rows: Sequence[int], place: int, settings: Settings) -> _Pair | None:
        """Return it; None where no figure can be judged, as the runs before it are too few: one of its date is none."""
        head = rows[place]
        before = [row for row in rows[:place] if not history.runs[row].when >= history.runs[head].when]
        if len(before) < LEAST:
            return None
        own = np.flatnonzero(_positive(history.values[head]))
        if not len(own):
            return None
        quantities = [history.columns.kinds[kind].quantity for kind in np.array(history.columns.kind)[own].tolist()]
        recent = before[-_LOOKED_AT * settings.window :]
        logs = _logs(history.values[recent][:, own])
        benchmarks = benchmarks_of([history.columns.cases[column] for column in own.tolist()])
        known = expected(logs, benchmarks, settings.window, history.disagreement[recent][:, own])
        if not np.isfinite(known.level).any():
            return None
        bound = np.log1p([settings.usual_margin(quantity) for quantity in quantities])
        times = np.array([quantity == "time" for quantity in quantities])
        return cls(history, settings, rows, place, own, benchmarks, known, bound, times, logs)

    def run(self, later: int, slower: Floats | float = 0.0) -> Candidate:
        """Return a run, so many after this one, `slower` on the log scale."""
        row = self.rows[self.place + later]
        values, apart = self.history.values[row, self.columns], self.history.disagreement[row, self.columns]
        return Candidate(_logs(values) + slower, apart.astype(np.float64))

    def judged(self, runs: int, slower: Floats | float = 0.0) -> Found:
        """Return the verdicts on this run, and on so many in all with the next ones."""
        decides = np.ones(len(self.columns), np.bool_)
        return judge(
            *(self.run(0, slower), self.known, self.bound, decides, self.benchmarks),
            *(self.settings.alpha, self.settings.window),
            confirm=runs > 1,
            second=self.run(1, slower) if runs > 1 else None,
            third=self.run(2, slower) if runs > 2 else None,
        )

    def exit_code(self, found: Found) -> int:
        """Return what the command ends with."""
        decides = ~found.idle
        verdicts = found.verdict[decides]
        if (verdicts == VERDICTS.index("fail")).any():
            return 1
        open_ = int((verdicts == VERDICTS.index("inconclusive")).sum())
        allowed = int(self.settings.inconclusive_allowed(history=True) * len(verdicts))
        moved = found.common_shift > np.log1p(self.settings.usual_margin("time"))
        return 4 if open_ > allowed or found.firm.any() or moved else 0

    def confirmed(self, found: Found, later: int) -> bool:
        """Whether one of the figures that failed lies beyond its margin in the next run that has it."""
        failed = np.flatnonzero(found.verdict == VERDICTS.index("fail"))
        level, bound = self.known.level[failed], self.bound[failed]
        values = np.full(len(failed), np.nan)
        for row in self.rows[self.place + later : self.place + later + _LATER]:
            own = _logs(self.history.values[row, self.columns[failed]])
            values = np.where(np.isnan(values), own, values)
        return bool((values > level + bound).any())

    def count(self, count: Count, rng: random.Random) -> None:
        """Add what is seen of this pair."""
        count.pairs += 1
        every = [self.judged(runs) for runs in (1, 2, 3)]
        codes = [self.exit_code(found) for found in every]
        confirmed = [
            code == 1 and self.confirmed(found, 1 + place)
            for place, (code, found) in enumerate(zip(codes, every, strict=True))
        ]
        failed = np.array(codes) == 1
        count.failed += failed
        count.unconfirmed += failed & ~np.array(confirmed)
        if not confirmed[1]:
            count.quiet += 1
            count.quiet_zero += np.array(codes) == 0
        self._try(count, every[0], rng)

    def _try(self, count: Count, one: Found, rng: random.Random) -> None:
        """Put the slowdown into figures of all runs that are judged, and neither failed nor got faster without it."""
        passed = (one.verdict == VERDICTS.index("pass")) & ~one.idle & self.times
        passed &= (one.change > -self.bound) & np.isfinite(self.run(1).logs) & np.isfinite(self.run(2).logs)
        most = min(TRIES, max(1, int(SHARE * len(np.unique(self.benchmarks)))))
        places = np.flatnonzero(passed).tolist()
        chosen = rng.sample(places, min(most, len(places)))
        slower = np.zeros(len(self.columns))
        slower[chosen] = SLOWDOWN
        fails = np.array([self.judged(runs, slower).verdict == VERDICTS.index("fail") for runs in (1, 2, 3)])
        visible = self._visible(int(np.isfinite(self.known.level).sum()))
        for place in chosen:
            count.tries += 1
            count.caught += fails[:, place]
            count.visible += int(visible[place])
            count.caught_of_visible += fails[:, place] & visible[place]

    def _visible(self, figures: int) -> Flags:
        order = np.argsort(np.isfinite(self.last), axis=0, kind="stable")[-self.settings.window :]
        last = np.take_along_axis(self.last, order, axis=0)
        some = np.isfinite(last).sum(axis=0) >= LEAST
        last = np.where(some, last, 0.0)
        sd = np.nanmedian(np.abs(np.diff(last, axis=0)), axis=0) / 0.6745 / np.sqrt(2)
        needed = self.bound + float(ndtri(1 - self.settings.alpha / figures) + ndtri(0.95)) * sd
        farthest = np.nanmax(last, axis=0) - np.nanmedian(last, axis=0)
        found: Flags = some & (needed < SLOWDOWN) & (farthest < SLOWDOWN)
        return found

    def check(self, count: Count, folder: Path) -> None:
        """Judge the same by the command's own function, from the files."""
        first, *more = (folder / self.history.runs[self.rows[self.place + later]].name for later in (0, 1, 2))
        try:
            found = [
                judge_run(folder, first, self.settings, confirm=runs > 1, again=more[: runs - 1]).exit_code
                for runs in (1, 2, 3)
            ]
        except UserError:
            return
        own = [self.exit_code(self.judged(runs)) for runs in (1, 2, 3)]
        count.checked += len(own)
        count.same += sum(int(one) == other for one, other in zip(found, own, strict=True))


def _positive(values: Floats) -> Flags:
    return np.isfinite(values) & (values > 0)


def _logs(values: Floats) -> Floats:
    return np.log(np.where(_positive(values), values, np.nan))


if __name__ == "__main__":
    main()
