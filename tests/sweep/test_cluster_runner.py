"""A plan on a cluster that is made up: who measures what, and what becomes of nodes that die. Ray is not needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.results.schema import Row
from meprop_bench.results.store import MEASUREMENTS, Store
from meprop_bench.sweep import cluster_runner
from meprop_bench.sweep.cluster import ClusterNode, NodeLost
from meprop_bench.sweep.cluster_runner import ClusterRunner
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.node import CaseResult, Failed
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.rows import failed_row
from meprop_bench.sweep.runner import SweepProgress
from meprop_bench.workloads.case import Case

_A, _B = ClusterNode("a", "one", 4, 0), ClusterNode("b", "two", 2, 0)


class _Process:
    """What a node is held by: it answers as soon as it is asked."""

    def __init__(self, cluster: _Cluster, node: ClusterNode) -> None:
        self.cluster, self.node = cluster, node
        self.examine, self.measure = self, self
        self.answers: list[Any] = []

    def remote(self, *arguments: Any) -> _Process:
        if not isinstance(arguments[0], Case):
            self.cluster.log.append(("examine", self.node.name, tuple(arguments[0])))
            self.answers = [self.cluster.examined.get(self.node.name, {"state": {}, "hardware": "h"})]
            return self
        case, known = arguments
        self.cluster.log.append(("measure", self.node.name, case))
        self.cluster.known.append(list(known))
        self.answers = self.cluster.measure(self.node, case)
        return self


class _Cluster:
    """Nodes that measure in no time; `faults` are (node, k) whose node dies of it."""

    def __init__(self, *nodes: ClusterNode, faults: Sequence[tuple[str, float]] = (), stays: bool = False) -> None:
        self.nodes, self.faults, self.stays = list(nodes), set(faults), stays
        self.refused: dict[str, str] = {}
        self.examined: dict[str, Any] = {}
        self.log: list[tuple[str, str, Any]] = []
        self.known: list[list[Row]] = []
        self.held: list[_Process] = []
        self.joins: list[ClusterNode] = []
        self.models: dict[str, str] = {}
        self.refreshed = 0

    def refresh(self, seconds: float = 0.0) -> None:
        self.refreshed += 1
        if self.refreshed > 3 and self.joins:
            self.nodes.append(self.joins.pop())

    def refuse(self, node: ClusterNode, reason: str) -> None:
        self.nodes.remove(node)
        self.refused[node.name] = reason

    def hold(self, node: ClusterNode, device: str, kind: type, *arguments: object) -> _Process:
        self.held.append(process := _Process(self, node))
        return process

    def end(self, process: _Process) -> None:
        self.held.remove(process)

    def first(self, waiting: list[_Process], seconds: float) -> list[_Process]:
        return [waiting[self.refreshed % len(waiting)]]

    def answer(self, process: _Process, seconds: float | None = None) -> Any:
        found = process.answers.pop(0)
        if isinstance(found, KeyboardInterrupt):
            raise found
        if isinstance(found, NodeLost):
            if not self.stays and process.node in self.nodes:
                self.nodes.remove(process.node)
            raise found
        return found

    def measure(self, node: ClusterNode, case: Case) -> list[Any]:
        stage = SweepProgress(0, 1, case, "measuring", {"backward": 0.1}, 3.0)
        if (node.name, case.k) in self.faults:
            return [stage, NodeLost("gone")]
        row = failed_row(case, "made up", f"e-{node.name}")
        if case.baseline == "best":
            row = _with(row, baseline_chosen="compiled")
        environment = {"device": "cpu", "cpu_model": self.models.get(node.name)}
        return [stage, CaseResult((row,), {row.environment_id: environment}, {"cpu float32": _peaks(node.cpus)})]

    def measured(self) -> list[tuple[str, float]]:
        return [(name, what.k) for do, name, what in self.log if do == "measure"]


def _with(row: Row, **changes: Any) -> Row:
    for name, value in changes.items():
        object.__setattr__(row, name, value)
    return row


def _peaks(rate: float) -> dict[str, Any]:
    return {"flops_per_s": {"float32": float(rate)}, "bandwidth": [[1024, 1e9]]}


Run = Callable[..., Store]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    stores: list[Store] = []

    def go(cluster: _Cluster, cases: Sequence[Case], *, deadline: Deadline | None = None, **settings: Any) -> Store:
        plan = Plan(name="t", cases=tuple(cases), **settings)
        seconds = [0.0]

        def sleep(more: float) -> None:
            seconds[0] += more

        stores.append(store := Store.begun(tmp_path, "t", "ray", "command", plan.to_json()))
        store.progress, store.said = [], []  # type: ignore[attr-defined]
        try:
            runner = ClusterRunner(
                plan, store, cluster, progress=store.progress.append, say=store.said.append,  # type: ignore[attr-defined, arg-type]
                deadline=deadline, now=lambda: seconds[0], sleep=sleep,
            )  # fmt: skip
            runner.run()
        finally:
            store.close()
        store.left_out = runner.left_out  # type: ignore[attr-defined]
        return store

    return go


def _cases(*ks: int, **axes: Any) -> list[Case]:
    return [Case(k=k, **{"threads": 1, **axes}) for k in ks]


def _lines(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.folder / MEASUREMENTS).read_text().splitlines()]


def test_cases_are_spread_and_every_row_has_the_environment_of_its_node(run: Run) -> None:
    cluster = _Cluster(_A, _B)
    store = run(cluster, _cases(3, 4, 5, 6))
    assert {name for name, _ in cluster.measured()} == {"one", "two"}
    assert sorted(k for _, k in cluster.measured()) == [3, 4, 5, 6]
    assert {row.environment_id for row in store.rows()} == {"e-one", "e-two"} == set(store.header["environments"])
    assert cluster.held == []
    done = [progress for progress in store.progress if progress.stage == "done"]  # type: ignore[attr-defined]
    assert [(each.done, each.total) for each in done] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert done[-1].left_s == 0
    stages = [each for each in store.progress if each.stage == "measuring"]  # type: ignore[attr-defined]
    assert stages[0].half_widths == {"backward": 0.1}


def test_peaks_are_the_best_of_machines_that_are_alike_and_of_others_there_are_none(run: Run) -> None:
    store = run(_Cluster(_A, _B), _cases(3, 4, 5, 6))
    assert store.header["peaks"]["cpu float32"] == _peaks(4)
    cluster = _Cluster(_A, _B)
    cluster.models = {"one": "fast", "two": "slow"}
    assert run(cluster, _cases(3, 4, 5, 6), seed=1).header["peaks"] == {}


def test_what_a_node_that_dies_was_measuring_goes_to_another_one(run: Run) -> None:
    cluster = _Cluster(_A, _B, faults=[("two", 4)])
    store = run(cluster, _cases(3, 4, 5, 6))
    lines = _lines(store)
    assert sorted(line["k"] for line in lines) == [3, 4, 5, 6]  # nothing lost, nothing doubled
    if ("two", 4) in cluster.measured():
        assert ("one", 4) in cluster.measured()
        assert store.said == [f"node two was lost: another one begins {_cases(4)[0].label} again"]  # type: ignore[attr-defined]


def test_a_case_that_three_nodes_die_of_has_a_row_that_says_so(run: Run) -> None:
    cluster = _Cluster(_A, faults=[("one", 4)], stays=True)
    store = run(cluster, _cases(4))
    assert [row.error for row in store.rows()] == ["the nodes that measured it were lost, 3 times"]
    assert len(cluster.measured()) == 3


def test_without_a_node_it_ends_in_one_line_and_goes_on_with_those_of_another_time(run: Run) -> None:
    cluster = _Cluster(_A, faults=[("one", 4)])
    with pytest.raises(
        UserError, match=r"no node of the cluster is left for .* after 1 of 3 cases; .*--resume"
    ) as raised:
        run(cluster, _cases(3, 4, 5))
    assert raised.value.exit_code == ExitCode.INTERRUPTED
    cluster = _Cluster(_B)
    store = run(cluster, _cases(3, 4, 5))
    assert cluster.measured() == [("two", 4), ("two", 5)]
    assert sorted(line["k"] for line in _lines(store)) == [3, 4, 5]


def test_an_interrupt_ends_what_is_held_and_the_next_run_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = _Cluster.measure

    def interrupted(self: _Cluster, node: ClusterNode, case: Case) -> list[Any]:
        return [KeyboardInterrupt()] if case.k == 5 else measure(self, node, case)

    monkeypatch.setattr(_Cluster, "measure", interrupted)
    cluster = _Cluster(_A)
    with pytest.raises(KeyboardInterrupt):
        run(cluster, _cases(3, 4, 5, 6))
    assert cluster.held == []
    monkeypatch.undo()
    cluster = _Cluster(_B)
    store = run(cluster, _cases(3, 4, 5, 6))
    assert cluster.measured() == [("two", 5), ("two", 6)]
    assert sorted(line["k"] for line in _lines(store)) == [3, 4, 5, 6]


def test_a_node_that_joins_later_measures_too(run: Run) -> None:
    cluster = _Cluster(_A)
    cluster.joins = [_B]
    run(cluster, _cases(*range(3, 13)))
    assert {name for name, _ in cluster.measured()} == {"one", "two"}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(k=3, threads=8), "no node of the cluster has 8 cores, which .* needs: use --threads 4, or less"),
        (Case(k=3, threads=1, device="cuda"), "no node of the cluster has a GPU, which .* needs: use --device cpu"),
        (Case(k=3, threads=1, device="cuda:1"), "a case has one GPU, whichever is free: use --device cuda, not cuda:1"),
    ],
)
def test_a_case_that_there_is_no_node_for_is_refused_before_anything_is_measured(
    run: Run, case: Case, words: str
) -> None:
    cluster = _Cluster(_A, _B)
    with pytest.raises(UserError, match=words):
        run(cluster, [*_cases(3), case])
    assert cluster.log == []


def test_a_case_goes_to_a_node_that_has_its_cores(run: Run) -> None:
    cluster = _Cluster(_B, _A)
    run(cluster, [Case(k=3, threads=4), Case(k=4, threads=4)])
    assert cluster.measured() == [("one", 3), ("one", 4)]
    assert [name for do, name, _ in cluster.log if do == "examine"] == ["one"]


def test_gpus_of_a_node_are_held_one_by_one_and_after_the_cpu_is_given_back(run: Run) -> None:
    cluster = _Cluster(ClusterNode("c", "three", 8, 2))
    run(cluster, [Case(k=3, threads=1), *(Case(k=k, threads=8, device="cuda") for k in (4, 5))])
    assert [what if do == "measure" else do for do, _, what in cluster.log][:2] == ["examine", Case(k=3, threads=1)]
    assert sum(do == "examine" for do, _, _ in cluster.log) == 1 + 2


def test_a_node_that_cannot_measure_is_left_out_and_if_none_can_it_says_why(run: Run) -> None:
    cluster = _Cluster(_A, _B)
    cluster.examined["one"] = {"refused": "mnist is not there"}
    run(cluster, _cases(3, 4))
    assert {name for name, _ in cluster.measured()} == {"two"}
    cluster = _Cluster(_A)
    cluster.examined["one"] = {"refused": "mnist is not there"}
    with pytest.raises(UserError, match="one: mnist is not there") as raised:
        run(cluster, _cases(5, 6))
    assert raised.value.exit_code == ExitCode.NOTHING_MEASURED


def test_what_goes_wrong_in_a_node_is_one_line_that_names_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Cluster, "measure", lambda *_: [Failed("KeyError: 'x'")])
    with pytest.raises(UserError, match="node one: KeyError: 'x'"):
        run(_Cluster(_A), _cases(3))


def test_the_deadline_leaves_cases_out(run: Run) -> None:
    clock = [0.0]
    cluster = _Cluster(_A)

    def refreshed(seconds: float = 0.0) -> None:
        clock[0] += 4.0

    cluster.refresh = refreshed  # type: ignore[method-assign]
    cases = _cases(*range(3, 13))
    store = run(cluster, cases, deadline=Deadline(20.0, lambda: clock[0]))
    assert store.left_out  # type: ignore[attr-defined]
    assert {*store.done_case_ids(), *(case.case_id for case in store.left_out)} == {case.case_id for case in cases}  # type: ignore[attr-defined]


def test_kept_processes_are_given_cases_that_they_can_serve(run: Run) -> None:
    cases = [Case(k=k, threads=threads) for k in (3, 4) for threads in (1, 2)]
    cluster = _Cluster(_A)
    run(cluster, cases, keep_processes=True)
    assert [(what.threads, what.k) for do, _, what in cluster.log if do == "measure"] == [
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    ]


def test_the_first_case_of_a_dense_work_chooses_its_side_for_machines_of_one_kind(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_runner, "candidates", lambda case: [1, 2])
    in_hand: list[int] = []
    begin = ClusterRunner._begin

    def counted(self: ClusterRunner, place: Any, case: Case) -> None:
        begin(self, place, case)
        in_hand.append(sum(other.case is not None for other in self._places))

    monkeypatch.setattr(ClusterRunner, "_begin", counted)
    best = {"workload": "mlp", "baseline": "best", "data": "digits"}
    cases = [Case(k=k, threads=1, in_features=64, out_features=16, batch=4, **best) for k in (3, 4, 5)]
    cluster = _Cluster(_A, _B)
    run(cluster, cases)
    assert in_hand[0] == 1
    assert cluster.known[0] == []
    assert all(len(rows) >= 1 for rows in cluster.known[1:])
    other = _Cluster(_A, _B)  # of another kind each: both choose
    other.examined["two"] = {"state": {}, "hardware": "another"}
    in_hand.clear()
    run(other, [Case(k=k, threads=1, in_features=64, out_features=32, batch=4, **best) for k in (3, 4)])
    assert max(in_hand) == 2
