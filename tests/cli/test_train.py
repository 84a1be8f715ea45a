"""The verb as a user runs it, and as somebody kills it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from meprop_bench import cli
from meprop_bench.errors import ExitCode

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

_TINY = ["--task", "digits", "--hidden", "24", "--batch", "50", "--threads", "1"]
_MESIMP = ["--method", "meprop", "--k", "6", "--algorithm", "mesimp", "--rate", "0.2", "--simplify", "1"]
_PROGRAM = """
import os, sys, time
from meprop_bench import cli
from meprop_bench.tasks import run

whole, wait_at = run.run, int(os.environ["WAIT_AT"])

def waiting(*args, after_step, **keywords):
    def after(step):
        if step == wait_at:  # until it is killed
            time.sleep(600)
        after_step(step)
    return whole(*args, after_step=after, save_s=0.0, **keywords)

run.run = waiting
sys.exit(cli.run(sys.argv[1:]))
"""


def _train(*arguments: str) -> int:
    return cli.run(["train", *_TINY, *arguments])


def _start(*arguments: str, wait_at: int = -1) -> subprocess.Popen[str]:
    """Start the verb in a process that saves a checkpoint after each step, and waits at step `wait_at` to be killed."""
    command = [sys.executable, "-c", _PROGRAM, "train", *_TINY, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WAIT_AT": str(wait_at)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _step(folder: Path) -> int:
    path = folder / "checkpoint.pt"
    return torch.load(path, weights_only=True)["step"] if path.exists() else 0


def _wait_for(condition, process) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_result_says_that_the_data_are_not_the_published_ones(tmp_path, capsys, other_mnist):
    small = ["train", "--task", "mnist", "--examples", "20", "--hidden", "8", "--epochs", "1", "--threads", "1"]
    out = ["--out", str(tmp_path / "t")]
    assert cli.run([*small, *out, "--format", "json"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    assert printed["data_published"] is False
    assert "not the published mnist data: train-images-idx3-ubyte, " in printed["notes"][0]
    assert json.loads((tmp_path / "t/settings.json").read_text())["settings"]["data_published"] is False
    assert cli.run([*small, *out, "--resume"]) == ExitCode.OK
    assert "not the published mnist data" in capsys.readouterr().out


def test_a_folder_with_everything(tmp_path, capsys):
    assert _train("--epochs", "2", "--k", "0.5", "--out", str(tmp_path / "t"), "--format", "json") == ExitCode.OK
    out, err = capsys.readouterr()
    printed = json.loads(out)
    history = [json.loads(line) for line in (tmp_path / "t/history.jsonl").read_text().splitlines()]
    assert printed["history"] == history
    assert [found["epoch"] for found in history] == [1.0, 2.0]
    assert printed["settings"]["method"] == "meprop"
    assert "epoch 2/2: loss" in err
    checkpoint = torch.load(tmp_path / "t/checkpoint.pt", weights_only=True)
    assert checkpoint["model"]["linear0.weight"].shape == (24, 64)
    assert set(checkpoint["best_model"]) == set(checkpoint["model"])
    assert (tmp_path / "t/curve.svg").read_text().startswith("<?xml")
    settings = json.loads((tmp_path / "t/settings.json").read_text())
    assert settings["settings"]["k"] == 0.5
    assert settings["environment"]["torch"]
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "checkpoint.pt", "curve.svg", "history.jsonl", "settings.json"
    ]  # fmt: skip


@pytest.mark.parametrize(("steps", "epochs"), [(36, "3/3"), (1, "0.0833/0.0833")])
def test_epochs_are_those_of_the_steps(tmp_path, capsys, steps, epochs):
    assert _train("--steps", str(steps), "--examples", "600", "--out", str(tmp_path / "t")) == ExitCode.OK
    assert f"epoch {epochs}: loss" in capsys.readouterr().err


@pytest.mark.parametrize("method", [_MESIMP, ["--dropout", "0.2"]], ids=["mesimp", "dropout"])
def test_killed_and_resumed_it_ends_the_same(tmp_path, method):
    arguments = [*method, "--epochs", "3"]
    assert _train(*arguments, "--out", str(tmp_path / "whole")) == ExitCode.OK
    folder = tmp_path / "killed"
    for at in (3, 25):
        process = _start(*arguments, "--out", str(folder), "--resume", wait_at=40)  # of 45: killed before the end
        _wait_for(lambda at=at: _step(folder) >= at, process)
        process.kill()
        process.communicate()
    assert 25 <= _step(folder) < 45
    assert _train(*arguments, "--out", str(folder), "--resume") == ExitCode.OK
    whole, resumed = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    assert resumed["step"] == whole["step"] == 45
    for key in ("model", "best_model"):
        assert resumed[key].keys() == whole[key].keys()
        assert all(torch.equal(resumed[key][name], value) for name, value in whole[key].items())
    lines = [
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert lines[0] == lines[1]
    assert not [path for path in folder.iterdir() if path.suffix == ".svg" and path.stat().st_size == 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_whatever_else_ends_it_saves_where_it_is(tmp_path, number):
    folder = tmp_path / "t"
    process = _start("--epochs", "400", "--out", str(folder))
    _wait_for(lambda: _step(folder) > 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "interrupted; continue with the same command and --resume" in err
    assert "Traceback" not in err
    assert out == ""
    assert _step(folder) > 2


def test_two_trainings_do_not_mix(tmp_path, capsys):
    folder = tmp_path / "t"
    assert _train("--epochs", "1", "--out", str(folder)) == ExitCode.OK
    before = (folder / "checkpoint.pt").read_bytes()
    for arguments, words in (
        ([], "holds this training already: add --resume"),
        (["--seed", "2", "--resume"], "holds another training, whose seed is 1 and not 2"),
        (["--k", "3"], "whose method is 'dense' and not 'meprop'"),
        (["--threads", "2", "--resume"], "whose threads is 1 and not 2"),
    ):
        capsys.readouterr()
        assert _train("--epochs", "1", "--out", str(folder), *arguments) == ExitCode.USAGE
        assert words in capsys.readouterr().err
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert _train("--epochs", "1", "--out", str(folder), "--resume") == ExitCode.OK  # nothing is left to do
    torch.set_num_threads(1)


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert _train("--out", str(tmp_path)) == ExitCode.USAGE
    assert "holds something other than a training" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    from meprop_bench.results.store import lock

    folder = tmp_path / "t"
    assert _train("--epochs", "1", "--out", str(folder)) == ExitCode.OK
    held = lock(folder / "settings.json")
    try:
        assert _train("--epochs", "1", "--out", str(folder), "--resume") == ExitCode.USAGE
    finally:
        os.close(held)
    assert "another run is writing to it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["settings.json", "checkpoint.pt"])
def test_a_damaged_folder_is_one_line(tmp_path, capsys, name):
    folder = tmp_path / "t"
    assert _train("--epochs", "1", "--out", str(folder)) == ExitCode.OK
    (folder / name).write_bytes(b"{")
    capsys.readouterr()
    assert _train("--epochs", "1", "--out", str(folder), "--resume") == ExitCode.USAGE
    err = capsys.readouterr().err
    assert "is damaged" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "digts"], "did you mean 'digits'"),
        (["--k", "0"], "not 0"),
        (["--k", "3,4"], "a training has one k"),
        (["--k", "many"], "k must be"),
        (["--method", "dense", "--k", "3"], "the method dense has no k"),
        (["--method", "meprop"], "needs k"),
        (["--rate", "0.1"], "rate needs an algorithm"),
        (["--algorithm", "mesimp"], "meSimp does not fit"),
        (["--optimizer", "adm"], "unknown optimizer"),
        (["--epochs", "0"], "epochs must be"),
        (["--seed", "-1"], "seed must be"),
        (["--device", "cuda:99"], "the device cuda:99 is not there"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_wrong_wishes_are_one_line(tmp_path, capsys, arguments, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _train(*arguments) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
