"""Shards of a search, or of a curve over time, put together: one answer to all that was timed and trained.

    a search    the findings of all shards, those that decide judged once more by their trainings; then one decision.
                Each shard's chance of error is its own (`shards`), so that all of them together stay within 5%
    a curve     the trainings of all seeds, judged together as those of one run are

No times of different machines are compared but as ratios to a dense side of the same machine, and only of machines of
one kind: `results.merge` refuses others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from meprop_bench.errors import UserError
from meprop_bench.results.incoming import refused
from meprop_bench.results.lines import append_lines
from meprop_bench.results.merge import Shards, contradiction
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store, replace_file
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.curve import Curve, CurvePart, joined
from meprop_bench.tuning.halving import HalvingPlan
from meprop_bench.tuning.journal import SETTLED, TRAININGS, Journal, line_of
from meprop_bench.tuning.judge import ArmResult, Decision, decide, judged
from meprop_bench.tuning.outlook import nothing_timed
from meprop_bench.tuning.run import Result, TuneRequest
from meprop_bench.tuning.search import Answer
from meprop_bench.tuning.shards import FOUND, ShardFindings, key_of, level_of, own_seeds
from meprop_bench.tuning.timing import Costs, Timing, VirtualClock

__all__ = ["TuningShards"]

_Read = TypeVar("_Read")


class TuningShards:
    """The shards of one search, or curve.

    Args:
        shards: their folders.

    Raises:
        UserError: one is damaged, or holds what is another's; or what they found of the task differs.

    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._request = _read("the shards' plan", partial(TuneRequest.from_json, shards.plan))
        self.unit = "seed" if self._request.budgets else "arm"
        self._journals = {index: Journal(store.folder, write=False) for index, (store, _) in shards.found.items()}
        self._check_alike("the metric or the data", self._settled("task"))
        layers = {index: costs.layers for index, costs in self._costs.items()}
        self._check_alike("the layers of the model", layers)
        rows = {index: list(store.rows()) for index, (store, _) in shards.found.items()}
        threads = {index: {row.threads for row in found} for index, found in rows.items() if found}
        self._check_alike("the threads of a timed step (say --threads)", threads)
        for index, found in rows.items():
            self._check_own(index, found)

    def _settled(self, what: str) -> dict[int, Any]:
        """Return what was settled under a name, by the number of the shard, where it was."""
        return {index: each.settled[what] for index, each in self._journals.items() if what in each.settled}

    def _name(self, index: int) -> str:
        return self._shards.found[index][0].folder.name

    def _where(self, index: int) -> str:
        return f"{self._name(index)}/{SETTLED}"

    def _check_alike(self, what: str, found: Mapping[int, object]) -> None:
        for one, other in pairwise(found):
            if found[one] != found[other]:
                raise contradiction(
                    f"{self._name(one)} and {self._name(other)} differ in {what}: run the same thing on all machines"
                )

    def _check_own(self, index: int, rows: Sequence[Row]) -> None:
        part = self._shards.found[index][1]
        jobs = self._journals[index].trainings
        held: list[tuple[str, str]]  # a label, and the key of the unit it belongs to
        if self._request.budgets:
            held = [(job.label, str(job.seed)) for job in jobs]
        else:
            findings = self._found[index].findings if index in self._found else ()
            held = [(job.label, key_of(job.arm)) for job in jobs if job.arm is not None]
            held += [(each.arm.label, key_of(each.arm)) for each in findings]
        for label, key in held:
            if key not in part.own:
                raise contradiction(
                    f"{self._name(index)} is shard {part.shard} and holds what is not its own ({label}): leave it out,"
                    " and run the shard again"
                )
        steps = {row.case_id: row.speedup for row in rows if row.phase == "step"}
        for timing in self._timings(index):
            if timing.case_id is not None and steps.get(timing.case_id) != timing.speedup.estimate:
                raise contradiction(
                    f"{self._where(index)} has another time of case {timing.case_id} than its rows: go on with the"
                    " shard (--resume), or leave it out"
                )

    def _timings(self, index: int) -> Iterable[Timing]:
        if self._request.budgets:
            return self._parts[index].timings.values() if index in self._parts else ()
        found = self._found[index].findings if index in self._found else ()
        return [each.timing for each in found if each.timing is not None]

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of all steps: of a curve, whose arms each shard times for itself, those of the first that did."""
        found: dict[str, tuple[Store, list[Row]]] = {}
        for store in self._shards.stores:
            for row in store.rows():
                first, rows = found.setdefault(row.case_id, (store, []))
                if first is store:
                    rows.append(row)
                elif not self._request.budgets:
                    names = f"{first.folder.name} and {store.folder.name}"
                    raise contradiction(f"{names} both timed case {row.case_id}: leave one out, and run it again")
        return [row for _, rows in found.values() for row in rows]

    @property
    def timed(self) -> frozenset[str]:
        """Ids of the environments that steps were timed in."""
        rows = (row for store in self._shards.stores for row in store.rows())
        return frozenset(row.environment_id for row in rows if row.measurement is not None)

    @cached_property
    def done(self) -> frozenset[str]:
        """The keys of the arms whose shards' searches have come to their end; of the seeds that are trained."""
        if not self._request.budgets:
            return frozenset(key for index in self._found for key in self._shards.found[index][1].own)
        return frozenset(
            str(seed)
            for part in self._parts.values()
            for seed in part.seeds
            if all(job in part.journal.trainings for job in part.jobs if job.seed == seed)
        )

    @cached_property
    def _costs(self) -> Mapping[int, Costs]:
        stored = self._settled("costs").items()
        return {index: _read(self._where(index), partial(Costs.from_json, record)) for index, record in stored}

    @cached_property
    def _found(self) -> Mapping[int, ShardFindings]:
        """What each shard of a search found, of those that came to their end."""
        stored = self._settled(FOUND).items()
        return {index: _read(self._where(index), partial(ShardFindings.from_json, record)) for index, record in stored}

    @cached_property
    def _parts(self) -> Mapping[int, CurvePart]:
        """What each shard of a curve timed and trained, of those that timed their steps."""
        found, lengths = dict[int, CurvePart](), sorted(set(self._request.budgets))
        for index, stored in self._settled("timings").items():
            timings = _read(self._where(index), partial(_timings_of, stored))
            if index in self._costs and any(each.failed is None for each in timings.values()):
                seeds = own_seeds(self._shards.found[index][1])
                found[index] = CurvePart.of(self._journals[index], self._costs[index], timings, lengths, seeds)
        return found

    @cached_property
    def _task(self) -> Mapping[str, Any]:
        """What is known of the task: its metric, whether that is a percentage, and whether gradients may be rows."""
        found: Mapping[str, Any] = next(iter(self._settled("task").values()))
        return found

    @cached_property
    def judged(self) -> Answer | Curve:
        """What it comes to, where something is `done`; `UserError` where no arm could be timed."""
        if not self._request.budgets:
            answer = self._answer()
            if answer.clock is None:
                raise nothing_timed(
                    [each.timing for each in answer.findings if each.timing is not None], {}, untimed=False
                )
            return answer
        how: dict[str, Any] = {"metric": self._task["metric"], "percent": self._task["percent"]}
        return joined(list(self._parts.values()), **how, left_out=tuple(self._untrained()))

    def _untrained(self) -> Iterator[str]:
        """Give in words what of a curve is not trained: what there was no time for, or where no gain was seen."""
        useful = dict.fromkeys(arm for part in self._parts.values() for arm in part.useful)
        for part in self._parts.values():
            for arm in useful:
                if arm not in part.useful:
                    seeds = ", ".join(map(str, part.seeds))
                    yield f"{arm.label}, seed {seeds}: no gain was seen where these were to be trained"
            yield from (job.label for job in part.jobs if job not in part.journal.trainings)

    def _answer(self) -> Answer:
        """Return the decision over all findings; of arms whose shards are missing nothing is known."""
        # A margin that is a share of dense's figure differs, as the trainings of the shards do: all allow the smallest.
        trained = [found for index, found in self._found.items() if self._journals[index].dense()]
        metric = min((found.metric for found in trained or self._found.values()), key=lambda each: each.margin)
        owner = {self._again(index, each, metric.margin): index
                 for index, found in self._found.items() for each in found.findings}  # fmt: skip
        of_arm = {finding.arm: index for finding, index in owner.items()}

        def more(finding: ArmResult | None) -> str:
            if finding is not None and self._request.seeds is not None:
                return " More --seeds may decide, in all shards anew."
            where = "the shards" if finding is None else f"shard {self._shards.found[owner[finding]][1].shard}"
            return f" A larger --budget of {where}, with --resume, may decide; then merge again."

        layers = next((costs.layers for costs in self._costs.values()), ())
        decision = self._over_all(decide(owner, metric, layers, more), owner)
        # Clock and steps are those of the shard whose arm is taken, or else of the first.
        clocks = {index: clock for index in self._found if (clock := self._clock(index)) is not None}
        index = next(iter(clocks), None) if decision.arm is None else of_arm[decision.arm]
        clock, plan = (None, None) if index is None else (clocks.get(index), self._last_plan(index))
        left_out = tuple(name for found in self._found.values() for name in found.left_out)
        missing = (ArmResult(arm, "left out", "its shard is missing, or not at its end") for arm in self._missing)
        return Answer(decision, (*owner, *missing), metric, clock, plan, left_out)

    @property
    def _missing(self) -> list[Arm]:
        arms = self._request.arms(rows=bool(self._task["rows"]))
        return [arm for arm in arms if key_of(arm) not in self.done]

    def _over_all(self, decision: Decision, owner: Mapping[ArmResult, int]) -> Decision:
        """Return a decision over what there is as one over all: some arms are missing, or had another dense side."""
        kind, sentence, missing = decision.kind, decision.sentence, len(self._missing)
        if decision.arm is not None:
            index = next(index for finding, index in owner.items() if finding.arm == decision.arm)
            own = {_baseline(finding) for finding in owner if owner[finding] == index}
            if others := {_baseline(finding) for finding in owner if owner[finding] != index} - own - {""}:
                sentence += (
                    f" Other shards had another dense side ({'; '.join(sorted(others))}): their gains and this one's do"
                    " not compare."
                )
        count = f"{missing} of {len(owner) + missing} arms"
        if missing and kind == "take":
            sentence += (
                f" {count} {'are' if missing > 1 else 'is'} not among these: the shard is missing, or not at its end."
            )
        elif missing:
            of = "are of shards that are" if missing > 1 else "is of a shard that is"
            kind = "undecided"
            sentence = f"Undecided: {count} {of} missing, or not at the end. Of the others: {sentence}"
        return Decision(kind, sentence, decision.arm)

    def _clock(self, index: int) -> VirtualClock | None:
        dense_s, costs = self._journals[index].settled.get("dense_s"), self._costs.get(index)
        return None if dense_s is None or costs is None else VirtualClock(dense_s, costs)

    def _passes(self, index: int) -> list[tuple[HalvingPlan, list[tuple[Arm, int]]]]:
        """Return the plan of each pass of a shard's search, and its looks: an arm, and how many seeds."""
        return _read(self._where(index), partial(_passes_of, self._journals[index].settled.get("passes", ())))

    def _last_plan(self, index: int) -> HalvingPlan | None:
        return next((plan for plan, _ in reversed(self._passes(index))), None)

    def _again(self, index: int, finding: ArmResult, margin: float) -> ArmResult:
        """Judge an arm by what its shard trained, at the shard's own level; what stopped earlier stays as it is."""
        if finding.standing not in ("pass", "behind", "worse", "inconclusive"):
            return finding
        looks = [(plan, look) for plan, looks in self._passes(index) for look in looks]
        wanted = (finding.steps, (finding.arm, finding.seeds))
        place = max((number for number, (plan, look) in enumerate(looks, 1) if (plan.steps, look) == wanted), default=0)
        if not place or finding.timing is None or finding.gain is None or finding.dense_steps is None:
            raise self._changed(index, finding)
        plan, seeds = looks[place - 1][0], looks[place - 1][0].seed(finding.seeds)
        journal, level = self._journals[index], level_of(self._shards.found[index][1])
        pairs = [journal.differences(finding.arm, plan.steps, seeds, steps) for steps in (None, finding.dense_steps)]
        if any(len(each) < finding.seeds for each in pairs):
            raise self._changed(index, finding)
        return judged(
            finding.arm,
            finding.timing,
            finding.gain,
            margin=margin,
            confidence=1 - level / 2**place,
            steps=plan.steps,
            dense_steps=finding.dense_steps,
            equal_steps=pairs[0],
            equal_time=pairs[1],
        )

    def _changed(self, index: int, finding: ArmResult) -> UserError:
        return contradiction(
            f"{self._where(index)} judges {finding.arm.label} by trainings that are not there: the folder was changed;"
            " go on with the shard (--resume), or leave it out"
        )

    def write(self, folder: Path) -> None:
        """Write what stands beside the rows: the answer, all trainings, each with its shard, and what was settled."""
        of = {index: str(part.shard) for index, (_, part) in self._shards.found.items()}
        trained = [(of[index], *each) for index, found in self._journals.items() for each in found.trainings.items()]
        (folder / TRAININGS).touch()
        append_lines(folder / TRAININGS, [line_of(job, each, shard=shard) for shard, job, each in trained])
        record = {
            "spent_s": round(sum(journal.spent_s for journal in self._journals.values()), 3),
            "found": {"shards": {of[index]: journal.settled for index, journal in self._journals.items()}},
        }
        replace_file(folder / SETTLED, json.dumps(record, indent=1, allow_nan=False) + "\n")
        with Store.open(folder, write=True) as store:
            store.write_answer(self.result(store).sentence)

    def result(self, store: Store) -> Result:
        """Return what came of it, in the folder that was made of them."""
        threads = next((row.threads for row in store.rows()), None)
        request = replace(self._request, threads=self._request.threads or threads)
        found = self.judged
        answer, curve = (found, None) if isinstance(found, Answer) else (None, found)
        return Result(request, store, str(self._task["metric"]), answer, curve)


def _baseline(finding: ArmResult) -> str:
    return (finding.timing and finding.timing.baseline) or ""


def _timings_of(stored: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[Arm, Timing]:
    return {Arm.from_json(arm): Timing.from_json(timing) for arm, timing in stored}


def _passes_of(stored: Iterable[Mapping[str, Any]]) -> list[tuple[HalvingPlan, list[tuple[Arm, int]]]]:
    return [
        (
            HalvingPlan.from_json(each["plan"]),
            [(Arm.from_json(look["arm"]), look["seeds"]) for look in each.get("looks", ())],
        )
        for each in stored
    ]


def _read(where: str, read: Callable[[], _Read]) -> _Read:
    """Return what is read from a shard's folder; `UserError`, in one line, where that is damaged."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refused(where, error, "run the shard again") from None
