"""Processes on nodes that are made up, for the pool that is used at home. Ray is not needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerDied, WorkerLost
from meprop_bench.sweep import node
from meprop_bench.sweep.cluster import ClusterNode, NodeLost
from meprop_bench.sweep.cluster_workers import Hosts

_A, _B = ClusterNode("a", "one", 4, 0), ClusterNode("b", "two", 3, 2)


class _Process:
    """What runs on a node: each of its methods has a `remote` that gives what to ask the cluster for."""

    def __init__(self, where: ClusterNode, held: object) -> None:
        self.node, self.held = where, held

    def __getattr__(self, name: str) -> Any:
        class Method:
            def remote(_, *arguments: object) -> Callable[[], Any]:
                def answer() -> Any:
                    if self.node.name in _DEAD:
                        raise NodeLost("gone")
                    return getattr(self.held, name)(*arguments)

                return answer

        return Method()


_DEAD: set[str] = set()


class _Cluster:
    def __init__(self, *nodes: ClusterNode) -> None:
        self.nodes, self.refused = list(nodes), {"three": "it has another version"}
        self.started: list[tuple[str, int, int]] = []
        self.ended: list[str] = []

    def refresh(self, seconds: float = 0.0) -> None:
        pass

    def start(
        self, where: ClusterNode, kind: type, *arguments: object, cpus: int, gpus: int = 0, threads: int = 1
    ) -> _Process:
        self.started.append((where.name, cpus, gpus))
        return _Process(where, kind(*arguments))

    def hold(self, where: ClusterNode, device: str, kind: type, *arguments: object) -> _Process:
        return self.start(where, kind, *arguments, cpus=where.cpus)

    def answer(self, ref: Callable[[], Any], seconds: float | None = None) -> Any:
        return ref()

    def end(self, process: _Process) -> None:
        self.ended.append(process.node.name)


class _Worker:
    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        if message["do"] == "hello":
            return {"environment": {"cpu": "x"}, "environment_id": "e1"}
        if message["do"] == "die":
            raise WorkerDied("was killed")
        return {"did": message["job"]}

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "undo_threads", lambda: None)  # of this process
    _DEAD.clear()


def _hosts(cluster: _Cluster, threads: int = 1, device: str = "cpu") -> Hosts:
    return Hosts(cluster, threads=threads, device=device)  # type: ignore[arg-type]


def test_they_are_spread_over_the_nodes_by_the_room_that_these_have() -> None:
    cluster = _Cluster(_A, _B)
    hosts = _hosts(cluster, threads=2)
    assert hosts.count == 2 + 1
    started = [hosts.start(_Worker) for _ in range(hosts.count)]
    assert cluster.started == [("one", 2, 0), ("one", 2, 0), ("two", 2, 0)]
    started[0].close()
    started[0].close()
    assert cluster.ended == ["one"]
    hosts.start(_Worker)
    assert cluster.started[-1] == ("one", 2, 0)
    assert _hosts(cluster, device="cuda:0").count == 2


@pytest.mark.parametrize(("threads", "device", "what"), [(8, "cpu", "8 cores"), (1, "cuda:0", "a GPU")])
def test_where_none_has_room_it_is_said_before_anything_is_trained(threads: int, device: str, what: str) -> None:
    with pytest.raises(UserError, match=f"no node of the cluster that may train has {what}; three: it has another"):
        _hosts(_Cluster(_A), threads, device)


def test_answers_say_where_they_are_from_and_what_dies_is_told_apart_from_a_node_that_does() -> None:
    worker = _hosts(_Cluster(_A)).start(_Worker)
    worker.request({"do": "hello"}, 1.0)
    assert worker.request({"do": "train", "job": 3}, 1.0) == {
        "did": 3, "environment_id": "e1", "environment": {"cpu": "x"},
    }  # fmt: skip
    with pytest.raises(WorkerDied, match="was killed") as died:
        worker.request({"do": "die"}, 1.0)
    assert not isinstance(died.value, WorkerLost)
    _DEAD.add("one")
    with pytest.raises(WorkerLost, match="gone"):
        worker.request({"do": "train", "job": 3}, 1.0)


def test_what_a_node_that_dies_was_training_another_one_trains() -> None:
    hosts = _hosts(_Cluster(_A, _B))

    def jobs() -> Any:
        yield 1
        _DEAD.add("two")
        yield from range(2, 9)

    with Pool.of(lambda: hosts.start(_Worker), hosts.count) as pool:
        pool.hello()
        found = dict(pool.share(jobs(), lambda job: ("train", {"job": job})))
    assert {job: answer["did"] for job, answer in found.items() if isinstance(answer, dict)} == {
        job: job for job in range(1, 9)
    }


def test_what_needs_a_node_to_itself_is_done_on_another_one_when_that_dies() -> None:
    cluster = _Cluster(_A, _B)
    assert _hosts(cluster).alone("cpu", max, 1, 2) == 2
    assert (cluster.started, cluster.ended) == ([("one", 4, 0)], ["one"])
    _DEAD.add("one")
    assert _hosts(cluster).alone("cpu", max, 1, 2) == 2
    _DEAD.add("two")
    with pytest.raises(UserError, match="no node of the cluster is left that could measure"):
        _hosts(cluster).alone("cpu", max, 1, 2)
