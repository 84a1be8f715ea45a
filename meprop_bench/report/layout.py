"""A table in the width that there is: columns left out in a stated order, cells broken between words, never within one.

What does not fit is made narrower step by step, and no further than it has to be:

    1. columns of `Section.drop` go, the first of them first; which ones is said below the table
    2. cells and headings become two lines; a figure stays with its unit and its interval, `5.12x [5.02, 5.22]`
    3. the columns that say what a line is of (`Section.keys`) become one, `unified · 50, 784 → 500 · k 30`
    4. columns of `Section.late` go, too
    5. each line becomes a paragraph of names and values, with what 4. left out

Without a width, as in a pipe, nothing is changed: a line of the table is a line of text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from meprop_bench.report.cells import ABSENT, SHAPE, Cell
from meprop_bench.report.sections import Section

__all__ = ["GAP", "Fitted", "fitted", "wrapped"]

GAP = 2
"""Columns of space between two columns of a table."""

_LINES = 2
"""Lines that a figure's or a name's cell is broken into at most, while there is something left to leave out."""

_UNIT = re.compile(
    r"\S+ \[[^\]]*\](?: ~(?!\S)|\S*)"  # an interval stays with its estimate
    r"|(?:\d+, )?\d+ → \d+\S*"  # a layer's shape
    r"|\((?:[^\s()]{1,3}(?:, )?)+\)\S*"  # marks
    r"|[-+±]?\d[\d.,]* (?:[KMGT]i?B?|B|[mµn]?[sJW]|MHz|points|%)(?=[\s,;.:)]|$)\S*(?: →)?"
    r"|(?:not significant|do not believe|cannot tell|no interval)[,;:.)]*"
    r"|\S+ →"
    r"|\S+"
)
_PROSE = 60
"""Columns beyond which a cell holds sentences."""
_AND, _PART = " · ", 30
"""Between the parts of a line's name, and the columns that one has to be broken itself."""
_PLAIN = ("phase", "method", SHAPE)
"""Keys whose values say what they are."""


@dataclass(frozen=True)
class Fitted:
    """A section as it is printed: a cell with line breaks where it is broken."""

    section: Section
    missing: tuple[str, ...] = ()  # columns that were left out
    headings: tuple[str, ...] = ()  # of the groups, where no column says it
    paragraphs: tuple[str, ...] = ()  # in place of the table


def fitted(section: Section, width: int | None) -> Fitted:
    """Return a section in at most `width` columns of text; only a word that is longer than that is not broken."""
    if width is None or _whole(section) <= width:
        return Fitted(section)
    missing: tuple[str, ...] = ()
    for name in section.drop:
        if name in section.columns:
            section, missing = _without(section, name), (*missing, name)
            if _whole(section) <= width:
                return Fitted(section, missing)
    kept, gone = section, missing
    late = [name for name in section.late if name in section.columns]
    for count in range(len(late) + 1):
        for most in (_LINES,) if count < len(late) else (_LINES, _LINES + 1):
            if (found := _broken(section, width, most)) is not None:
                return Fitted(found, missing)
            joined, headings = _joined(section)
            if joined is not section and (found := _broken(joined, width, most)) is not None:
                return Fitted(found, missing, headings)
        if count < len(late):
            section, missing = _without(section, late[count]), (*missing, late[count])
    return Fitted(kept, gone, paragraphs=tuple(_paragraphs(kept, width)))


def wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines of at most `width` columns, broken between words."""
    return _filled(_units(text), width)


def _filled(units: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for unit in units:
        if lines and _length(lines[-1]) + 1 + _length(unit) <= width:
            lines[-1] += f" {unit}"
        else:
            lines.append(unit)
    return lines or [""]


def _units(text: str) -> list[str]:
    parts = text.split(_AND)
    if len(parts) == 1 or max(map(len, parts)) > _PART:
        return _UNIT.findall(text)
    return [*(part + _AND.rstrip() for part in parts[:-1]), parts[-1]]


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _whole(section: Section) -> int:
    return sum(_natural(section)) + _gaps(section)


def _gaps(section: Section) -> int:
    return GAP * (len(section.columns) - 1)


def _cells(section: Section, place: int) -> Iterable[str]:
    yield section.columns[place]
    for group in section.groups:
        for line in group:
            yield line[place].text


def _natural(section: Section) -> list[int]:
    return [max(map(_length, set(_cells(section, place)))) for place in range(len(section.columns))]


def _least(section: Section) -> list[int]:
    return [
        max((_length(unit) for text in set(_cells(section, place)) for unit in _units(text)), default=0)
        for place in range(len(section.columns))
    ]


def _without(section: Section, name: str) -> Section:
    place = section.columns.index(name)
    groups = tuple(tuple((*line[:place], *line[place + 1 :]) for line in group) for group in section.groups)
    return replace(section, columns=(*section.columns[:place], *section.columns[place + 1 :]), groups=groups)


def _broken(section: Section, width: int, most: int) -> Section | None:
    """Return a section with its cells broken, those that lack least the last; None where words are too long, or a cell
    becomes more than `most` lines: of prose, which says why, they do not matter.
    """
    widths, natural = _least(section), _natural(section)
    left = width - _gaps(section) - sum(widths)
    if left < 0:
        return None
    for place in sorted(range(len(widths)), key=lambda place: natural[place] - widths[place]):
        more = min(left, natural[place] - widths[place])
        widths[place] += more
        left -= more
    columns = tuple("\n".join(wrapped(name, size)) for name, size in zip(section.columns, widths, strict=True))
    groups = tuple(
        tuple(
            tuple(
                replace(cell, text="\n".join(wrapped(cell.text, size))) for cell, size in zip(line, widths, strict=True)
            )
            for line in group
        )
        for group in section.groups
    )
    tall = (
        cell.text.count("\n") >= most
        for group in groups
        for line in group
        for name, cell, wide in zip(section.columns, line, natural, strict=True)
        if wide <= _PROSE or name in section.keys
    )
    if any(tall):
        return None
    left_ones = {new for old, new in zip(section.columns, columns, strict=True) if old in section.left}
    return replace(section, columns=columns, groups=groups, left=frozenset(left_ones))


def _joined(section: Section) -> tuple[Section, tuple[str, ...]]:
    """Return a section whose keys are one column, and what its groups are of where that is the same in each."""
    places = [place for place, name in enumerate(section.columns) if name in section.keys]
    if len(places) < 2:
        return section, ()
    others = [place for place in range(len(section.columns)) if place not in places]
    headings = []
    if section.columns[places[0]] == "phase":
        headings = [group[0][places[0]].text for group in section.groups]
        places = places[1:]
    groups = tuple(
        tuple((Cell(_said(section, line, places)), *(line[place] for place in others)) for line in group)
        for group in section.groups
    )
    columns = ("case", *(section.columns[place] for place in others))
    return replace(
        section, columns=columns, groups=groups, left=section.left | {"case"}, keys=frozenset({"case"})
    ), tuple(headings)


def _said(section: Section, line: Sequence[Cell], places: Iterable[int]) -> str:
    found = [
        line[place].text if (name := section.columns[place]) in _PLAIN else f"{name} {line[place].text}"
        for place in places
        if line[place].text != ABSENT
    ]
    return _AND.join(found)


def _paragraphs(section: Section, width: int) -> Iterable[str]:
    places = [place for place, name in enumerate(section.columns) if name in section.keys] or [0]
    others = [place for place in range(len(section.columns)) if place not in places]
    for group in section.groups:
        for line in group:
            values = [f"{section.columns[place]} {line[place].text}" for place in others if line[place].text != ABSENT]
            yield "\n".join(wrapped(_said(section, line, places), width))
            units = [unit for value in values[:-1] for unit in _fitting(f"{value};", width - 2)]
            units += _fitting(values[-1], width - 2) if values else []
            yield "\n".join(f"  {part}" for part in _filled(units, width - 2))


def _fitting(value: str, width: int) -> list[str]:
    """Return a name with its value as one unit, if that fits into a line."""
    return [value] if _length(value) <= width else _units(value)
