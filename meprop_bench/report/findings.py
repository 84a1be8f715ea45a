"""What a report found, in words: the paragraph that every format begins with.

    On this machine at h=2048 unified k=64 pays: a training step is 2.34x [2.32, 2.36] as fast as dense, the backward
    pass 12.1x [11.9, 12.3], and accuracy holds within 0.5 points (-0.10 [-0.30, +0.10]). At h=500 unified k=80 does not
    pay: a training step is 0.95x [0.94, 0.96] as fast as dense.

A `Finding` is a sentence or two with its kind and the cases that it is about; terminal, Markdown, HTML and JSON show
the same ones. Their order is that of a reader's questions: what speaks against the figures, whether a training step
pays and keeps the accuracy, what a layer's backward pass gains, what could not be measured.

A training step *pays* where its speed-up's interval lies above 1, all speed-ups of a report judged at once
(`reliability`), and the accuracy holds within the margin; where that was not compared or is not decided, it pays if
the accuracy holds. It does not pay where the interval lies below 1, or the accuracy is lost. Else it is undecided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from meprop_bench.report.cells import Tone, between, beyond, capital, counted, ratio_within, span
from meprop_bench.report.quality import held, more_seeds
from meprop_bench.report.reliability import mean_speedup
from meprop_bench.results.axes import AXES, case_name, device_name, method_name
from meprop_bench.results.redact import bounded
from meprop_bench.results.schema import Row
from meprop_bench.stats import Verdict, too_wide

__all__ = ["Finding", "Kind", "findings", "plain", "standing"]

Kind: TypeAlias = Literal[
    "doubt",  # why figures are not to be believed
    "failed",  # cases whose check failed, or that could not be run
    "pays",
    "pays if the accuracy holds",
    "loses accuracy",
    "does not pay",
    "undecided",
    "faster",  # what is no training step: a layer's backward pass
    "slower",
    "mixed",  # of many cases some are one, some another
    "accuracy",
    "answer",  # of a search
    "instrument",  # what the measurement itself is worth
    "remark",
]
_TONES: Mapping[str, Tone] = {
    **dict.fromkeys(("pays", "faster"), "good"),
    **dict.fromkeys(("doubt", "failed", "loses accuracy", "does not pay", "slower"), "bad"),
    "remark": "quiet",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in words."""

    text: str
    kind: Kind = "remark"
    cases: tuple[str, ...] = ()  # ids of those that it is about, where they are few

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", bounded(self.text))  # there are names in it, which are somebody else's

    @property
    def tone(self) -> Tone:
        """How it is meant."""
        return _TONES.get(self.kind, "")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"kind": self.kind, "text": self.text, "cases": list(self.cases)}


def plain(doubts: Iterable[str], texts: Iterable[str]) -> list[Finding]:
    """Return findings of texts that are there already, what speaks against them first."""
    return [*(Finding(text, "doubt") for text in doubts), *(Finding(text) for text in texts)]


Standing: TypeAlias = Literal["pays", "pays if the accuracy holds", "undecided", "loses accuracy", "does not pay"]
_RANK: Sequence[Standing] = ("pays", "pays if the accuracy holds", "undecided", "loses accuracy", "does not pay")
_COUNTED: Mapping[Standing, str] = {
    "pays": "pays in",
    "pays if the accuracy holds": "pays if the accuracy holds in",
    "undecided": "is undecided in",
    "loses accuracy": "is faster but loses accuracy in",
    "does not pay": "does not pay in",
}

_PLACE = (
    *("hidden", "workload", "model", "options", "data", "layers", "length", "batch", "device", "threads"),
    *("world-size", "dense-exchange"),
)
"""Axes that say where a step is taken. One alone does, the first, where it tells all places apart."""

_MOST = 4
"""Places, and open accuracies, that are named one by one."""


def believed(row: Row) -> bool:
    """Whether a speed-up is a figure: its dense time agrees with others', and its interval is not too wide."""
    return row.baseline_disagreement is None and not too_wide(row.half_width)


def standing(row: Row, distinct: AbstractSet[int]) -> Standing:
    """Return whether a row's speed-up pays; `distinct` has the identities of the rows that are told apart from 1."""
    if not (believed(row) and row.significant and id(row) in distinct):
        return "undecided"
    if (row.speedup or 0.0) < 1:
        return "does not pay"
    if row.parity is None or row.parity.verdict == "inconclusive":
        return "pays if the accuracy holds"
    return "loses accuracy" if row.parity.verdict == "fail" else "pays"


def findings(rows: Sequence[Row], distinct: AbstractSet[int]) -> list[Finding]:
    """Return what rows say, the verdicts first; what speaks against them is not among it (`reliability.doubts`).

    Args:
        rows: of a report.
        distinct: identities of those whose speed-up differs from 1, all judged at once.

    """
    sparse = [row for row in rows if row.method != "dense"]  # `identical` reports those
    tuned = [row for row in sparse if row.allocator != "default"] or sparse
    timed = [row for row in tuned if row.speedup is not None]
    trained = AXES["optimizer"].workloads or {}
    steps = [row for row in timed if row.phase == "step" and row.workload in trained]
    layers = [row for row in timed if row.phase == "backward" and row.workload not in trained]
    if not steps:  # of models whose step was not timed, their backward pass
        layers += [row for row in timed if row.phase == "backward" and row.workload in trained]
    found = _steps(steps, {row.case_id: row for row in timed if row.phase == "backward"}, distinct)
    found += _backward_passes(layers, distinct)
    if found:
        found[0] = replace(found[0], text=f"On this machine {_lowered(found[0].text)}")
    found += _accuracies([row for row in sparse if row.parity is not None and row.speedup is None])
    wrong, last = _counts(rows)
    return [*wrong, *found, *last]


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def _counts(rows: Sequence[Row]) -> tuple[list[Finding], list[Finding]]:
    """Return what failed its check, and how many cases there are."""
    failed = {row.case_id for row in rows if row.error is not None}
    wrong = {row.case_id for row in rows if row.error is None and row.check is not None and not row.passed}
    unchecked = {row.case_id for row in rows if row.error is None and row.check is None and row.phase is not None}
    trained = {row.case_id for row in rows if row.error is None and row.check is None and row.phase is None}
    count = len({row.case_id for row in rows})
    first = [
        Finding(f"{_of(found, count)} {what}: no speed-up is shown.", "failed", tuple(found)[:_MOST])
        for found, what in ((wrong, "failed the correctness check"), (unchecked, "were not checked"))
        if found
    ]
    last = [Finding(f"{_of(failed, count)} could not be run.", "failed", tuple(failed)[:_MOST])] if failed else []
    passed = count - len(failed | wrong | unchecked | trained)
    if not rows:
        last.append(Finding("Nothing is measured yet."))
    elif passed:
        whole = "The case" if count == 1 else f"All {count:,} cases"
        last.append(Finding(f"{whole if passed == count else _of(range(passed), count)} passed the correctness check."))
    return first, last


def _of(found: Iterable[object], count: int) -> str:
    return f"{len(list(found)):,} of {count:,} cases"


def _steps(rows: Sequence[Row], backward: Mapping[str, Row], distinct: AbstractSet[int]) -> list[Finding]:
    """Return whether training steps pay: place by place, or of how many where these are many."""
    if not rows:
        return []
    standings = {id(row): standing(row, distinct) for row in rows}
    places = _places(rows)
    if len(places) > _MOST:
        return _many_steps(rows, backward, standings)
    name = _names(rows)
    chosen = {place: _foremost(own, standings) for place, own in places.items()}
    order = sorted(places, key=lambda place: _RANK.index(standings[id(chosen[place])]))
    return [
        _step(place, chosen[place], places[place], backward.get(chosen[place].case_id), name, standings)
        for place in order
    ]


def _foremost(rows: Sequence[Row], standings: Mapping[int, Standing]) -> Row:
    """Return the fastest of those that stand best."""
    return min(rows, key=lambda row: (_RANK.index(standings[id(row)]), not believed(row), -(row.speedup or 0.0)))


def _step(
    place: str,
    row: Row,
    others: Sequence[Row],
    backward: Row | None,
    name: Callable[[Row], str],
    standings: Mapping[int, Standing],
) -> Finding:
    kind = standings[id(row)]
    figures = _gain("a training step", row) + _why_open(row) * (kind == "undecided")
    if backward is not None and backward.interval is not None and backward.passed and believed(backward):
        figures += f", the backward pass {ratio_within(backward.interval)}"
    accuracy = "its accuracy was not compared" if row.parity is None else held(row.parity)
    text = {
        "pays": f"{name(row)} pays: {figures}, and {accuracy}",
        "pays if the accuracy holds": f"{name(row)} pays if the accuracy holds: {figures}; {accuracy}",
        "loses accuracy": f"{name(row)} does not pay: {figures}, but {accuracy}",
        "does not pay": f"{name(row)} does not pay: {figures}",
        "undecided": f"it is undecided whether {name(row)} pays: {figures}",
    }[kind]
    if kind in ("undecided", "does not pay") and row.parity is not None:
        text += f"; {accuracy}"
    if len(others) > 1:
        counts = Counter(standings[id(each)] for each in others)
        alike = f"the fastest of {len(others)} cases there, of all of which that is so"
        text += f" ({alike if len(counts) == 1 else f'of {len(others)} cases there, a step {_counted(counts)}'})"
    return Finding(f"{capital(place)} {text}.", kind, (row.case_id,))


def _why_open(row: Row) -> str:
    if row.baseline_disagreement is not None:
        return ", which is not to be believed: its dense time disagrees with another's"
    if row.significant is None:
        return ", from a single process, without an interval"
    return "" if too_wide(row.half_width) else ", not told apart from 1.00x"


def _counted(counts: Mapping[Standing, int]) -> str:
    return ", ".join(f"{_COUNTED[kind]} {counts[kind]:,}" for kind in _RANK if counts.get(kind))


def _many_steps(rows: Sequence[Row], backward: Mapping[str, Row], standings: Mapping[int, Standing]) -> list[Finding]:
    counts = Counter(standings[id(row)] for row in rows)
    kind: Kind = next(iter(counts)) if len(counts) == 1 else "mixed"
    text = f"A training step {_counted(counts)} of {len(rows):,} cases{_figures(rows)}"
    passes = [backward[row.case_id] for row in rows if row.case_id in backward and backward[row.case_id].passed]
    if any(map(believed, passes)):
        text += f"; the backward pass is {span(filter(believed, passes))}"
    found = [Finding(f"{text}.", kind)]
    top = _foremost(rows, standings)
    if standings[id(top)] in _RANK[:2]:
        known = " whose accuracy is known to hold" * (standings[id(top)] == "pays" and counts[_RANK[1]] > 0)
        text = f"The fastest{known} is {_case(top, rows)}: {_gain('a step', top)}."
        found.append(Finding(text, "remark", (top.case_id,)))
    return found + _accuracies([row for row in rows if row.parity is not None])


def _figures(rows: Sequence[Row]) -> str:
    """Return the range of speed-ups, their mean, and what is in neither."""
    sound = [row for row in rows if believed(row)]
    doubted = sum(row.baseline_disagreement is not None for row in rows)
    reasons = {"whose dense times disagree": doubted, "that cannot be told": len(rows) - len(sound) - doubted}
    left_out = [f"{count} {reason}" for reason, count in reasons.items() if count]
    without = f", without {' and '.join(left_out)}" if left_out else ""
    if not sound:
        return f": no speed-up is to be believed{without}"
    text = f": {span(sound)} as fast as dense"
    if len(sound) > 1 and (typical := mean_speedup(sound)) is not None:
        text += f", geometric mean {ratio_within(typical)}"
    return text + without


def _backward_passes(rows: Sequence[Row], distinct: AbstractSet[int]) -> list[Finding]:
    """Return what the backward passes of layers gain, workload by workload."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.workload, []).append(row)
    name = _names(rows)
    return [_backward_pass(workload, own, name, distinct) for workload, own in kinds.items()]


def _backward_pass(
    workload: str, rows: Sequence[Row], name: Callable[[Row], str], distinct: AbstractSet[int]
) -> Finding:
    standings = [standing(row, distinct) for row in rows]
    slower, open_ = standings.count("does not pay"), standings.count("undecided")
    faster = len(rows) - slower - open_
    kind: Kind = (
        "undecided" if open_ == len(rows) else "slower" if slower == len(rows) else "mixed" if slower else "faster"
    )
    what = f"the backward pass of {workload}"
    if len(rows) == 1:
        row = rows[0]
        text = f"with {name(row)} {_gain(what, row)}{_why_open(row) if open_ else ''}"
        return Finding(f"{capital(text)}.", kind, (row.case_id,))
    parts = [f"faster in {faster:,}"] * bool(faster) + [f"slower in {slower:,}"] * bool(slower)
    parts += [f"undecided in {open_:,}"] * bool(open_)
    text = f"{what} is {', '.join(parts)} of {len(rows):,} cases{_figures(rows)}"
    sound = [row for row, found in zip(rows, standings, strict=True) if found not in ("does not pay", "undecided")]
    if sound:
        top = max(sound, key=lambda row: row.speedup or 0.0)
        text += f"; the most with {_case(top, rows).removeprefix(f'{workload} ')}"
    return Finding(f"{capital(text)}.", kind)


def _accuracies(rows: Sequence[Row]) -> list[Finding]:
    """Return how accuracies came out: each in words where they are few, else of how many."""
    compared = [(row, row.parity) for row in rows if row.parity is not None]
    if len(compared) <= _MOST:
        name = _names(rows)
        kinds: Mapping[str, Kind] = {"fail": "loses accuracy", "inconclusive": "undecided"}
        return [
            Finding(
                f"{capital(found.task)}, {name(row)}: {held(found)}, over {counted(len(found.seeds), 'seed')}.",
                kinds.get(found.verdict, "accuracy"),
                (row.case_id,),
            )
            for row, found in compared
        ]
    counts = Counter(found.verdict for _, found in compared)
    words: Mapping[Verdict, str] = {"pass": "holds in", "inconclusive": "is undecided in", "fail": "is lost in"}
    said = ", ".join(f"{word} {counts[verdict]:,}" for verdict, word in words.items() if counts[verdict])
    more = [found for _, one in compared if one.verdict == "inconclusive" and (found := more_seeds(one)) is not None]
    tell = f"; about {between(more, '{:,}'.format)} more seeds would tell" if more else ""
    kind: Kind = "loses accuracy" if counts["fail"] else "undecided" if counts["inconclusive"] else "accuracy"
    return [Finding(f"Accuracy {said} of {len(compared):,} cases{tell}.", kind)]


def _gain(what: str, row: Row) -> str:
    """Return a speed-up as a clause: `a training step is 5.12x [5.02, 5.22] as fast as dense`."""
    assert row.interval is not None
    if too_wide(row.half_width):
        return f"how fast {what} is cannot be told{beyond(row.interval)}"
    return f"{what} is {ratio_within(row.interval)} as fast as dense"


def _case(row: Row, rows: Sequence[Row]) -> str:
    """Name a case among others, with its device where it is not that of all."""
    alone = len({(other.device, other.threads) for other in rows}) == 1
    return case_name(row).removesuffix(f" {device_name(row)}") if alone else case_name(row)


def _names(rows: Sequence[Row]) -> Callable[[Row], str]:
    """Return a function that names a row's method, with what it is made of where that is not the same in all."""
    own = [axis for axis in AXES.values() if not axis.dense]
    differing = {axis.option for axis in own if len({getattr(row, axis.stored) for row in rows}) > 1}
    return lambda row: method_name(row, differing)


_KEY = attrgetter("workload", *(AXES[name].stored for name in _PLACE))


def _places(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows by where their steps are taken: "at h=500", or "for my_model.py:build"."""
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(_KEY(row), []).append(row)
    words = [[AXES[name].said(own[0], always=True) for name in _PLACE] for own in alike.values()]
    varying = [place for place, found in enumerate(zip(*words, strict=True)) if len(set(found)) > 1]
    count = len({tuple(found) for found in words})
    alone = next((place for place in varying if len({found[place] for found in words}) == count), None)
    chosen = [alone] if alone is not None else varying
    places: dict[str, list[Row]] = {}
    for found, own in zip(words, alike.values(), strict=True):
        said = " ".join(found[place] for place in chosen if found[place])
        said = said or next(filter(None, (found[0], found[2], found[1])))
        places.setdefault(f"{'at' if '=' in said.split()[0] else 'for'} {said}", []).extend(own)
    return places
