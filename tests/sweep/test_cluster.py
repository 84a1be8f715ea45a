"""A real Ray cluster on this machine: a head that does nothing, and nodes of two CPUs, one of which is killed."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meprop_bench import cli
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.results.store import MEASUREMENTS, Store
from meprop_bench.sweep.cluster import connected
from meprop_bench.sweep.cluster_runner import ClusterRunner
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.runner import SweepProgress
from meprop_bench.workloads.case import Case

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'meprop-bench[ray]'")

_ROOT = Path(__file__).parents[2]
_QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # names of sockets are short
    changes = {
        "RAY_TMPDIR": short,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(_ROOT),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        found = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": _QUICK},
        )
        try:
            yield found
        finally:
            found.shutdown()
            shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def add(cluster: Any) -> Iterator[Callable[..., Any]]:
    """Give what adds a node; those that are left at the end are removed."""
    yield lambda **more: cluster.add_node(num_cpus=2, **more)
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)


def _plan(*ks: int) -> Plan:
    cases = tuple(
        Case(method="unified", k=k, batch=4, in_features=16, out_features=16, threads=1, allocator="default")
        for k in ks
    )
    return Plan(
        name="t", cases=cases, checks=("gradients",), budget=0.1, processes=2, keep_processes=True, utilization=False
    )


def test_a_node_is_killed_in_the_middle_and_nothing_is_lost_or_doubled(
    cluster: Any,
    add: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    nodes = [add() for _ in range(2)]
    plan = _plan(*range(2, 8))
    said: list[str] = []
    in_hand: set[str] = set()
    side_by_side = 0

    def progress(found: SweepProgress) -> None:
        nonlocal side_by_side
        in_hand.add(found.case.case_id)  # of two nodes of one machine one waits for the lock of the device
        side_by_side = max(side_by_side, len(in_hand))
        if found.stage == "done":
            in_hand.discard(found.case.case_id)
        if found.stage == "measuring" and found.done == 2 and len(nodes) == 2:  # while it measures
            (node_id,) = (place.node.node_id for place in runner._places if place.case == found.case)
            (node,) = (node for node in nodes if node.node_id == node_id)
            nodes.remove(node)
            cluster.remove_node(node, allow_graceful=False)

    with connected(cluster.address, said.append) as connection:
        before = Store.create(tmp_path, "t", "ray", "command", plan.to_json(), here=False)
        with before as store:
            runner = ClusterRunner(plan, store, connection, progress=progress, say=said.append)
            runner.run()
    lines = [json.loads(line) for line in (before.folder / MEASUREMENTS).read_text().splitlines()]
    assert Counter(line["case_id"] for line in lines) == {case.case_id: 2 for case in plan.cases}
    assert all(line["error"] is None and line["speedup"] for line in lines)
    assert [line for line in said if "was lost: another one begins" in line]
    assert side_by_side == 2  # spread over both
    (environment,) = before.header["environments"].values()
    assert environment["variables"]["OMP_NUM_THREADS"] == "1"  # as the case says; Ray says 2, for those held
    assert environment["torch_threads"] == 1
    assert ray.is_initialized() is False
    assert capfd.readouterr().out == ""  # Ray tells at length of a node that has died


def test_the_command_trains_on_nodes_and_says_what_it_cannot_use(
    cluster: Any,
    add: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, lines in {
        "lacks": "raise ModuleNotFoundError(\"No module named 'meprop_bench'\")",
        "older": "__version__ = '0.0.1'",
    }.items():
        (tmp_path / name / "meprop_bench").mkdir(parents=True)
        (tmp_path / name / "meprop_bench/__init__.py").write_text(lines)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    nodes = [
        add(),
        *(add(env_vars={"PYTHONPATH": str(tmp_path / name)}) for name in ("lacks", "older")),
    ]
    words = ["--task", "digits", "--method", "unified", "--k", "0.2", "--epochs", "1", "--seeds", "2", "--margin", "50"]
    code = cli.run(["parity", *words, "--out", "r", "--ray", cluster.address])
    err = capsys.readouterr().err
    assert code in (ExitCode.OK, ExitCode.INCONCLUSIVE), err
    assert "cannot be imported there (ModuleNotFoundError: No module named 'meprop_bench'): install it" in err
    assert "it has meprop-bench 0.0.1, and here is" in err
    (folder,) = Path("r").iterdir()
    assert "_ray_parity-" in folder.name
    store = Store.open(folder)
    (row,) = store.rows()
    assert row.parity is not None
    assert len(row.parity.seeds) == 2
    assert "OMP_NUM_THREADS" not in store.header["environments"][row.environment_id]["variables"]
    assert not (folder / "checkpoints").exists()
    for node in nodes[1:]:
        cluster.remove_node(node)
    assert cli.run(["speedup", "--threads", "3", "--out", "s", "--ray", cluster.address]) == ExitCode.USAGE
    assert "no node of the cluster has 3 cores" in capsys.readouterr().err
    assert not Path("s").exists()
    cluster.remove_node(nodes[0])
    assert cli.run(["speedup", "--out", "s", "--ray", cluster.address]) == ExitCode.USAGE
    assert "no node of the cluster can measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("icml:3", "no Ray cluster at icml:3"),
        ("nowhere", "an address is HOST:PORT, as `ray start` prints it"),
        ("ray://127.0.0.1:10001", "a client of Ray cannot hold nodes"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(
    address: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["speedup", "--out", str(tmp_path), "--ray", address]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1 or "accuracies are not compared" in err
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_nobody_listens_at_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"no Ray cluster at 127.0.0.1:{port} .*start one by `ray start --head`"):
        connected(f"127.0.0.1:{port}", print).__enter__()
