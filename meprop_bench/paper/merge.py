"""What a table's shards trained, timed and counted, put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from meprop_bench.paper.arm import PaperArm
from meprop_bench.paper.experiment import Experiment, experiment_of
from meprop_bench.paper.records import (
    COUNTS,
    Decoding,
    Decodings,
    TrainedArm,
    Trainings,
    counts_by_subject,
    sizes_of,
)
from meprop_bench.paper.shard import key_of_count, key_of_training
from meprop_bench.paper.subjects import subject
from meprop_bench.results.merge import Shards, contradiction
from meprop_bench.results.schema import Row
from meprop_bench.results.store import replace_file

__all__ = ["TableShards"]


class TableShards:
    """The shards of one table; `UserError` where one holds what is another's, or is damaged."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._experiment: Experiment = experiment_of(shards.plan)
        arms = {arm.arm_id: arm for arm in self._experiment.distinct_arms}
        self._trained: dict[tuple[str, int], TrainedArm] = {}
        self._decoded: dict[str, Decoding] = {}
        for store, part in shards.found.values():
            own = part.own
            for one in Trainings(store.folder).all():
                self._check(own, arms.get(one.arm_id), one.seed, store.folder.name)
                self._trained[one.arm_id, one.seed] = one
            for arm_id, decoding in Decodings(store.folder).found.items():
                self._check(own, arms.get(arm_id), 1, store.folder.name)
                self._decoded[arm_id] = decoding
        self.rows: list[Row] = shards.measured()

    @property
    def timed(self) -> frozenset[str]:
        """Ids of the environments that decodings were timed in."""
        return frozenset(one.environment_id for one in self._decoded.values())

    @property
    def done(self) -> frozenset[str]:
        """The keys of what is trained, timed and counted."""
        found, seeds = {row.case_id for row in self.rows}, self._experiment.seeds
        for arm in self._experiment.distinct_arms:
            keys: dict[str, list[bool]] = {}
            for seed in seeds:
                keys.setdefault(key_of_training(arm, seed), []).append((arm.arm_id, seed) in self._trained)
            found |= {key for key, trained in keys.items() if all(trained) and self._is_decoded(arm)}
        tasks = {part.name: part.task for part in self._experiment.table.parts}
        counted = {task for store in self._shards.stores for task in counts_by_subject(store.folder)}
        found |= {key_of_count(name) for name in self._experiment.counted if tasks[name] in counted}
        uncounted = {name for name in self._experiment.counted if subject(tasks[name]).source is None}
        return frozenset(found | {key_of_count(name) for name in uncounted})

    def _is_decoded(self, arm: PaperArm) -> bool:
        """Whether the decoding of an arm is timed, where there is any."""
        if arm.setting.method != "mesimp" or arm.arm_id in self._decoded:
            return True
        trained = [self._trained[arm.arm_id, seed] for seed in self._experiment.seeds]
        return not sizes_of([one for one in trained if one.error is None])

    def write(self, folder: Path) -> None:
        """Write what stands beside the rows, in the order of a run."""
        trainings, decodings = Trainings(folder, write=True), Decodings(folder)
        for seed in self._experiment.seeds:
            for arm in self._experiment.distinct_arms:
                if (one := self._trained.get((arm.arm_id, seed))) is not None:
                    trainings.append(one)
        for arm in self._experiment.distinct_arms:
            if (decoding := self._decoded.get(arm.arm_id)) is not None:
                decodings.add(decoding)
        counts: dict[str, Mapping[str, int]] = {}
        for store in self._shards.stores:
            counts |= counts_by_subject(store.folder)
        if counts:
            tasks = dict.fromkeys(part.task for part in self._experiment.table.parts)
            ordered = {task: counts[task] for task in tasks if task in counts}
            replace_file(folder / COUNTS, json.dumps(ordered, indent=2) + "\n")

    @staticmethod
    def _check(own: frozenset[str], arm: PaperArm | None, seed: int, folder: str) -> None:
        if arm is None or key_of_training(arm, seed) not in own:
            raise contradiction(
                f"{folder} holds trainings that are not its shard's: the folder was changed, leave it out and run the"
                " shard again"
            )
