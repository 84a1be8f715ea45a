"""What a shard does of a table: its own trainings, timed cases, decodings and counts.

training   one arm from one seed; of an arm whose decoding is timed all seeds, as its sizes are their mean
case       a timed case
decoding   on the machine that has trained its arm
count      of the data of one part
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meprop_bench.paper.arm import PaperArm
from meprop_bench.paper.experiment import Experiment
from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.workloads.case import Case

__all__ = ["ALL", "Assignment", "key_of_count", "key_of_training", "shard_of_table"]


@dataclass(frozen=True)
class Assignment:
    """What is done here of an experiment; without keys all of it."""

    keys: frozenset[str] | None = None

    def trains(self, arm: PaperArm, seed: int) -> bool:
        """Whether an arm is trained from a seed."""
        return self._has(key_of_training(arm, seed))

    def cases(self, cases: Iterable[Case]) -> tuple[Case, ...]:
        """Return those that are timed."""
        return tuple(case for case in cases if self._has(case.case_id))

    def decodes(self, arm: PaperArm) -> bool:
        """Whether the decoding of an arm that is simplified is timed."""
        return self._has(key_of_training(arm, 1))

    def counts(self, part: str) -> bool:
        """Whether the data of a part are counted."""
        return self._has(key_of_count(part))

    def _has(self, key: str) -> bool:
        return self.keys is None or key in self.keys


ALL = Assignment()


def key_of_training(arm: PaperArm, seed: int) -> str:
    """Return the key of the unit that a training belongs to."""
    return f"arm {arm.arm_id}" if arm.setting.method == "mesimp" else f"arm {arm.arm_id}, seed {seed}"


def key_of_count(part: str) -> str:
    """Return that of counting the data of a part."""
    return f"data of {part}"


def shard_of_table(found: Experiment, plan: Mapping[str, Any], shard: Shard) -> tuple[Assignment, ShardOf]:
    """Return what a shard does of a table, and what its folder says of the whole, whose plan it has.

    Raises:
        UserError: there are fewer units than shards, and none for this one (exit code 5).

    """
    units = {
        key_of_training(arm, seed): arm.label if arm.setting.method == "mesimp" else f"{arm.label}, seed {seed}"
        for seed in found.seeds
        for arm in found.distinct_arms
    }
    units |= {case.case_id: case.label for case in found.distinct_cases}
    units |= {key_of_count(part): f"the data of {part}" for part in found.counted}
    part = ShardOf(shard, plan, tuple(units.items()))
    return Assignment(part.checked_own("unit")), part
