"""The verb as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from meprop_bench import cli
from meprop_bench.cli.profile import _case
from meprop_bench.errors import ExitCode
from meprop_bench.measure.disturbance import contention
from meprop_bench.measure.peaks import Peaks
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.results.axes import AXES
from meprop_bench.results.schema import Row
from meprop_bench.sweep import profile as profile_module

_TINY = ["--batch", "4", "--hidden", "8", "--k", "2", "--threads", "1"]


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAIRS_S", "_STAGES_S", "_OVERHEAD_S"):
        monkeypatch.setattr(profile_module, name, 0.01)
    monkeypatch.setattr(profile_module, "_PROCESSES", 2)


def test_a_layer_as_json_with_a_trace(
    tmp_path: Path, in_a_hurry: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*_TINY, "--method", "unified", "--gradient", "rows", "--search", "0.1", "--trace", "t.json"]
    assert cli.run(["profile", *arguments, "--format", "json"]) == ExitCode.OK
    out, err = capsys.readouterr()
    printed = json.loads(out)
    rows = [Row.from_json(row) for row in printed["rows"]]
    assert [row.phase for row in rows] == ["forward", "backward"]
    assert all(row.passed and row.speedup and row.sparse.floor_s and row.measurement.processes == 2 for row in rows)
    assert all(row.speedup_low is not None and row.speedup_high is not None for row in rows)
    with suppress(Unavailable), contention():  # where the kernel tells of a disturbed pair, so does the row
        assert all(row.measurement.disturbed is not None for row in rows)
    assert list(printed["environment"]) == [rows[0].environment_id]
    found = printed["profile"]
    names = [stage["name"] for stage in found["stages"]["sparse"]]
    assert names == ["selection", "dx", "dW", "scatter", "rest"]
    assert all(stage["low"] <= stage["seconds"] <= stage["high"] for stage in found["stages"]["sparse"])
    assert all(node["low"] <= node["seconds"] <= node["high"] for node in found["trees"]["sparse"])
    assert len(found["overhead_within"]["backward"]) == 2
    assert [node["name"] for node in found["trees"]["sparse"]] == ["forward", "backward"]
    assert [search["axis"] for search in found["break_even"]] == ["k", "hidden"]
    assert len(found["answers"]) == 7
    traced = {event.get("name") for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {"dense forward", "sparse forward", "dense backward", "sparse backward"} <= traced
    assert "profiling" in err


def test_a_model_as_a_table(
    tmp_path: Path, in_a_hurry: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.chdir(tmp_path)
    heavy = {"others_cores": 1.5, "cpu_usable_cores": 2, "threads": 1, "load_average": [3.1, 1, 1]}
    monkeypatch.setattr(profile_module, "state", lambda threads: heavy)
    arguments = ["--workload", "mlp", "--data", "digits", *_TINY, "--search", "0"]
    assert cli.run(["profile", *arguments]) == ExitCode.OK
    out, _ = capsys.readouterr()
    assert out.startswith("This machine was busy (load 3.1 on 2 cores; other processes took 1.50 of 2 cores")
    for words in ("Stages of the linear-backward", "layers left dense", "update (optimizer)", "Adam.step", "ceiling"):
        assert words in out
    assert "break even" not in out
    assert not list(tmp_path.iterdir())


class _Unable:
    """A measuring process that cannot set the case up."""

    def close(self) -> None:
        pass

    def request(self, message: Mapping[str, Any], _: float) -> dict[str, Any]:
        answers: dict[str, dict[str, Any]] = {
            "hello": {"environment": {}, "environment_id": "e"},
            "peaks": {"peaks": Peaks({"float32": 1e11}, ((1 << 20, 1e10),)).to_json()},
            "setup": {"error": "ValueError: the kernel gather: it needs a unified selection", "kind": "error"},
        }
        return answers[message["do"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "0"], "k must be an integer of at least 1 or a ratio in (0, 1], not 0"),
        (["--k", "8,32"], "a profile takes one case: give --k one value"),
        (["--method", "top"], "unknown method"),
        (["--kernel", "gahter"], "did you mean 'gather'"),
        (["--device", "cuda:63"], "the device cuda:63 is not there"),
        (["--threads", "4096"], "4096 threads on"),
        (["--data", "digits"], "the axis 'data' is for"),
        (["--search", "-1"], "--search"),
        (["--format", "md"], "--format"),
        (["--compile", "on"], "leave --compile and --baseline best out"),
        (["--baseline", "best"], "leave --compile and --baseline best out"),
        (["--seed", "-1"], "seed must be"),
        (["--trace", "trace.txt"], "name it trace.txt.json or .json.gz"),
        (["--trace", "nowhere/t.json"], "there is no folder"),
        (["--trace", "folder.json"], "it is a folder"),
    ],
)
def test_a_wrong_wish_is_one_line_and_exit_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    assert cli.run(["profile", *arguments]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("meprop-bench: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_a_kernel_that_cannot_do_the_case_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profile_module, "start_for", lambda _: _Unable())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = cli.run(["profile", *_TINY, "--method", "meprop", "--kernel", "gather", "--search", "0"])
    assert code == ExitCode.NOTHING_MEASURED
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("meprop-bench: error: linear 8→8")
    assert "gather" in last


def test_the_help_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from meprop_bench import cli; code = cli.run(['profile', '--help']);"
        "sys.exit(code or int(bool({'torch', 'numpy', 'rich', 'matplotlib'} & set(sys.modules))))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stderr
    assert "--trace" in found.stdout


def test_what_is_not_said_is_the_usual() -> None:
    nothing = dict.fromkeys(name.replace("-", "_") for name in AXES)
    case = _case({**nothing})
    assert (case.workload, case.method, case.k, case.batch, case.out_features) == ("linear", "meprop", 30, 50, 500)
    assert _case({**nothing, "workload": "mesimp"}).method == "mesimp"
    assert (
        _case({**nothing, "k": "0.1", "method": "unified", "seed": "7"}).to_json().items()
        >= {"k": 0.1, "seed": 7}.items()
    )


_RANKS = ["--workload", "mlp", "--data", "digits", *_TINY, "--method", "unified", "--optimizer", "sgd"]


def test_many_ranks_are_a_table_with_its_assumptions(in_a_hurry: None, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--gradient", "rows", "--ranks", "8", "--bandwidth", "10", "--latency", "5"]
    assert cli.run(["profile", *_RANKS, *network, "--search", "0"]) == ExitCode.OK
    text = " ".join(capsys.readouterr().out.split())
    for words in ("What 8 ranks would take", "rows, agreed", "10 Gbit/s", "5 µs", "DDP with PowerSGD"):
        assert words in text, words


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--bandwidth", "25"], "add --ranks 64"),
        (["--ranks", "64", "--gradient", "rows"], "add --bandwidth 25"),
        (["--ranks", "64", "--bandwidth", "25"], "add --gradient rows"),
        (["--world-size", "2", "--gradient", "rows"], "measured by speedup alone"),
    ],
)
def test_a_network_without_ranks_and_ranks_without_one_are_a_line(
    given: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["profile", *_RANKS, *given]) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
