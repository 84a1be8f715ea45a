"""`--ray` where there is no Ray, and what does not go with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meprop_bench import cli
from meprop_bench.errors import ExitCode


@pytest.mark.parametrize(
    "words",
    [
        ["speedup"],
        ["parity", "--task", "digits", "--method", "unified", "--k", "0.1"],
        ["paper", "run", "icml:3", "--scale", "smoke"],
    ],
)
def test_without_ray_installed_it_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.run([*words, "--out", str(tmp_path), "--ray"]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "--ray takes the package ray, which is not installed: pip install 'meprop-bench[ray]'" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["tune"], ["parity", "--task", "digits", "--k", "0.1", "--budgets", "5s"]])
def test_a_search_refuses_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*words, "--ray"]) == ExitCode.USAGE
    assert "a search decides by one machine's times what it does next" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["speedup"], ["parity", "--task", "digits", "--k", "0.1"], ["paper", "run", "icml:3", "--scale", "smoke"]],
)
def test_a_part_of_a_run_is_not_for_a_cluster(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*words, "--shard", "1/2", "--ray"]) == ExitCode.USAGE
    assert "which needs no --shard: leave one of them out" in capsys.readouterr().err


def test_without_it_nothing_imports_ray(tmp_path: Path) -> None:
    """Although it is there: a package that says so when it is imported."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").write_text("raise SystemExit('ray was imported')\n")
    words = ["--method", "unified", "--k", "2", "--hidden", "8", "--batch", "4", "--threads", "1", "--processes", "1"]
    words += ["--budget", "0.1", "--no-utilization"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    found = subprocess.run(
        [sys.executable, "-m", "meprop_bench", "speedup", *words, "--out", str(tmp_path / "r")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env=environment,
    )  # fmt: skip
    assert found.returncode == ExitCode.OK, found.stderr
