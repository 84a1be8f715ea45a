"""A data set in three parts: to learn from, to choose by, to report. What it is a part of depends on the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from meprop_bench.data.sources import Source

__all__ = ["DataSet", "compared"]

P = TypeVar("P")
S = TypeVar("S", bound="DataSet[Any]")


@dataclass(frozen=True, eq=False)
class DataSet(Generic[P]):
    """A data set.

    Attributes:
        name: what it is called.
        train: to learn from.
        dev: to choose by.
        test: to report.
        published: whether the files are those that were published, by their SHA-256; None where none is known.
        notes: what a reader of a result should know of these data.

    """

    name: str
    train: P
    dev: P
    test: P
    published: bool | None = field(default=None, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)


def compared(found: S, source: Source, digests: Mapping[str, str]) -> S:
    """Return a data set that says whether it is the published one, with a note of the files that are not.

    Args:
        found: what was read.
        source: the data set that it stands for.
        digests: name of a file of it -> the SHA-256 of what was read.

    """
    others = [name for name, digest in digests.items() if digest != source.file(name).sha256]
    if not others:
        return replace(found, published=True)
    note = (
        f"not the published {source.name} data: {', '.join(others)} {'has' if len(others) == 1 else 'have'} another "
        f"SHA-256; `meprop-bench data fetch {source.name}` gets those that were published"
    )
    return replace(found, published=False, notes=(*found.notes, note))
