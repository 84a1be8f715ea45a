"""What a reader of a measurement should know besides its figures: notes as data, put into words here and nowhere else.

    Note.of("others", share=0.31)   ->   "other processes took 31% of the cores meanwhile"

A note has a kind, the values of that kind, and its text. Who acts on a note (a footnote's mark, the line about a busy
machine) asks for its kind and values and never reads the text. Rows are stored with both: `notes` has the texts, as
ever, and `note_kinds` the data, in the same order. Rows of older versions have texts alone; `read` finds the kinds of
those, by the templates that they were made from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Self

from meprop_bench.stats import spread_percent

__all__ = ["OTHER", "Note", "together"]

OTHER = "other"
"""The kind of a free text."""


@dataclass(frozen=True)
class _Kind:
    """How notes of a kind are put into words."""

    text: str  # with the names of its values in braces
    form: Callable[[float], str] = "{:.0f}".format  # one of its values as text
    scale: float = 1.0  # what a stored text's figure is divided by to give the value
    largest: bool = False  # whether the largest value stands for all of several notes; otherwise their range does
    together: str = ""  # what is said of several notes where no range of figures says it


def _percent(share: float) -> str:
    return f"{share:.0%}".removesuffix("%")


def _spread(share: float) -> str:
    return spread_percent(share).removesuffix("%")


_MOST = 1e300
"""Of a value: beyond, it could not be stored."""

_KINDS: Mapping[str, _Kind] = {
    "noisy-pairs": _Kind(
        "noisy pairs: within a process the middle half of the ratios spans {share}%", _spread, scale=100
    ),
    "noisy-processes": _Kind("the processes' speed-ups differ by up to {share}%", _spread, scale=100, largest=True),
    "disturbed-pairs": _Kind(
        "{disturbed} of {pairs} pairs were disturbed by the machine",
        together="pairs were disturbed by the machine: they do not count",
    ),
    "disturbed-processes": _Kind(
        "most pairs of {disturbed} of {processes} processes were disturbed: all of theirs count",
        together="most pairs of a process were disturbed by the machine: all of its pairs count",
    ),
    "short-values": _Kind("a value lasts only {microseconds} µs: the timer's own cost is part of it", "{:.3g}".format),
    "one-process": _Kind("one process: no interval"),
    "others": _Kind("other processes took {share}% of the cores meanwhile", _percent, scale=100),
    "steal": _Kind("the hypervisor withheld {share}% of the cores meanwhile", _percent, scale=100),
    "quota": _Kind("a CPU quota held the process back for {seconds} s", "{:.2g}".format),
    "heat": _Kind("cores were slowed {times} times because they were too hot"),
    "swap": _Kind("{pages} pages came back from swap meanwhile"),
    "budget": _Kind("the budget was spent before ±{percent}% was reached", "{:g}".format),
    "uncompiled": _Kind("compiled dense was left out: there were only {seconds} s for compiling it"),
    "no-floor": _Kind("no floor: the machine has been measured as too slow for this phase"),
    "sampled-memory": _Kind(
        "the process's peak was sampled each millisecond: its high-water mark cannot be set back here"
    ),
    "shared-processes": _Kind("its processes had measured other cases before"),
    "amdahl": _Kind(
        "a step gains about {factor}x at most, by operations: the rest stays, however fast the sparsified layers get",
        "{:.3g}".format,
    ),
    "wire": _Kind(
        "each rank sends {dense} MB in a dense step (predicted: {dense_predicted}) and {sparse} MB in a sparse one"
        " (predicted: {sparse_predicted})",
        "{:.3g}".format,
    ),
    "wire-off": _Kind("what is sent is {share}% off its prediction", _spread, scale=100, largest=True),
    "hidden": _Kind("what the exchange adds to a step is not told from none: it is hidden, or less than the noise"),
    "dense-times": _Kind(
        "dense times of the same work differ by up to {factor}x here: do not believe this speed-up",
        "{:.2f}".format,
        largest=True,
    ),
}


@dataclass(slots=True, unsafe_hash=True)  # nobody changes one, but a frozen one takes four times as long to make
class Note:
    """One note; `Note("...")` is a free text, `Note.of` makes one of a kind."""

    text: str  # as it is printed and stored
    kind: str = OTHER  # what it is about
    values: Mapping[str, float] = field(default_factory=dict, hash=False)  # of that kind, by name

    @classmethod
    def of(cls, kind: str, **values: float) -> Self:
        """Make a note of a kind; KeyError for a kind or values that there are not."""
        return cls(_worded(_KINDS[kind], [values]), kind, values)

    @classmethod
    def read(cls, text: str, record: Mapping[str, Any] | None = None) -> Self:
        """Read a stored note: its text in `notes`, and its record in `note_kinds`, None in rows of older versions.

        Raises:
            ValueError: the values are not those of the kind.

        """
        if record is None:
            return cls(text, *(_short(text) if len(text) <= _SHORT else _recognised(text)))
        values = dict(record)
        kind = str(values.pop("kind", OTHER))
        if kind not in _KINDS:  # of a newer version
            return cls(text)
        if values.keys() != _values(kind) or not all(map(_sound, values.values())):
            raise ValueError(f"note_kinds: {kind!r} has the values {', '.join(values) or 'none'}")
        return cls(text, kind, values)

    def to_json(self) -> dict[str, Any]:
        """Return the record of `note_kinds`."""
        return {"kind": self.kind, **self.values}


def together(notes: Sequence[Note]) -> str:
    """Say notes of one kind as one, with the range of their figures, or the largest of them."""
    kind = _KINDS[notes[0].kind]
    return kind.together or _worded(kind, [note.values for note in notes])


def _names(kind: _Kind) -> list[str]:
    return re.findall(r"{(\w+)}", kind.text)


@cache
def _values(kind: str) -> frozenset[str]:
    return frozenset(_names(_KINDS[kind]))


def _worded(kind: _Kind, values: Sequence[Mapping[str, float]]) -> str:
    shown = {}
    for name in _names(kind):
        every = [one[name] for one in values]
        ends = (max(every),) if kind.largest else (min(every), max(every))
        shown[name] = " to ".join(dict.fromkeys(map(kind.form, ends)))
    return kind.text.format(**shown).replace("up to more", "more")


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Return what texts of a kind look like; also those of versions that named a spread of any size."""
    patterns = {}
    for name, kind in _KINDS.items():
        parts = re.split(r"{\w+}", kind.text)
        figure = r"((?:more than )?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
        pattern = figure.join(map(re.escape, parts)).replace(re.escape("up to "), f"(?:{re.escape('up to ')})?")
        patterns[name] = re.compile(pattern)
    return patterns


def _recognised(text: str) -> tuple[str, dict[str, float]]:
    """Return kind and values of a text of an older version."""
    for kind, pattern in _patterns().items():
        if match := pattern.fullmatch(text):
            values = [_value(figure, _KINDS[kind]) for figure in match.groups()]
            if all(map(_sound, values)):
                return kind, dict(zip(_names(_KINDS[kind]), values, strict=True))
    return OTHER, {}


_SHORT = 400
_short = lru_cache(maxsize=1024)(_recognised)
"""The rows of a result say the same few things over and over."""


def _sound(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def _value(figure: str, kind: _Kind) -> float:
    """Return the value of a figure; of `more than 300` one that is."""
    number = figure.removeprefix("more than ")
    return (float(number) + (number != figure)) / kind.scale
