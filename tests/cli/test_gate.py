import json

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode


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
        (["--baseline", "a", "--head", "b"], "--head goes with --base"),
        (["--base", "a", "--ratios-only"], "--ratios-only goes with --baseline"),
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
