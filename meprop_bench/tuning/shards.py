"""What a shard is of a search, and of a curve over time: what it tries, and what it leaves to be put together.

    of a search     the arms of some methods and k, with all variants of theirs: each is timed and trained beside a
                    dense side of its own machine, and they are halved among themselves, within this shard's budget
    of a curve      some seeds, of all arms: both sides of a pair are trained on one machine, for as many steps as this
                    machine takes in those seconds

The 5% that all verdicts of a search may be wrong together are shared out: each shard has as much of them as any other,
which its looks use up by halves (`judge`). So whatever a shard does next because of what it has seen, what it has
judged stands when the shards are put together (`merge`), and nothing has to be allowed for afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from meprop_bench.errors import ExitCode
from meprop_bench.report.quality import Quality
from meprop_bench.results.shards import ShardOf
from meprop_bench.stats import LEVEL
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.curve import Curve
from meprop_bench.tuning.judge import ArmResult, Decision, Metric
from meprop_bench.tuning.search import Answer

__all__ = [
    "FOUND", "ShardFindings", "key_of", "level_of", "own_arms", "own_seeds", "part_of_curve", "part_of_search",
    "units_of",
]  # fmt: skip

FOUND = "shard"
"""What a shard found, in its `tune.json`: written when its search has ended."""


def units_of(arms: Iterable[Arm]) -> tuple[tuple[str, str], ...]:
    """Return the units of a search, key and label: what it begins with, whatever is special about some layers."""
    return tuple({key_of(arm): Arm(arm.method, arm.k).label for arm in arms}.items())


def key_of(arm: Arm) -> str:
    """Return the key of the unit that an arm belongs to: its method and k, or where that begins."""
    return Arm(arm.method, arm.k).key


def own_arms(part: ShardOf, arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that are a shard's own."""
    own = part.own
    return [arm for arm in arms if key_of(arm) in own]


def own_seeds(part: ShardOf) -> tuple[int, ...]:
    """Return the seeds of a curve that are a shard's own."""
    return tuple(sorted(map(int, part.own)))


def level_of(part: ShardOf) -> float:
    """Return a shard's share of the chance of error: of as many shards as have anything to do."""
    return LEVEL / min(part.shard.of, len(part.units))


def part_of_search(answer: Answer, part: ShardOf) -> Answer:
    """Return an answer without its verdict: over some of the arms, it is none."""
    return replace(answer, decision=Decision("part", _said(part, "arm")))


def part_of_curve(curve: Curve, part: ShardOf) -> Curve:
    """Return the same of a curve, whose differences are judged together with those of all seeds."""
    points = tuple(replace(point, standing="open" if point.figures else "left out") for point in curve.points)
    return replace(curve, points=points, sentence=_said(part, "seed"), code=ExitCode.OK)


def _said(part: ShardOf, unit: str) -> str:
    count = len(part.units)
    return f"Shard {part.shard}, {len(part.own)} of {count} {unit}s: `merge` judges all of them."


@dataclass(frozen=True)
class ShardFindings:
    """What a search found of a shard's arms, as its folder keeps it."""

    findings: tuple[ArmResult, ...]
    metric: Metric
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """Take what an answer says."""
        return cls(answer.findings, answer.metric, answer.left_out)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        quality = self.metric.quality
        return {
            "findings": [each.to_json() for each in self.findings],
            "metric": {"name": self.metric.name, "margin": self.metric.margin, "percent": quality.percent,
                       "scale": quality.scale},
            "left_out": list(self.left_out),
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return what a JSON object says; KeyError, TypeError or ValueError for what is none."""
        metric = record["metric"]
        return cls(
            tuple(map(ArmResult.from_json, record["findings"])),
            Metric(metric["name"], metric["margin"], Quality(metric["percent"], metric["scale"])),
            tuple(record["left_out"]),
        )
