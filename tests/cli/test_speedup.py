"""The verb as a user runs it, in processes of its own; tiny shapes, as every process imports torch."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meprop_bench import cli
from meprop_bench.cli.speedup import exit_code_of
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure import machine, procfs
from meprop_bench.progress import outcome, state_before
from meprop_bench.report.reliability import with_disagreements
from meprop_bench.results.schema import Parity, Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.feasible import check_feasible
from meprop_bench.sweep.plan import plan_axes, plan_of
from meprop_bench.tasks.build import source_of
from meprop_bench.workloads.case import Case

pytest.importorskip("sklearn", reason="the smoke preset trains on the digits")

Run = Callable[..., "subprocess.CompletedProcess[str]"]
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def go(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "meprop_bench", "speedup", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_ENVIRONMENT, check=False)

    return go


def _only_folder(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


def test_smoke_from_the_command_to_the_report(run: Run, tmp_path: Path) -> None:
    found = run("--preset", "smoke", "--threads", "1", "--format", "json")
    # Accuracy after 20 steps of 2 seeds can only be inconclusive, or a failure.
    assert found.returncode in (ExitCode.OK, ExitCode.REGRESSION), found.stderr
    printed = json.loads(found.stdout)
    rows = [Row.from_json(row) for row in printed["rows"]]
    assert [row.phase for row in rows] == ["forward", "backward"] * 2 + [
        "forward", "backward", "update", "step", "linear-backward"
    ]  # fmt: skip
    assert all(row.passed and row.measurement is not None and row.measurement.processes == 2 for row in rows)
    assert {row.allocator for row in rows} <= {"kept", "default"}
    assert all(row.sparse.floor_s and row.sparse.efficiency for row in rows)
    assert [row.phase for row in rows if row.parity] == ["step"]
    assert "[3/3]" in found.stderr
    folder = _only_folder(tmp_path / "reports")
    assert folder.name.endswith("_smoke")
    assert {"README.md", "measurements.jsonl", "environment.json", "index.html"} <= {p.name for p in folder.iterdir()}
    assert "meprop-bench speedup --preset smoke --threads 1 --format json" in (folder / "README.md").read_text()
    stored = Store.open(folder).rows()
    assert all(row.baseline_disagreement is None for row in stored)
    assert with_disagreements(stored) == rows  # as a busy machine has two cases of the same dense work differ


def _preset(folder: Path, sweeps: str, utilization: str = "false", **settings: object) -> str:
    path = folder / "own.toml"
    settings["utilization"] = utilization  # seconds for each case
    lines = [f"{name} = {value}" for name, value in settings.items()]
    head = ['name = "own"', 'analysis = "a test"', 'checks = ["gradients"]', "processes = 1", "keep-processes = true"]
    path.write_text("\n".join([*head, *lines, sweeps]))
    return str(path)


@pytest.mark.parametrize(
    ("threads", "reason"), [("1", "the kernel does not show which cores"), ("2", "physical cores")]
)
def test_a_process_that_cannot_be_bound_is_one_line_before_anything_is_measured(
    threads: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(procfs, "SYS", tmp_path / "sys")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    if threads == "2":  # two halves of one core
        for core in (0, 1):
            (tmp_path / f"sys/devices/system/cpu/cpu{core}/topology").mkdir(parents=True)
            (tmp_path / f"sys/devices/system/cpu/cpu{core}/topology/core_cpus_list").write_text("0-1")
    assert cli.run(["speedup", "--pin", "--threads", threads]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert said.startswith("meprop-bench: error: --pin: ")
    assert reason in said
    assert not (tmp_path / "reports").exists()


_TINY = "batch = 4\nhidden = 8\nthreads = 1"


def test_an_interrupt_keeps_what_is_done_and_resume_goes_on(run: Run, tmp_path: Path) -> None:
    sweep = f'[[sweep]]\nk = [2, 3, 4]\nmethod = "unified"\n{_TINY}'
    arguments = ["--preset", _preset(tmp_path, sweep, budget=2, target=1e-9)]
    log = tmp_path / "log"
    # A test run in the background of a shell ignores interrupts, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as err:
        command = [sys.executable, "-m", "meprop_bench", "speedup", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=err, text=True
        )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while "[1/3]" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, log.read_text()
    assert "interrupted after 1 of 3 cases; continue with the same command and --resume" in log.read_text()
    assert "unified" in out
    folder = _only_folder(tmp_path / "reports")
    done = Store.open(folder).rows()
    assert {row.k for row in done} == {2}
    found = run(*arguments, "--resume", "--format", "csv")
    assert found.returncode == ExitCode.OK, found.stderr
    assert _only_folder(tmp_path / "reports") == folder
    rows = Store.open(folder).rows()
    assert rows[: len(done)] == done
    assert {row.k for row in rows} == {2, 3, 4}
    assert [row["k"] for row in csv.DictReader(io.StringIO(found.stdout))] == [str(row.k) for row in rows]


def test_a_job_that_is_ended_reports_what_is_done_and_leaves_nobody_behind(tmp_path: Path) -> None:
    """By SIGTERM, as a batch system does; a closed terminal is tried in its own test."""
    sweep = f'[[sweep]]\nk = [2, 3]\nmethod = "unified"\n{_TINY}'
    log = tmp_path / "log"
    with log.open("w") as err:
        command = [sys.executable, "-m", "meprop_bench", "speedup", "--preset", _preset(tmp_path, sweep, budget=60)]
        command += ["--target", "1e-9", "--out", "reports"]
        process = subprocess.Popen(command, cwd=tmp_path, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=err)
    _wait(lambda: _children(process.pid))
    children = _children(process.pid)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the second changes nothing
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, log.read_text()
    assert "interrupted after 0 of 2 cases; continue with the same command and --resume" in log.read_text()
    assert "Traceback" not in log.read_text()
    _wait(lambda: not any(_is_alive(child) for child in children))
    Store.open(_only_folder(tmp_path / "reports"), write=True).close()  # nobody holds it


_TAKES_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="terminals of POSIX")
def test_a_closed_terminal_ends_it_as_ctrl_c_does(tmp_path: Path) -> None:
    sweep = f'[[sweep]]\nk = [2, 3]\nmethod = "unified"\n{_TINY}'
    command = [sys.executable, "-c", _TAKES_TERMINAL, sys.executable, "-m", "meprop_bench", "speedup"]
    command += ["--preset", _preset(tmp_path, sweep, budget=60), "--target", "1e-9", "--out", "reports"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command, cwd=tmp_path, env=_ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    _wait(lambda: _children(process.pid))
    children = _children(process.pid)
    os.close(ours)
    assert process.wait(60) == ExitCode.INTERRUPTED
    _wait(lambda: not any(_is_alive(child) for child in children))
    Store.open(_only_folder(tmp_path / "reports"), write=True).close()


def _wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    import psutil

    found = psutil.Process(pid).children()
    return [child.pid for child in found if "meprop_bench.sweep.worker" in " ".join(child.cmdline())]


def _is_alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_case_that_cannot_be_measured_costs_itself_alone(run: Run, tmp_path: Path) -> None:
    """One needs far more memory than any machine has; one asks a kernel for what it cannot do; one is sound."""
    sweeps = f"""
[[sweep]]
k = 2
method = "unified"
in-features = {2**40}
{_TINY}
[[sweep]]
k = 2
method = ["meprop", "unified"]
kernel = "gather"
{_TINY}
"""
    found = run("--preset", _preset(tmp_path, sweeps, utilization="true", budget=0.1), "--format", "json")
    assert found.returncode == ExitCode.OK, found.stderr
    exhausted, unable, *sound = (Row.from_json(row) for row in json.loads(found.stdout)["rows"])
    assert exhausted.error is not None
    assert exhausted.error.startswith("out of memory: ")
    assert unable.error is not None
    assert "gather" in unable.error
    assert [(row.method, row.passed) for row in sound] == [("unified", True)] * 2
    assert (exhausted.sparse.utilization, unable.sparse.utilization) == (None, None)
    watched = {row.phase: row.sparse.utilization for row in sound}
    assert watched["forward"] is None
    assert watched["backward"] is not None
    assert watched["backward"].seconds >= 2
    assert (watched["backward"].cpu_utilization or 0) > 0
    assert sound[1].unavailable["gpu_utilization"] == "the device is the CPU"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "0"], "k must be an integer of at least 1 or a ratio in (0, 1], not 0"),
        (["--k", "abc"], "k must be an integer"),
        (["--method", "unifid"], "did you mean 'unified'"),
        (["--slowdown", "0.03"], "slowdown 0.03 is for --method dense"),
        (["--caches", "hot"], "unknown caches 'hot'"),
        (["--gradient", "row"], "did you mean 'rows'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "cuda:63"], "the device cuda:63 is not there"),
        (["--threads", "4096"], "4096 threads on"),
        (["--workload", "cnn"], "unknown workload 'cnn'"),
        (["--kernel", "gahter"], "did you mean 'gather'"),
        (["--preset", "quik"], "did you mean 'quick'"),
        (["--target", "2"], "target must be between 0 and 1"),
        (["--budget", "0"], "budget must be more than 0"),
        (["--deadline", "0"], "a deadline must be more than 0 seconds, and finite, not 0"),
        (["--deadline", "nan"], "a deadline must be more than 0 seconds, and finite, not nan"),
        (["--dtype", "tf32"], "use --device cuda, or --dtype float32"),
        (["--processes", "0"], "processes must be an integer from 1"),
        (["--seed", "-1"], "seed must be"),
        (["--seed", "1,x"], "seed must be an integer of at least 0, not 'x'"),
        (["--data", "digits"], "the axis 'data' is for the workload mlp"),
        (["--workload", "mlp", "--gradient", "rows"], "adam takes no gradient as rows"),
    ],
)
def test_a_wrong_wish_is_one_line_and_exit_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["speedup", "--out", str(tmp_path / "out"), *arguments]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("meprop-bench: error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_spoils_the_figures_is_said_before_they_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "state", lambda threads: {"threads": threads, "warnings": ["too hot", "too busy"]})
    said: list[str] = []
    assert state_before(3, said.append)["threads"] == 3
    assert said == ["warning: too hot", "warning: too busy"]


def test_an_unwritable_folder_is_found_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.run(["speedup", "--out", str(tmp_path / "file" / "sub")]) == ExitCode.USAGE
    assert "cannot write" in capsys.readouterr().err


def test_damaged_data_are_found_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "mnist" / f"{name}-ubyte.gz").write_bytes(b"\x1f\x8b cut off")
    arguments = ["speedup", "--workload", "mlp", "--out", str(tmp_path / "out")]
    assert cli.run(arguments) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert "is corrupt" in err
    assert "meprop-bench data fetch mnist" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_data_that_are_not_here_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    case = Case(
        workload="mlp", data="mnist", method="meprop", k=4, batch=8, in_features=784, out_features=16, threads=1
    )
    with pytest.raises(UserError, match=r"^mnist is not here: no train-images\S+ in \S+; run `meprop-bench data fetch"):
        check_feasible([case])


def test_another_set_in_the_files_of_mnist_is_no_damage(other_mnist: Path) -> None:
    case = Case(
        workload="mlp", data="mnist", method="meprop", k=4, batch=8, in_features=784, out_features=16, threads=1
    )
    check_feasible([case])
    images = other_mnist / "mnist/t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"mnist is corrupt: cannot read \S+t10k-images-idx3-ubyte: it is truncated"):
        check_feasible([case])


def test_what_a_deadline_leaves_out_is_named_and_nothing_measured_is_exit_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--method", "unified", "--k", "2,3", "--batch", "4", "--hidden", "8", "--threads", "1"]
    arguments = ["speedup", *tiny, "--deadline", "0.000001", "--out", str(tmp_path)]
    assert cli.run(arguments) == ExitCode.NOTHING_MEASURED
    err = capsys.readouterr().err
    assert "the deadline left no time for 2 cases; continue with the same command and --resume" in err
    assert "left out: linear 8→8 B=4 unified k=2 cpu:1\nleft out: linear 8→8 B=4 unified k=3 cpu:1\n" in err
    with Store.open(_only_folder(tmp_path)) as store:
        assert not store.rows()


def _row(**changes: Any) -> Row:
    common: dict[str, Any] = {
        "case_id": "c", "workload": "mlp", "method": "unified", "kernel": "gather", "kernel_requested": "auto", "k": 8,
        "batch": 50, "in_features": 64, "out_features": 500, "device": "cpu", "threads": 1, "dtype": "float32",
        "gradient": "dense", "allocator": "kept", "phase": "step", "environment_id": "e", "check": "passed",
        "speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6,
    }  # fmt: skip
    return Row.of(**{**common, **changes})


def _parity(verdict: Any) -> Parity:
    return Parity(
        task="digits", seeds=(1,), steps=9, baseline=(95.0,), method=(94.0,), difference=-1.0, low=None, high=None,
        margin=0.5, verdict=verdict,
    )  # fmt: skip


_NO_SPEEDUP = {"speedup": None, "speedup_low": None, "speedup_high": None}


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([_row()], ExitCode.OK),
        ([], ExitCode.NOTHING_MEASURED),
        ([_row(error="died", check=None, **_NO_SPEEDUP)], ExitCode.NOTHING_MEASURED),
        ([_row(), _row(error="died", check=None, **_NO_SPEEDUP)], ExitCode.OK),
        ([_row(), _row(check="dw is off", **_NO_SPEEDUP)], ExitCode.REGRESSION),
        ([_row(check="dw is off", **_NO_SPEEDUP)], ExitCode.REGRESSION),
        ([_row(parity=_parity("inconclusive"))], ExitCode.OK),
        ([_row(parity=_parity("fail"))], ExitCode.REGRESSION),
        ([_row(converged=False)], ExitCode.OK),
    ],
)
def test_exit_codes(rows: list[Row], code: ExitCode) -> None:
    assert exit_code_of(rows) == code


def test_a_case_in_one_line() -> None:
    assert outcome((_row(parity=_parity("fail")),)) == "step 1.5x ±6.7%, accuracy -1.00 points, fail"
    assert outcome((_row(speedup_low=0.01, speedup_high=320.0),)) == "step cannot tell"
    assert outcome((_row(error="died", check=None, phase=None, **_NO_SPEEDUP),)) == "failed: died"


def test_a_bundle_is_measured_again_and_compared(run: Run, tmp_path: Path) -> None:
    sweep = f'[[sweep]]\nk = 3\nmethod = "unified"\n{_TINY}'
    first = run("--preset", _preset(tmp_path, sweep, budget=0.2, target=0.5), "--no-utilization", "--out", "first")
    assert first.returncode == ExitCode.OK, first.stderr
    folder = _only_folder(tmp_path / "first")
    written = subprocess.run(
        [sys.executable, "-m", "meprop_bench", "report", str(folder), "--bundle", "out.zip"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert written.returncode == ExitCode.OK, written.stderr
    again = run("--replay", "out.zip", "--format", "json", "--out", "second")
    assert again.returncode == ExitCode.OK, again.stderr
    compared = json.loads(again.stdout)
    assert [row["phase"] for row in compared["rows"]] == ["forward", "backward"]
    assert all(row["time"]["ratio"] for row in compared["rows"])
    before, after = Store.open(folder), Store.open(_only_folder(tmp_path / "second"))
    assert after.header["plan"] == before.header["plan"]
    assert [row.case_id for row in after.rows()] == [row.case_id for row in before.rows()]
    assert run("--replay", "out.zip", "--k", "8").stderr.count("leave out --k") == 1


@pytest.mark.parametrize(
    ("change", "reason", "code"),
    [
        ({"target": 2.0}, "target", ExitCode.USAGE),
        ({"unheard": 1}, "'unheard', which this version does not know", ExitCode.USAGE),
        ({"cases": [{"k": 3, "unheard": 1}]}, "'unheard', which this version does not know", ExitCode.USAGE),
        ({"cases": [{"workload": "model", "model": "evil.py:build"}]}, "add --model evil.py:build", ExitCode.USAGE),
        ({"cases": [{"workload": "model", "model": "os:getcwd"}]}, "add --model os:getcwd", ExitCode.USAGE),
        ({"processes": None}, "processes", ExitCode.USAGE),
    ],
)
def test_a_plan_that_cannot_be_measured_again_is_one_line(change: Any, reason: str, code: int) -> None:
    record = {**one_plan(), **change}
    with pytest.raises(UserError, match=re.escape(reason)) as raised:
        plan_of(record)
    assert raised.value.exit_code == code


def one_plan() -> dict[str, Any]:
    return json.loads(json.dumps(plan_axes({"k": [3], "threads": [1]}).to_json()))


def test_a_plan_is_what_it_was() -> None:
    assert plan_of(one_plan()).to_json() == plan_axes({"k": [3], "threads": [1]}).to_json()
    with pytest.raises(UserError, match="not one of speedup"):
        plan_of({"cases": []})


def test_a_model_is_run_again_only_as_the_file_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def build(): ...\n")
    case = {"workload": "model", "model": "mine.py:build", "method": "unified", "threads": 1}
    record = {**one_plan(), "cases": [case], "sources": {"mine.py:build": source_of("mine.py:build")}}
    assert plan_of(record, ["mine.py:build"]).cases[0].model == "mine.py:build"
    Path("mine.py").write_text("def build(): return 1\n")
    for damaged in (record, {**record, "sources": {}}, {**record, "sources": {"mine.py:build": None}}):
        with pytest.raises(UserError, match="not the one that was measured") as raised:
            plan_of(damaged, ["mine.py:build"])
        assert raised.value.exit_code == ExitCode.NOT_COMPARABLE
