"""How often does the gate pass identical code, and fail a slowdown? Reckoned, from measured spreads; no part of CI.

    python -m tests.gate.power            the table of docs/gate.md, in two minutes

Pairs of processes are drawn from normal distributions with the spreads below and judged by `decide`, look by look, as
the gate does it, all figures of all cases at once. Figures are drawn independently, which makes it hardest for all of
them to pass. One case is slowed, in all of its times or in the noisiest of them alone.

`SPREADS` are standard deviations between pairs of processes of identical code, in percent, at slices of 2.5 s: the
larger ones of two whole runs on a shared machine with two cores (docs/log, 2026-11-28), from the intervals that they
printed. The gate's slices are shorter now, 1.5 s, with fewer set-ups in them: of a perceptron some 1.2 s are blocks,
where 1.5 s were. Were all of it noise within the processes, pairs would spread by the root of that ratio more, and so
much is taken.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from unittest.mock import patch

import numpy as np

from meprop_bench.gate import decide
from meprop_bench.gate.budget import CaseBudget
from meprop_bench.gate.decide import judge, undecided
from meprop_bench.gate.judgement import Judgements
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings

SPREADS: Mapping[str, Mapping[str, float]] = {
    "784 -> 500, B = 10": {"forward": 0.6, "backward": 4.8, "sparse/dense backward": 6.2},
    "784 -> 500, B = 50": {"forward": 0.5, "backward": 2.7, "sparse/dense backward": 2.7},
    "1024, meprop": {"forward": 0.3, "backward": 2.8, "sparse/dense backward": 2.7},
    "1024, unified": {"forward": 0.5, "backward": 1.1, "sparse/dense backward": 1.3},
    "perceptron": {
        **{"forward": 1.2, "backward": 1.6, "update": 1.8, "step": 1.6},
        **{"sparse/dense backward": 3.5, "sparse/dense step": 3.3},
    },
}
_LONGER = math.sqrt(1.5 / 1.2)

_START_S = 1.9
_OWN_S: Mapping[str, float] = {
    **{"784 -> 500, B = 10": 1.9, "784 -> 500, B = 50": 1.9, "1024, meprop": 2.1, "1024, unified": 2.1},
    "perceptron": 3.6,
}
"""Seconds that a round took there: to start two processes, and of each case to be set up, checked and measured."""

_FIVE = tuple(SPREADS)
LINES: Sequence[tuple[str, Sequence[str], str, float, float]] = (
    *(("perceptron alone", ("perceptron",), "perceptron", 60.0, margin) for margin in (0.03, 0.04, 0.045, 0.05)),
    ("perceptron alone", ("perceptron",), "perceptron", 120.0, 0.03),
    ("all but B = 10", _FIVE[1:], "1024, meprop", 120.0, 0.03),
    *(("all five", _FIVE, case, 60.0, 0.045) for case in _FIVE),
)
"""Name, cases, which of them is slowed, the budget in seconds, margin."""


def run(
    rng: np.random.Generator, cases: Sequence[str], settings: Settings, slowed: Mapping[tuple[str, str], float]
) -> tuple[Judgements, Mapping[str, int]]:
    """Return the judgements of one run of the gate, and how many pairs of processes each case took.

    `slowed` is by how much figures of a case are slower.
    """
    looks = Looks.within(settings.pairs)
    logs: dict[tuple[str, str], list[float]] = {
        (case, figure): list(
            rng.normal(math.log1p(slowed.get((case, figure), 0.0)), _LONGER * spread / 100, settings.pairs)
        )
        for case in cases
        for figure, spread in SPREADS[case].items()
    }
    counts = dict.fromkeys(cases, 0)
    budget: CaseBudget[str] = CaseBudget(settings.budget * len(cases), lambda case: None)

    def series() -> list[Series]:
        return [
            Series(
                case=case,
                figure=figure,
                quantity="ratio" if "/" in figure else "time",
                unit="1" if "/" in figure else "s",
                repeats=figure.removeprefix("sparse/dense ") if "/" in figure else "",
                pairs=tuple(((1.0, math.exp(log)),) for log in values[: counts[case]]),
                most=budget.most_rounds(case),
            )
            for (case, figure), values in logs.items()
        ]

    todo = list(cases)
    while todo:
        budget.started(_START_S)
        for case in todo:
            budget.took(case, _OWN_S[case])
            counts[case] += 1
        left = [case for case in todo if counts[case] < settings.pairs]
        if counts[todo[0]] in looks.counts:
            waiting = undecided(series(), settings, looks)
            left = [case for case in left if case in waiting]
        todo = budget.affords(left)
    return judge(series(), settings, looks), counts


def line(name: str, cases: Sequence[str], case: str, budget: float, margin: float, *, runs: int = 200) -> str:
    """Return a line of the table."""
    rng = np.random.default_rng(1)
    settings = Settings(margin=margin, margins={"*sparse/dense*": 0.075}, budget=budget)
    times = {figure: spread for figure, spread in SPREADS[case].items() if "/" not in figure}
    noisiest = max(times, key=lambda figure: times[figure])

    def verdicts(by: float, *figures: str) -> list[tuple[set[str], int, float]]:
        made = (run(rng, cases, settings, {(case, one): by for one in figures}) for _ in range(runs))
        return [
            ({one.verdict for one in found if not one.report_only}, used[case], found.caught or math.nan)
            for found, used in made
        ]

    same = verdicts(0.0)
    passed, alarms = (sum(found == {"pass"} for found, *_ in same), sum("fail" in found for found, *_ in same))
    cells = [name, case, f"{budget:g} s", f"{margin:.1%}", f"{passed / runs:.1%}", f"{alarms} of {runs}"]
    cells += [f"{np.mean([used for _, used, _ in same]):.1f}", f"{np.nanmedian([seen for *_, seen in same]):.1%}"]
    for by, figures in ((0.03, times), (0.05, times), (0.05, {noisiest})):
        slowed = verdicts(by, *figures)
        cells.append(f"{sum('fail' in found for found, *_ in slowed) / runs:.1%}")
    cells.append(f"{np.mean([used for _, used, _ in slowed]):.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--small", type=float, default=decide._SMALL, help="part of the margin that never fails")
    arguments = parser.parse_args()
    heads = ["cases", "which is slowed", "budget", "margin", "identical: passes", "false alarms", "its pairs"]
    heads += ["would have failed", "3% slower: fails", "5% slower", "5%, one time alone", "its pairs then"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    with patch.object(decide, "_SMALL", arguments.small):
        for each in LINES:
            print(line(*each, runs=arguments.runs), flush=True)


if __name__ == "__main__":
    main()
