"""The report of a GPU, without one: what it refuses, the preset it runs, and once all of it on the CPU."""

from __future__ import annotations

import signal
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu_report
from meprop_bench.paper.experiment import experiment
from meprop_bench.paper.published import table
from meprop_bench.results.store import Store
from meprop_bench.sweep.plan import load_preset, plan_preset


def test_the_preset_has_every_case_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meprop_bench.sweep.plan._which_data", lambda *_: "mnist")
    plan = plan_preset(load_preset("gpu"))
    for name in gpu_report._TABLES:
        assert set(experiment(table(name), "short", device="cuda").distinct_cases) <= set(plan.cases)
    assert {case.device for case in plan.cases} == {"cuda:0"}
    assert 4 <= len(plan.watched) <= 8  # 6 s for each
    assert all((gpu_report._ROOT / place).is_dir() for place in gpu_report._TESTED)
    assert all((gpu_report._ROOT / place).is_file() for place in gpu_report._KERNEL_TESTS)


def test_what_no_gpu_has_run_yet_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of 320 s measured 28 cases."""
    monkeypatch.setattr("meprop_bench.sweep.plan._which_data", lambda *_: "mnist")
    first = plan_preset(load_preset("gpu"), {}).cases[:20]
    kernels = {(case.workload, case.out_features, case.kernel) for case in first if case.gradient == "dense"}
    assert {
        (*shape, kernel)
        for shape in (("linear", 8192), ("linear", 2048), ("mlp", 8192))
        for kernel in ("triton_kept", "triton_gather")
    } <= kernels
    steps = {(case.out_features, case.optimizer) for case in first if case.gradient == "rows"}
    assert {(8192, "adagrad"), (8192, "sgd"), (8192, "rowadam"), (500, "adagrad"), (500, "rowadam")} <= steps


@pytest.mark.parametrize(
    ("code", "ended", "log"),
    [
        ("print('at /home/me/secret/file'); sys.exit(3)", 3, "at …/file\n"),
        ("time.sleep(60)", -signal.SIGINT, "KeyboardInterrupt"),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", -signal.SIGKILL, ""),
    ],
)
def test_a_part_that_is_late_is_interrupted_and_then_killed(
    code: str, ended: int, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "_GOODBYE_S", 2.0)
    command = [sys.executable, "-c", f"import signal, sys, time\n{code}"]
    assert gpu_report._run(command, tmp_path / "log", 2.0) == ended
    assert log in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--device", "cuda:63"], 5, "the device cuda:63 is not there: torch finds"),
        (["--device", "gpu"], 2, "unknown device 'gpu'"),
        (["--preset", "gppu"], 2, "did you mean 'gpu'"),
        (["--seconds", "0"], 2, "a deadline must be more than 0 seconds"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main(["--out", str(tmp_path / "out"), *arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("gpu-report: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_all_of_it_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    preset, out, archive = tmp_path / "tiny.toml", tmp_path / "out", tmp_path / "all.tar.gz"
    sweep = '[[sweep]]\nmethod = "unified"\nk = 2\nbatch = 4\nhidden = 32\nthreads = 1\n'
    settings = 'name = "tiny"\nanalysis = "a test"\nchecks = ["gradients"]\nbudget = 1\ntarget = 1e-9\nprocesses = 1\n'
    preset.write_text(f"{settings}utilization = false\n{sweep}")
    arguments = ["--device", "cpu", "--preset", str(preset), "--seconds", "90", "--out", str(out)]
    assert gpu_report.main([*arguments, "--archive", str(archive)]) == 0
    assert "| [sweep](sweep.log) | 0 |" in (out / "README.md").read_text()
    (results,) = (path.parent for path in out.glob("*/measurements.jsonl"))
    assert all(row.passed for row in Store.open(results).rows())
    assert str(tmp_path) not in (out / "sweep.log").read_text()
    with tarfile.open(archive) as packed:
        assert {"out/README.md", f"out/{results.name}/measurements.jsonl"} <= set(packed.getnames())
    assert gpu_report.main(arguments) == 2  # never over another
