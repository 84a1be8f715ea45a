"""The report of a GPU, without one: its parts on a clock of paper, its page from made-up rows, and once all of it on
the CPU."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report import __main__ as gpu_report
from benchmarks.gpu_report import page, parts
from benchmarks.gpu_report.parts import Ended, Outcome, Part, parts_of, run_all, run_process
from meprop_bench.paper.experiment import experiment
from meprop_bench.paper.published import table
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.plan import load_preset, plan_preset
from meprop_bench.workloads.case import Case


class _Machine:
    """Runs commands that take the seconds a test gives them, and notes how they were asked to."""

    def __init__(self, **takes: float) -> None:
        self.seconds, self.takes = 0.0, takes
        self.asked: dict[str, tuple[str, float]] = {}

    def __call__(self, command: Sequence[str], log: Path, limit_s: float) -> Ended:
        name = log.stem
        took, code = self.takes[name], 0
        self.asked[name] = (command[-1], limit_s)
        log.write_text("3 passed in 2 s\n")
        self.seconds += min(took, limit_s)
        if took > limit_s:
            code = 130
        return Ended(code, took > limit_s)


def _part(name: str, weight: float, page_s: float = 0.0) -> Part:
    return Part(name, weight, lambda seconds: ["run", f"{seconds:.0f}"], page_s)


def _run(machine: _Machine, folder: Path, seconds: float, *of: Part) -> list[Outcome]:
    return run_all(of, folder, Deadline(seconds, lambda: machine.seconds), run=machine)


def test_each_part_has_its_share_of_the_time_that_is_left(tmp_path: Path) -> None:
    machine = _Machine(a=10.0, b=75.0, c=25.0)
    found = _run(machine, tmp_path, 100.0, _part("a", 1), _part("b", 2, page_s=5.0), _part("c", 1))
    # a leaves 15 of its 25 s to the others; b takes 15 s more than its share, and c has what is left.
    assert [outcome.share_s for outcome in found] == pytest.approx([25.0, 60.0, 20.0])
    assert [outcome.took_s for outcome in found] == pytest.approx([10.0, 70.0, 20.0], abs=6.0)
    assert machine.asked["b"] == ("55", pytest.approx(70.0))


def test_a_part_that_takes_too_long_is_interrupted_and_the_next_one_has_its_turn(tmp_path: Path) -> None:
    machine = _Machine(a=1e9, b=5.0)
    found = _run(machine, tmp_path, 60.0, _part("a", 1), _part("b", 1))
    assert [(outcome.code, outcome.took_s) for outcome in found] == [(130, 40.0), (0, 5.0)]
    assert found[0].why == "it was interrupted 10 s after its share of the time"


def test_a_part_without_time_for_its_page_is_not_begun(tmp_path: Path) -> None:
    machine = _Machine(a=1e9, b=5.0)
    found = _run(machine, tmp_path, 20.0, _part("a", 9), _part("b", 1, page_s=7.5))
    assert found[1].code is None
    assert "too little" in found[1].why
    assert list(machine.asked) == ["a"]


def test_a_part_that_is_not_to_be_had_leaves_its_time_to_the_others(tmp_path: Path) -> None:
    machine = _Machine(b=5.0)
    found = _run(machine, tmp_path, 20.0, Part("a", 9, None, reason="there is none"), _part("b", 1))
    assert [(outcome.code, outcome.why) for outcome in found] == [(None, "there is none"), (0, "")]
    assert found[1].share_s == 20.0


def test_an_interrupt_by_the_user_ends_the_report(tmp_path: Path) -> None:
    def interrupted(*_: Any) -> Ended:
        return Ended(130)

    found = run_all([_part("a", 1), _part("b", 1)], tmp_path, Deadline(20.0), run=interrupted)
    assert [outcome.part.name for outcome in found] == ["a"]


def test_the_commands_run_in_place_and_the_tables_are_made_of_the_sweep(tmp_path: Path) -> None:
    tests, kernels, sweep, *tables = parts_of(tmp_path, "cuda", preset="gpu", latest=lambda _: tmp_path / "sweep-1")
    assert tests.command is not None
    assert tests.command(9.0)[-6:-4] == ["-m", "cuda"]
    assert kernels.command is not None
    assert kernels.command(9.0)[-1] == "tests/ops/test_triton.py"
    assert all((parts.ROOT / place).exists() for place in (*parts._TESTED, *parts._KERNELS))
    assert sweep.command is not None
    assert " ".join(sweep.command(99.6)[1:]) == (
        f"-m meprop_bench speedup --preset gpu --out {tmp_path} --device cuda --deadline 100"
    )
    assert [table.name for table in tables] == ["icml-7", "icml-8", "tkde-7a", "tkde-7b"]
    assert tables[0].command is not None
    assert " ".join(tables[0].command(8.0)[1:]) == (
        f"-m meprop_bench paper run icml:7 --scale short --out {tmp_path} --device cuda"
        f" --reuse {tmp_path / 'sweep-1'} --deadline 8"
    )
    no_tests, no_kernels, *_ = parts_of(tmp_path, "cpu", preset="targets", latest=lambda _: None)
    assert no_tests.command is no_kernels.command is None


def test_the_preset_has_every_target_first_and_every_case_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meprop_bench.sweep.plan._which_data", lambda _: "mnist")
    plan = plan_preset(load_preset("gpu"))
    cases = plan.cases
    for target in page.TARGETS:
        places = [
            place
            for place, case in enumerate(cases)
            if (case.method, case.dtype, case.gradient, case.k) == target[:4]
            and (case.batch, case.in_features, case.out_features) == (1024, 8192, 8192)
        ]
        assert places
        assert min(places) < 36
    for name in parts.TABLES:
        assert set(experiment(table(name), "short", device="cuda").distinct_cases) <= set(cases)
    assert {case.device for case in cases} == {"cuda:0"}
    assert {case.dtype for case in cases} == {"float32", "tf32", "bfloat16", "float16"}
    assert {case.k for case in cases} == {8, 16, 32, 64, 128, 256, 512}
    assert {512, 1024, 2048, 4096, 8192, 16384} == {case.out_features for case in cases}
    assert {32, 8192} <= {case.batch for case in cases}
    assert 4 <= len(plan.watched) <= 8  # 6 s for each


_PRINTS = "print('at /home/me/secret/file', flush=True)"


def test_a_command_s_output_goes_to_its_log_without_paths(tmp_path: Path) -> None:
    log, echo = tmp_path / "log", io.StringIO()
    code = f"import sys, meprop_bench; {_PRINTS}; sys.exit(3)"
    assert run_process([sys.executable, "-I", "-c", "import sys; sys.exit(3)"], log, 60.0, echo=echo) == Ended(3)
    assert run_process([sys.executable, "-c", code], log, 60.0, echo=echo) == Ended(3)
    assert log.read_text() == "at …/file\n"
    assert echo.getvalue() == "at /home/me/secret/file\n"


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, BaseException], tuple[Ended, str]]:
    """Run code until it says "ready", let the waiting for it end as a test says; how it ended, and its log."""
    log, wait, calls = tmp_path / "log", subprocess.Popen.wait, []

    def go(code: str, reason: BaseException) -> tuple[Ended, str]:
        def first_time(self: Any, timeout: float | None = None) -> int:
            calls.append(timeout)
            if len(calls) > 1:
                return wait(self, timeout)
            while "ready" not in log.read_text():
                time.sleep(0.01)
            raise reason

        monkeypatch.setattr(subprocess.Popen, "wait", first_time)
        monkeypatch.setattr(parts, "_GOODBYE_S", 1.0)
        code = f"import signal, sys, time\n{code}\nprint('ready', flush=True)\nwhile 1: time.sleep(0.1)"
        ended = run_process([sys.executable, "-c", code], log, 60.0, echo=io.StringIO())
        assert calls[0] == 60.0
        return ended, log.read_text()

    return go


_LATE = subprocess.TimeoutExpired("run", 60.0)
_OBEYS = "signal.signal(signal.SIGINT, lambda *_: (print('page'), sys.exit(130)))"
_DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN)"

_Stopped = Callable[[str, BaseException], tuple[Ended, str]]


def test_a_command_that_takes_too_long_is_interrupted_and_writes_its_page(stopped: _Stopped) -> None:
    assert stopped(_OBEYS, _LATE) == (Ended(130, True), "ready\npage\n")


def test_a_command_that_does_not_heed_it_is_killed(stopped: _Stopped) -> None:
    assert stopped(_DEAF, _LATE) == (Ended(-9, True), "ready\n")


def test_an_interrupt_reaches_the_command(stopped: _Stopped) -> None:
    assert stopped(_OBEYS, KeyboardInterrupt()) == (Ended(130), "ready\npage\n")


def _row(case: Case, **changes: Any) -> Row:
    figures = {
        "phase": "backward", "kernel": "triton", "check": "passed", "median_s": 5e-5, "baseline_median_s": 5.5e-3,
        "speedup": 110.0, "speedup_low": 108.0, "speedup_high": 112.0, "floor_s": 2.5e-5, "efficiency": 0.5,
        "converged": True,
    }  # fmt: skip
    return Row(
        case_id=case.case_id, workload=case.workload, method=case.method, kernel_requested=case.kernel, k=case.k,
        batch=case.batch, in_features=case.in_features, out_features=case.out_features, device=case.device,
        threads=case.threads, dtype=case.dtype, gradient=case.gradient, allocator=case.allocator, launch=case.launch,
        environment_id="e", **{**figures, **changes},
    )  # fmt: skip


def _layer(**axes: Any) -> Case:
    usual = {"method": "unified", "batch": 1024, "in_features": 8192, "out_features": 8192, "device": "cuda"}
    return Case(**{**usual, "gradient": "rows", "launch": "graph", **axes})


_DIED = {"phase": None, "kernel": None, "check": None, "error": "out of memory: CUDA", "speedup": None}
_DIED |= dict.fromkeys(("median_s", "baseline_median_s", "speedup_low", "speedup_high", "floor_s", "efficiency"))


def _sweep(root: Path, *, codes: Sequence[dict[str, Any]] = ({}, {}, _DIED), page: bool = True) -> Path:
    cases = [_layer(k=8), _layer(k=512), _layer(k=32), _layer(k=128)]
    plan = {"cases": [case.to_json() for case in cases]}
    with Store.create(root, "gpu", "nvidia-h200", "meprop-bench speedup --preset gpu", plan) as store:
        for case, changes in zip(cases, codes, strict=False):
            store.append([_row(case, **changes)])
        if page:
            (store.folder / "README.md").touch()
        return store.folder


def test_the_page_tells_the_targets_what_was_left_out_and_what_is_not_installed(tmp_path: Path) -> None:
    slow = {"speedup": 9.0, "speedup_low": 8.9, "speedup_high": 9.1, "converged": False}
    sweep = _sweep(tmp_path, codes=({}, slow, _DIED))
    outcomes = [
        Outcome(_part("tests", 1), 1, 70.0, 31.0),
        Outcome(_part("sweep", 1), 0, 380.0, 379.0),
        Outcome(_part("icml-7", 1), 2, 12.0, 3.0),
        Outcome(_part("icml-8", 1), None, 2.0, 0.0, "its share of the time was 2 s, too little"),
    ]
    (tmp_path / "tests.log").write_text("...\n==== 1 failed, 12 passed in 31 s ====\n")
    (tmp_path / "sweep.log").write_text("[1/4] a case\nreport: x\n")
    (tmp_path / "icml-7.log").write_text("meprop-bench: error: there are no data\n\n")
    page.write_page(tmp_path, {"device": "/home/me/x, a GPU"}, outcomes, ["triton: no kernels"])
    text = (tmp_path / "README.md").read_text().replace("\\", "")
    assert "| device | …/x, a GPU |" in text
    assert "| tests | 1 failed, 12 passed in 31 s | 31 s | 70 s | tests.log |" in text
    assert "| sweep | done | 379 s | 380 s | sweep.log |" in text
    assert "| icml-7 | could not be run: meprop-bench: error: there are no data | 3 s | 12 s | icml-7.log |" in text
    assert f"[{sweep.name}]({sweep.name}/README.md)" in text
    assert "| 5.50 ms | 50.0 µs | 110x [108, 112] | 100x | met | 220x | 50% |" in text
    assert "| 9.00x [8.90, 9.10] ~ | 12x | missed | 220x | 50% |" in text
    assert "- the part icml-8: its share of the time was 2 s, too little" in text
    assert "1 case: out of memory: CUDA\n  - linear 8192→8192 B=1024 unified k=32 rows gradient graph launch" in text
    assert "1 case: its time had come before it was their turn\n  - linear 8192→8192 B=1024 unified k=128" in text
    assert "- triton: no kernels" in text


def test_the_page_of_nothing_says_so(tmp_path: Path) -> None:
    page.write_page(tmp_path, {}, [], [])
    text = (tmp_path / "README.md").read_text()
    assert "## Left out\n\n- the sweep" in text
    assert "## Targets" not in text


_Main = Callable[..., int]


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Main:
    """The report with a GPU that is only said to be there, and commands that leave a result and an exit code."""
    monkeypatch.setattr(gpu_report, "_found", lambda device: f"{device}, a GPU of paper")

    def go(*arguments: str, sweep: int = 0, tests: int = 0, found: bool = True, page: bool = True) -> int:
        def run(command: Sequence[str], log: Path, limit_s: float) -> Ended:
            log.write_text("3 passed\n")
            if log.stem == "sweep" and found:
                _sweep(log.parent, page=page)
            return Ended({"sweep": sweep, "tests": tests}.get(log.stem, 0))

        return gpu_report.main(["--out", str(tmp_path / "out"), *arguments], run=run)

    return go


def test_one_folder_and_one_file_hold_it_all(main: _Main, tmp_path: Path) -> None:
    assert main("--archive", str(tmp_path / "all.tar.gz"), "--tables", "icml:7", page=False) == 0
    assert "linear, kept allocator" in next((tmp_path / "out").glob("*/README.md")).read_text()  # of whoever left none
    with tarfile.open(tmp_path / "all.tar.gz") as packed:
        names = packed.getnames()
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    assert {"out/README.md", "out/sweep.log", f"out/{day}_nvidia-h200_gpu/measurements.jsonl"} <= set(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tar.gz", "out"]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({}, 0),
        ({"tests": 1}, 1),
        ({"sweep": 1}, 1),
        ({"tests": 2}, 0),  # they could not be run; the page says so
        ({"sweep": 5, "found": False}, 5),
        ({"sweep": 2, "found": False}, 5),
        ({"sweep": 130}, 130),
        ({"sweep": -9}, 0),  # killed, after it had measured something
    ],
)
def test_exit_codes(main: _Main, how: dict[str, Any], code: int, tmp_path: Path) -> None:
    assert main(**how) == code
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_report_is_never_written_over_another(main: _Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    capsys.readouterr()
    assert main() == 2
    assert "is not empty: a report is never written over another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--device", "cuda:63"], 5, "the device cuda:63 is not there: torch finds"),
        (["--device", "gpu"], 2, "unknown device 'gpu'"),
        (["--preset", "gppu"], 2, "did you mean 'gpu'"),
        (["--tables", "icml:77"], 2, "did you mean 'icml:7'"),
        (["--scale", "huge"], 2, "unknown scale 'huge'"),
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


def test_an_interpreter_without_torch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report, "find_spec", lambda name: None if name in ("torch", "rich") else object())
    assert gpu_report.main([]) == 2
    assert "has no torch, rich: take another PYTHON" in capsys.readouterr().err


def test_all_of_it_on_the_cpu_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    """The real thing; the papers' tables are left out, as each would start its processes again.

    Of two cases of 20 s there is time for one, on an idle machine as on a busy one.
    """
    preset = tmp_path / "tiny.toml"
    sweep = '[[sweep]]\nmethod = "unified"\nk = [2, 3]\nbatch = 4\nhidden = 32\nthreads = 1\n'
    settings = 'name = "tiny"\nanalysis = "a test"\nchecks = ["gradients"]\nbudget = 20\ntarget = 1e-9\nprocesses = 1\n'
    preset.write_text(f"{settings}keep-processes = true\nutilization = false\n{sweep}")
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--device", "cpu", "--preset", str(preset)]
    command += ["--tables", "", "--seconds", "50", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=parts.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "README.md").read_text().replace("\\", "")
    assert "| sweep | done |" in text
    assert "the part tests: the tests of the CPU are those of `make test`" in text
    assert "its time had come before it was their turn\n  - linear 32→32 B=4 unified k=" in text
    (results,) = page.results_of(tmp_path / "out")
    rows = Store.open(results).rows()
    assert len({row.k for row in rows}) == 1
    assert all(row.passed for row in rows)
    assert str(tmp_path) not in (tmp_path / "out" / "sweep.log").read_text()
