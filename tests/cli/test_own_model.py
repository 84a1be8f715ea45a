"""A user's model by the command line: what a newcomer sees, by every verb that takes one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meprop_bench import cli
from meprop_bench.errors import ExitCode

_LOUD = """
print('{"loud": "import"}')

def build():
    print('{"loud": "build"}' * 500)
    os.write(1, b"loud\\n")
    return training(evaluate=accuracy, metric="accuracy")
"""
_QUICK = ["--k", "4", "--method", "unified", "--threads", "1"]
_MEASURE = [*_QUICK, "--budget", "0.2", "--processes", "2", "--no-utilization"]


def command(verb: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "meprop_bench", verb, *words]
    return subprocess.run(whole, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("verb", ["speedup", "profile", "parity", "train"])
@pytest.mark.parametrize(
    ("lines", "name", "message"),
    [
        ("", "{file}:biuld", "has no function 'biuld': did you mean 'build'?"),
        ("def build(): return training(loss=lambda m, b: m(b[0]))", "{file}", "numbers: return their mean, a scalar"),
        ("", "nothing.py", "there is no file nothing.py: name your model as path/to/file.py:function"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    own_model: Callable[..., str], folder: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, verb: str, lines: str, name: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("meprop_bench.sweep.waiting._SILENT_S", 600.0)  # however busy the machine is
    name = name.format(file=own_model(lines).removesuffix(":build"))
    assert cli.run([verb, "--model", name, *_QUICK]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("meprop-bench: error: ")
    assert message in err
    assert not os.listdir(folder)


@pytest.mark.parametrize("verb", ["parity", "train"])
def test_what_compares_figures_needs_one(
    own_model: Callable[..., str], folder: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert cli.run([verb, "--model", own_model(), *_QUICK]) == ExitCode.USAGE
    assert "does not say how good a model is: add evaluate=" in capsys.readouterr().err
    assert not os.listdir(folder)
    assert cli.run(["speedup", "--model", own_model(), *_MEASURE, "--parity"]) == ExitCode.USAGE
    assert not os.listdir(folder)


def test_speedup_gives_clean_json_whatever_is_printed(own_model: Callable[..., str], folder: Path) -> None:
    done = command("speedup", "--model", own_model(_LOUD), *_MEASURE, "--format", "json", cwd=folder)
    assert done.returncode == ExitCode.OK, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["phase"] for row in rows} == {"forward", "backward", "update", "step"}
    assert {row["check"] for row in rows} == {"passed"}
    (step,) = (row for row in rows if row["phase"] == "step")
    assert "2 of 3 layers are sparsified (85% of the backward pass's operations)" in step["notes"]
    assert any(note.startswith("a step gains ") for note in step["notes"])  # Amdahl
    assert "accuracies are not compared" in done.stderr


def test_training_gives_clean_json_and_goes_on(own_model: Callable[..., str], folder: Path) -> None:
    words = ("--model", own_model(_LOUD), *_QUICK, "--epochs", "2", "--format", "json")
    done = command("train", *words, cwd=folder)
    assert done.returncode == ExitCode.OK, done.stderr
    record = json.loads(done.stdout)
    # The file lies in another folder, and a training's folder is here.
    assert os.listdir(folder / "training") == ["my_model.py-build-unified-k4-seed1"]
    again = command("train", *words, "--resume", cwd=folder)
    assert json.loads(again.stdout) == record
    shown = command("train", *words[:-2], "--resume", cwd=folder)
    assert shown.stdout.startswith(f"accuracy: {record['final_dev']:.4g}")
    assert "at the end; " in shown.stdout
    assert "test" not in shown.stdout
    own_model(f"{_LOUD}\n# edited")
    other = command("train", *words, "--resume", cwd=folder)
    assert other.returncode == ExitCode.USAGE
    assert "holds another training, whose source is" in other.stderr


def test_parity_of_a_model_and_a_preset_with_one(own_model: Callable[..., str], folder: Path) -> None:
    name = own_model(_LOUD)
    done = command(
        "parity", "--model", name, *_QUICK, "--steps", "4", "--seeds", "2", "--processes", "1", "--format", "json",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode in (ExitCode.OK, ExitCode.REGRESSION, ExitCode.INCONCLUSIVE), done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["workload"], row["model"]) == ("model", name)
    assert row["parity"]["metric"].startswith("accuracy")
    (folder / "mine.toml").write_text(
        "name = 'mine'\nanalysis = 'mine'\nchecks = ['gradients', 'accuracy']\nbudget = 0.2\nprocesses = 1\n"
        "utilization = false\naccuracy-steps = 4\naccuracy-seeds = 2\n"
        f"[[sweep]]\nmodel = '{name}'\nmethod = 'unified'\nk = [4]\n"
    )
    done = command("speedup", "--preset", "mine.toml", "--format", "json", cwd=folder)
    steps = [row for row in json.loads(done.stdout)["rows"] if row["phase"] == "step"]
    assert [step["parity"]["steps"] for step in steps] == [4]
