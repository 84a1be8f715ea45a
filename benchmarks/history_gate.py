"""What the gate's memory is worth on a real history: false alarms, slowdowns that it catches, quiet runs that pass.

    git clone https://github.com/pv/scipy-bench
    python -m benchmarks.history_gate scipy-bench/results/i7 scipy-bench/results/atom --part second

Each run of a folder of asv results, in the order of the commits, is judged by the runs before it in its environment,
as `meprop-bench gate --history FOLDER --candidate RUN` judges it; the run of the next commit stands for the second run
that `--confirm` asks for. Printed for each environment:

    one run       pairs of neighbours in which something fails that the next run does not confirm: there, no such figure
                  lies beyond its margin
    two runs      the same of what fails in both; what does not confirm it is the run after these
    quiet         the share that ends with exit code 0 of the pairs in which no change is confirmed
    slowdown      25% put into the results of single benchmarks, of both runs: how many of these tries fail; of all, and
                  of those in which a test could see it

A test of one run at the same error over all figures sees it, if noise is normal, where

    log 1.25 > log(1 + margin) + (z(1 - alpha / figures) + z(0.95)) sd

with sd the standard deviation from the differences of neighbouring runs (median, so that steps do not count), and where
none of its last runs lay as far above the median. That is a property of the benchmark, in which the gate has no part.

Nothing is fitted here. The constants of `gate/history` were chosen on the first halves of the four environments of
scipy's history (`--part first`); what is reported is that of the second halves.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from meprop_bench.errors import UserError
from meprop_bench.gate.files import asv
from meprop_bench.gate.files.figures import Figures
from meprop_bench.gate.history import History, compare, read_history
from meprop_bench.gate.judgement import VERDICTS, Outcome
from meprop_bench.gate.settings import Settings

SLOWDOWN = 1.25
TRIES = 5
"""Benchmarks into which it is put at once: so few among hundreds that each is as good as alone."""
_COLUMNS = ("result", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75")


@dataclass
class Count:
    """What was counted of one environment."""

    pairs: int = 0
    failed: int = 0
    unconfirmed: int = 0
    failed_twice: int = 0
    unconfirmed_twice: int = 0
    quiet: int = 0
    quiet_zero: int = 0
    quiet_zero_of_one_run: int = 0
    tries: int = 0
    caught: int = 0
    visible: int = 0
    caught_of_visible: int = 0
    caught_by_one_of_visible: int = 0

    def lines(self) -> Iterator[str]:
        """Yield the figures as text."""

        def share(part: int, whole: int) -> str:
            return f"{part} of {whole} ({part / whole:.1%})" if whole else "none"

        once = share(self.unconfirmed, self.pairs)
        yield f"one run:  fails in {share(self.failed, self.pairs)}, not confirmed by the next {once}"
        again = share(self.unconfirmed_twice, self.pairs)
        yield f"two runs: fail in {share(self.failed_twice, self.pairs)}, not confirmed by the third {again}"
        one = share(self.quiet_zero_of_one_run, self.quiet)
        yield f"quiet:    exit code 0 with two runs {share(self.quiet_zero, self.quiet)}, with one {one}"
        yield f"slowdown: caught {share(self.caught, self.tries)} of all tries"
        yield f"          a test could see it in {share(self.visible, self.tries)} of them; of these"
        yield f"          caught {share(self.caught_of_visible, self.visible)} with two runs,"
        yield f"          {share(self.caught_by_one_of_visible, self.visible)} with one"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of some folders."""
    parser = argparse.ArgumentParser(description="What the gate's memory is worth on a history of asv.")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--part", choices=("first", "second", "all"), default="all", help="half of each environment")
    parser.add_argument("--every", type=int, default=1, help="judge each N-th pair alone")
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--margin", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    settings = Settings(window=chosen.window, margin=chosen.margin)
    for folder in chosen.folders:
        history = read_history(folder)
        for number, place in enumerate(dict.fromkeys(run.where for run in history.runs)):
            rows = [row for row, run in enumerate(history.runs) if run.where == place]
            bounds = {"first": (0, len(rows) // 2), "second": (len(rows) // 2, len(rows)), "all": (0, len(rows))}
            first, last = bounds[chosen.part]
            pairs = range(max(first, settings.window), min(last, len(rows) - 2), chosen.every)
            if not pairs:
                continue
            rng = random.Random(f"{chosen.seed} {number}")
            print(f"{folder.name}, environment {number + 1}: {len(rows)} runs, {len(pairs)} pairs", flush=True)
            count = Count()
            for pair in pairs:
                _add(count, folder, history, rows[pair : pair + 3], settings, rng)
            print(*(f"    {line}" for line in count.lines()), sep="\n", flush=True)


def _add(
    count: Count, folder: Path, history: History, rows: Sequence[int], settings: Settings, rng: random.Random
) -> None:
    paths = [folder / history.runs[row].name for row in rows]
    try:
        head, second = _read(paths[0]), _read(paths[1])
        one = compare(history, folder.name, head, settings)
        two = compare(history, folder.name, head, settings, confirm=True, second=second)
    except UserError:  # fewer runs than are needed, as the dates are equal
        return
    count.pairs += 1
    count.failed += one.exit_code == 1
    count.unconfirmed += one.exit_code == 1 and not _again(one, second)
    count.failed_twice += two.exit_code == 1
    confirmed = two.exit_code == 1 and _again(two, _read(paths[2]))
    count.unconfirmed_twice += two.exit_code == 1 and not confirmed
    if not confirmed:
        count.quiet += 1
        count.quiet_zero += two.exit_code == 0
        count.quiet_zero_of_one_run += one.exit_code == 0
    _try(count, folder, history, rows, paths, one, settings, rng)


def _again(outcome: Outcome, later: Figures) -> bool:
    """Whether one of the figures that failed lies beyond its margin in a later run, or fails there, too."""
    rows = outcome.judgements.rows
    for place in np.flatnonzero((rows["verdict"] == VERDICTS.index("fail")) & ~rows["report_only"]).tolist():
        case, row = outcome.judgements.cases[place], rows[place]
        if case in later.failures:
            return True
        value = _median(later, case)
        if value is not None and value > row["base"] * (1 + row["margin"]):  # of what failed to run the base is NaN
            return True
    return False


def _median(found: Figures, case: str) -> float | None:
    for kind in found.kinds:
        if (place := found.places(kind).get(case)) is not None:
            side = found.side(place)
            return side[len(side) // 2] if isinstance(side, tuple) else side.median
    return None


def _try(
    count: Count,
    folder: Path,
    history: History,
    rows: Sequence[int],
    paths: Sequence[Path],
    plain: Outcome,
    settings: Settings,
    rng: random.Random,
) -> None:
    """Put the slowdown into some figures of both runs that are judged, and neither failed nor got faster without it."""
    judged = plain.judgements
    passed = (judged.rows["verdict"] == VERDICTS.index("pass")) & ~judged.rows["report_only"]
    passed &= judged.rows["estimate"] > 1 / (1 + judged.rows["margin"])  # a slowdown of what just got faster is none
    times = np.array([quantity == "time" for _, quantity, _ in judged.kinds])[judged.rows["kind"]]
    other = set(_read(paths[1]).cases())
    places = [place for place in np.flatnonzero(passed & times).tolist() if judged.cases[place] in other]
    chosen = rng.sample(places, min(TRIES, len(places)))
    cases = {judged.cases[place] for place in chosen}
    head, second = _slowed(paths[0], cases), _slowed(paths[1], cases)
    two = compare(history, folder.name, head, settings, confirm=True, second=second)
    one = compare(history, folder.name, head, settings)
    figures = int((~judged.rows["report_only"]).sum())
    for place in chosen:
        caught = two.judgements[place].verdict == "fail" and two.exit_code == 1
        visible = _visible(history, rows[0], judged.cases[place], judged.rows[place]["margin"], figures, settings)
        count.tries += 1
        count.caught += caught
        count.visible += visible
        count.caught_of_visible += visible and caught
        count.caught_by_one_of_visible += visible and one.judgements[place].verdict == "fail"


def _visible(history: History, row: int, case: str, margin: float, figures: int, settings: Settings) -> bool:
    columns = [column for column, name in enumerate(history.columns.cases) if name == case]
    here = [place for place in range(row) if history.runs[place].where == history.runs[row].where]
    # A benchmark of several versions has a column for each: the one that the last runs have.
    values = max((history.values[here, column] for column in columns), key=lambda of: np.isfinite(of[-30:]).sum())
    logs = np.log(values[np.isfinite(values) & (values > 0)][-settings.window :])
    sd = float(np.median(np.abs(np.diff(logs)))) / 0.6745 / math.sqrt(2)
    needed = math.log1p(margin) + float(ndtri(1 - settings.alpha / figures) + ndtri(0.95)) * sd
    return math.log(SLOWDOWN) > needed and float(logs.max() - np.median(logs)) < math.log(SLOWDOWN)


@lru_cache(maxsize=8)
def _read(path: Path) -> Figures:
    return asv.read(path, json.loads(path.read_bytes()))


def _slowed(path: Path, cases: set[str]) -> Figures:
    """Return the figures of a result in which some cases are slower."""
    document: dict[str, Any] = json.loads(path.read_bytes())
    columns = document["result_columns"]
    for kind, names, _ in asv.medians(document, asv.units_of(path), {}):
        places = [place for place, name in enumerate(names) if name in cases]
        if not places:
            continue
        row = document["results"][names[0].partition("(")[0]]
        assert kind.quantity == "time"
        for column in _COLUMNS:
            number = columns.index(column)
            for place in places:
                if number < len(row) and row[number] is not None and row[number][place] is not None:
                    row[number][place] *= SLOWDOWN
    return asv.read(path, document)


if __name__ == "__main__":
    main()
