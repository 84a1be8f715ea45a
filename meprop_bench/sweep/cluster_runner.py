"""Runs a plan on a Ray cluster: each case on a node, or a GPU of one, that it has to itself.

    nodes       each is held by a process of ours (`node.Measurer`) from its first case on; who joins later, joins in
    cases       in the plan's order, to whoever is free; with processes that are kept, first those that they can serve
    lost        what a node was measuring when it died goes to the next one; after `_TRIES` nodes it has a row that says
                so. A row is stored when it has come here, so that nothing is lost and nothing doubled
    dense side  where the best one is chosen, machines of one kind take the same: the first case of a dense work
                chooses, and the others of that work wait for it

This process alone writes. A row has the environment of the node that measured it, and floors by that node's peaks.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.peaks import Peaks
from meprop_bench.results.merge import machine_fields
from meprop_bench.results.store import Store
from meprop_bench.sweep.cluster import Cluster, ClusterNode, NodeLost
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.dense_sides import dense_work
from meprop_bench.sweep.node import CaseResult, Failed, Measurer
from meprop_bench.sweep.plan import Plan, process_of
from meprop_bench.sweep.rows import failed_row
from meprop_bench.sweep.runner import SweepProgress, usual_s
from meprop_bench.tasks.build import is_model, source_of
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import candidates

__all__ = ["ClusterRunner", "check_capacity"]

_TRIES = 3
"""Nodes that may die while they measure a case, or processes of a node, before it is given up."""

_ANSWER_S = 60.0
"""Seconds for nodes to say which code they have, and for another one to come when none is left."""

_SILENT_S = 15.0
"""Seconds without an answer after which a reader is told what is waited for."""

_POLL_S = 0.5


@dataclass(eq=False)
class _Slot:
    """A node, or a GPU of one, and what it does."""

    node: ClusterNode
    process: Any
    doing: Any = None  # what it will answer; None while there is nothing for it to do
    case: Case | None = None  # in hand; None while it is examined
    choice: tuple[object, ...] | None = None  # the dense work whose side it chooses
    group: tuple[object, ...] = ()  # of its last case
    hardware: str = ""
    began: float = 0.0


def check_capacity(cases: Iterable[Case], nodes: Sequence[ClusterNode], refused: Mapping[str, str]) -> None:
    """Check that there is a node for each case, by what Ray knows of them.

    Raises:
        UserError: there is none that has enough cores, or a GPU.

    """
    if not nodes:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(f"no node of the cluster can measure: {reasons or 'none has answered'}")
    most = max(node.cpus for node in nodes)
    for case in cases:
        if case.device not in ("cpu", "cuda:0"):
            raise UserError(f"with --ray a case has one GPU, whichever is free: use --device cuda, not {case.device}")
        if case.device != "cpu" and not any(node.gpus for node in nodes):
            raise UserError(f"no node of the cluster has a GPU, which {case.label} needs: use --device cpu")
        if not any(_fits(node, case) for node in nodes):
            raise UserError(
                f"no node of the cluster has {case.threads * case.world_size} cores, which {case.label} needs: use"
                f" --threads {max(1, most // case.world_size)}, or less"
            )


def _fits(node: ClusterNode, case: Case) -> bool:
    return case.threads * case.world_size <= node.cpus and (case.device == "cpu" or node.gpus > 0)


class ClusterRunner:
    """One run of a plan on a cluster, into a results folder; cases that it holds already are left out.

    Args:
        plan: what to measure.
        store: where the rows go.
        cluster: that this process is connected to.
        progress: called at each stage of each case.
        say: called with a line for each node that is left out or lost.
        deadline: by when it has to end; `left_out` then has the cases that it left no time for.
        evaluates: whether users' models have to say how good they are.
        now, sleep: of wall seconds.

    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        cluster: Cluster,
        *,
        progress: Callable[[SweepProgress], None] = lambda _: None,
        say: Callable[[str], object] = lambda _: None,
        deadline: Deadline | None = None,
        evaluates: bool = False,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._plan, self._store, self._cluster = plan, store, cluster
        self._progress, self._say, self._deadline, self._now = progress, say, deadline or Deadline(), now
        self._evaluates = evaluates
        self.left_out: tuple[Case, ...] = ()
        self._places: list[_Slot] = []
        self._settled: set[tuple[object, ...]] = set()
        self._lost: Counter[str] = Counter()  # of a case, or of a node
        self._spent: list[float] = []
        self._done = 0
        self._alone_since: float | None = None
        self._silent_until: float | None = None

    def run(self) -> None:
        """Measure what is not measured yet. An interrupt passes through; what is done is in the store.

        Raises:
            UserError: there is no node for a case, before anything is measured; or no node is left.

        """
        finished = self._store.done_case_ids()
        todo = [case for case in self._plan.order if case.case_id not in finished]
        self._done = len(self._plan.cases) - len(todo)
        if not todo:
            return
        self._cluster.refresh(_ANSWER_S)
        check_capacity(todo, self._cluster.nodes, self._cluster.refused)
        for device in dict.fromkeys(case.device for case in todo):
            try:
                self._run(device, deque(case for case in todo if case.device == device))
            finally:
                for place in self._places:
                    self._cluster.end(place.process)
                self._places = []

    def _run(self, device: str, queue: deque[Case]) -> None:
        while True:
            if queue and not self._deadline.allows():
                self.left_out += tuple(queue)
                queue.clear()
            if not queue and not any(place.case for place in self._places):
                return
            if queue:
                self._hire(device, queue)
                self._hand_out(queue)
            doing = [place.doing for place in self._places if place.doing is not None]
            if not doing:
                self._wait_for_a_node(queue)
                continue
            self._alone_since = None
            answered = self._cluster.first(doing, _POLL_S)
            self._say_what_is_waited_for(bool(answered))
            for ready in answered:
                place = next(place for place in self._places if place.doing is ready)
                try:
                    self._take(place, self._cluster.answer(ready))
                except NodeLost:
                    self._lose(place, queue)

    def _hire(self, device: str, queue: Iterable[Case]) -> None:
        """Hold the nodes that are there and can measure what is left; examine each."""
        self._cluster.refresh()
        for node in self._cluster.nodes:
            cases = [case for case in queue if _fits(node, case)]
            held = sum(place.node == node for place in self._places)
            if not cases or self._lost[node.node_id] >= _TRIES:
                continue
            for _ in range(held, 1 if device == "cpu" else node.gpus):
                process = self._cluster.hold(node, device, Measurer, self._plan, str(Path.cwd()))
                models = {case.model for case in cases if case.model is not None and is_model(case.model)}
                examined = process.examine.remote(cases, {model: source_of(model) for model in models}, self._evaluates)
                self._places.append(_Slot(node, process, examined))

    def _hand_out(self, queue: deque[Case]) -> None:
        for place in self._places:
            if place.doing is not None:
                continue
            if (case := self._next(place, queue)) is not None:
                queue.remove(case)
                self._begin(place, case)

    def _next(self, place: _Slot, queue: Iterable[Case]) -> Case | None:
        """Return the case that a node that is free is to measure; None where it is to wait, or none is for it."""
        chosen = {other.choice for other in self._places} - {None}
        open_ = [
            case for case in queue if _fits(place.node, case) and not (_chooses(case) and _work(place, case) in chosen)
        ]
        alike = [case for case in open_ if process_of(case) == place.group] if self._plan.keep_processes else []
        return next(iter(alike or open_), None)

    def _begin(self, place: _Slot, case: Case) -> None:
        known = []
        if _chooses(case):
            if (work := _work(place, case)) not in self._settled:
                place.choice = work
            known = [row for row in self._store.rows() if row.baseline_chosen and dense_work(row) == dense_work(case)]
        place.case, place.group, place.began = case, process_of(case), self._now()
        place.doing = place.process.measure.remote(case, known)

    def _take(self, place: _Slot, found: Any) -> None:
        """Take what a node has answered."""
        if isinstance(found, SweepProgress):
            self._notify(found.case, found.stage, half_widths=found.half_widths, waits=found.waits)
        elif isinstance(found, CaseResult):
            self._keep(place, found)
        elif isinstance(found, Failed):
            raise UserError(f"node {place.node.name}: {found.reason}")
        elif "refused" in found:
            self._drop(place)
            if place.node in self._cluster.nodes:
                self._cluster.refuse(place.node, found["refused"])
        else:
            place.doing, place.hardware = None, found["hardware"]
            self._store.write_state(found["state"])

    def _keep(self, place: _Slot, found: CaseResult) -> None:
        assert place.case is not None
        header = self._store.header
        header["peaks"] = _peaks({**header["environments"], **found.environments}, header["peaks"], found.peaks)
        self._store.write_environment(found.environments)
        self._store.append(found.rows)
        if place.choice is not None and any(row.baseline_chosen for row in found.rows):
            self._settled.add(place.choice)
        self._spent.append(self._now() - place.began)
        self._deadline.took(self._spent[-1])
        self._done += 1
        self._notify(place.case, "done", rows=found.rows)
        place.doing = place.case = place.choice = None

    def _lose(self, place: _Slot, queue: deque[Case]) -> None:
        """Give the case of a node that has died to another one, or give it up."""
        self._drop(place)
        self._lost[place.node.node_id] += 1
        if place.case is None:
            return
        case = place.case
        self._lost[case.case_id] += 1
        if self._lost[case.case_id] < _TRIES:
            self._say(f"node {place.node.name} was lost: another one begins {case.label} again")
            queue.appendleft(case)
            return
        row = failed_row(case, f"the nodes that measured it were lost, {_TRIES} times", "unknown")
        self._store.append([row])
        self._done += 1
        self._notify(case, "done", rows=(row,))

    def _drop(self, place: _Slot) -> None:
        self._places.remove(place)
        self._cluster.end(place.process)

    def _wait_for_a_node(self, queue: Sequence[Case]) -> None:
        """Wait a little; UserError when for a while no node has been there that could measure anything."""
        now = self._now()
        if self._alone_since is None and self._lost:
            self._alone_since = now
            self._say("no node of the cluster is left that could go on: waiting a minute for one")
        if self._alone_since is not None and now - self._alone_since < _ANSWER_S:
            self._sleep(_POLL_S)
            return
        done, total = self._done, len(self._plan.cases)
        reasons = "".join(f"; {name}: {reason}" for name, reason in self._cluster.refused.items())
        raise UserError(
            f"no node of the cluster is left for {queue[0].label}, after {done} of {total} cases; continue with the"
            f" same command and --resume{reasons}",
            ExitCode.INTERRUPTED if done else ExitCode.NOTHING_MEASURED,
        )

    def _say_what_is_waited_for(self, answered: bool) -> None:
        """Say once that no node has answered for long."""
        if answered:
            self._silent_until = math.inf
        elif self._silent_until is None:
            self._silent_until = self._now() + _SILENT_S
        elif self._now() > self._silent_until:
            self._silent_until = math.inf
            self._say("waiting for a node: other work on the cluster may hold them all")

    def _notify(self, case: Case, stage: str, **more: Any) -> None:
        total = len(self._plan.cases)
        side_by_side = max(1, len(self._places))
        left_s = math.ceil((total - self._done) / side_by_side) * usual_s(self._plan, self._spent)
        chosen = {"half_widths": {}, **more}
        self._progress(
            SweepProgress(self._done, total, case, stage, left_s=min(left_s, max(0.0, self._deadline.left_s)), **chosen)
        )


def _peaks(
    environments: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the best of the peaks; of machines that are not alike none, as they would be nobody's."""
    machines = [machine_fields(environment) for environment in environments.values()]
    gpus = [gpu for environment in environments.values() if (gpu := environment.get("gpu")) is not None]
    if any(other != alike[0] for alike in (machines, gpus) for other in alike):
        return {}
    best = {key: Peaks.from_json(each) for key, each in known.items()}
    for key, each in more.items():
        own = Peaks.from_json(each)
        best[key] = best[key].merged(own) if key in best else own
    return {key: each.to_json() for key, each in best.items()}


def _chooses(case: Case) -> bool:
    """Whether somebody has to find out how the case's dense side is the fastest."""
    return case.baseline == "best" and len(candidates(case)) > 1


def _work(place: _Slot, case: Case) -> tuple[object, ...]:
    return (place.hardware, *dense_work(case))
