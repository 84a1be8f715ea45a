"""A Ray cluster: which of its nodes may measure, and how one is held. Ray is imported here and nowhere else.

    with connected("auto", say) as cluster:
        cluster.refresh(60)                                which nodes are there, and have this code
        process = cluster.hold(node, "cpu", Measurer, plan, folder)

What measures has a node to itself. Ray's resources are counts that nothing enforces, so all of a node's CPUs are asked
for, at that one node: Ray gives them when nobody else holds any, and to nobody else until they are given back. A GPU
comes with its share of the CPUs, so that no case of the CPU runs beside it. The process that holds them is an actor,
which keeps them from its first case to its last one: tasks of others would come in between, and be measured.

A node has to have the same code as the driver, file by file. Which it has is found out by a function that is sent as a
whole, and so runs where this package is not installed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.worker import WorkerError
from meprop_bench.optional import require, said
from meprop_bench.sweep.node import code

__all__ = ["Cluster", "ClusterNode", "NodeLost", "connected"]

_REACHED_S = 5.0


class NodeLost(Exception):
    """A process on a node is gone, or the node is; what it did has to be done again."""


@dataclass(frozen=True)
class ClusterNode:
    """A node of the cluster."""

    node_id: str
    name: str
    cpus: int
    gpus: int


@contextmanager
def connected(address: str, say: Callable[[str], object]) -> Iterator[Cluster]:
    """Give the cluster at an address, HOST:PORT, or "auto" for the one that this machine is a node of.

    `say` is called with a line for each node that is left out. Meanwhile standard output is closed.

    Raises:
        UserError: there is no Ray here, or no cluster there.

    """
    require("ray", "--ray takes the package ray", "ray")
    import ray

    address = _reached(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, said(error)) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # with Ray's the program would end without a word
    # Ray prints at length of a node that has died, and once more at the end, to standard output, where results are.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            yield Cluster(ray, say)
        finally:
            ray.shutdown()


def _no_cluster(address: str, reason: str) -> UserError:
    return UserError(
        f"no Ray cluster at {address} ({reason}): start one by `ray start --head`, and name it as --ray HOST:PORT"
    )


def _reached(address: str) -> str:
    """Return the address, if anybody listens there: Ray would try for a long time."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address == "auto":
        return address
    if "://" in address:
        raise UserError(
            f"--ray {address}: a client of Ray cannot hold nodes; run this on a node of the cluster, with --ray alone"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and int(port) < 1 << 16):
        raise UserError(f"--ray {address}: an address is HOST:PORT, as `ray start` prints it; or leave it out")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED_S).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error) or type(error).__name__) from None
    return address


class Cluster:
    """The nodes of a cluster that this program is connected to; `say` is called with lines."""

    def __init__(self, ray: Any, say: Callable[[str], object]) -> None:
        self._ray, self._say = ray, say
        self._code = code()
        self._nodes: dict[str, ClusterNode] = {}
        self._asked: dict[Any, ClusterNode] = {}  # what a node's code is, not yet answered
        self._seen: set[str] = set()
        self.refused: dict[str, str] = {}  # name of a node -> why it may not measure

    @property
    def nodes(self) -> list[ClusterNode]:
        """Those that may measure, as of the last `refresh`."""
        return list(self._nodes.values())

    def refresh(self, seconds: float = 0.0) -> None:
        """See which nodes are there, and wait so long for those that are new to say which code they have."""
        alive = [record for record in self._ray.nodes() if record["Alive"]]
        hosts = [record["NodeManagerHostname"] for record in alive]
        for record in alive:
            node_id, host = record["NodeID"], record["NodeManagerHostname"]
            cpus, gpus = (int(record["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
            if node_id in self._seen or not (cpus or gpus):  # a head that is to do nothing has none
                continue
            self._seen.add(node_id)
            node = ClusterNode(node_id, host if hosts.count(host) == 1 else f"{host}/{node_id[:6]}", cpus, gpus)
            asked = self._ray.remote(_inspection()).options(
                num_cpus=0, max_retries=0, scheduling_strategy=self._at(node)
            )
            self._asked[asked.remote()] = node
        self._nodes = {record["NodeID"]: self._nodes[record["NodeID"]] for record in alive
                       if record["NodeID"] in self._nodes}  # fmt: skip
        if self._asked:
            ready, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=seconds)
            for ref in ready:
                self._answered(self._asked.pop(ref), ref)

    def refuse(self, node: ClusterNode, reason: str) -> None:
        """Leave a node out from now on, and say so."""
        self._nodes.pop(node.node_id, None)
        self.refused[node.name] = reason
        self._say(f"node {node.name} is left out: {reason}")

    def hold(self, node: ClusterNode, device: str, kind: type, *arguments: object) -> Any:
        """Start an object of this class on a node that it has to itself, or with it a GPU; return Ray's handle.

        Its first answer comes when nobody else holds any of it.
        """
        gpus = int(device != "cpu")
        return self.start(node, kind, *arguments, cpus=_share(node) if gpus else node.cpus, gpus=gpus)

    def start(
        self, node: ClusterNode, kind: type, *arguments: object, cpus: int, gpus: int = 0, threads: int = 1
    ) -> Any:
        """Start an object of this class on a node, with so much of it, which answers so many requests at a time."""
        settings = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        remote = self._ray.remote(kind).options(**settings, max_concurrency=threads, scheduling_strategy=self._at(node))
        return remote.remote(*arguments)

    def end(self, process: Any) -> None:
        """End what was started, and what it started."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(process)

    def first(self, waiting: list[Any], seconds: float) -> list[Any]:
        """Return which of these has an answer, when one has, or none after so many seconds."""
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
        return list(ready)

    def answer(self, ref: Any, seconds: float | None = None) -> Any:
        """Return an answer; of what answers in steps the next one.

        Raises:
            NodeLost: who should give it is gone, or has not within so many seconds.
            UserError: it went wrong.

        """
        errors = self._ray.exceptions
        try:
            if isinstance(ref, self._ray.ObjectRefGenerator):
                ref = next(ref)
            return self._ray.get(ref, timeout=seconds)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, UserError | WorkerError):
                raise cause from None
            raise UserError(f"a node failed: {said(cause)}", ExitCode.NOTHING_MEASURED) from None
        except (errors.RayError, StopIteration) as error:
            raise NodeLost(said(error)) from None

    def _answered(self, node: ClusterNode, ref: Any) -> None:
        try:
            found: Mapping[str, str | None] = self.answer(ref)
        except NodeLost:
            return
        if (reason := _differs(found, self._code)) is None:
            self._nodes[node.node_id] = node
        else:
            self.refuse(node, reason)

    def _at(self, node: ClusterNode) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


def _share(node: ClusterNode) -> int:
    """Return the CPUs that go with each GPU of a node."""
    return node.cpus // node.gpus if node.gpus else node.cpus


def _inspection() -> Callable[[], dict[str, str | None]]:
    """Return what a node does to say which code it has: a function within another one is sent whole, not by name."""

    def inspect() -> dict[str, str | None]:
        try:
            import meprop_bench
        except Exception as error:  # noqa: BLE001  a package may be broken in any way
            return {"missing": f"{type(error).__name__}: {error}"}
        try:
            from meprop_bench.sweep.node import code

            return code()
        except Exception:  # noqa: BLE001  another version, which has no such function
            return {"version": str(getattr(meprop_bench, "__version__", None))}

    return inspect


def _differs(found: Mapping[str, str | None], own: Mapping[str, str | None]) -> str | None:
    """Return why a node's code is not the driver's, or None."""
    if "missing" in found:
        return f"meprop-bench cannot be imported there ({found['missing']}): install it"
    if found.get("digest") == own["digest"]:
        return None
    there, here = (" at ".join(filter(None, (each.get("version"), each.get("revision")))) for each in (found, own))
    if there == here:
        return f"its files of meprop-bench {there} are not those here: install the same"
    return f"it has meprop-bench {there}, and here is {here}: install the same"
