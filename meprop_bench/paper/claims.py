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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from meprop_bench.paper.doubts import LATER, SAME, Verdict, doubt, still_learning, unit_of
from meprop_bench.paper.evidence import Evidence, figure, time_column, values
from meprop_bench.paper.published import COLUMNS, Part, PublishedRow
from meprop_bench.paper.trainings import Trained
from meprop_bench.report.cells import points, ratio_within, vague_points
from meprop_bench.stats import Interval, mean_difference, paired_ratio, too_wide

__all__ = ["LATER", "NEARLY", "SAME", "VERDICTS", "Claim", "Verdict", "judge", "overall"]

VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")

_NOTHING = "–"
"""Our figure, where there is none."""

NEARLY = 0.9
"""Share of a printed factor that counts as reaching it."""


@dataclass(frozen=True)
class Claim:
    """One claim, judged.

    Attributes:
        part: of the table.
        row: of the part.
        kind: of `published.CLAIMS`.
        says: the claim in words.
        paper: the paper's figure.
        ours: ours.
        verdict: whether it holds.
        why: in a few words.

    """

    part: str
    row: str
    kind: str
    says: str
    paper: str
    ours: str
    verdict: Verdict
    why: str


def judge(evidence: Evidence) -> list[Claim]:
    """Return every claim of the table with its verdict."""
    found: list[Claim] = []
    for part in evidence.experiment.table.parts:
        for row in part.rows:
            for kind in row.claims:
                found += (_doubted(evidence, part, row, claim) for claim in _KINDS[kind](evidence, part, row))
    return found


def _doubted(evidence: Evidence, part: Part, row: PublishedRow, claim: Claim) -> Claim:
    """Return a claim that reproduces the paper no better than its evidence lets it."""
    found = None if claim.ours == _NOTHING else doubt(evidence, part, row, claim.kind, claim.verdict)
    return claim if found is None else replace(claim, verdict=found[0], why=f"{claim.why}; but {found[1]}")


def overall(claims: list[Claim]) -> str:
    """Return how many claims came out how, in words."""
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no claim"


def _direction(evidence: Evidence, part: Part, row: PublishedRow, kind: str) -> Iterator[Claim]:
    baseline = part.baseline(row)
    if baseline is None or row.setting.method is None:
        return
    column = "test_bleu" if "test_bleu" in row.figures else "test"
    unit = unit_of(row)
    printed = _difference(row, baseline, column)
    says = f"{'at least as good as' if kind == 'at-least' else 'better than'} {baseline.name}"
    pairs = evidence.pairs(part, row, _test)
    if not pairs:
        yield _open(evidence, part, row, kind, says, printed)
        return
    interval = mean_difference(pairs)
    bound = -SAME[unit] if kind == "at-least" else 0.0
    verdict, why = _above(interval, bound, f"{bound:g} points")
    ours = _points(interval)
    yield Claim(part.name, row.name, kind, says, printed, ours, verdict, f"{why}, {len(pairs)} seeds")


def _at_least(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    return _direction(evidence, part, row, "at-least")


def _better(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    return _direction(evidence, part, row, "better")


def _level(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    for column in ("test", "test_bleu"):
        if column in row.figures:
            yield _leveled(evidence, part, row, column, "level")


def _best(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    if "best_test" in row.figures:
        yield _leveled(evidence, part, row, "best_test", "best")


def _leveled(evidence: Evidence, part: Part, row: PublishedRow, column: str, kind: str) -> Claim:
    unit, printed = COLUMNS[column].unit, row.figures[column]
    says = f"test {printed:.2f} {unit}"
    paper = f"{printed:.2f} {unit}"
    found = values(evidence, part, row, column)
    if not found:
        return _open(evidence, part, row, kind, says, paper)
    best = max(found)
    distance = best - printed
    ours = f"{best:.2f} {unit} (best of {len(found)})"
    why = f"{distance:+.2f} from the paper, {SAME[unit]:g} allowed"
    verdict: Verdict
    if not evidence.same_data(part):
        verdict, why = "inconclusive", "other data than the paper's, so the level cannot be compared"
    elif abs(distance) <= SAME[unit]:
        verdict = "reproduced"
    elif distance < 0 and still_learning(evidence, part, row):
        verdict, why = "inconclusive", f"{why}; but most seeds were best in their last epoch, still learning"
    else:
        verdict = "not reproduced"
    return Claim(part.name, row.name, kind, says, paper, ours, verdict, why)


def _iterations(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    baseline = part.baseline(row)
    if baseline is None or "iterations" not in row.figures:
        return
    before, after = baseline.figures["iterations"], row.figures["iterations"]
    says, paper = f"no more iterations than {baseline.name}", f"{after:g} against {before:g}"
    pairs = evidence.pairs(part, row, lambda trained: trained.best_epoch)
    if not pairs:
        yield _open(evidence, part, row, "iterations", says, paper)
        return
    interval = mean_difference([(later, earlier) for earlier, later in pairs])  # positive: earlier than the baseline
    verdict, why = _above(interval, -LATER, f"{LATER:g} epochs", within=True)
    later = _negated(interval)
    means = [statistics.fmean(side) for side in zip(*pairs, strict=True)]
    ours = f"{means[1]:.1f} against {means[0]:.1f}, {later.estimate:+.1f}{_brackets(later, '+.1f')}"
    yield Claim(part.name, row.name, "iterations", says, paper, ours, verdict, f"{why}, {len(pairs)} seeds")


def _faster(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    return _speed(evidence, part, row, "faster")


def _factor(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    return _speed(evidence, part, row, "factor")


def _speed(evidence: Evidence, part: Part, row: PublishedRow, kind: str) -> Iterator[Claim]:
    column, printed = time_column(row), row.figures.get("speedup")
    baseline = part.baseline(row)
    if column is None or printed is None or baseline is None:
        return
    what = COLUMNS[column].title
    says = f"faster {what} than {baseline.name}" if kind == "faster" else f"{printed:g}x in {what}"
    found = evidence.row(part, row, column)
    if found is None or found.interval is None:
        yield _open(evidence, part, row, kind, says, f"{printed:g}x")
        return
    interval = found.interval
    bound = 1.0 if kind == "faster" else NEARLY * printed
    verdict, why = _above(interval, bound, "1x" if kind == "faster" else f"{bound:.1f}x, {NEARLY:g} of the printed")
    if found.baseline_disagreement is not None:
        verdict, why = "inconclusive", f"equal dense times differ by up to {found.baseline_disagreement:.1f}x here"
    ours = _times(interval)
    yield Claim(part.name, row.name, kind, says, f"{printed:g}x", ours, verdict, why)


def _size(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    if row.against is None:
        return
    for column in ("size", "first_size", "second_size"):
        if column not in row.figures:
            continue
        printed = row.figures[column]
        says, paper = f"{COLUMNS[column].title} of {printed:g}", f"{printed:g}"
        found = values(evidence, part, row, column)
        if not found:
            yield _open(evidence, part, row, "size", says, paper)
            continue
        interval = mean_difference([(0.0, value) for value in found])
        limit = printed / NEARLY
        verdict, why = _above(_negated(interval), -limit, f"at most {limit:.0f} neurons", within=True)
        if not evidence.same_data(part):
            verdict, why = "inconclusive", "other data than the paper's, so the size cannot be compared"
        elif len(found) < len(evidence.seeds(part, row)):
            verdict, why = "inconclusive", f"only {len(found)} trainings say how many neurons they left"
        ours = f"{interval.estimate:.0f}{_brackets(interval, '.0f')}"
        yield Claim(part.name, row.name, "size", says, paper, ours, verdict, why)


def _decode(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    if row.setting.method != "mesimp":
        return
    baseline, says = part.baseline(row), "decodes faster than before its simplification"
    sizes = [each.figures.get("size") for each in (baseline, row) if each is not None]
    printed = f"{sizes[0] / sizes[1]:.1f}x by its size" if len(sizes) == 2 and sizes[0] and sizes[1] else "no figure"
    found = evidence.decoding(part, row)
    if found is None:
        yield _open(evidence, part, row, "decode", says, printed)
        return
    interval = found.speedup
    verdict, why = _above(interval, 1.0, "1x")
    ours = f"{_times(interval)}, {found.fewer:.1f}x fewer products"
    yield Claim(part.name, row.name, "decode", says, printed, ours, verdict, f"{why}, the test set on one thread")


def _smaller_update(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    baseline, printed = part.baseline(row), row.figures.get("update_ratio")
    if baseline is None or printed is None:
        return
    says, paper = f"dense changes its parameters {printed:g} times as much as meAct", f"more than {printed:g}x"
    arm = evidence.experiment.arms.get((part.name, row.name))
    masked = 0 if arm is None or arm.setting.masked_after is None else arm.setting.masked_after

    def update(trained: Trained) -> float | None:
        after = trained.updates[masked:]
        return statistics.fmean(after) if after else None

    pairs = evidence.pairs(part, row, update)
    changing = [pair for pair in pairs if min(pair) > 0]
    if not changing:
        yield _open(evidence, part, row, "smaller-update", says, paper)
        return
    interval = paired_ratio([[pair] for pair in changing])
    verdict, why = _above(interval, NEARLY * printed, f"{NEARLY * printed:.1f}x")
    if len(changing) < len(evidence.seeds(part, row)):  # a model that changes no more is a dead one, not a frugal one
        verdict, why = "inconclusive", "some trainings changed nothing after the masks, or did not record it"
    ours = _times(interval)
    yield Claim(part.name, row.name, "smaller-update", says, paper, ours, verdict, f"{why}, {len(changing)} seeds")


def _count(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[Claim]:
    for column, printed in row.figures.items():
        says, paper = f"{COLUMNS[column].title}: {printed:,.0f}", f"{printed:,.0f}"
        found = evidence.counts.get((part.task, column)) if part.name in evidence.experiment.counted else None
        if found is None:
            yield _open(evidence, part, row, "count", says, paper)
            continue
        verdict: Verdict = "reproduced" if found == printed else "not reproduced"
        why = "counted"
        if not evidence.counts.get((part.task, "published"), 1):
            verdict, why = "inconclusive", "other data than the paper's, whose sizes say nothing of it"
        yield Claim(part.name, row.name, "count", says, paper, f"{found:,}", verdict, why)


_KINDS: Mapping[str, Callable[[Evidence, Part, PublishedRow], Iterator[Claim]]] = {
    "at-least": _at_least,
    "better": _better,
    "level": _level,
    "best": _best,
    "iterations": _iterations,
    "faster": _faster,
    "factor": _factor,
    "size": _size,
    "decode": _decode,
    "smaller-update": _smaller_update,
    "count": _count,
}


def _above(interval: Interval, bound: float, words: str, *, within: bool = False) -> tuple[Verdict, str]:
    """Judge whether the true figure lies above a bound."""
    if not interval.bounded:
        return "inconclusive", "one run gives no interval"
    if interval.low > bound:
        return "reproduced", f"the interval is within {words}" if within else f"the interval lies above {words}"
    if interval.high < bound:
        return "not reproduced", f"the interval is beyond {words}" if within else f"the interval lies below {words}"
    return "inconclusive", f"the interval holds {words}"


def _open(evidence: Evidence, part: Part, row: PublishedRow, kind: str, says: str, paper: str) -> Claim:
    """Return the claim that nothing is known about yet, with the reason."""
    skipped = dict(evidence.experiment.skipped).get(part.name)
    timed = kind in ("faster", "factor")
    if timed:
        known = (part.name, row.name) in evidence.experiment.cases
        reason = evidence.failure(part, row) or ("not measured yet" if known else "this scale leaves it out")
    else:
        reason = skipped or evidence.lacking(part, evidence.rows_of(part, row)) or "not run yet"
    return Claim(part.name, row.name, kind, says, paper, _NOTHING, "inconclusive", reason)


def _difference(row: PublishedRow, baseline: PublishedRow, column: str) -> str:
    if column in row.figures and column in baseline.figures:
        return f"{row.figures[column] - baseline.figures[column]:+.2f} points"
    return "no figure"


def _test(trained: Trained) -> float | None:
    return figure(trained, "test")


def _negated(interval: Interval) -> Interval:
    return Interval(0.0 - interval.estimate, 0.0 - interval.high, 0.0 - interval.low)  # without a zero that is negative


def _times(found: Interval) -> str:
    if too_wide(found.half_width):
        return ratio_within(found)
    return f"{found.estimate:.2f}x{_brackets(found, '.2f')}"


def _points(found: Interval) -> str:
    return points(found) + " points" * (not vague_points(found))


def _brackets(interval: Interval, form: str) -> str:
    return f" [{interval.low:{form}}, {interval.high:{form}}]" if interval.bounded else ""
