"""The claims of a table and when each counts as reproduced: the one place where that is decided.

A printed figure is a claim of two kinds, and they are judged apart: its *direction* (meProp is as good as dense; it is
faster) and its *level* (98.01%; 21.4x). A direction can hold on other data and another machine, a level cannot.

    at-least        the row's test metric is at least its baseline's. Paired over seeds, 95% interval of the difference:
                    reproduced when its low end is above -SAME, not when its high end is below -SAME.
    better          it is above the baseline's: reproduced when the interval lies above 0, not when below 0.
    level, best     our best seed (the papers report the best) is within SAME of the printed figure. Further away is not
                    reproduced, unless most of our seeds were best in their last epoch: they were still learning, and
                    the question is open.
    iterations      the best dev score comes no more than LATER epochs later than the baseline's.
    faster          the interval of the paired speed-up lies above 1; not when below 1.
    factor          it lies above NEARLY times the printed factor; not when below that. More than printed holds, too:
                    the claim is that so much can be saved.
    size            the layers are no larger than printed / NEARLY, by the interval over seeds.
    decode          what meSimp left decodes faster than what it began with: the interval of the ratio over processes
                    lies above 1; not when below 1. A printed size says by how much, and is judged as size.
    smaller-update  dense changes a parameter so many times as much as meAct, after the masks; judged as a factor.
    count           the data have exactly the printed size.

Whatever lies in between, has no interval (one seed, one process), was not run or was run on other data than a level is
about, is inconclusive: absence of evidence reproduces nothing and refutes nothing. And what counts as reproduced by its
figures does so only if nothing is to be said against these: `paper.doubts`.

SAME = 0.3 points is what this project asks of its MNIST rows; seeds of one configuration spread over 0.1 to 0.2. NEARLY
= 0.9, since the papers print factors and sizes without any deviation, from unrounded times (icml:2 differs by 3% from
its own ratios). LATER = 2 epochs, since the dev curve of a perceptron is flat near its best.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from meprop_bench.paper.doubts import LATER, SAME, Verdict, doubt, still_learning, unit_of
from meprop_bench.paper.evidence import Place, TableEvidence, figure
from meprop_bench.paper.published import COLUMNS
from meprop_bench.paper.records import TrainedArm
from meprop_bench.report.cells import ratio_within
from meprop_bench.report.quality import POINTS
from meprop_bench.stats import Interval, mean_difference, non_inferiority, paired_ratio, too_wide

__all__ = ["LATER", "NEARLY", "SAME", "VERDICTS", "PaperClaim", "Verdict", "judge", "overall"]

VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")

NEARLY = 0.9
"""Share of a printed factor that counts as reaching it."""


_Ours: TypeAlias = tuple[str, Verdict, str]
"""Our figure in words, the verdict that it gives, and why."""

_Found: TypeAlias = tuple[str, str, _Ours | None]
"""What is claimed, the paper's figure, and ours, if anything is known yet."""


@dataclass(frozen=True)
class PaperClaim:
    """One claim of a row: its kind (of `published.CLAIMS`), what it says, both figures, and whether it holds."""

    part: str
    row: str
    kind: str
    says: str
    paper: str
    ours: str
    verdict: Verdict
    why: str


def judge(evidence: TableEvidence) -> list[PaperClaim]:
    """Return every claim of the table with its verdict."""
    return [
        _claim(place, kind, *found)
        for place in evidence.places
        for kind in place.row.claims
        for found in _KINDS[kind](place, kind)
    ]


def _claim(place: Place, kind: str, says: str, paper: str, ours: _Ours | None) -> PaperClaim:
    """Return a claim: what is not known yet with the reason, and the others no better than their evidence lets them."""
    figure, verdict, why = ours or ("–", "inconclusive", _unknown(place, kind))
    if ours and (found := doubt(place, kind, verdict)):
        verdict, why = found[0], f"{why}; but {found[1]}"
    return PaperClaim(place.part.name, place.row.name, kind, says, paper, figure, verdict, why)


def _unknown(place: Place, kind: str) -> str:
    experiment = place.evidence.experiment
    if kind in ("faster", "factor"):
        known = (place.part.name, place.row.name) in experiment.cases
        return place.failure or ("not measured yet" if known else "this scale leaves it out")
    skipped = dict(experiment.skipped).get(place.part.name)
    return skipped or place.evidence.lacking(place.summed_up) or "not run yet"


def overall(claims: list[PaperClaim]) -> str:
    """Return how many claims came out how, in words."""
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no claim"


def _direction(place: Place, kind: str) -> Iterator[_Found]:
    row, baseline = place.row, place.baseline
    if baseline is None or row.setting.method is None:
        return
    column = "test_bleu" if "test_bleu" in row.figures else "test"
    both = column in row.figures and column in baseline.row.figures
    paper = f"{row.figures[column] - baseline.row.figures[column]:+.2f} points" if both else "no figure"
    says = f"{'at least as good as' if kind == 'at-least' else 'better than'} {baseline.row.name}"
    pairs = place.pairs(lambda trained: figure(trained, "test"))
    if not pairs:
        yield says, paper, None
        return
    interval = mean_difference(pairs)
    bound = -SAME[unit_of(row)] if kind == "at-least" else 0.0
    verdict, why = _above(interval, bound, f"{bound:g} points")
    yield says, paper, (_points(interval), verdict, f"{why}, {len(pairs)} seeds")


def _level(place: Place, kind: str) -> Iterator[_Found]:
    for column in ("test", "test_bleu") if kind == "level" else ("best_test",):
        if (printed := place.row.figures.get(column)) is None:
            continue
        unit = COLUMNS[column].unit
        paper = f"{printed:.2f} {unit}"
        found = place.values(column)
        yield f"test {paper}", paper, _leveled(place, printed, unit, found) if found else None


def _leveled(place: Place, printed: float, unit: str, found: Sequence[float]) -> _Ours:
    distance = max(found) - printed
    ours = f"{max(found):.2f} {unit} (best of {len(found)})"
    why = f"{distance:+.2f} from the paper, {SAME[unit]:g} allowed"
    if not place.same_data:
        return ours, "inconclusive", "other data than the paper's, so the level cannot be compared"
    if abs(distance) <= SAME[unit]:
        return ours, "reproduced", why
    if distance < 0 and still_learning(place):
        return ours, "inconclusive", f"{why}; but most seeds were best in their last epoch, still learning"
    return ours, "not reproduced", why


def _iterations(place: Place, kind: str) -> Iterator[_Found]:
    row, baseline = place.row, place.baseline
    if baseline is None or "iterations" not in row.figures:
        return
    paper = f"{row.figures['iterations']:g} against {baseline.row.figures['iterations']:g}"
    pairs = place.pairs(lambda trained: trained.best_epoch)
    ours: _Ours | None = None
    if pairs:
        interval = mean_difference([(later, earlier) for earlier, later in pairs])  # positive: earlier than baseline
        verdict, why = _above(interval, -LATER, f"{LATER:g} epochs", within=True)
        later, means = _negated(interval), [statistics.fmean(side) for side in zip(*pairs, strict=True)]
        words = f"{means[1]:.1f} against {means[0]:.1f}, {later.estimate:+.1f}{_brackets(later, '+.1f')}"
        ours = words, verdict, f"{why}, {len(pairs)} seeds"
    yield f"no more iterations than {baseline.row.name}", paper, ours


def _speed(place: Place, kind: str) -> Iterator[_Found]:
    column, printed, baseline = place.row.time_column, place.row.figures.get("speedup"), place.baseline
    if column is None or printed is None or baseline is None:
        return
    what, paper = COLUMNS[column].title, f"{printed:g}x"
    says = f"faster {what} than {baseline.row.name}" if kind == "faster" else f"{paper} in {what}"
    found = place.timed(column)
    if found is None or found.interval is None:
        yield says, paper, None
        return
    interval = found.interval
    bound = 1.0 if kind == "faster" else NEARLY * printed
    verdict, why = _above(interval, bound, "1x" if kind == "faster" else f"{bound:.1f}x, {NEARLY:g} of the printed")
    if found.baseline_disagreement is not None:
        verdict, why = "inconclusive", f"equal dense times differ by up to {found.baseline_disagreement:.1f}x here"
    yield says, paper, (_times(interval), verdict, why)


def _size(place: Place, kind: str) -> Iterator[_Found]:
    if place.row.against is None:
        return
    for column in ("size", "first_size", "second_size"):
        if (printed := place.row.figures.get(column)) is None:
            continue
        ours: _Ours | None = None
        if found := place.values(column):
            interval, limit = mean_difference([(0.0, value) for value in found]), printed / NEARLY
            verdict, why = _above(_negated(interval), -limit, f"at most {limit:.0f} neurons", within=True)
            if not place.same_data:
                verdict, why = "inconclusive", "other data than the paper's, so the size cannot be compared"
            elif len(found) < len(place.seeds):
                verdict, why = "inconclusive", f"only {len(found)} trainings say how many neurons they left"
            ours = f"{interval.estimate:.0f}{_brackets(interval, '.0f')}", verdict, why
        yield f"{COLUMNS[column].title} of {printed:g}", f"{printed:g}", ours


def _decode(place: Place, kind: str) -> Iterator[_Found]:
    if place.row.setting.method != "mesimp":
        return
    sizes = [each.row.figures.get("size") for each in (place.baseline, place) if each is not None]
    paper = f"{sizes[0] / sizes[1]:.1f}x by its size" if len(sizes) == 2 and sizes[0] and sizes[1] else "no figure"
    ours: _Ours | None = None
    if (found := place.decoding) is not None:
        verdict, why = _above(found.speedup, 1.0, "1x")
        times = f"{_times(found.speedup)}, {found.fewer:.1f}x fewer products"
        ours = times, verdict, f"{why}, the test set on one thread"
    yield "decodes faster than before its simplification", paper, ours


def _smaller_update(place: Place, kind: str) -> Iterator[_Found]:
    printed, arm = place.row.figures.get("update_ratio"), place.arm
    if place.baseline is None or printed is None:
        return
    masked = 0 if arm is None else arm.setting.masked_after or 0

    def update(trained: TrainedArm) -> float | None:
        after = trained.updates[masked:]
        return statistics.fmean(after) if after else None

    changing, ours = [pair for pair in place.pairs(update) if min(pair) > 0], None
    if changing:
        interval = paired_ratio([[pair] for pair in changing])
        verdict, why = _above(interval, NEARLY * printed, f"{NEARLY * printed:.1f}x")
        if len(changing) < len(place.seeds):  # a model that changes no more is a dead one, not a frugal one
            verdict, why = "inconclusive", "some trainings changed nothing after the masks, or did not record it"
        ours = _times(interval), verdict, f"{why}, {len(changing)} seeds"
    yield f"dense changes its parameters {printed:g} times as much as meAct", f"more than {printed:g}x", ours


def _count(place: Place, kind: str) -> Iterator[_Found]:
    for column, printed in place.row.figures.items():
        ours: _Ours | None = None
        if (found := place.counted(column)) is not None:
            ours = f"{found:,}", "reproduced" if found == printed else "not reproduced", "counted"
            if place.counted("published") == 0:
                ours = f"{found:,}", "inconclusive", "other data than the paper's, whose sizes say nothing of it"
        yield f"{COLUMNS[column].title}: {printed:,.0f}", f"{printed:,.0f}", ours


_KINDS: Mapping[str, Callable[[Place, str], Iterator[_Found]]] = {
    "at-least": _direction,
    "better": _direction,
    "level": _level,
    "best": _level,
    "iterations": _iterations,
    "faster": _speed,
    "factor": _speed,
    "size": _size,
    "decode": _decode,
    "smaller-update": _smaller_update,
    "count": _count,
}


_VERDICTS: Mapping[str, Verdict] = dict(zip(("pass", "fail", "inconclusive"), VERDICTS, strict=True))


def _above(interval: Interval, bound: float, words: str, *, within: bool = False) -> tuple[Verdict, str]:
    """Judge whether the true figure lies above a bound, as parity is judged: by `non_inferiority` of what is beyond."""
    if not interval.bounded:
        return "inconclusive", "one run gives no interval"
    beyond = Interval(interval.estimate - bound, interval.low - bound, interval.high - bound)
    verdict = non_inferiority(beyond, 0.0)
    where = {"pass": "is within" if within else "lies above", "fail": "is beyond" if within else "lies below"}
    return _VERDICTS[verdict], f"the interval {where.get(verdict, 'holds')} {words}"


def _negated(interval: Interval) -> Interval:
    return Interval(0.0 - interval.estimate, 0.0 - interval.high, 0.0 - interval.low)  # without a zero that is negative


def _times(found: Interval) -> str:
    if too_wide(found.half_width):
        return ratio_within(found)
    return f"{found.estimate:.2f}x{_brackets(found, '.2f')}"


def _points(found: Interval) -> str:
    return POINTS.within(found) + POINTS.unit * (not POINTS.vague(found))


def _brackets(interval: Interval, form: str) -> str:
    return f" [{interval.low:{form}}, {interval.high:{form}}]" if interval.bounded else ""
