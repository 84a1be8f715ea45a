"""Dense against a method over several seeds: trained side by side, each on one thread, judged against a margin.

Both sides of a seed have the same initial weights and batches, so that their difference is the method's. When both are
trained, the row of the comparison is stored again with this seed in it, and the later row replaces the earlier one: a
kill costs no pair that is done. Each training keeps a checkpoint of its own in the folder until its pair is stored, so
that a kill costs the trainings in progress a few seconds.

`sweep.accuracy` says what is compared and how it is judged; `sweep.trainers` trains.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.measure.notes import Note
from meprop_bench.measure.worker import WorkerError, WorkerLike
from meprop_bench.results.axes import OWN
from meprop_bench.results.incoming import refused
from meprop_bench.results.merge import Shards, contradiction
from meprop_bench.results.schema import WHOLE, Parity, Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.accuracy import MARGIN, OF_RANKS, figure_name, judged
from meprop_bench.sweep.trainers import Trainers, TrainingJob
from meprop_bench.sweep.worker import start_trainer
from meprop_bench.tasks import TASKS, editions
from meprop_bench.tasks.build import is_model, source_of
from meprop_bench.tasks.recipe import Recipe

__all__ = ["ParityPlan", "ParityProgress", "case_id", "compare", "merged"]

_SIDES = ("dense", "sparse")


@dataclass(frozen=True)
class ParityPlan:
    """What to compare; UserError for a value that is not allowed, or nothing that differs from dense."""

    recipe: Recipe  # of the method's side; the other one is dense, and otherwise the same
    seeds: int = 5  # one training of each side for each
    margin: float | None = None  # what may be lost of the metric; None as in `accuracy.judged`
    threads: int = 1  # of each training
    only: tuple[int, ...] = ()  # of the seeds those that are trained here, where others train the rest; none for all

    def __post_init__(self) -> None:
        if self.recipe == self.recipe.dense():
            raise UserError("there is nothing to compare with dense training: add --k, --method or --algorithm")
        k, hidden = self.recipe.k, self.recipe.options.get("hidden")
        if isinstance(k, int) and isinstance(hidden, int) and k > hidden:
            raise UserError(f"k {k} is more than the {hidden} neurons of a layer, so that nothing differs from dense")
        for name in ("seeds", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.margin is None and self.percent:
            object.__setattr__(self, "margin", MARGIN)
        elif self.margin is not None and not 0 <= self.margin < (WHOLE if self.percent else math.inf):
            most = " and below 100 points" if self.percent else ""
            raise UserError(f"margin must be at least 0{most}, not {self.margin:g}")

    @property
    def numbers(self) -> Sequence[int]:
        """The seeds that are trained here."""
        return self.only or range(1, self.seeds + 1)

    @property
    def percent(self) -> bool:
        """Whether the task's metric is known to be a percentage; that of a user's own may turn out to be one."""
        return self.recipe.task in TASKS and TASKS[self.recipe.task].percent

    def to_json(self) -> dict[str, Any]:
        """Return the plan that a results folder keeps, the same for all who share its seeds."""
        found = {
            "name": "parity", "recipe": self.recipe.to_json(), "seeds": self.seeds, "margin": self.margin,
            "threads": self.threads,
        }  # fmt: skip
        found |= editions(self.recipe.task)
        return found | ({"source": source_of(self.recipe.task)} if is_model(self.recipe.task) else {})


@dataclass(frozen=True)
class ParityProgress:
    """Where a comparison is."""

    share: float  # of all steps of all trainings that is done, 0 to 1
    left_s: float | None  # None where nothing has been done yet
    seed: int | None = None  # that has just been finished, with its two figures; None in between
    pair: tuple[float, float] | None = None  # dense and sparse


def case_id(comparison: ParityPlan) -> str:
    """Return 12 hexadecimal digits that are the same for the same comparison, whatever the number of seeds."""
    alike = {name: value for name, value in comparison.to_json().items() if name != "seeds"}
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()[:12]


def compare(
    comparison: ParityPlan,
    store: Store,
    *,
    processes: int,
    progress: Callable[[ParityProgress], None] = lambda _: None,
    start: Callable[[], WorkerLike] = start_trainer,
    now: Callable[[], float] = time.monotonic,
) -> Parity:
    """Train what is missing in the store, pair by pair, and return the comparison over all seeds.

    Raises:
        UserError: a training failed, in one line; the pairs that are done are stored.

    """
    trainings = _Trainings(comparison, store, progress, start, now)
    if trainings.todo:
        trainings.run(min(processes, len(trainings.todo)))
    found = trainings.parity()
    assert found is not None
    return found


def merged(shards: Shards) -> tuple[Row | None, str]:
    """Return the row of a comparison whose seeds were split, None where none is trained, and the method's label.

    Raises:
        UserError: the shards contradict each other: other steps, another metric, other data, a seed of another shard.

    """
    plan, found = shards.plan, dict[Path, tuple[Row, Parity]]()
    for store, part in shards.found.values():
        for row in store.rows():
            if row.parity is None or not part.own >= set(map(str, row.parity.seeds)):
                raise contradiction(
                    f"{store.folder.name} holds what is not its shard's: leave it out, and train it again"
                )
            found[store.folder] = row, row.parity
    try:
        label, margin = Recipe(**plan["recipe"]).label, plan["margin"]
    except (KeyError, TypeError) as error:
        raise refused("the shards' plan is of no comparison", error) from None
    if not found:
        return None, label
    (folder, (row, first)), *others = found.items()
    for further, (another, parity) in others:
        name, other = folder.name, further.name
        for what in ("task", "steps", "metric", "percent"):
            if (one := getattr(first, what)) != (two := getattr(parity, what)):
                raise contradiction(f"{name} and {other} were trained differently: {what} is {one} and {two}")
        if row.data_published != another.data_published:
            raise contradiction(
                f"{name} and {other} were trained on different data: use the same files on all machines"
            )
    pairs = {
        seed: figures
        for _, parity in found.values()
        for seed, figures in zip(parity.seeds, zip(parity.baseline, parity.method, strict=True), strict=True)
    }
    alike = {"steps": first.steps, "metric": first.metric, "percent": first.percent, "margin": margin}
    return replace(row, parity=judged(first.task, dict(sorted(pairs.items())), **alike)), label


class _Trainings:
    """The trainings of a comparison: those that are stored, and those that processes share."""

    def __init__(
        self,
        comparison: ParityPlan,
        store: Store,
        progress: Callable[[ParityProgress], None],
        start: Callable[[], WorkerLike],
        now: Callable[[], float],
    ) -> None:
        self._comparison, self._store, self._progress, self._start, self._now = comparison, store, progress, start, now
        self._id = case_id(comparison)
        self.pairs: dict[int, tuple[float, float]] = {}
        for row in store.rows():
            if row.case_id == self._id and row.parity is not None:
                figures = zip(row.parity.baseline, row.parity.method, strict=True)
                self.pairs |= dict(zip(row.parity.seeds, figures, strict=True))
        seeds = [seed for seed in comparison.numbers if seed not in self.pairs]
        self.todo = [(seed, side) for seed in seeds for side in _SIDES]
        self._answer: Mapping[str, Any] = {}
        self._found: dict[tuple[int, str], dict[str, Any]] = {}
        self._begun = now()
        self._before = 0.0

    def parity(self) -> Parity | None:
        """Return the comparison over the pairs so far."""
        comparison = self._comparison
        chosen = {seed: self.pairs[seed] for seed in sorted(self.pairs) if seed in comparison.numbers}
        if not chosen:
            return None
        return judged(comparison.recipe.task, chosen, **self._trained(), margin=comparison.margin)

    def _trained(self) -> dict[str, Any]:
        """Return the steps of a training and what its figure is, from the workers or from an earlier run."""
        if self._answer:
            metric = figure_name(self._comparison.recipe, self._answer["metric"])
            return {"steps": self._answer["steps"], "metric": metric, "percent": self._answer["percent"]}
        stored = next(row.parity for row in self._store.rows() if row.case_id == self._id and row.parity)
        return {"steps": stored.steps, "metric": stored.metric, "percent": stored.percent}

    def run(self, count: int) -> None:
        self._before = self._share()
        comparison = self._comparison
        device, threads = comparison.recipe.device, comparison.threads
        with Trainers(self._start, count, self._store, device=device, threads=threads) as trainers:
            for (seed, side), answer in trainers.share(iter(self.todo), self._training, self._report):
                if isinstance(answer, WorkerError):
                    raise UserError(f"training {side} from seed {seed} failed: {answer.sentence('its process')}")
                self._take(seed, side, {**trainers.hello, **answer})

    def _training(self, job: tuple[int, str]) -> TrainingJob:
        seed, side = job
        recipe = self._comparison.recipe
        return TrainingJob(recipe if side == "sparse" else recipe.dense(), seed, side)

    def _take(self, seed: int, side: str, answer: dict[str, Any]) -> None:
        self._found[seed, side] = answer
        self._answer = answer
        if any((seed, each) not in self._found for each in _SIDES):
            return
        dense, sparse = (self._found[seed, each]["figure"] for each in _SIDES)
        self.pairs[seed] = (dense, sparse)
        self._store.write_environment({answer["environment_id"]: answer["environment"]})
        self._store.append([self._row(answer)])
        for each in _SIDES:
            self._training((seed, each)).forget(self._store)
        self._report(seed)

    def _row(self, answer: Mapping[str, Any]) -> Row:
        recipe, options = self._comparison.recipe, answer["options"]
        trained = f"{recipe.label}: trained for {recipe.duration}"
        return Row(
            case_id=self._id,
            workload=OWN if is_model(recipe.task) else recipe.task,
            model=recipe.task if is_model(recipe.task) else None,
            leave=recipe.leave,
            k_by_layer=recipe.k_by_layer,
            method=recipe.algorithm or recipe.method,
            kernel=None,
            kernel_requested=recipe.kernel,
            k=1.0 if recipe.k is None else recipe.k,
            batch=options["batch"] // recipe.world_size if "batch" in options else None,
            in_features=None,
            out_features=options.get("hidden"),
            device=recipe.device,
            threads=self._comparison.threads,
            dtype="float32",
            gradient=recipe.gradient,
            allocator=answer["environment"]["allocator"],
            phase=None,
            data_published=answer.get("data_published"),
            **{name: options.get(name) for name in ("layers", "heads", "length", "data")},
            optimizer=recipe.optimizer,
            world_size=recipe.world_size,
            exchange=recipe.exchange,
            rate=recipe.details.get("rate"),
            share=recipe.details.get("share"),
            parity=self.parity(),
            environment_id=answer["environment_id"],
            notes=tuple(map(Note, (trained, *[OF_RANKS] * (recipe.world_size > 1), *answer["notes"]))),
        )

    def _report(self, seed: int | None = None) -> None:
        share = self._share()
        gone = share - self._before
        left = (self._now() - self._begun) / gone * (1 - share) if gone > 0 else None
        self._progress(ParityProgress(share, left, seed, None if seed is None else self.pairs[seed]))

    def _share(self) -> float:
        """Return how much is done, by what the workers left in their files: no number is ever waited for."""
        total = 2 * len(self._comparison.numbers)
        done = float(2 * len([seed for seed in self.pairs if seed in self._comparison.numbers]))
        done += sum(self._training(job).share(self._store) for job in self.todo if job[0] not in self.pairs)
        return min(1.0, done / total)
