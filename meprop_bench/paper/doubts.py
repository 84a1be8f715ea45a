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
    data      seeds of a pair are of the same data; a level is of the paper's own (`Place.same_data`).
    decoding  timed at the sizes that the trainings found, and with less to compute than before.

What is refuted needs no such care, but for iterations: a baseline that ended at its best may have had a later one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from meprop_bench.paper.evidence import Place, mixed_data
from meprop_bench.paper.published import COLUMNS, PublishedRow
from meprop_bench.paper.records import TrainedArm, sizes_of
from meprop_bench.paper.subjects import subject
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


def doubt(place: Place, kind: str, verdict: Verdict) -> tuple[Verdict, str] | None:
    """Return what a claim's verdict has to be in place of the one that its figures give, and why; None if it holds."""
    if kind == "count":
        return None
    own, baseline = place.summed_up, place.baseline
    comparable = kind in _DIRECTIONS or (kind in _METRICS and place.same_data)
    if verdict != "not reproduced" and comparable and _most(_at_chance(own)):
        other = [baseline] if baseline is not None and kind in _DIRECTIONS else []
        if not _most(_at_chance(other)):
            return "not reproduced", _chance(own)
    if verdict == "not reproduced" and kind == "iterations" and baseline is not None:
        found: Iterator[str] = _unsettled(baseline)
    elif verdict == "reproduced":
        found = _reasons(place, kind)
    elif verdict == "inconclusive" and kind not in _TIMED:
        found = filter(None, [place.evidence.lacking(_sides(place, kind))])
    else:
        return None
    reason = next(found, None)
    return None if reason is None else ("inconclusive", reason)


def _reasons(place: Place, kind: str) -> Iterator[str]:
    evidence, baseline = place.evidence, place.baseline
    if kind in _TIMED:
        if place.failed:
            yield evidence.lacking(place.summed_up)
        yield from filter(None, [_chance(place.summed_up)])
        return
    sides = _sides(place, kind)
    if lacking := evidence.lacking(sides):
        yield lacking
    if (seeds := len(evidence.experiment.seeds)) < LEAST_SEEDS:
        yield f"{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few, {LEAST_SEEDS} are the least"
    for side in sides:
        yield from filter(None, [_chance([side])])
    if kind in _PAIRED and baseline is not None:
        if mixed_data([place, baseline]):
            yield "some of the trainings had other data than others"
        theirs, ours = (map(_course, each.seeds) for each in (baseline, place))
        if list(theirs) == list(ours):
            yield f"every training went exactly as that of {baseline.row.name}: nothing was left out"
    if kind in _DIRECTIONS and baseline is not None and still_learning(baseline):
        lead = mean_difference(place.pairs(lambda one: one.test)).low
        lead += SAME[unit_of(place.row)] if kind == "at-least" else 0.0
        if not lead > (pace := _pace(baseline.seeds)):
            yield f"{baseline.row.name} was still learning, {pace:.2f} points in {LATER:g} epochs"
    if kind == "iterations":
        yield from _unsettled(place)
    if kind == "decode":
        yield from _decoding(place)


def _sides(place: Place, kind: str) -> list[Place]:
    """Return the rows whose trainings a claim is made of."""
    baseline = place.baseline
    return [*place.summed_up, *([baseline] if kind in _PAIRED and baseline is not None else [])]


def still_learning(place: Place) -> bool:
    """Whether most seeds of a row, or of all those that it sums up, were best in their last epoch."""
    seeds = [one for each in place.summed_up for one in each.seeds]
    return _most((sum(one.best_epoch == one.evaluations[-1].epoch for one in seeds), len(seeds)))


def unit_of(row: PublishedRow) -> str:
    """Return the unit of a row's test metric."""
    return COLUMNS["test_bleu" if "test_bleu" in row.figures else "test"].unit


def _pace(seeds: Sequence[TrainedArm]) -> float:
    """Return the points of the dev metric that seeds gain in `LATER` epochs, as they did at their end, the mean."""
    gains = []
    for one in seeds:
        last = one.evaluations[-1]
        since = [each for each in one.evaluations if each.epoch <= last.epoch - LATER][-1:] or one.evaluations[:1]
        epochs = last.epoch - since[0].epoch
        gains.append((last.dev - since[0].dev) * LATER / epochs if epochs else math.inf)
    return statistics.fmean(gains)


def _unsettled(place: Place) -> Iterator[str]:
    """Yield why a row's best epochs are not known, if they are not."""
    seeds, name = place.seeds, place.row.name
    found = sum(one.evaluations[-1].epoch - (one.best_epoch or 0.0) < LATER for one in seeds)
    if found:
        yield f"{found} of {len(seeds)} runs of {name} ended less than {LATER:g} epochs after their best score"


def _decoding(place: Place) -> Iterator[str]:
    found = place.decoding
    if found is not None and dict(found.sizes) != dict(sizes_of(place.seeds)):
        yield "timed at other sizes than those that the trainings found"
    if found is not None and found.fewer <= 1:
        yield "nothing was removed, so there is nothing to be faster by"


def _at_chance(places: Sequence[Place]) -> tuple[int, int]:
    """Return how many seeds learned next to nothing, and of how many."""
    seeds = [one for each in places for one in each.seeds]
    least = subject(places[0].part.task).learned_from if places else 0.0
    return sum(one.test is not None and one.test < least for one in seeds), len(seeds)


def _chance(places: Sequence[Place]) -> str:
    """Say how many seeds learned next to nothing; "" without any."""
    some, of = _at_chance(places)
    names = places[0].row.name if len(places) == 1 else "these rows"
    return f"near chance: {some} of {of} seeds of {names}" if some else ""


def _course(one: TrainedArm) -> tuple[object, ...]:
    return one.evaluations, one.best_epoch, one.test, one.updates


def _most(some_of: tuple[int, int]) -> bool:
    return some_of[0] * 2 > some_of[1]
