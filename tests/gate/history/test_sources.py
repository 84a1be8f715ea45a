"""Each kind of folder that may be a history, read and judged from end to end."""

import json
import math
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from meprop_bench.errors import ExitCode
from meprop_bench.gate.history import judge_run
from meprop_bench.gate.settings import Settings
from meprop_bench.report.asv import export
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store

RUNS = 12
CASES = 3
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def noise(number, place):
    return 1 + 0.002 * ((number * 7 + place * 3) % 11)


def failed(outcome):
    return sorted(f"{one.case}/{one.figure}" for one in outcome.judgements if one.verdict == "fail")


def own_results(root, number, slow=1.0, *, revision=None, name="sweep"):
    """Write a results folder of ours: three cases on two processes of three pairs each; one of them is `slow`."""
    rows = []
    for place in range(CASES):
        factor = (slow if place == 1 else 1.0) * noise(number, place)
        values = [1e-3 * factor * share for share in (1.0, 1.01, 1.02, 1.0, 1.01, 1.02)]
        base = {"workload": "linear", "method": "unified", "kernel": "native", "kernel_requested": "auto", "k": 8}
        base |= {"batch": 10 * (1 + place), "in_features": 784, "out_features": 500, "device": "cpu", "threads": 2}
        base |= {"dtype": "float32", "gradient": "dense", "allocator": "kept", "phase": "backward", "check": "passed"}
        base |= {"values_s": values, "baseline_values_s": [4e-3] * 6, "run_lengths": [3, 3], "loops": 5}
        base |= {"median_s": 1.01e-3 * factor, "baseline_median_s": 4e-3, "speedup": 4 / 1.01 / factor, "flops": 2e6}
        rows.append(Row.of(case_id=f"{place:012x}", environment_id="e", **base))
    environment = {"cpu_model": "AMD EPYC", "torch": "2.13.0", "python": "CPython 3.11.7", "memory_gib": 8.0}
    environment |= {"cpu_logical_cores": 2, "architecture": "x86_64", "os": "Linux 1", "git_revision": revision}
    now = BEGUN + timedelta(days=number)
    with Store.create(root, name, "box", "meprop-bench speedup", {"name": name}, now=now) as store:
        store.append(rows)
        store.write_environment({"e": {key: value for key, value in environment.items() if value is not None}})
        return store.folder


def pytest_storage(folder, number, slow=1.0):
    machine = {"machine": "x86_64", "python_version": "3.12", "cpu": {"brand_raw": "c"}, "node": "n", "system": "Linux"}
    (folder := folder / "Linux-CPython-3.12-64bit").mkdir(parents=True, exist_ok=True)
    benchmarks = []
    for place in range(15):
        seconds = 1e-3 * (slow if place == 3 else 1.0) * noise(number, place)
        stats = {"rounds": 9, "median": seconds, "q1": seconds * 0.999, "q3": seconds * 1.001, "iterations": 1}
        benchmarks.append({"name": f"test_{place}", "fullname": f"t.py::test_{place}", "stats": stats})
    record = {"machine_info": machine, "commit_info": {"id": f"c{number}"}, "benchmarks": benchmarks}
    record |= {"datetime": f"2026-01-{number + 1:02}T03:04:05.123456", "version": "5.3.1"}
    (path := folder / f"{number + 1:04}_run.json").write_text(json.dumps(record))
    return path


def test_results_folders_of_ours_are_a_history(tmp_path):
    history = tmp_path / "reports"
    for number in range(RUNS):
        own_results(history, number, revision=f"{number:012x}")
    quiet = judge_run(history, own_results(tmp_path / "after", RUNS, revision="another"), Settings())
    assert (quiet.exit_code, quiet.base) == (ExitCode.OK, f"the last {RUNS} of {RUNS} runs in reports")
    slow = judge_run(history, first := own_results(tmp_path / "slow", RUNS, 1.3), Settings())
    assert slow.exit_code == ExitCode.REGRESSION
    case = "linear 784→500 B=20 unified k=8 cpu:2"
    assert failed(slow) == [f"{case}/backward", f"{case}/sparse/dense backward"]
    again = own_results(tmp_path / "again", RUNS + 1, 1.3)
    assert failed(judge_run(history, first, Settings(), confirm=True, again=[again])) == failed(slow)


@pytest.fixture
def repository(tmp_path):
    (path := tmp_path / "checkout").mkdir()
    subprocess.run(["git", "-C", path, "init", "-q"], check=True)
    return path


def commit(repository, number):
    """Make a commit of a day of its own; return its hash."""
    day = (BEGUN + timedelta(days=number)).isoformat()
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    made = ["git", "-C", repository, *who, "commit", "-q", "--allow-empty", "-m", str(number), "--date", day]
    subprocess.run(made, check=True, env={"GIT_COMMITTER_DATE": day, "PATH": "/usr/bin:/bin:/usr/local/bin"})
    got = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return got.stdout.strip()


def test_results_of_ours_in_the_format_of_asv_are_a_history(tmp_path, repository):
    results = tmp_path / "asv" / "results"

    def exported(number, slow=1.0):
        folder = own_results(tmp_path / "stored", number, slow, revision=commit(repository, number)[:12])
        (path,) = export([folder], results, repository=repository).files
        return path

    for number in range(RUNS):
        exported(number)
    quiet = judge_run(tmp_path / "asv", exported(RUNS), Settings())
    assert (quiet.exit_code, quiet.base) == (ExitCode.OK, f"the last {RUNS} of {RUNS} runs in asv")
    slow = judge_run(tmp_path / "asv", exported(RUNS + 1, 1.3), Settings())
    assert slow.exit_code == ExitCode.REGRESSION
    names = failed(slow)
    assert len(names) == 2
    assert all("track_ratio" in name or "time" in name for name in names)
    assert all(math.isclose(one.change.estimate, 1.3, rel_tol=0.03) for one in slow.judgements if one.verdict == "fail")


def test_the_storage_of_pytest_benchmark_is_a_history(tmp_path):
    history = tmp_path / ".benchmarks"
    for number in range(RUNS):
        pytest_storage(history, number)
    quiet = judge_run(history, pytest_storage(history, RUNS), Settings())
    assert (quiet.exit_code, quiet.base) == (ExitCode.OK, f"the last {RUNS} of {RUNS} runs in .benchmarks")
    slow = judge_run(history, first := pytest_storage(history, RUNS, 1.3), Settings())
    assert failed(slow) == ["t.py::test_3/time"]
    again = pytest_storage(tmp_path / "again", RUNS + 1, 1.3)
    assert failed(judge_run(history, first, Settings(), confirm=True, again=[again])) == ["t.py::test_3/time"]
