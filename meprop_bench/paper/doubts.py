"""What keeps a claim from counting as reproduced, however its figures compare.

A tie, chance, a run cut short and a failure all give figures, and figures can be compared. So whatever compares well is
asked once more what it is made of (`doubt`), by one rule for each way to flatter:

    seeds     a training that failed, was cut off or was not run claims nothing, and those that are left are not all:
              every planned seed of the row, and of the baseline that it is paired with, must be there, LEAST_SEEDS at
              least. Two have an interval of 12.7 deviations, or by chance none at all.
    chance    a seed below `Subject.learned_from` learned next to nothing. The best of several seeds says nothing while
              others are there, a difference to such a baseline is no merit, and neither is to be faster or smaller.
              Where most seeds of a row are there, and its baseline's are not, what it claims of its metric is refuted.
    the end   a best score in a run's last epochs is where the run ended, not where the score was best. A row is ahead
              of a baseline that was still learning only if it still were when that one had learned for LATER epochs
              more at its last pace, which is generous: curves flatten.
    a tie     a row whose every training went as its baseline's did, to the last loss, is the baseline: its k keeps all.
    data      seeds of a pair are of the same data; a level is of the paper's own (`Evidence.same_data`).
    decoding  timed at the sizes that the trainings found, and with less to compute than before.

What is refuted needs no such care, but for iterations: a baseline that ended at its best may have had a later one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from meprop_bench.paper.decodings import sizes_of
from meprop_bench.paper.evidence import Evidence
from meprop_bench.paper.published import COLUMNS, Part, PublishedRow
from meprop_bench.paper.subjects import subject
from meprop_bench.paper.trainings import Trained
from meprop_bench.stats import mean_difference

__all__ = ["LATER", "LEAST_SEEDS", "SAME", "Verdict", "doubt", "still_learning", "unit_of"]

Verdict: TypeAlias = Literal["reproduced", "not reproduced", "inconclusive"]

SAME: Mapping[str, float] = {"%": 0.3, "BLEU": 1.0}
"""Points that count as the same, by unit."""

LATER = 2.0
"""Epochs that count as no later."""

LEAST_SEEDS = 3

_DIRECTIONS = ("at-least", "better")
_METRICS = (*_DIRECTIONS, "level", "best")
_PAIRED = (*_DIRECTIONS, "iterations", "smaller-update")
_TIMED = ("faster", "factor")


def doubt(evidence: Evidence, part: Part, row: PublishedRow, kind: str, verdict: Verdict) -> tuple[Verdict, str] | None:
    """Return what a claim's verdict has to be in place of the one that its figures give, and why; None if it holds."""
    if kind == "count":
        return None
    own, baseline = evidence.rows_of(part, row), part.baseline(row)
    comparable = kind in _DIRECTIONS or (kind in _METRICS and evidence.same_data(part))
    if verdict != "not reproduced" and comparable and _most(_at_chance(evidence, part, own)):
        other = [baseline] if baseline is not None and kind in _DIRECTIONS else []
        if not _most(_at_chance(evidence, part, other)):
            return "not reproduced", _chance(evidence, part, own)
    if verdict == "not reproduced" and kind == "iterations" and baseline is not None:
        found: Iterator[str] = _unsettled(evidence, part, baseline)
    elif verdict == "reproduced":
        found = _reasons(evidence, part, row, kind, baseline)
    elif verdict == "inconclusive" and kind not in _TIMED:
        found = filter(None, [evidence.lacking(part, _sides(evidence, part, row, kind))])
    else:
        return None
    reason = next(found, None)
    return None if reason is None else ("inconclusive", reason)


def _reasons(
    evidence: Evidence, part: Part, row: PublishedRow, kind: str, baseline: PublishedRow | None
) -> Iterator[str]:
    own = evidence.rows_of(part, row)
    if kind in _TIMED:
        if evidence.failed_of(part, own):
            yield evidence.lacking(part, own)
        yield from filter(None, [_chance(evidence, part, own)])
        return
    sides = _sides(evidence, part, row, kind)
    if lacking := evidence.lacking(part, sides):
        yield lacking
    if (seeds := len(evidence.experiment.seeds)) < LEAST_SEEDS:
        yield f"{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few, {LEAST_SEEDS} are the least"
    for side in sides:
        yield from filter(None, [_chance(evidence, part, [side])])
    if kind in _PAIRED and baseline is not None:
        if evidence.mixed_data(part, [row, baseline]):
            yield "some of the trainings had other data than others"
        theirs, ours = (map(_course, evidence.seeds(part, each)) for each in (baseline, row))
        if list(theirs) == list(ours):
            yield f"every training went exactly as that of {baseline.name}: nothing was left out"
    if kind in _DIRECTIONS and baseline is not None and still_learning(evidence, part, baseline):
        lead = mean_difference(evidence.pairs(part, row, lambda one: one.test)).low
        lead += SAME[unit_of(row)] if kind == "at-least" else 0.0
        if not lead > (pace := _pace(evidence.seeds(part, baseline))):
            yield f"{baseline.name} was still learning, {pace:.2f} points in {LATER:g} epochs"
    if kind == "iterations":
        yield from _unsettled(evidence, part, row)
    if kind == "decode":
        yield from _decoding(evidence, part, row)


def _sides(evidence: Evidence, part: Part, row: PublishedRow, kind: str) -> list[PublishedRow]:
    """Return the rows whose trainings a claim is made of."""
    baseline = part.baseline(row)
    return [*evidence.rows_of(part, row), *([baseline] if kind in _PAIRED and baseline is not None else [])]


def still_learning(evidence: Evidence, part: Part, row: PublishedRow) -> bool:
    """Whether most seeds of a row, or of all those that it sums up, were best in their last epoch."""
    seeds = _seeds(evidence, part, evidence.rows_of(part, row))
    return _most((sum(one.best_epoch == one.evaluations[-1].epoch for one in seeds), len(seeds)))


def unit_of(row: PublishedRow) -> str:
    """Return the unit of a row's test metric."""
    return COLUMNS["test_bleu" if "test_bleu" in row.figures else "test"].unit


def _pace(seeds: Sequence[Trained]) -> float:
    """Return the points of the dev metric that seeds gain in `LATER` epochs, as they did at their end, the mean."""
    gains = []
    for one in seeds:
        last = one.evaluations[-1]
        since = [each for each in one.evaluations if each.epoch <= last.epoch - LATER][-1:] or one.evaluations[:1]
        epochs = last.epoch - since[0].epoch
        gains.append((last.dev - since[0].dev) * LATER / epochs if epochs else math.inf)
    return statistics.fmean(gains)


def _unsettled(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[str]:
    """Yield why a row's best epochs are not known, if they are not."""
    seeds = evidence.seeds(part, row)
    found = sum(one.evaluations[-1].epoch - (one.best_epoch or 0.0) < LATER for one in seeds)
    if found:
        yield f"{found} of {len(seeds)} runs of {row.name} ended less than {LATER:g} epochs after their best score"


def _decoding(evidence: Evidence, part: Part, row: PublishedRow) -> Iterator[str]:
    found = evidence.decoding(part, row)
    if found is not None and dict(found.sizes) != dict(sizes_of(evidence.seeds(part, row))):
        yield "timed at other sizes than those that the trainings found"
    if found is not None and found.fewer <= 1:
        yield "nothing was removed, so there is nothing to be faster by"


def _seeds(evidence: Evidence, part: Part, rows: Sequence[PublishedRow]) -> list[Trained]:
    return [trained for row in rows for trained in evidence.seeds(part, row)]


def _at_chance(evidence: Evidence, part: Part, rows: Sequence[PublishedRow]) -> tuple[int, int]:
    """Return how many seeds learned next to nothing, and of how many."""
    seeds, least = _seeds(evidence, part, rows), subject(part.task).learned_from
    return sum(one.test is not None and one.test < least for one in seeds), len(seeds)


def _chance(evidence: Evidence, part: Part, rows: Sequence[PublishedRow]) -> str:
    """Say how many seeds learned next to nothing; "" without any."""
    some, of = _at_chance(evidence, part, rows)
    names = rows[0].name if len(rows) == 1 else "these rows"
    return f"near chance: {some} of {of} seeds of {names}" if some else ""


def _course(one: Trained) -> tuple[object, ...]:
    return one.evaluations, one.best_epoch, one.test, one.updates


def _most(some_of: tuple[int, int]) -> bool:
    return some_of[0] * 2 > some_of[1]
