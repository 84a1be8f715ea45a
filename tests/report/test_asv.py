"""Stored results as asv's: what asv reads there is what was measured, and nothing without a commit gets there."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.report.asv import export
from meprop_bench.report.asv_files import PARAMETERS
from meprop_bench.results.axes import AXES
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.results.store import Store

ENVIRONMENT = {
    "device": "cpu",
    "allocator": "kept",
    "cpu_model": "Box 9000 Processor",
    "cpu_usable_cores": 2,
    "architecture": "x86_64",
    "memory_gib": 3.0,
    "os": "Linux 1",
    "python": "CPython 3.11.7",
    "torch": "2.13.0+cpu",
    "torch_threads": 2,
    "variables": {"OMP_NUM_THREADS": "2"},
}


def a_row(**changes: object) -> Row:
    values = {
        "case_id": "0123456789ab",
        "workload": "linear",
        "method": "unified",
        "kernel": "native",
        "kernel_requested": "auto",
        "k": 30,
        "batch": 50,
        "in_features": 784,
        "out_features": 500,
        "device": "cpu",
        "threads": 2,
        "dtype": "float32",
        "gradient": "dense",
        "allocator": "kept",
        "phase": "backward",
        "median_s": 1.0,
        "values_s": (1.0, 1.1, 1.0, 0.9),
        "baseline_median_s": 4.0,
        "baseline_values_s": (4.0, 4.4, 4.0, 3.6),
        "run_lengths": (2, 2),
        "loops": 1,
        "speedup": 4.0,
        "flops": 1e6,
        "check": PASSED,
        "environment_id": "e",
    }
    return Row.of(**{**values, **changes})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "a checkout"
    path.mkdir()
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", "-C", path, *command], check=True)
    return path


@pytest.fixture
def commit(repository: Path) -> str:
    return _git(repository, "rev-parse", "HEAD")


def _git(repository: Path, *arguments: str) -> str:
    found = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def stored(folder: Path, revision: str | None, *rows: Row, **environment: object) -> Path:
    with Store.create(folder, "sweep", "box", "a command", {"name": "sweep"}) as store:
        store.append(rows or (a_row(),))
        store.write_environment({"e": {**ENVIRONMENT, "git_revision": revision, **environment}})
        return store.folder


def results_of(path: Path) -> dict[str, dict[str, object]]:
    record = json.loads(path.read_text())
    return {name: dict(zip(record["result_columns"], row, strict=True)) for name, row in record["results"].items()}


def test_the_paired_ratio_its_interval_and_its_samples(tmp_path: Path, repository: Path, commit: str) -> None:
    folder = stored(tmp_path, commit[:12])
    found = export([folder], tmp_path / "results", repository=repository)
    (path,) = found.files
    assert found.rows == 1
    assert path.parent.name == "box-9000-2c"
    assert path.name.startswith(f"{commit[:8]}-stored-")
    record = json.loads(path.read_text())
    assert record["commit_hash"] == commit
    assert record["date"] == 1000 * int(_git(repository, "show", "-s", "--format=%ct"))
    assert record["version"] == 2
    results = results_of(path)
    ratio = results["stored.linear.backward.track_ratio"]
    assert ratio["params"] == [["'unified'"], ["30"], ["'784→500 B=50'"], ["'cpu:2'"], ["'usual'"]]
    assert ratio["result"] == pytest.approx([0.25])
    assert ratio["samples"] == [pytest.approx([0.25] * 4)]
    assert ratio["stats_ci_99_a"] == ratio["stats_ci_99_b"] == pytest.approx([0.25])  # all processes agree
    time = results["stored.linear.backward.track_time"]
    assert time["result"] == [1.0]
    assert time["stats_ci_99_a"][0] < 1 < time["stats_ci_99_b"][0]  # type: ignore[index]
    assert results["stored.linear.backward.track_flops"]["result"] == [1e6]
    assert "stored.linear.backward.track_gpu_idle" not in results  # nobody watched a GPU
    benchmarks = json.loads((tmp_path / "results" / "benchmarks.json").read_text())
    assert benchmarks["version"] == 2
    assert benchmarks["stored.linear.backward.track_ratio"]["param_names"] == list(PARAMETERS)
    assert json.loads((path.parent / "machine.json").read_text())["machine"] == "box-9000-2c"


def test_one_process_has_an_infinite_interval(tmp_path: Path, repository: Path, commit: str) -> None:
    row = a_row(values_s=(1.0,), baseline_values_s=(4.0,), run_lengths=(1,))
    found = export([stored(tmp_path, commit, row)], tmp_path / "results", repository=repository)
    ratio = results_of(found.files[0])["stored.linear.backward.track_ratio"]
    assert (ratio["stats_ci_99_a"], ratio["stats_ci_99_b"]) == ([-math.inf], [math.inf])


def test_exports_of_different_sweeps_lie_side_by_side(tmp_path: Path, repository: Path, commit: str) -> None:
    results = tmp_path / "results"
    (results / "box-9000-2c").mkdir(parents=True)
    (results / "benchmarks.json").write_text(json.dumps({"linear.Backward.track_ratio": {"kept": True}, "version": 2}))
    export([stored(tmp_path, commit)], results, repository=repository)
    rows = (
        a_row(k=8),
        a_row(case_id="a" * 12, k=8, gradient="rows", phase="forward"),
        a_row(case_id="b" * 12, k=100, phase="forward"),
        a_row(case_id="c" * 12, k=100),
    )
    (path,) = export([stored(tmp_path, commit, *rows)], results, repository=repository).files
    ratio = results_of(path)["stored.linear.backward.track_ratio"]
    assert ratio["params"][1] == ["8", "30", "100"]  # type: ignore[index]
    assert ratio["result"] == pytest.approx([0.25] * 3)
    again = json.loads((results / "benchmarks.json").read_text())
    assert again["linear.Backward.track_ratio"] == {"kept": True}
    assert again["stored.linear.backward.track_ratio"]["params"][1] == ["8", "30", "100"]
    assert again["stored.linear.forward.track_ratio"]["params"][-1] == ["'usual'", "'gradient rows'"]


def test_a_combination_that_was_not_measured_is_skipped_not_failed(
    tmp_path: Path, repository: Path, commit: str
) -> None:
    rows = (a_row(), a_row(case_id="c" * 12, method="meprop", k=8))
    (path,) = export([stored(tmp_path, commit, *rows)], tmp_path / "results", repository=repository).files
    found = results_of(path)["stored.linear.backward.track_ratio"]["result"]
    assert [math.isnan(value) for value in found] == [False, True, True, False]  # type: ignore[attr-defined]


def test_environments_lie_apart_unless_the_parameters_tell_them(tmp_path: Path, repository: Path, commit: str) -> None:
    one_thread = {"torch_threads": 1, "variables": {"OMP_NUM_THREADS": "1"}, "load_average": [1, 1, 1]}
    folders = [
        stored(tmp_path, commit),
        stored(tmp_path, commit, a_row(threads=1), **one_thread),
        stored(tmp_path, commit, torch="2.14.0"),
    ]
    found = export(folders, tmp_path / "results", repository=repository)
    assert [json.loads(path.read_text())["params"]["torch"] for path in found.files] == ["2.13.0+cpu", "2.14.0"]
    ratio = results_of(found.files[0])["stored.linear.backward.track_ratio"]
    assert ratio["params"][3] == ["'cpu:1'", "'cpu:2'"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        (None, "was not measured in a checkout"),
        ("{head}-dirty", "with uncommitted changes on top of {head}: leave it out, or add --dirty"),
        ("abcdefabcdef", "at commit abcdefabcdef, which .* does not have: fetch it"),
        ("--help", "does not have"),
    ],
)
def test_what_has_no_commit_is_refused(
    tmp_path: Path, repository: Path, commit: str, revision: str | None, message: str
) -> None:
    head = commit[:12]
    folder = stored(tmp_path, revision and revision.format(head=head))
    with pytest.raises(UserError, match=message.format(head=head)):
        export([folder], tmp_path / "results", repository=repository)
    assert not (tmp_path / "results").exists()


def test_a_row_is_of_the_commit_that_it_names(tmp_path: Path, repository: Path, commit: str) -> None:
    """A run that was resumed at another commit has rows of both in one environment."""
    folder = stored(tmp_path, commit[:12], a_row(), a_row(case_id="later", k=8, git_revision="0" * 12))
    with pytest.raises(UserError, match="was measured at commit 000000000000, which"):
        export([folder], tmp_path / "results", repository=repository)


def test_a_dirty_tree_is_exported_when_that_is_asked_for(tmp_path: Path, repository: Path, commit: str) -> None:
    folder = stored(tmp_path, f"{commit[:12]}-dirty")
    found = export([folder], tmp_path / "results", repository=repository, dirty=True)
    assert json.loads(found.files[0].read_text())["commit_hash"] == commit


def test_failed_cases_are_left_out_and_nothing_else_is_nothing(tmp_path: Path, repository: Path, commit: str) -> None:
    failed = a_row(
        case_id="f" * 12, phase=None, median_s=None, baseline_median_s=None, values_s=None, flops=None,
        baseline_values_s=None, run_lengths=None, speedup=None, check=None, error="out of memory",
    )  # fmt: skip
    found = export([stored(tmp_path, commit, a_row(), failed)], tmp_path / "results", repository=repository)
    assert (found.rows, found.left_out) == (1, 1)
    with pytest.raises(UserError, match="no case has been measured") as caught:
        export([stored(tmp_path, commit, failed)], tmp_path / "others", repository=repository)
    assert caught.value.exit_code is ExitCode.NOTHING_MEASURED


def test_files_that_are_not_asvs_are_one_line(tmp_path: Path, repository: Path, commit: str) -> None:
    (results := tmp_path / "results").mkdir()
    (results / "benchmarks.json").write_text("{")
    with pytest.raises(UserError, match="not JSON; repair or remove it"):
        export([stored(tmp_path, commit)], results, repository=repository)
    assert [path.name for path in results.iterdir()] == ["benchmarks.json"]
    with pytest.raises(UserError, match=r"cannot .*: Not a directory"):
        export([stored(tmp_path, commit)], results / "benchmarks.json" / "below", repository=repository)


def test_the_verb(
    tmp_path: Path, repository: Path, commit: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    folder = stored(tmp_path, commit)
    assert run(["export", "asv", str(folder)]) == ExitCode.OK
    written, told = capsys.readouterr()
    assert (repository / written.strip()).is_file()
    assert told == "exported 1 row\n"
    assert run(["export", "asv", str(tmp_path / "nowhere")]) == ExitCode.USAGE
    assert "does not exist" in capsys.readouterr().err
    assert run(["export", "asv"]) == ExitCode.USAGE


_OTHER = {
    "workload": "lstm",
    "method": "meprop",
    "k": 31,
    "batch": 51,
    "in_features": 785,
    "out_features": 501,
    "kernel_requested": "coo",
    "gradient": "rows",
    "device": "cuda:1",
    "threads": 3,
    "dtype": "tf32",
    "allocator": "default",
    "data": "digits",
    "layers": 3,
    "heads": 3,
    "optimizer": "sgd",
    "size": 13,
    "filter": 4,
    "length": 26,
    "model": "my_model.py:build",
    "leave": "head",
    "k_by_layer": "head=0.5",
    "options": "width=3",
    "rate": 0.2,
    "share": 0.3,
    "slowdown": 0.5,
    "caches": "cold",
    "launch": "graph",
    "compile": "on",
    "baseline": "best",
    "fused_step": "both",
    "world_size": 2,
    "exchange": "agreed",
    "dense_exchange": "fp16",
    "seed": 7,
}


@pytest.mark.parametrize("data", [None, "mnist"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_every_axis_of_a_case_gives_it_a_point_of_its_own(
    tmp_path: Path, repository: Path, commit: str, data: str | None, device: str
) -> None:
    assert _OTHER.keys() == {axis.stored for axis in AXES.values()}
    usual = {"data": data, "device": device, "size": 12, "filter": 5, "length": 25, "rate": 0.1, "share": 0.004}
    # What the data say is no axis beside them.
    names = [name for name in _OTHER if not (data and name == "in_features")]
    rows = [a_row(**usual), *(a_row(case_id=name, **{**usual, name: _OTHER[name]}) for name in names)]
    (path,) = export([stored(tmp_path, commit, *rows)], tmp_path / "results", repository=repository).files
    found = [
        value
        for name, columns in results_of(path).items()
        if name.endswith("backward.track_ratio")
        for value in columns["result"]  # type: ignore[attr-defined]
        if not math.isnan(value)
    ]
    assert len(found) == len(rows)


def test_what_is_replaced_is_said_and_what_is_exported_again_is_not(
    tmp_path: Path, repository: Path, commit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = stored(tmp_path, commit)
    slower = a_row(values_s=(2.0, 2.2, 2.0, 1.8), median_s=2.0, baseline_values_s=(4.0, 4.4, 4.0, 3.6), speedup=2.0)
    second = stored(tmp_path, commit, slower)
    results = tmp_path / "results"
    assert export([first], results, repository=repository).replaced == ()
    assert export([first], results, repository=repository).replaced == ()
    told = export([second], results, repository=repository).replaced
    assert "stored.linear.backward.track_time('unified', 30, '784→500 B=50', 'cpu:2', 'usual'): 1 by 2" in told
    assert any("track_ratio" in line and line.endswith("0.25 by 0.5") for line in told)
    assert run(["export", "asv", str(first), "--to", str(results), "--repo", str(repository)]) == ExitCode.OK
    assert "replaced stored.linear.backward.track_time" in capsys.readouterr().err
    both = export([first, second], tmp_path / "both", repository=repository)
    assert any("track_time" in line for line in both.replaced)


@pytest.mark.parametrize(
    "damage",
    [
        {"results": 3},
        {"result_columns": ["result"]},
        {"results": {"stored.linear.backward.track_time": [[1.0], [["'a'"], ["1", "2"]]]}},
        {"results": {"stored.linear.backward.track_time": [["x"], [["'unified'"]]]}},
    ],
)
def test_a_damaged_export_is_one_line(tmp_path: Path, repository: Path, commit: str, damage: dict[str, object]) -> None:
    (path,) = export([stored(tmp_path, commit)], tmp_path / "results", repository=repository).files
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(UserError, match="remove it"):
        export([stored(tmp_path, commit)], tmp_path / "results", repository=repository)
