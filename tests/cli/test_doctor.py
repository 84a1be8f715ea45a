"""The verb as a user runs it; what is measured is replaced, so that this machine's noise decides nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meprop_bench.doctor as package
from meprop_bench import cli
from meprop_bench.doctor import noise
from meprop_bench.doctor.check_result import SECTIONS, CheckResult
from meprop_bench.measure.worker import WorkerDied


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A calm machine, an empty directory and no process; the function given sets how others' load is judged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEPROP_BENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(package, "_WATCH_S", 0.0)

    def judged(state: Any) -> None:
        monkeypatch.setattr(
            package.machine, "machine_state", lambda *_: [CheckResult("machine", "others", state, "so busy")]
        )

    judged("ok")
    return judged


class _Nobody:
    closed = 0

    def close(self) -> None:
        _Nobody.closed += 1


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the measuring process: it finds something, or dies."""

    def replaced(found: list[CheckResult] | Exception) -> None:
        def measure(*_: object) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(package, "start_for", lambda _: _Nobody())
        monkeypatch.setattr(noise, "prepare", lambda *_: 1)
        monkeypatch.setattr(noise, "measure", measure)
        monkeypatch.setattr(noise, "judge", lambda found: found)

    return replaced


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["doctor", *arguments])
    return code, *capsys.readouterr()


def test_a_calm_machine_is_one_screen_and_zero(
    machine: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = doctor(capsys, "--fast")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) < 50
    assert out.splitlines()[0].endswith("exit code 0")
    assert "\x1b" not in out
    for words in ("numba", "CUDA", "RAPL", "allocator", "mnist", "pyproject.toml", "asv.conf.json", "resolution"):
        assert words in out


def test_json_alone_on_standard_output(machine: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = doctor(capsys, "--fast", "--format", "json")
    found = json.loads(out)
    assert (code, err, found["exit_code"], found["rows"], found["schema"]) == (0, "", 0, [], "meprop-bench/1")
    assert list(found) == ["schema", "command", "environment", "rows", "findings", "exit_code"]
    sections = list(dict.fromkeys(finding["section"] for finding in found["findings"]))
    assert sections == [section for section in SECTIONS if section != "noise"]
    assert {finding["state"] for finding in found["findings"]} <= {"ok", "note", "warning"}
    (environment,) = found["environment"].values()
    assert environment["device"] == "cpu"


@pytest.mark.parametrize(("state", "code"), [("warning", 0), ("problem", 4)])
def test_a_busy_machine(
    state: str, code: int, machine: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    machine(state)
    assert doctor(capsys, "--fast")[0] == code


def test_a_mistake_comes_first(
    machine: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    machine("problem")
    (tmp_path / "asv.conf.json").write_text('{"version": 1, "repo": ".", "benchmak_dir": "b"}')
    (tmp_path / "mine.toml").write_bytes(b"\xff")
    code, out, _ = doctor(capsys, "--fast", "mine.toml")
    assert code == 2
    assert "did you mean 'benchmark_dir'?" in out
    assert "not UTF-8" in out
    assert "3 problems" in out


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("problem", 4)])
def test_the_noise_decides(
    state: Any,
    code: int,
    machine: Callable[[str], None],
    trial: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trial([CheckResult("noise", "A/A", state, "identical code")])
    before = _Nobody.closed
    found, out, _ = doctor(capsys)
    assert (found, "identical code" in out) == (code, True)
    assert _Nobody.closed == before + 1


def test_a_process_that_dies_is_a_warning(
    machine: Callable[[str], None], trial: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    trial(WorkerDied("no answer within 6 s, so it was killed"))
    code, out, _ = doctor(capsys)
    assert code == 0
    assert "not measured; the measuring process: no answer within 6 s" in " ".join(out.split())


def test_the_real_process_measures_this_machine(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "meprop_bench", "doctor", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    found = json.loads(done.stdout)
    assert done.returncode in (0, 2, 4)
    assert done.returncode == found["exit_code"]
    noises = [finding for finding in found["findings"] if finding["section"] == "noise"]
    assert noises[0]["check"] == "A/A"
    assert "Traceback" not in done.stderr
