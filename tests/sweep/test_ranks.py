"""Two real ranks behind one worker: checked, timed, counted; and what is said when one of them is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerDied, WorkerRefused
from meprop_bench.sweep.worker import start_for
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import DenseSide

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux who the ranks are")

_SIZES: dict[str, Any] = {
    "workload": "mlp", "method": "unified", "k": 32, "batch": 32, "data": "digits", "in_features": 64,
    "out_features": 512, "layers": 2, "gradient": "rows", "optimizer": "adagrad", "baseline": "fused", "threads": 1,
    "world_size": 2,
}  # fmt: skip
_GATHERED = Case(**_SIZES, exchange="gathered", dense_exchange="fp16")
_AGREED = Case(**_SIZES, exchange="agreed", dense_exchange="ddp")
_FIELDS = {"threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool[int]]:
    """One worker of two ranks for all that goes well; the last test ends it."""
    with Pool.of(lambda: start_for(_GATHERED), 1, timeout=600) as pool:
        pool.hello(**_FIELDS)
        yield pool


def _set_up(pool: Pool[int], case: Case) -> dict[str, Any]:
    return pool.ask(0, "setup", case=case.to_json(), baseline=None)


@pytest.mark.parametrize("case", [_GATHERED, _AGREED], ids=["gathered", "agreed"])
def test_ranks_are_checked_timed_and_counted(pool: Pool[int], case: Case) -> None:
    setup = _set_up(pool, case)
    assert setup["phases"] == ["forward", "backward", "communication", "update", "step"]
    assert ("fp16" in setup["baseline"]) == (case is _GATHERED)
    assert pool.ask(0, "check", warm_s=0.0)["check"] == "passed"
    found = pool.ask(0, "measure", seconds=0.0, least_pairs=3, loops=1, seed=0)["pairs"]
    for pair in range(len(found["step"])):
        for side in (0, 1):
            parts = [found[phase][pair][side] for phase in ("forward", "backward", "update")]
            assert min(parts) > 0
            assert found["communication"][pair][side] > 0
    sent = pool.ask(0, "wire")
    assert sent["unavailable"] is None
    for side in sent["sides"]:
        assert side["measured"] == pytest.approx(side["predicted"], rel=0.05)
    assert sent["sides"][1]["counted"] == pytest.approx(sent["sides"][1]["predicted"], rel=0.05)


def test_the_fastest_dense_exchange_is_found_out_by_all_of_them_and_named(pool: Pool[int]) -> None:
    case = replace(_GATHERED, dense_exchange="best")
    found = pool.ask(0, "baseline", case=case.to_json(), seconds=0.0, seed=0)["baseline"]
    assert found["exchange"] in ("ddp", "fp16", "powersgd")
    setup = pool.ask(0, "setup", case=case.to_json(), baseline=found)
    assert setup["baseline"] == str(DenseSide.from_json(found))
    assert f"the dense side is {setup['baseline']}, the fastest here" in setup["notes"]
    assert pool.ask(0, "check", warm_s=0.0)["check"] == "passed"


def test_a_case_that_is_refused_is_refused_by_all_of_them_and_they_go_on(pool: Pool[int]) -> None:
    with pytest.raises(WorkerRefused, match="--world-size 3"):
        pool.ask(0, "setup", case=Case(**_SIZES | {"world_size": 3}).to_json(), baseline=None)
    assert _set_up(pool, _GATHERED)["phases"][-1] == "step"


def test_what_is_one_rank_s_alone_leaves_the_others_in_step(pool: Pool[int]) -> None:
    _set_up(pool, _GATHERED)
    answer = pool.ask(0, "accuracy", case=_GATHERED.to_json(), sparsified=True, seeds=[1], steps=2)
    assert answer["metric"] == "accuracy"
    assert pool.ask(0, "check", warm_s=0.0)["check"] == "passed"


def test_a_rank_that_dies_is_one_line_and_takes_the_others_with_it(pool: Pool[int]) -> None:
    agent = pool._workers[0].pid  # type: ignore[attr-defined]
    ranks = _children(agent)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    with pytest.raises(WorkerDied) as died:
        pool.ask(0, "check", warm_s=0.0)
    text = str(died.value)
    assert "rank 1 of 2 was killed by signal 9" in text
    assert "\n" not in text
    _gone(ranks)


def test_ranks_do_not_outlive_whoever_started_them() -> None:
    worker = start_for(_GATHERED)
    worker.request({"do": "hello", **_FIELDS}, 600)
    ranks = _children(worker.pid)
    assert len(ranks) == 2
    os.kill(worker.pid, signal.SIGKILL)  # so that nobody ends them in order
    worker.close()
    _gone(ranks)


def _children(pid: int) -> list[int]:
    """Return the ranks of an agent, in order."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            number = int(entry.name)
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                words = (entry / "environ").read_bytes().split(b"\0")
                rank = next((word for word in words if word.startswith(b"RANK=")), None)
                if rank is not None:
                    found[int(rank.partition(b"=")[2])] = number
    return [found[rank] for rank in sorted(found)]


def _gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False
