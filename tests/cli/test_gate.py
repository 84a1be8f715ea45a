import errno
import io
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.selftest import SLOWDOWNS, CasePromise, Promise


def benchmark_file(path, seconds):
    values = [seconds * (1 + 0.001 * (i % 5)) for i in range(40)]
    stats = {"data": values, "rounds": 40, "median": seconds, "mean": seconds, "iqr": 0.0, "stddev": 0.0}
    stats |= {"q1": seconds, "q3": seconds, "min": seconds, "max": seconds, "iterations": 1}
    one = {
        "name": "test_a",
        "fullname": "t.py::test_a",
        "group": None,
        "params": None,
        "extra_info": {},
        "stats": stats,
    }
    machine = {"machine": "x86_64", "python_version": "3.12", "cpu": {"brand_raw": "c"}, "node": "n", "system": "Linux"}
    record = {"machine_info": machine, "commit_info": {"id": "a"}, "benchmarks": [one], "version": "5.3.1"}
    path.write_text(json.dumps({**record, "datetime": "2026-01-01T00:00:00"}))
    return str(path)


@pytest.mark.parametrize(
    ("slow", "code"), [(1.0, ExitCode.OK), (1.5, ExitCode.REGRESSION), (1.1, ExitCode.INCONCLUSIVE)]
)
def test_files_are_judged_and_written_in_several_formats(slow, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "pyproject.toml").write_text("[tool.meprop-bench.gate]\nmargin = 0.1\n")
    base, head = benchmark_file(tmp_path / "a.json", 1e-3), benchmark_file(tmp_path / "b.json", slow * 1e-3)
    outputs = [word for name in ("o.json", "o.md", "o.xml", "o.txt") for word in ("--output", name)]
    assert run(["gate", "--baseline", base, "--candidate", head, "--format", "json", *outputs]) == code
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "o.json").read_text())
    assert printed["exit_code"] == code
    assert printed["judgements"][0]["margin"] == 0.1
    assert "test_a" in (tmp_path / "summary.md").read_text().replace("\\", "")
    assert "<testsuites" in (tmp_path / "o.xml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is nothing to compare"),
        (["--base", "a", "--baseline", "b"], "exclude each other"),
        (["--base", "a", "--candidate", "b"], "--candidate goes with --baseline"),
        (["--base", "main", "--save-baseline", "b"], "a revision needs none, as it is measured anew: give --base main"),
        (["--baseline", "a", "--head", "b"], "--head goes with --base"),
        (["--base", "a", "--ratios-only"], "--ratios-only goes with --baseline"),
        (["--base", "a", "--minutes", "5"], "--minutes goes with --self-test"),
        (["--base", "a", "--output", "x.pdf"], "the format of x.pdf is not known"),
        (["--base", "a", "--output", "none/x.md"], "its folder does not exist"),
        (["--base", "a", "--margin", "-1"], "margin must be"),
        (["--base", "a", "--cases", "zzz"], "no case of the preset"),
        (["--base", "a", "--preset", "smok"], "did you mean 'smoke'"),
    ],
)
def test_wrong_usage_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["gate", *arguments]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_self_test_measures_for_the_minutes_that_are_given_and_says_what_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen = {}

    def check(plan, first, second, settings, *, seconds, progress):
        seen.update(cases=len(plan.cases), budget=settings.budget, seconds=seconds)
        tries = dict.fromkeys((0.0, *SLOWDOWNS), (20, 0, 20))
        case = CasePromise("a case", 9, 9, 0.01, 0.04, tries, dict.fromkeys(tries, 0.0))
        return Promise((case,), 0.045, 60.0, seconds or 1800.0, 0.05, (20, 0), {"cpu_model": "a processor"})

    measuring = nullcontext((SimpleNamespace(name="HEAD (1)"), None, None, str))
    monkeypatch.setattr("meprop_bench.cli.gate_revisions._measuring", lambda plan, base, head: measuring)
    monkeypatch.setattr("meprop_bench.gate.selftest.check", check)
    for given, seconds in ((["--minutes", "14"], 840.0), ([], None)):
        assert run(["gate", "--self-test", *given]) == ExitCode.INCONCLUSIVE
        assert seen == {"cases": 5, "budget": 60.0, "seconds": seconds}
    printed = capsys.readouterr().out
    assert "\nHEAD (1) against itself, on a processor\nSelf-test: " in printed


@pytest.mark.parametrize(("axis", "label"), [('compile = "on"', "compile=on"), ('baseline = "best"', "best baseline")])
def test_what_the_gate_does_not_judge_is_one_line(axis, label, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(f'name = "own"\nanalysis = "a"\nchecks = []\n[[sweep]]\nk = 3\n{axis}\n')
    assert run(["gate", "--base", "a", "--preset", "own.toml"]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "leave compile and baseline best out of linear" in error
    assert label in error
    assert error.count("\n") == 1


class Closed(io.StringIO):
    """Standard output whose reader has gone, or whose disk is full, until it is led elsewhere."""

    encoding = "utf-8"

    def __init__(self, error, file):
        super().__init__()
        self._error, self._file = error, file

    def fileno(self):
        self._error = 0
        return self._file.fileno()

    def flush(self):
        if self._error:
            raise OSError(self._error, os.strerror(self._error))


@pytest.fixture
def slower(tmp_path, monkeypatch):
    """Return the arguments that compare two files, the second of which is slower."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    files = [benchmark_file(tmp_path / f"{seconds}.json", seconds) for seconds in (1e-3, 2e-3)]
    return ["gate", "--margin", "0.1", "--baseline", files[0], "--candidate", files[1]]


@pytest.mark.parametrize("form", ["table", "json", "md", "junit"])
@pytest.mark.parametrize("error", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_verdict_outlives_standard_output(slower, tmp_path, monkeypatch, capsys, error, form):
    with (tmp_path / "stdout").open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed(error, file))
        assert run([*slower, "--format", form, "--output", "o.json"]) == ExitCode.REGRESSION
    assert json.loads((tmp_path / "o.json").read_text())["exit_code"] == ExitCode.REGRESSION
    complaint = capsys.readouterr().err
    assert complaint == f"meprop-bench: cannot write to standard output: {os.strerror(error)}\n"


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-", "| exec true"])
def test_a_verdict_outlives_standard_output_of_a_shell(slower, redirection):
    command = subprocess.list2cmdline([sys.executable, "-m", "meprop_bench", *slower])
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        ["bash", "-c", f"{command} {redirection}; exit ${{PIPESTATUS[0]}}"],
        env={**os.environ, **path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == ExitCode.REGRESSION
    assert found.stderr.count("\n") == 1
    assert "standard output" in found.stderr


def test_a_verdict_outlives_what_else_cannot_be_written(slower, tmp_path, monkeypatch, capsys):
    replaced = []

    def full(path, content):
        replaced.append(path.name)
        for _ in content:
            raise UserError(f"cannot write {path.name}: No space left on device")

    monkeypatch.setattr("meprop_bench.results.store.replace_file", full)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    outputs = [word for name in ("o.json", "o.md", "o.xml", "o.txt") for word in ("--output", name)]
    assert run([*slower, *outputs]) == ExitCode.REGRESSION
    out, err = capsys.readouterr()
    assert "1 failed" in out
    assert replaced == ["o.json", "o.md", "o.xml", "o.txt"]
    assert err.splitlines() == [
        *(f"meprop-bench: cannot write {name}: No space left on device" for name in replaced),
        "meprop-bench: cannot write $GITHUB_STEP_SUMMARY: Is a directory",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--baseline", "none.json", "--candidate", "0.001.json"], ExitCode.USAGE, "none.json does not exist"),
        (["--baseline", "0.001.json", "--candidate", "0.002.json", "--ratios-only"], ExitCode.NOT_COMPARABLE, "ratios"),
        (["--base", "no-such-revision"], ExitCode.USAGE, "is not in a git repository"),
    ],
)
def test_why_there_is_no_verdict_takes_the_place_of_the_last_one(
    slower, arguments, code, words, tmp_path, monkeypatch, capsys
):
    assert run([*slower, "--output", "gate.md", "--output", "gate.annotations", "--output", "gate.json"]) == 1
    before, kept = Path("gate.md").read_text(), Path("gate.json").read_text()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    outputs = [word for name in ("gate.md", "gate.annotations", "gate.json") for word in ("--output", name)]
    assert run(["gate", *arguments, "--suite", "0.001.json", *outputs]) == code
    comment = Path("gate.md").read_text()
    assert comment.splitlines()[:3] == [before.splitlines()[0], "", "### ⚠️ No verdict"]
    assert words in comment.replace("\\", "")
    assert Path("summary.md").read_text() == comment + "\n"
    (line,) = Path("gate.annotations").read_text().splitlines()
    assert line.startswith("::error title=gate%3A no verdict::")
    assert words in line
    assert Path("gate.json").read_text() == kept
    assert capsys.readouterr().err.count("\n") == 1


def test_the_marker_of_a_comment_names_the_job_and_what_is_judged(slower, monkeypatch, capsys):
    def first_line(*more):
        assert run([*slower, "--format", "md", *more]) == ExitCode.REGRESSION
        return capsys.readouterr().out.splitlines()[0]

    assert first_line() == "<!-- meprop-bench gate: 0.001.json -->"
    monkeypatch.setenv("GITHUB_WORKFLOW", "CI")
    monkeypatch.setenv("GITHUB_JOB", "bench")
    assert first_line() == "<!-- meprop-bench gate: CI / bench / 0.001.json -->"
    assert first_line("--suite", "slow ones") == "<!-- meprop-bench gate: slow ones -->"
    for commit in ("0123456789abcdef", "fedcba9876543210"):
        Path(name := f"0001_{commit}_20260102_030405.json").write_bytes(Path("0.001.json").read_bytes())
        slower[slower.index("--baseline") + 1] = name
        assert first_line() == "<!-- meprop-bench gate: CI / bench / ___.json -->"
    for day in ("2026-11-21", "2026-12-01"):
        Path(name := f"{day}_quick.json").write_bytes(Path("0.001.json").read_bytes())
        slower[slower.index("--baseline") + 1] = name
        assert first_line() == "<!-- meprop-bench gate: CI / bench / quick.json -->"


def test_what_stored_results_say_of_their_machine_comes_first(tmp_path, monkeypatch, capsys):
    from dataclasses import replace

    from meprop_bench.results.schema import Row
    from meprop_bench.results.store import Store

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    row = Row.of(
        case_id="a", workload="linear", method="meprop", kernel="native", kernel_requested="auto", k=8, batch=10,
        in_features=20, out_features=20, device="cpu", threads=1, dtype="float32", gradient="dense", allocator="kept",
        phase="backward", median_s=1e-3, values_s=(1e-3,) * 4, baseline_median_s=2e-3, baseline_values_s=(2e-3,) * 4,
        run_lengths=(2, 2), loops=1, speedup=2.0, speedup_low=2.0, speedup_high=2.0, processes=2, check="passed",
        environment_id="e",
    )  # fmt: skip
    state = {"others_cores": 1.5, "cpu_usable_cores": 2, "threads": 1, "load_average": [3.1, 1, 1], "warnings": []}
    folders = []
    for name in ("one", "two"):
        with Store.create(tmp_path, name, "m", "meprop-bench speedup", {}) as store:
            store.append([replace(row)])
            store.write_environment({"e": {"cpu_model": "c"}})
            store.write_state(state)
            folders.append(str(store.folder))
    assert run(["gate", "--baseline", folders[0], "--candidate", folders[1]]) == ExitCode.OK
    out = " ".join(capsys.readouterr().out.split())
    assert "This machine was busy (load 3.1 on 2 cores; other processes took 1.50 of 2 cores" in out
    assert out.index("This machine was busy") < out.index("verdict")
    assert run(["compare", *folders]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("This machine was busy (load 3.1 on 2 cores")
    assert run(["report", folders[0]]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("This machine was busy (load 3.1 on 2 cores")


def test_the_help_says_what_was_seen_with_the_default_margin(capsys):
    assert run(["gate", "--help"]) == ExitCode.OK
    text = " ".join(capsys.readouterr().out.split())
    assert "with the default margin of 4.5% and a minute per case, identical code passed in" in text
    assert "[default: 0.045 for times, 0.075 for ratios, 0.01 for sizes and counts]" in text


def asv_run(folder, number, slow=1.0, name=""):
    columns = ["result", "params", "version", "stats_q_25", "stats_q_75", "stats_repeat"]
    results = {}
    for place in range(12):
        seconds = 1e-3 * (slow if place == 3 else 1.0) * (1 + 0.002 * ((number * 7 + place * 3) % 11))
        results[f"m.time_{place}"] = [[seconds], [], "v", [seconds * 0.999], [seconds * 1.001], [9]]
    record = {"commit_hash": f"c{number}", "date": 1_600_000_000_000 + number * 10**8, "params": {"machine": "box"}}
    folder.mkdir(exist_ok=True)
    path = folder / (name or f"{number:02}.json")
    path.write_text(json.dumps({**record, "result_columns": columns, "results": results, "version": 2}))
    return str(path)


@pytest.fixture
def history(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(12):
        asv_run(tmp_path / "box", number)
    return tmp_path / "box"


def test_a_run_is_judged_by_those_before_it_in_every_format(history, tmp_path, capsys):
    given = ["gate", "--history", str(history), "--candidate"]
    outputs = [word for name in ("o.json", "o.md", "o.xml", "o.txt") for word in ("--output", name)]
    assert run([*given, asv_run(history, 12)]) == ExitCode.OK
    assert "the last 12 of 12 runs in box" in capsys.readouterr().out
    slow = asv_run(history, 12, 1.3)
    assert run([*given, slow, "--format", "json", *outputs]) == ExitCode.REGRESSION
    printed = json.loads(capsys.readouterr().out)
    assert [one["case"] for one in printed["judgements"] if one["verdict"] == "fail"] == ["m.time_3"]
    assert printed["allow_inconclusive"] == 0.01
    for name in ("o.md", "o.txt", "o.xml"):
        text = (tmp_path / name).read_text().replace("\\", "")
        assert "A slowdown of" in text
        assert "m.time_3" in text
    assert run([*given, slow, "--margin", "0.5"]) == ExitCode.OK
    assert run([*given, slow, "--window", "8"]) == ExitCode.REGRESSION


def test_a_figure_of_a_history_is_explained_from_its_json(history, tmp_path, capsys):
    slow = asv_run(history, 12, 1.3)
    run(["gate", "--history", str(history), "--candidate", slow, "--output", "gate.json"])
    capsys.readouterr()
    explain = ["gate", "explain", "--result", "gate.json"]
    assert run([*explain, "m.time_3"]) == ExitCode.OK
    said = " ".join(capsys.readouterr().out.split())
    assert "margin 4.5%. It stands out from its last runs." in said
    assert "The interval" not in said
    assert run([*explain, "m.time_2"]) == ExitCode.OK
    assert re.search("It lies within its margin|Why: within its own spread", capsys.readouterr().out)


def test_a_second_run_is_asked_for_and_given(history, capsys):
    slow = asv_run(history, 12, 1.3)
    given = ["gate", "--history", str(history), "--candidate", slow, "--confirm"]
    assert run([*given, "--suite", "x"]) == ExitCode.INCONCLUSIVE
    assert "Figures that await a second run: 1 (m.time_3)." in " ".join(capsys.readouterr().out.split())
    assert run([*given, asv_run(history.parent / "again", 12, 1.3)]) == ExitCode.REGRESSION
    assert run([*given, asv_run(history.parent / "again", 12)]) == ExitCode.OK
    twice = [*given, asv_run(history.parent / "again", 12, 1.3), "--confirm"]
    assert run([*twice, asv_run(history.parent / "third", 12, 1.3)]) == ExitCode.REGRESSION
    assert run([*twice, asv_run(history.parent / "third", 12)]) == ExitCode.OK


def test_a_verdict_by_a_history_is_explained_by_its_last_runs(history, tmp_path, capsys):
    given = ["gate", "--history", str(history), "--candidate", asv_run(history, 12, 1.3)]
    assert run([*given, "--output", "o.json"]) == ExitCode.REGRESSION
    capsys.readouterr()
    assert run(["gate", "explain", "m.time_3"]) == ExitCode.OK  # what was judged last in this folder
    kept = capsys.readouterr().out
    assert kept.startswith("m.time_3/value: fail\n")
    assert len([line for line in kept.splitlines() if line.startswith("2020-")]) == 12
    assert "this run " in kept
    assert run(["gate", "explain", "m.time_3", "--result", "o.json"]) == ExitCode.OK
    assert capsys.readouterr().out == kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--history", "box"], "--history needs the run that is judged: add --candidate FILE"),
        (["--history", "box", "--baseline", "a.json"], "exclude each other"),
        (["--baseline", "a", "--candidate", "b", "--confirm"], "--confirm goes with --history"),
        (["--history", "none", "--candidate", "box/01.json"], "none is not a folder"),
        (["--history", "box", "--candidate", "none.json"], "none.json does not exist"),
        (["--history", "box", "--candidate", "box/01.json", "--window", "3"], "an integer of at least 8"),
        (["--history", "box", "--candidate", "box/01.json", "--allow-inconclusive", "1"], "a share from 0 to below 1"),
    ],
)
def test_a_wrong_use_of_a_history_is_one_line(arguments, words, history, capsys):
    assert run(["gate", *arguments]) == ExitCode.USAGE
    printed = capsys.readouterr().err.strip()
    assert words in printed
    assert "\n" not in printed


def test_a_run_without_a_past_is_not_comparable(history, capsys):
    assert run(["gate", "--history", str(history), "--candidate", str(history / "05.json")]) == ExitCode.NOT_COMPARABLE
    assert "box holds 5 runs before 05.json and in its environment, 8 are needed" in capsys.readouterr().err


def test_how_much_may_be_inconclusive_holds_for_files_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base, head = benchmark_file(tmp_path / "a.json", 1e-3), benchmark_file(tmp_path / "b.json", 1.1e-3)
    given = ["gate", "--baseline", base, "--candidate", head, "--margin", "0.1"]
    assert run(given) == ExitCode.INCONCLUSIVE
    assert run([*given, "--allow-inconclusive", "100%"]) == ExitCode.OK
    assert "none failed, and 100% of all (1) may be" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "pyproject.toml").write_text('[tool.meprop-bench.gate]\nallow-inconclusive = "100%"\n')
    assert run(given) == ExitCode.OK
