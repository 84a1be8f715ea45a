"""What a table's results folder holds besides timed rows: every trained seed, and what decoding cost.

    trainings.jsonl   one JSON object a line, saved as it comes, in one piece and synced, so that a kill costs the
                      trainings in flight and no other. A line that was cut off is recognised on opening and removed;
                      that seed is trained again. A training that failed is a line, too, and is tried again by the next
                      run.
    decodings.json    arm by arm, before and after meSimp: seconds of decoding the test set on one thread, in
                      interleaved pairs, by some fresh processes; the interval is over these. The sizes are means over
                      the arm's seeds.

The folder's lock is that of its `results.store.Store`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from meprop_bench.results.incoming import Amount, Count, Name, Number, Percent, Seconds, checked, parsed, refused
from meprop_bench.results.lines import Lines, append_lines, cut
from meprop_bench.results.store import replace_file
from meprop_bench.stats import Interval, median, paired_ratio

__all__ = [
    "COUNTS", "DECODINGS", "TRAININGS", "ArmEvaluation", "Decoding", "Decodings", "TrainedArm", "Trainings",
    "counts_by_subject", "counts_in", "sizes_of",
]  # fmt: skip

TRAININGS = "trainings.jsonl"
DECODINGS = "decodings.json"
COUNTS = "counts.json"


@dataclass(frozen=True)
class ArmEvaluation:
    """The dev metric, in percent, after so many epochs, and the mean loss since the evaluation before."""

    epoch: Amount
    loss: Annotated[float, Meta(ge=-1e300, le=1e300)]
    dev: Percent


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """One arm, trained from one seed (of weights, batches and selections)."""

    arm_id: Name
    seed: Number
    evaluations: tuple[ArmEvaluation, ...] = ()
    best_epoch: Amount | None = None  # of the best dev metric: the papers' "Iter"
    best_dev: Percent | None = None
    test: Percent | None = None  # the test metric of that model
    final_dev: Percent | None = None
    sizes: Mapping[str, Amount] = field(default_factory=dict)
    """Layer -> neurons left, where meSimp removed some; of meAct the average it trains an example through."""
    updates: tuple[Annotated[float, Meta(ge=0, le=1e300)], ...] = ()
    """Mean absolute change of a parameter at an update, epoch by epoch, of a watched arm."""
    seconds: Amount = 0.0
    steps: Count | None = None  # taken in all; None in those of before
    environment_id: Name = "unknown"
    git_revision: Name | None = None  # of the code that trained it; a resumed run may have several
    data_published: bool | None = None  # whether the data were, by their SHA-256; None where that is not known
    origin: Name | None = None  # the results folder that it was trained for, where another one has taken it over
    error: str | None = None  # why it failed, in one line; then there are no figures

    def __post_init__(self) -> None:
        epochs = [each.epoch for each in self.evaluations]
        if any(after <= before for before, after in pairwise(epochs)):
            raise ValueError(f"evaluations that are not one after the other: epochs {epochs[:5]}")
        if self.best_epoch is not None and self.best_dev is not None:
            later = (each for each in self.evaluations if each.epoch >= self.best_epoch and each.dev > self.best_dev)
            if better := next(later, None):
                raise ValueError(f"the dev metric of epoch {better.epoch:g} is better than the best, {self.best_dev:g}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: object) -> TrainedArm:
        """Build from a JSON object; raises ValueError for one that is not a training, or contradicts itself."""
        found = checked(record, cls)
        if found.error is not None and (found.test is not None or found.best_dev is not None):
            raise ValueError("figures of a training that failed")
        last = found.evaluations[-1].epoch if found.evaluations else None
        for name, epoch in (("best_dev", found.best_epoch), ("final_dev", last)):
            said, own = getattr(found, name), [each.dev for each in found.evaluations if each.epoch == epoch]
            if said is not None and found.evaluations and said not in own:
                raise ValueError(f"{name} is {said:.6g}, which is not what was evaluated in epoch {epoch}")
        return found

    @property
    def layers(self) -> dict[str, float]:
        """Layer -> neurons left, empty where nothing was simplified; `sizes` has other figures beside them."""
        named = (name.partition(" ") for name in self.sizes)
        return {layer: self.sizes[f"size {layer}"] for what, _, layer in named if what == "size" and layer}


class Trainings:
    """The trainings of one results folder that is there; `UserError` for a line that is no training.

    `write` removes a line that was cut off, and allows `append`.
    """

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        self.path = folder / TRAININGS
        self.notes: list[str] = []
        self._write = write
        self._found: dict[tuple[str, int], TrainedArm] = {}
        if self.path.exists():
            self._load()

    def get(self, arm_id: str, seed: int) -> TrainedArm | None:
        """Return what is known of a training, one that failed included."""
        return self._found.get((arm_id, seed))

    def done(self, arm_id: str, seed: int) -> bool:
        """Whether it need not be trained again."""
        found = self.get(arm_id, seed)
        return found is not None and found.error is None

    def of(self, arm_id: str, seeds: Sequence[int]) -> list[TrainedArm]:
        """Return the seeds of an arm that were trained without error, in order."""
        return [self._found[arm_id, seed] for seed in seeds if self.done(arm_id, seed)]

    def take(self, other: Trainings, wanted: Sequence[tuple[Sequence[str], int]]) -> list[TrainedArm]:
        """Add what another folder has of these arms and seeds, and return it; what is here already stays as it is.

        `wanted`: (the ids of an arm, its own first, any of which will do; seed).
        """
        taken = []
        for (own, *others), seed in wanted:
            known = [found for arm_id in (own, *others) for found in other.of(arm_id, [seed])]
            if known and not self.done(own, seed):
                taken.append(replace(known[0], arm_id=own, origin=known[0].origin or other.path.parent.name))
                self.append(taken[-1])
        return taken

    def all(self) -> list[TrainedArm]:
        """Return every training, failed ones included."""
        return list(self._found.values())

    def append(self, trained: TrainedArm) -> None:
        """Save one training: it is on the disk when this returns, or a `UserError` says why not."""
        if not self._write:
            raise ValueError("append: the trainings are not open for writing")
        append_lines(self.path, [json.dumps(trained.to_json(), allow_nan=False).encode()])
        self._found[trained.arm_id, trained.seed] = trained

    def _load(self) -> None:
        stored = Lines(self.path)
        for number, line in enumerate(chain.from_iterable(stored), 1):
            try:
                found = TrainedArm.from_json(parsed(line))
            except ValueError as error:
                where = f"{self.path.parent.name}/{TRAININGS} line {number} is no training"
                raise refused(where, error, "delete the line and run again with --resume") from None
            first = next(
                (one for (arm_id, _), one in self._found.items() if arm_id == found.arm_id and not one.error), found
            )
            if not found.error and found.sizes.keys() != first.sizes.keys():
                where = f"{self.path.parent.name}/{TRAININGS} line {number}"
                raise refused(where, ValueError("it has other sizes than its arm's first seed"), "delete the line")
            self._found[found.arm_id, found.seed] = found
        if stored.torn:
            self.notes.append("a training had been cut off while it was written; it counts as not done")
            if self._write:
                cut(self.path, stored.size)


@dataclass(frozen=True)
class Decoding:
    """One arm's cost of decoding, (before, after); `runs` are processes, with their pairs of seconds."""

    arm_id: Name
    sizes: Mapping[str, Count]  # layer -> neurons left
    multiplications: tuple[Count, Count]  # of an item
    runs: Annotated[tuple[Annotated[tuple[tuple[Seconds, Seconds], ...], Meta(min_length=1)], ...], Meta(min_length=1)]
    environment_id: Name
    git_revision: Name | None = None  # of the code that was timed
    origin: Name | None = None  # the results folder that it was measured for, where another one has taken it over

    @property
    def speedup(self) -> Interval:
        """How many times as fast decoding is after."""
        return paired_ratio(self.runs)

    @property
    def fewer(self) -> float:
        """How many times fewer multiplications an item takes after."""
        return self.multiplications[0] / self.multiplications[1]

    def seconds(self, side: int) -> float:
        """Return the median time before (0) or after (1)."""
        return median(pair[side] for pairs in self.runs for pair in pairs)


class Decodings:
    """The decodings of one results folder that is there; `UserError` for a damaged file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / DECODINGS
        each: list[Decoding] = _read(self.path, list[Decoding]) or []
        self.found = {one.arm_id: one for one in each}

    def get(self, arm_id: str, sizes: Mapping[str, int]) -> Decoding | None:
        """Return what is known of an arm at these sizes."""
        found = self.found.get(arm_id)
        return found if found is not None and dict(found.sizes) == dict(sizes) else None

    def add(self, decoding: Decoding) -> None:
        """Save one more: it is on the disk when this returns."""
        self.found[decoding.arm_id] = decoding
        replace_file(self.path, json.dumps([asdict(one) for one in self.found.values()], indent=1) + "\n")


def counts_by_subject(folder: Path) -> Mapping[str, Mapping[str, int]]:
    """Return subject -> column -> how many there are, as far as they were counted."""
    return _read(folder / COUNTS, dict[str, dict[str, Number]]) or {}


def counts_in(folder: Path) -> Mapping[tuple[str, str], int]:
    """Return (subject, column) -> how many there are."""
    record = counts_by_subject(folder)
    return {(task, column): count for task, found in record.items() for column, count in found.items()}


def _read(path: Path, kind: Any) -> Any:
    """Return what a file holds, None without one; `UserError` if that is something else."""
    if not path.exists():
        return None
    try:
        return checked(parsed(path.read_bytes()), kind)
    except ValueError as error:
        where = f"{path.parent.name}/{path.name} is damaged"
        raise refused(where, error, "delete it and run again with --resume") from None


def sizes_of(trained: Sequence[TrainedArm]) -> Mapping[str, int]:
    """Return the neurons that training left in each layer, the mean over seeds; empty where nothing was simplified."""
    names = trained[0].layers if trained else ()
    return {name: max(1, round(sum(one.layers[name] for one in trained) / len(trained))) for name in names}
