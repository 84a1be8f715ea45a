"""A worker of several ranks: processes that train together, behind the one protocol of a worker.

    parent (measure.worker)  --stdin-->  torchrun's agent  ==>  rank 0: reads requests and answers
                                                           ==>  rank 1, 2, …: do what rank 0 is asked, as it does

    python -m meprop_bench.sweep.ranks 2 cpu      the agent: starts two ranks on "cpu" (or "cuda:0"), and waits
    python -m meprop_bench.sweep.ranks            a rank, started by the agent

All ranks inherit the worker's standard input. Rank 0 alone reads it; the others wait for nothing but its end, and so
are gone when the parent is, however that ended. A rank that dies takes the others with it: the agent ends them, and its
last line says which it was and why, which is what the parent shows. What the others notice, a connection that was
closed, says less than that line: they wait to be ended.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

from meprop_bench.errors import UserError
from meprop_bench.measure import ranks
from meprop_bench.measure.worker import serve
from meprop_bench.sweep.worker import WorkerSession

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from meprop_bench.measure.ranks import Ranks

__all__ = ["main"]

_MODULE = "meprop_bench.sweep.ranks"

_ALONE = ("peaks", "accuracy")
"""Requests that rank 0 answers by itself: what they measure or train is not the ranks'."""

_MONITOR_S = 0.2
_SHUTDOWN_S = 2
_ENDED_S = 3.0
"""Seconds between two looks of the agent at its ranks; until it kills those that do not end; and for which a rank that
has lost another waits for that."""

_LOST = re.compile("connection|peer|broken pipe", re.IGNORECASE)
"""What gloo says where another rank has gone."""


def main() -> None:
    """Run the agent, or a rank."""
    if len(sys.argv) > 1:
        _launch(int(sys.argv[1]), sys.argv[2])
    _serve(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ["MEPROP_BENCH_RANKS_DEVICE"])


def _launch(size: int, device: str) -> NoReturn:
    """Start the ranks and wait for their end; what is said of a failure is the last line on standard error."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["MEPROP_BENCH_RANKS_DEVICE"] = device
    _stay_on_this_machine()
    status = 0
    with TemporaryDirectory(prefix="meprop-bench-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=_MONITOR_S,
            shutdown_timeout=_SHUTDOWN_S,
            logs_specs=DefaultLogsSpecs(log_dir=logs),  # where a rank's error is written
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", _MODULE)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            status, line = 1, f"rank {rank} of {size} {_how_it_ended(failure)}"
            print(line, file=sys.stderr, flush=True)
        except SignalException:
            status = 1
    os._exit(status)  # to take torch down module by module would take the parent a second


def _how_it_ended(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        name = signal.strsignal(-failure.exitcode)
        more = ", probably out of memory" if -failure.exitcode == signal.SIGKILL else ""
        return f"was killed by signal {-failure.exitcode} ({name}){more}"
    message: Any = failure.message
    if isinstance(message, Mapping):
        return f"failed: {' '.join(str(message.get('message')).split())}"
    return f"exited with status {failure.exitcode}"


def _stay_on_this_machine() -> None:
    """Have gloo connect by the loopback interface, if nobody has chosen: a machine's name may not resolve."""
    import socket

    names = {name for _, name in socket.if_nameindex()}
    for loopback in ("lo", "lo0"):
        if loopback in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _serve(rank: int, size: int, device: str) -> NoReturn:
    if rank:
        _end_with_parent()
        os.dup2(2, 1)  # the protocol is rank 0's
        _follow(ranks.join(rank, size, device))
    serve(_Leader(size, device))


def _end_with_parent() -> None:
    """End this process when nobody can write to its standard input any more, which it does not read."""

    def watch() -> None:
        poll = select.poll()
        poll.register(0, 0)  # a hang-up is reported unasked
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class _Leader:
    """Answers a request as rank 0, when all ranks have done what it says."""

    def __init__(self, size: int, device: str) -> None:
        self._size, self._device = size, device
        self._session, self._ranks, self._apart = WorkerSession(), None, False

    _ranks: Ranks | None

    def __call__(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._apart:
            raise RuntimeError("its ranks are no longer in step")
        if self._ranks is None:  # not before `serve` has moved the protocol
            self._ranks = ranks.join(0, self._size, self._device)
        try:
            return self._answered(self._ranks, message)
        except UserError:
            raise
        except Exception as error:
            self._apart = True
            _await_the_agent(error)
            raise

    def _answered(self, own: Ranks, message: Mapping[str, Any]) -> Mapping[str, Any]:
        own.share(message)
        refused: UserError | None = None
        answer: Mapping[str, Any] = {}
        try:
            answer = self._session.handle(message)
        except UserError as error:
            refused = error
        others = own.every(None if refused is None else str(refused))
        if refused is not None:
            raise refused
        if wrong := next(((rank, line) for rank, line in enumerate(others) if line is not None), None):
            raise UserError(f"rank {wrong[0]}: {wrong[1]}")
        return answer


def _follow(own: Ranks) -> NoReturn:
    """Do what rank 0 is asked, until it is gone. What goes wrong, but for a refusal, ends the process."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    session = WorkerSession()
    while True:
        refused = None
        try:
            message: Mapping[str, Any] = own.share(None)
            if message["do"] not in _ALONE:
                session.handle(message)
        except UserError as error:
            refused = str(error)
        except Exception as error:  # noqa: BLE001  whatever it is, the agent says it
            traceback.print_exc()
            _await_the_agent(error)
            get_error_handler().record_exception(error)
            os._exit(1)
        own.every(refused)


def _await_the_agent(error: Exception) -> None:
    """Where another rank has gone, wait to be ended."""
    if _LOST.search(str(error)):
        time.sleep(_ENDED_S)


if __name__ == "__main__":
    main()
