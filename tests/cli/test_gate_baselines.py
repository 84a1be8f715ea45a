"""`gate --save-baseline`, `gate --baseline NAME`, `gate baselines` and `gate explain`, from the command line."""

import json
import re
from pathlib import Path

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.results.baselines import Baselines
from meprop_bench.results.store import Store
from tests.cli.test_gate import benchmark_file
from tests.gate.files.test_ours import row


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pyproject.toml").write_text("[tool.meprop-bench.gate]\nmargin = 0.25\n")
    for name, seconds in {"before": 1e-3, "same": 1.01e-3, "slow": 2e-3}.items():
        benchmark_file(tmp_path / f"{name}.json", seconds)
    return tmp_path


@pytest.fixture
def saved(capsys):
    assert run(["gate", "--candidate", "before.json", "--save-baseline", "main"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"saved the baseline main \([0-9a-f]{12}, saved [\d-]+ from before.json .*\) in baselines\n",
        err,
    )
    return Baselines().named("main")


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(("candidate", "code"), [("same", ExitCode.OK), ("slow", ExitCode.REGRESSION)])
def test_a_baseline_is_compared_with_by_its_name(candidate, code, folder, capsys):
    (folder / "before.json").unlink()
    assert run(["gate", "--baseline", "main", "--candidate", f"{candidate}.json", "--format", "json"]) == code
    record = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"baseline main \([0-9a-f]{12}, saved [\d-]+ from before.json .*\)", record["base"])
    assert record["head"].startswith(f"{candidate}.json")
    assert record["machine"] == "c, Linux, Python 3.12"
    assert run(["gate", "--baseline", "main"]) == ExitCode.USAGE
    assert "add --candidate FILE" in capsys.readouterr().err


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--baseline", "mian", "--candidate", "same.json"], 3, "no baseline 'mian' in baselines: did you mean 'main'"),
        (["--baseline", "gone.json", "--candidate", "same.json"], 2, "gone.json does not exist"),
        (["--save-baseline", "main"], 2, "add --candidate FILE"),
        (["--save-baseline", "main", "--base", "x", "--candidate", "same.json"], 2, "a revision needs none"),
        (["--save-baseline", "main", "--baseline", "x"], 2, "exclude each other"),
        (["--save-baseline", "a/b", "--candidate", "same.json"], 2, "cannot be a baseline's name"),
        (["--save-baseline", "new", "--candidate", "pyproject.toml"], 2, "pyproject.toml"),
        (["--replace", "abc", "--baseline", "main", "--candidate", "same.json"], 2, "--replace goes with --save"),
        (["--baseline", "x", "explain", "y"], 2, "--baseline is not for gate explain"),
        (["explian", "y"], 2, "explian"),
        (["explain", "y"], 2, "no gate has measured in this folder"),
        (["explain", "y", "--result", "none.json"], 2, "cannot read none.json"),
        (["explain", "y", "--result", "before.json"], 2, "is not what"),
        (["explain", "y", "--candidate", "slow.json"], 2, "--candidate goes with --baseline"),
        (["explain", "zz", "--baseline", "before.json", "--candidate", "slow.json"], 2, "no figure 'zz' was judged"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, words, capsys):
    assert run(["gate", *arguments]) == code
    out, err = capsys.readouterr()
    assert words in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_name_that_is_a_path_as_well_is_neither(saved, folder, capsys):
    (folder / "main").write_text((folder / "slow.json").read_text())
    arguments = ["--candidate", "slow.json", "--format", "json"]
    assert run(["gate", "--baseline", "main", *arguments]) == ExitCode.USAGE
    assert "main is a baseline, and a path: write ./main for the path" in capsys.readouterr().err
    assert run(["gate", "--baseline", str(folder / "main"), *arguments]) == ExitCode.OK
    assert (
        run(["gate", "--candidate", "same.json", "--save-baseline", "main", "--replace", saved.digest]) == ExitCode.OK
    )


def test_an_update_shows_what_changes_and_is_confirmed(saved, capsys):
    update = ["gate", "--candidate", "slow.json", "--save-baseline", "main"]
    assert run(update) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert "Failed: 1 of 1 figures got worse" in out
    assert f"there is a baseline {saved.line}" in err
    assert f"--replace {saved.digest}" in err
    assert run([*update, "--replace", "0" * 12]) == ExitCode.USAGE
    assert Baselines().named("main") == saved
    assert run([*update, "--replace", saved.digest]) == ExitCode.OK
    assert run(["gate", "--baseline", "main", "--candidate", "slow.json"]) == ExitCode.OK


@pytest.mark.parametrize(("answer", "code"), [("y\n", ExitCode.OK), ("n\n", ExitCode.USAGE), ("\n", ExitCode.USAGE)])
def test_at_a_terminal_a_person_is_asked(saved, monkeypatch, capsys, answer, code):
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(["gate", "--candidate", "slow.json", "--save-baseline", "main"]) == code
    out, err = capsys.readouterr()
    assert out.index("Failed: 1 of 1") >= 0
    assert f"Replace the baseline {saved.line}? [y/N]" in err
    assert (Baselines().named("main") == saved) == (code != ExitCode.OK)


def test_a_baseline_of_another_environment_has_expired(saved, folder, capsys):
    record = json.loads((folder / "same.json").read_text())
    record["machine_info"]["python_version"] = "3.14"
    (folder / "later.json").write_text(json.dumps(record))
    assert run(["gate", "--baseline", "main", "--candidate", "later.json"]) == ExitCode.NOT_COMPARABLE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the baseline main has expired, saved" in error
    assert "python_version is 3.12 and 3.14; save it anew with --save-baseline main" in error
    update = ["gate", "--candidate", "later.json", "--save-baseline", "main", "--replace", saved.digest]
    assert run(update) == ExitCode.OK
    error = capsys.readouterr().err
    assert error.index("has expired") < error.index("saved the baseline main")
    assert run(["gate", "--baseline", "main", "--candidate", "later.json"]) == ExitCode.OK


def test_a_results_folder_expires_as_well_but_for_its_ratios(folder, capsys):
    folders = []
    for name, torch in (("one", "2.12.0"), ("two", "2.13.0")):
        with Store.create(folder, name, "m", "meprop-bench speedup", {}) as store:
            store.append([row(environment_id=name, values_s=[1e-3] * 6)])
            store.write_environment({name: {"cpu_model": "c", "torch": torch}})
            folders.append(str(store.folder))
    assert run(["gate", "--candidate", folders[0], "--save-baseline", "v1"]) == ExitCode.OK
    assert Baselines().named("v1").machine == "c, torch 2.12.0"
    assert run(["gate", "--baseline", "v1", "--candidate", folders[0]]) == ExitCode.OK
    capsys.readouterr()
    assert run(["gate", "--baseline", "v1", "--candidate", folders[1]]) == ExitCode.NOT_COMPARABLE
    assert "torch is 2.12.0 and 2.13.0; save it anew" in capsys.readouterr().err
    assert run(["gate", "--baseline", "v1", "--candidate", folders[1], "--ratios-only"]) == ExitCode.OK


@pytest.mark.parametrize(
    ("machine", "benchmarks", "code", "words"),
    [
        (None, None, ExitCode.USAGE, "before.json does not say where it was measured"),
        ({"system": "Linux"}, [], ExitCode.NOTHING_MEASURED, "before.json holds no figures"),
    ],
)
def test_what_nothing_could_be_compared_with_is_no_baseline(machine, benchmarks, code, words, folder, capsys):
    record = json.loads((folder / "before.json").read_text())
    record["machine_info"] = machine or {}
    record["benchmarks"] = record["benchmarks"] if benchmarks is None else benchmarks
    (folder / "before.json").write_text(json.dumps(record))
    assert run(["gate", "--candidate", "before.json", "--save-baseline", "main"]) == code
    assert words in capsys.readouterr().err
    assert not Path("baselines").exists()


def test_baselines_are_listed_with_what_is_wrong_with_them(saved, folder, capsys):
    assert run(["gate", "--candidate", "slow.json", "--save-baseline", "other", "--baselines", "baselines"]) == 0
    capsys.readouterr()
    assert run(["gate", "baselines"]) == ExitCode.OK
    text = " ".join(capsys.readouterr().out.split())
    assert "main" in text
    assert saved.digest in text
    assert "other" in text
    saved.results.write_text("{}")
    assert run(["gate", "baselines"]) == ExitCode.USAGE
    assert "the results of the baseline main are not those that were saved" in capsys.readouterr().out
    assert run(["gate", "baselines", "--baselines", "nowhere"]) == ExitCode.OK
    assert "no baselines in nowhere" in capsys.readouterr().out


def test_asvs_units_go_with_its_result(folder):
    (results := folder / "results" / "machine").mkdir(parents=True)
    (folder / "results" / "benchmarks.json").write_text(json.dumps({"track_it": {"unit": "seconds"}, "version": 2}))
    record = {"params": {"cpu": "c"}, "result_columns": ["result"], "results": {"track_it": [[1.5]]}, "version": 2}
    (results / "abc-env.json").write_text(json.dumps({**record, "commit_hash": "abc", "python": "3.12"}))
    assert run(["gate", "--candidate", "results/machine/abc-env.json", "--save-baseline", "v1"]) == ExitCode.OK
    kept = Baselines().named("v1")
    assert {path.name for path in kept.results.parent.iterdir()} == {"abc-env.json", "benchmarks.json"}


def test_a_figure_of_files_is_explained(capsys):
    arguments = ["--baseline", "before.json", "--candidate", "slow.json"]
    assert run(["gate", "explain", "t.py::test_a/time", *arguments]) == ExitCode.OK
    text = capsys.readouterr().out
    assert text.startswith("t.py::test_a/time: fail\n")
    assert "base    40 values, median 1.00 ms" in text
    assert run(["gate", "explain", "*", *arguments]) == ExitCode.OK
    assert capsys.readouterr().out == text
    assert run(["gate", "explain", "*", *arguments, "--margin", "2"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("t.py::test_a/time: pass\n")


@pytest.mark.usefixtures("saved")
def test_a_figure_of_a_baseline_is_explained(capsys):
    assert run(["gate", "explain", "*", "--baseline", "main", "--candidate", "slow.json"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("t.py::test_a/time: fail\n")


def test_annotations_and_gitlabs_report_are_written_by_their_endings(folder, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["meprop-bench", "gate", "--baseline", str(folder / "before.json"), "--output", "x.md"]
    )
    (folder / "t.py").write_text("\ndef test_a(): pass\n")
    outputs = ["--output", "gate.annotations", "--output", "gl.codequality.json", "--output", "gate.json"]
    assert run(["gate", "--baseline", "before.json", "--candidate", "slow.json", *outputs]) == ExitCode.REGRESSION
    assert ",file=t.py,line=2::" in Path("gate.annotations").read_text()
    (one,) = json.loads(Path("gl.codequality.json").read_text())
    assert one["location"] == {"path": "t.py", "lines": {"begin": 2}}
    assert json.loads(Path("gate.json").read_text())["repeat"] == ["gate", "--baseline", "…/before.json"]
    capsys.readouterr()
    for form in ("github", "gitlab"):
        run(["gate", "--baseline", "before.json", "--candidate", "slow.json", "--format", form])
        assert (
            capsys.readouterr().out
            == Path({"github": "gate.annotations", "gitlab": "gl.codequality.json"}[form]).read_text()
        )


def test_a_baseline_that_was_changed_can_be_saved_anew(folder, saved, capsys):
    kept = next((folder / "baselines/main").rglob("before.json"))
    kept.write_text(kept.read_text() + " ")
    again = ["gate", "--candidate", "same.json", "--save-baseline", "main"]
    assert run(again) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "are not those that were saved" in told
    assert f"--replace {saved.digest}" in told
    assert run(["gate", "baselines"]) == ExitCode.USAGE
    assert capsys.readouterr().out.startswith("the results of the baseline main are not those")
    assert run([*again, "--replace", saved.digest]) == ExitCode.OK
    assert Baselines().named("main").source.startswith("same.json")
