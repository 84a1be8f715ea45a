"""Shards: the parts of one run that several machines measure, each into a folder of its own, to be merged afterwards.

    units   what a run is made of: a sweep's cases, a comparison's seeds, a table's trainings; each has a key
    shard   I of N: the units whose keys, sorted by their hashes, have the places I, I + N, I + 2N, ...

A unit carries its own dense side, so that it does not matter what is measured beside it. The split depends on the keys
alone, so every machine works it out alike, whatever the order of the plan or of running. Shards differ by one unit at
most, and neighbours of a plan, which cost alike, are not all in one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from msgspec import Meta

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.results.incoming import Name, checked

__all__ = ["Shard", "ShardOf"]

_MOST = 10_000

_Place = Annotated[int, Meta(ge=1, le=_MOST)]


@dataclass(frozen=True)
class Shard:
    """Which of how many, from 1; `UserError` for one that is not among them."""

    index: _Place
    of: _Place

    def __post_init__(self) -> None:
        if not 1 <= self.of <= _MOST:
            raise UserError(f"there are from 1 to {_MOST:,} shards, not {self.of}")
        if not 1 <= self.index <= self.of:
            counted = "; an array job counts from 1 by --array=1-N" if self.index == 0 else ""
            raise UserError(f"shard {self}: the first number goes from 1 to {self.of}{counted}")

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the shard that a user names as I/N; `UserError` for what is none."""
        if (found := re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)) is None:
            raise UserError(f"a shard is written I/N, as 2/4 for the second of four, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def stem(self) -> str:
        """What the names of its folder and files end in."""
        return f"shard-{self.index}-of-{self.of}"

    def part(self, keys: Iterable[str]) -> frozenset[str]:
        """Return those of a run's keys that are its own."""
        ordered = sorted(set(keys), key=lambda key: (hashlib.sha256(key.encode()).digest(), key))
        return frozenset(ordered[self.index - 1 :: self.of])


@dataclass(frozen=True)
class ShardOf:
    """What a shard's folder says of the run that it is a part of; ValueError where a unit stands in it twice."""

    shard: Shard
    plan: Mapping[str, Any]  # of the whole run
    units: tuple[tuple[Name, str], ...]  # key and label of each unit of it, in the order of running

    def __post_init__(self) -> None:
        if len({key for key, _ in self.units}) < len(self.units):
            raise ValueError("a unit of the run stands in it twice")

    @property
    def own(self) -> frozenset[str]:
        """The keys of this shard."""
        return self.shard.part(key for key, _ in self.units)

    def checked_own(self, what: str = "case") -> frozenset[str]:
        """Return the keys of this shard; `UserError` (nothing was measured) where there are fewer units than shards."""
        if own := self.own:
            return own
        count = len(self.units)
        raise UserError(
            f"shard {self.shard} has nothing to do: the run has {count} {what}{'s' * (count != 1)}; merging does not"
            " miss it",
            ExitCode.NOTHING_MEASURED,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, in which a run's identity and the shard's are apart."""
        shard = {"index": self.shard.index, "of": self.shard.of}
        return {**shard, "plan": dict(self.plan), "units": [list(unit) for unit in self.units]}

    @classmethod
    def from_json(cls, record: object) -> Self:
        """Build from a JSON object; `UserError` or ValueError for one that is none."""
        found = checked(record, _StoredShard)
        return cls(Shard(found.index, found.of), found.plan, found.units)


@dataclass
class _StoredShard:
    index: _Place
    of: _Place
    plan: dict[str, Any]
    units: tuple[tuple[Name, str], ...]
