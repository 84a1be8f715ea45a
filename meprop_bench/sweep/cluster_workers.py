"""Processes that train on the nodes of a Ray cluster, beside one another: for `measure.pool` they are like those here.

    hosts = Hosts(cluster, threads=1, device="cpu")
    compare(..., processes=hosts.count, start=partial(hosts.start, start_trainer))

Each has as many of a node's CPUs as it has threads, or a GPU; they are spread over the nodes. Nothing is timed here, so
none needs a node to itself. What was trained on a node that died, the pool gives to another process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from meprop_bench.errors import UserError
from meprop_bench.measure.worker import Message, WorkerDied, WorkerLike, WorkerLost
from meprop_bench.sweep.cluster import Cluster, ClusterNode, NodeLost
from meprop_bench.sweep.node import Doer, WorkerActor

__all__ = ["Hosts"]

_MORE_S = 60.0
"""Seconds for the network, beyond those that a process has for its answer."""

_END_S = 5.0

Found = TypeVar("Found")


class Hosts:
    """Where processes of so many threads, on this device, fit.

    Raises:
        UserError: there is none.

    """

    def __init__(self, cluster: Cluster, *, threads: int, device: str) -> None:
        self.cluster, self._threads, self._gpus = cluster, threads, int(device != "cpu")
        self._room = {node: node.gpus if self._gpus else node.cpus // threads for node in cluster.nodes}
        self.count = sum(self._room.values())
        if not self.count:
            what = "a GPU" if self._gpus else f"{threads} cores"
            reasons = "".join(f"; {name}: {reason}" for name, reason in cluster.refused.items())
            raise UserError(f"no node of the cluster that may train has {what}{reasons}")
        self._used: Counter[ClusterNode] = Counter()

    def start(self, start: Callable[[], WorkerLike]) -> WorkerLike:
        """Start a process on the node that has most to spare; `start` does it there."""
        node = max(self._room, key=lambda node: self._room[node] - self._used[node])
        self._used[node] += 1
        cpus = 0 if self._gpus else self._threads
        # The second thread ends the process while the first one waits for its answer.
        host = self.cluster.start(node, WorkerActor, start, str(Path.cwd()), cpus=cpus, gpus=self._gpus, threads=2)
        return _Remote(self.cluster, host, partial(self._free, node))

    def alone(self, device: str, function: Callable[..., Found], *arguments: object) -> Found:
        """Return what a function does on a node that it has to itself, or a GPU of one; on another one if that dies.

        Raises:
            UserError: there is none.
            WorkerError: as the function raises it.

        """
        self.cluster.refresh()
        for node in [node for node in self.cluster.nodes if device == "cpu" or node.gpus]:
            doer = self.cluster.hold(node, device, Doer, str(Path.cwd()))
            try:
                found: Found = self.cluster.answer(doer.do.remote(function, *arguments))
            except NodeLost:
                continue
            else:
                return found
            finally:
                self.cluster.end(doer)
        raise UserError("no node of the cluster is left that could measure")

    def _free(self, node: ClusterNode) -> None:
        self._used[node] -= 1


class _Remote:
    """A process on a node; its answers say where it ran."""

    def __init__(self, cluster: Cluster, host: Any, free: Callable[[], object]) -> None:
        self._cluster, self._host, self._free = cluster, host, free
        self._where: dict[str, Any] = {}
        self._closing = threading.Lock()

    def request(self, message: Mapping[str, Any], timeout: float) -> Message:
        """Return its answer."""
        try:
            answer: Message = self._cluster.answer(self._host.request.remote(dict(message), timeout), timeout + _MORE_S)
        except NodeLost as lost:
            raise WorkerLost(str(lost)) from None
        if "died" in answer:
            raise WorkerDied(answer["died"])
        if message["do"] == "hello":
            self._where = {name: answer.get(name) for name in ("environment_id", "environment")}
            return answer
        return {**self._where, **answer}

    def close(self) -> None:
        """End it; idempotent."""
        if not self._closing.acquire(blocking=False):
            return
        self._free()
        with suppress(NodeLost, UserError):
            self._cluster.answer(self._host.close.remote(), _END_S)
        self._cluster.end(self._host)
