"""Which training steps pay: what a user of the method wants to know first, in one sentence.

    On this machine a training step pays at h=2048 (2.34x), not at h=500 (0.95x), if the accuracy holds.

A step pays where its speed-up's interval lies above 1 and its accuracy is not shown to be worse by more than the
margin, and does not where the interval lies below; all speed-ups of a report are judged at once (`reliability`).
Between the two nothing is decided, nor where the interval is too wide to tell, or the dense times disagree. Where
several cases are of one place, it is said of how many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from meprop_bench.report.cells import ratio, ratio_within
from meprop_bench.results.axes import AXES
from meprop_bench.results.schema import Row
from meprop_bench.stats import CANNOT_TELL, too_wide

__all__ = ["which_pay"]

_PLACE = ("hidden", "workload", "model", "options", "data", "layers", "length", "batch", "device", "threads")
"""Axes that say where a step is taken. One alone does, the first, where it tells all places apart."""

_LOSES = "is faster but loses too much accuracy"

_MOST = 4
"""Places that a sentence names."""


def which_pay(rows: Sequence[Row], distinct: AbstractSet[int]) -> str | None:
    """Return the sentence; None without a step of a model in training.

    Args:
        rows: of a report.
        distinct: identities of those whose speed-up differs from 1, all judged at once.

    """
    trained = AXES["optimizer"].workloads or {}
    steps = [
        row
        for row in rows
        if row.phase == "step" and row.workload in trained and row.method != "dense" and row.speedup is not None
    ]
    if not steps:
        return None
    places = _places(steps)
    unsure = any(_verdict(row, distinct) == "pays" and not _holds(row) for row in steps)
    condition = ", if the accuracy holds" if unsure else ""
    alike: dict[str, list[str]] = {"pays": [], "loses": [], "does not": [], "undecided": []}
    mixed = []
    if len(places) > _MOST:
        return f"On this machine a training step {_counted([_verdict(row, distinct) for row in steps])}{condition}."
    for place, own in places.items():
        verdicts = [_verdict(row, distinct) for row in own]
        if len(set(verdicts)) == 1:
            alike[verdicts[0]].append(f"{place} ({_span(own)})")
        else:
            mixed.append(f"{place} it {_counted(verdicts)}")
    pays, loses, does_not, undecided = (" and ".join(found) for found in alike.values())
    said = [f"pays {pays}"] if pays else []
    said += [f"{_LOSES} {loses}"] if loses else []
    said += [f"{'not' if pays and not loses else 'does not pay'} {does_not}"] if does_not else []
    first = [f"a training step {', '.join(said)}"] if said else []
    open_ones = [f"it is undecided whether {'it' if said else 'a training step'} pays {undecided}"] if undecided else []
    clauses = [*first, *open_ones, *(mixed if first or open_ones else _begun(mixed))]
    return f"On this machine {'; '.join(clauses)}{condition}."


def _begun(mixed: list[str]) -> list[str]:
    """Return clauses whose first one is the first of the sentence."""
    return [mixed[0].replace(" it ", " a training step ", 1), *mixed[1:]]


def _verdict(row: Row, distinct: AbstractSet[int]) -> str:
    believed = row.baseline_disagreement is None and not too_wide(row.half_width)
    if not (believed and row.significant and id(row) in distinct):
        return "undecided"
    if (row.speedup or 0.0) < 1:
        return "does not"
    return "loses" if row.parity is not None and row.parity.verdict == "fail" else "pays"


def _holds(row: Row) -> bool:
    return row.parity is not None and row.parity.verdict == "pass"


def _counted(verdicts: Sequence[str]) -> str:
    """Return of how many cases what is so."""
    counts = Counter(verdicts)
    words = [
        f"{start} in {counts[verdict]}"
        for verdict, start in (
            ("pays", "pays"),
            ("loses", _LOSES),
            ("does not", "does not"),
            ("undecided", "is undecided"),
        )
        if counts[verdict]
    ]
    return f"{', '.join(words)} of {len(verdicts)} cases"


def _span(rows: Sequence[Row]) -> str:
    """Return the speed-ups: of one case with its interval, of several from the least to the greatest that is known."""
    if len(rows) == 1 and rows[0].interval is not None:
        return ratio_within(rows[0].interval)
    values = sorted(row.speedup for row in rows if row.speedup is not None and not too_wide(row.half_width))
    return " to ".join(dict.fromkeys((ratio(values[0]), ratio(values[-1])))) if values else CANNOT_TELL


def _places(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows by where their steps are taken: "at h=500", or "for my_model.py:build"."""
    words = [[AXES[name].said(row, always=True) for name in _PLACE] for row in rows]
    varying = [place for place, found in enumerate(zip(*words, strict=True)) if len(set(found)) > 1]
    count = len({tuple(found) for found in words})
    alone = next((place for place in varying if len({found[place] for found in words}) == count), None)
    chosen = [alone] if alone is not None else varying
    found: dict[str, list[Row]] = {}
    for row, own in zip(rows, words, strict=True):
        said = " ".join(own[place] for place in chosen if own[place]) or next(filter(None, (own[0], own[2], own[1])))
        found.setdefault(f"{'at' if '=' in said.split()[0] else 'for'} {said}", []).append(row)
    return found
