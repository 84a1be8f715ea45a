"""The verb, and what goes wrong before it: one line each, with the exit code that says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.results.shards import Shard
from meprop_bench.sweep.plan import plan_axes
from tests.results.test_merge import ENV, UNITS, Made, made

__all__ = ["made"]


def refused(words: list[str], code: ExitCode, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(words) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("meprop-bench: error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("verb", ["speedup", "parity --task digits --k 4", "tune --task digits", "paper run icml:3"])
@pytest.mark.parametrize("shard", ["0/4", "5/4", "a/b", ""])
def test_a_shard_that_is_none(
    verb: str, shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "shard" in refused([*verb.split(), "--shard", shard], ExitCode.USAGE, capsys)
    assert list(tmp_path.iterdir()) == []


def test_more_shards_than_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (case,) = plan_axes({"k": [4], "method": ["meprop"], "hidden": [8], "threads": [1]}).cases
    empty = next(index for index in (1, 2) if not Shard(index, 2).part([case.case_id]))
    words = ["speedup", "--k", "4", "--method", "meprop", "--hidden", "8", "--threads", "1", "--shard", f"{empty}/2"]
    said = refused(words, ExitCode.NOTHING_MEASURED, capsys)
    assert f"shard {empty}/2 has nothing to do: the run has 1 case; merging does not miss it" in said
    said = refused(
        ["parity", "--task", "digits", "--k", "4", "--seeds", "2", "--shard", "9/9"], ExitCode.NOTHING_MEASURED, capsys
    )
    assert "shard 9/9 has nothing to do: the run has 2 seeds" in said
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_merge_and_nowhere_to(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "all")
    assert "Missing argument 'FOLDER...'" in refused(["merge", "--out", out], ExitCode.USAGE, capsys)
    one = str(made(1).folder)
    assert "Missing option '--out'" in refused(["merge", one], ExitCode.USAGE, capsys)
    assert "nowhere does not exist" in refused(["merge", one, "nowhere", "--out", out], ExitCode.USAGE, capsys)
    empty = [str(made(index, cases=()).folder) for index in (1, 2, 3)]
    said = refused(["merge", *empty, "--out", out, "--partial"], ExitCode.NOTHING_MEASURED, capsys)
    assert "nothing was measured in any of the shards" in said
    assert not (tmp_path / "all").exists()


def test_a_folder_that_is_there_is_left_alone(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out := tmp_path / "all").mkdir()
    words = ["merge", *(str(made(index).folder) for index in (1, 2, 3)), "--out", str(out)]
    assert "is there already, and nothing is overwritten" in refused(words, ExitCode.USAGE, capsys)
    assert list(out.iterdir()) == []


def test_machines_that_differ_are_merged_only_if_that_is_said(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**ENV, "cpu_model": "Other"}
    stores = [made(1), made(2), made(3, environment_id="e1", env=other)]
    words = ["merge", *(str(store.folder) for store in stores), "--out", str(tmp_path / "all")]
    said = refused(words, ExitCode.NOT_COMPARABLE, capsys)
    assert "different environments (cpu_model is Box and Other)" in said
    assert run([*words, "--mixed-environments", "--format", "csv"]) == ExitCode.OK
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(UNITS)
