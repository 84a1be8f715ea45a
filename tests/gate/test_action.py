"""The steps of action.yml, run by bash with the variables that a runner would give them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from meprop_bench.cli import cli
from meprop_bench.cli.gate_output import FORMATS
from meprop_bench.errors import ExitCode
from meprop_bench.gate.markdown import marker

yaml = pytest.importorskip("yaml", reason="not installed: pip install 'meprop-bench[dev]'")
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash")

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS: Mapping[str, Mapping[str, Any]] = {step["id"]: step for step in ACTION["runs"]["steps"]}

Run = Callable[..., "tuple[subprocess.CompletedProcess[str], dict[str, str]]"]


def evaluated(text: str, context: Mapping[str, Any]) -> str:
    """Replace `${{ a.b.c }}` by what the context has there; nothing where it has none, as the runner does."""

    def find(match: re.Match[str]) -> str:
        value: Any = context
        for part in match[1].split("."):
            value = value.get(part, "") if isinstance(value, Mapping) else ""
        return str(value)

    return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", find, text)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs one step and gives its process and its outputs."""

    def go(step: str, *, inputs: Mapping[str, str] | None = None, cwd: Path = tmp_path, **context: Any) -> Any:
        given = {name: spec["default"] for name, spec in ACTION["inputs"].items()} | dict(inputs or {})
        outputs = tmp_path / "output.txt"
        outputs.write_text("")
        (tmp_path / "temp").mkdir(exist_ok=True)
        known = {"github": {"action_path": str(ROOT)}, **context, "inputs": given}
        variables = {name: evaluated(value, known) for name, value in STEPS[step]["env"].items()}
        path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
            "RUNNER_TEMP": str(tmp_path / "temp"),
            "PATH": path,
            **variables,
        }
        (script := tmp_path / "step.sh").write_text(STEPS[step]["run"])
        found = subprocess.run(
            [BASH, "--noprofile", "--norc", "-eo", "pipefail", script],
            cwd=cwd,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        return found, dict(line.split("=", 1) for line in outputs.read_text().splitlines())

    return go


def program(tmp_path: Path, name: str, body: str) -> None:
    (tmp_path / "bin").mkdir(exist_ok=True)
    (path := tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def plain(printed: str) -> str:
    """Return what was printed but the two lines between which the runner reads no commands."""
    lines = printed.splitlines()
    assert lines[0].startswith("::stop-commands::")
    lines.remove(f"::{lines[0].removeprefix('::stop-commands::')}::")
    return "\n".join(lines[1:])


def git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "test" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env={**os.environ, **who}, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a repository of three commits, whose path has a space, and the commits."""
    (folder := tmp_path / "the origin").mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    for number in range(3):
        git(folder, "commit", "--quiet", "--allow-empty", "--message", str(number))
    return folder, git(folder, "rev-list", "--reverse", "HEAD").split()


@pytest.fixture
def shallow(tmp_path: Path, origin: tuple[Path, list[str]]) -> Path:
    """Return a checkout of depth 1 with a detached head, as runners make it."""
    folder = tmp_path / "a checkout"
    git(tmp_path, "clone", "--quiet", "--depth=1", origin[0].as_uri(), str(folder))
    git(folder, "checkout", "--quiet", "--detach")
    return folder


def test_the_action_is_one_that_a_runner_accepts() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert list(STEPS) == ["python", "install", "base", "gate", "artifact", "comment", "verdict"]
    for step in STEPS.values():
        if "run" in step:
            assert step["shell"] == "bash"
            assert step["run"].startswith("set -euo pipefail\n")
            # What a pull request's author can choose comes in by variables: in the script it would be code.
            assert "${{" not in step["run"]
            subprocess.run([str(BASH), "-n"], input=step["run"], text=True, check=True)
    for spec in ACTION["inputs"].values():
        assert isinstance(spec["default"], str)
        assert spec["description"]
    named = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text("utf-8")))
    assert named == set(ACTION["inputs"])


def test_the_command_that_installs_is_an_input_and_stops_at_its_first_fault(run: Run, tmp_path: Path) -> None:
    found, _ = run("install", inputs={"install": 'touch "one file"\nfalse\ntouch other'})
    assert found.returncode != 0
    assert (tmp_path / "one file").exists()
    assert not (tmp_path / "other").exists()


def test_by_default_the_actions_own_package_is_installed_with_its_constraints(run: Run, tmp_path: Path) -> None:
    program(tmp_path, "python", 'printf "%s\\n" "$@" > called.txt')
    found, _ = run("install")
    assert found.returncode == 0, found.stderr
    called = (tmp_path / "called.txt").read_text().splitlines()
    assert called == [
        *("-m", "pip", "install", "--quiet", "--constraint"),
        str(ROOT / "constraints.txt"),
        f"{ROOT}[cpu,digits]",
    ]


@pytest.mark.parametrize("how", ["pull request", "push", "branch", "commit", "short", "head"])
def test_a_base_that_the_shallow_checkout_lacks_is_fetched(
    run: Run, shallow: Path, origin: tuple[Path, list[str]], how: str
) -> None:
    commits = origin[1]
    git(origin[0], "branch", "old", commits[0])
    event = {"pull_request": {"base": {"sha": commits[1]}}} if how == "pull request" else {"before": commits[0]}
    inputs = {"branch": {"base": "old"}, "commit": {"base": commits[1]}, "short": {"base": "HEAD"}}.get(how, {})
    expected = {"pull request": 1, "push": 0, "branch": 0, "commit": 1, "short": 2, "head": 0}[how]
    if how == "head":
        inputs = {"head": "old"}
    found, outputs = run("base", inputs=inputs, cwd=shallow, github={"event": event})
    assert found.returncode == 0, found.stderr
    assert outputs["base"] == commits[expected]
    assert outputs.get("head") == (commits[0] if how == "head" else None)
    assert git(shallow, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("base", "before", "message"),
    [
        ("", "", "nothing to compare with"),
        ("", "0" * 40, "nothing to compare with"),  # the first push of a branch
        ("no-such-branch", "", "no-such-branch is neither here nor on origin"),
        ("--upload-pack=touch pwned", "", "neither here nor on origin"),
        ("$(touch pwned); `touch pwned`", "", "neither here nor on origin"),
    ],
)
def test_a_base_that_is_nowhere_is_told(run: Run, shallow: Path, base: str, before: str, message: str) -> None:
    found, outputs = run("base", inputs={"base": base}, cwd=shallow, github={"event": {"before": before}})
    assert found.returncode == 2
    assert message in found.stdout + found.stderr
    assert outputs == {}
    assert not list(shallow.rglob("pwned"))


def test_options_are_passed_on_as_they_are_and_only_where_given(run: Run, tmp_path: Path) -> None:
    program(tmp_path, "meprop-bench", 'printf "%s\\n" "$@" > called.txt; echo "${GITHUB_STEP_SUMMARY-none}"; exit 4')
    found, outputs = run("gate", steps={"base": {"outputs": {"base": "abc", "head": ""}}})
    assert found.returncode == 0, found.stderr
    assert outputs["exit-code"] == "4"
    assert (tmp_path / "called.txt").read_text().splitlines()[-1] == "--base=abc"
    assert plain(found.stdout) == str(tmp_path / "summary.md")
    inputs = {"baseline": "a b.json", "candidate": "-c.json", "margin": "0.02", "budget": "9", "preset": "x y.toml"}
    inputs |= {"ratios-only": "true", "summary": "false"}
    found, outputs = run("gate", inputs=inputs)
    report = outputs["report"]
    assert (tmp_path / "called.txt").read_text().splitlines() == [
        *("gate", "--output", f"{report}/gate.md", "--output", f"{report}/gate.json"),
        *("--output", f"{report}/gate.xml", "--output", f"{report}/gate.annotations"),
        *("--baseline=a b.json", "--candidate=-c.json", "--preset=x y.toml", "--budget=9", "--margin=0.02"),
        "--ratios-only",
    ]
    assert plain(found.stdout) == "none"


@pytest.mark.parametrize(
    ("confirm", "options"),
    [
        ("", []),
        ("false", []),
        ("true", ["--confirm"]),
        ("-2.json", ["--confirm=-2.json"]),
        ("2.json\nno 3.json\n", ["--confirm=2.json", "--confirm=no 3.json"]),
    ],
)
def test_a_run_is_judged_by_a_history_and_confirmed(run: Run, tmp_path: Path, confirm: str, options: list[str]) -> None:
    program(tmp_path, "meprop-bench", 'printf "%s\n" "$@" > called.txt; exit 4')
    run("gate", inputs={"history": "the results", "candidate": "1.json", "confirm": confirm, "margin": "0.1"})
    given = (tmp_path / "called.txt").read_text().splitlines()[9:]
    assert given == ["--candidate=1.json", "--history=the results", *options, "--margin=0.1"]
    assert STEPS["base"]["if"] == "inputs.baseline == '' && inputs.history == '' && inputs.merge == ''"


def test_a_shard_is_measured_and_saved_and_shards_are_judged_together(run: Run, tmp_path: Path) -> None:
    program(tmp_path, "meprop-bench", 'printf "%s\n" "$@" > called.txt')
    base = {"base": {"outputs": {"base": "abc"}}}
    found, outputs = run("gate", inputs={"shard": "2/3", "budget": "9"}, steps=base)
    assert found.returncode == 0, found.stderr
    report = outputs["report"]
    expected = ["gate", "--shard=2/3", "--save", f"{report}/shard-2.json", "--base=abc", "--budget=9"]
    assert (tmp_path / "called.txt").read_text().splitlines() == expected
    found, outputs = run("gate", inputs={"merge": "the shards"})
    report = outputs["report"]
    assert (tmp_path / "called.txt").read_text().splitlines() == [
        *("gate", "merge", "--output", f"{report}/gate.md", "--output", f"{report}/gate.json"),
        *("--output", f"{report}/gate.xml", "--output", f"{report}/gate.annotations", "--", "the shards"),
    ]


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_annotations_come_after_what_the_runner_reads_no_commands_in(run: Run, tmp_path: Path, wanted: str) -> None:
    body = (
        'echo "::error::from a name"; echo "::warning::another" >&2; echo "::error title=a::b" > "${@: -2:1}"; exit 1'
    )
    program(tmp_path, "meprop-bench", body)
    found, outputs = run("gate", inputs={"annotations": wanted}, steps={"base": {"outputs": {"base": "abc"}}})
    lines = found.stdout.splitlines()
    token = lines[0].removeprefix("::stop-commands::")
    assert len(token) == 32
    assert lines[1:4] == ["::error::from a name", "::warning::another", f"::{token}::"]
    assert lines[4:] == (["::error title=a::b"] if wanted == "true" else [])
    assert found.stderr == ""
    assert outputs["exit-code"] == "1"


def test_a_project_that_knows_nothing_of_the_package_end_to_end(run: Run, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    settings = 'functions = [{function = "bench.py:work", threads = 1}]\npairs = 2\nmargin = 1.0\nconfidence = 0.6\n'
    (project / "pyproject.toml").write_text(f"[tool.meprop-bench.gate]\n{settings}")
    (project / "bench.py").write_text("def work():\n    return sum(range(100))\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "fast")
    base = git(project, "rev-parse", "HEAD")
    (project / "bench.py").write_text("import time\ndef work():\n    time.sleep(0.05)\n")
    git(project, "commit", "-q", "-a", "-m", "slow")
    found, outputs = run("base", cwd=project, github={"event": {"pull_request": {"base": {"sha": base}}}})
    assert outputs["base"] == base, found.stderr
    here = f"PYTHONPATH={ROOT} XDG_CACHE_HOME={tmp_path}/cache TMPDIR={tmp_path}"
    program(tmp_path, "meprop-bench", f'{here} exec {sys.executable} -P -m meprop_bench "$@"')
    found, outputs = run("gate", cwd=project, steps={"base": {"outputs": outputs}})
    assert outputs["exit-code"] == "1", found.stderr
    report = Path(outputs["report"])
    comment = (report / "gate.md").read_text("utf-8")
    assert "Failed" in comment
    assert "bench.py:work" in comment
    (call,) = [one for one in json.loads((report / "gate.json").read_text())["judgements"] if one["figure"] == "call"]
    assert (call["verdict"], call["case"]) == ("fail", "bench.py:work")
    assert list((tmp_path / "cache/meprop-bench/gate").iterdir()) == [tmp_path / "cache/meprop-bench/gate/slot-0.lock"]


def test_files_are_judged_end_to_end(run: Run, tmp_path: Path) -> None:
    def write(name: str, factor: float) -> str:
        stats = {"median": factor, "data": [factor * (1 + 0.001 * n) for n in range(9)]}
        record = {"machine_info": {"machine": "x86_64"}, "benchmarks": [{"fullname": "case7", "stats": stats}]}
        (tmp_path / name).write_text(json.dumps(record))
        return name

    inputs = {"baseline": write("the base.json", 1e-3), "candidate": write("head.json", 2e-3)}
    found, outputs = run("gate", inputs=inputs)
    assert outputs["exit-code"] == "1", found.stderr
    report = Path(outputs["report"])
    assert {path.name for path in report.iterdir()} == {f"gate.{e}" for e in ("md", "json", "xml", "annotations")}
    assert "::error title=gate%3A fail%3A case7/time::" in found.stdout
    assert "case7" in (report / "gate.md").read_text("utf-8")
    assert "case7" in (tmp_path / "summary.md").read_text("utf-8")
    found, outputs = run("gate", inputs={"baseline": "none.json", "candidate": "head.json"})
    assert outputs["exit-code"] == "2"
    assert "none.json does not exist" in plain(found.stdout)


@pytest.mark.parametrize(
    ("code", "strict", "expected", "said"),
    [
        ("0", "true", 0, ""),
        ("1", "true", 1, "::error title=meprop-bench gate::something got worse"),
        ("1", "false", 1, "::error"),
        ("3", "true", 3, "::error title=meprop-bench gate::not comparable"),
        ("4", "true", 4, "::error title=meprop-bench gate::inconclusive"),
        ("4", "false", 0, "::warning title=meprop-bench gate::inconclusive"),
        ("5", "false", 5, "nothing was judged"),
        ("137", "false", 137, "ended with code 137"),
    ],
)
def test_the_verdict_is_the_gates_exit_code(run: Run, code: str, strict: str, expected: int, said: str) -> None:
    inputs = {"fail-on-inconclusive": strict}
    found, _ = run("verdict", inputs=inputs, steps={"gate": {"outputs": {"exit-code": code}}})
    assert found.returncode == expected
    assert said in found.stdout


GH = """
import json, os, pathlib, subprocess, sys
arguments = sys.argv[2:]  # after `api`
with open("called.txt", "a") as file:
    print(*arguments, file=file)
folder = pathlib.Path("comments.json")
path = next(a for a in arguments if a.startswith("repos/") or a == "user")
method = arguments[arguments.index("--method") + 1] if "--method" in arguments else "GET"
if method in os.environ.get("REFUSED", "") or path == "user":
    sys.exit("HTTP 403")
comments = json.loads(folder.read_text())
if method == "GET":
    assert path == "repos/me/it/issues/7/comments?per_page=100" and "--paginate" in arguments
    query = arguments[arguments.index("--jq") + 1]
    sys.exit(subprocess.run(["jq", "-r", query], input=json.dumps(comments), text=True).returncode)
body = pathlib.Path(next(a for a in arguments if a.startswith("body=@")).removeprefix("body=@")).read_text()
if method == "PATCH":
    (one,) = [c for c in comments if path == f"repos/me/it/issues/comments/{c['id']}"]
    one["body"] = body
else:
    assert path == "repos/me/it/issues/7/comments"
    comments.append({"id": len(comments) + 100, "body": body, "user": {"type": "Bot", "login": "github-actions[bot]"}})
folder.write_text(json.dumps(comments))
"""


@pytest.fixture
def comment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what runs the step that comments on a pull request: it gives the output and the comments."""
    if shutil.which("jq") is None:
        pytest.skip("there is no jq, which stands for gh's own")
    program(tmp_path, "gh", f'exec "{sys.executable}" "{tmp_path}/gh.py" "$@"')
    (tmp_path / "gh.py").write_text(GH)
    (tmp_path / "comments.json").write_text("[]")

    def go(text: str, refused: str = "") -> tuple[str, list[dict[str, Any]]]:
        monkeypatch.setenv("REFUSED", refused)
        (tmp_path / "gate.md").write_text(text)
        event = {"github": {"event": {"pull_request": {"number": 7}}, "repository": "me/it"}}
        found, _ = run("comment", steps={"gate": {"outputs": {"report": str(tmp_path)}}}, **event)
        assert found.returncode == 0, found.stderr
        return found.stdout, json.loads((tmp_path / "comments.json").read_text())

    return go


def test_a_comment_is_found_by_its_marker_and_no_other_is_touched(comment: Callable[..., Any], tmp_path: Path) -> None:
    bot, person = {"type": "Bot", "login": "github-actions[bot]"}, {"type": "User", "login": "somebody"}
    first, second = marker("CI / gate"), marker("CI / files")
    others = [
        {"id": 1, "body": "coverage: 80%", "user": bot},
        {"id": 2, "body": f"{first}\nPassed, says a person", "user": person},
        {"id": 3, "body": f"> {first}\n> a quotation", "user": person},
        {"id": 4, "body": None, "user": None},
    ]
    (tmp_path / "comments.json").write_text(json.dumps(others))
    comment(f"{first}\none")
    comment(f"{second}\ntwo")
    comment(f"{first}\nthree")
    _, found = comment(f"{second}\nfour")
    assert found[:4] == others
    assert [one["body"] for one in found[4:]] == [f"{first}\nthree", f"{second}\nfour"]


@pytest.mark.parametrize("refused", ["GET", "POST", "PATCH"])
def test_a_comment_that_cannot_be_made_is_a_warning(comment: Callable[..., Any], refused: str) -> None:
    comment("marker\nbefore" if refused == "PATCH" else "another\nbefore")
    said, found = comment("marker\nafter", refused)
    assert "::warning title=meprop-bench gate::the pull request could not be commented on" in said
    assert [one["body"] for one in found] == ["marker\nbefore" if refused == "PATCH" else "another\nbefore"]


def test_without_verdicts_there_is_no_comment(run: Run) -> None:
    event = {"github": {"event": {"pull_request": {"number": 7}}}}
    found, _ = run("comment", steps={"gate": {"outputs": {"report": "nowhere"}}}, **event)
    assert found.returncode == 0
    assert "no verdicts" in found.stdout


@pytest.mark.parametrize(
    ("inputs", "strategy", "expected"),
    [
        ({}, {"job-index": 0, "job-total": 1}, "CI / bench"),
        ({}, {}, "CI / bench"),
        ({}, {"job-index": 2, "job-total": 3}, "CI / bench 2"),
        ({"suite": "the slow one"}, {}, "CI / bench --suite=the slow one"),
    ],
)
def test_the_jobs_of_a_matrix_have_a_comment_each(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: Any, strategy: Any, expected: str
) -> None:
    monkeypatch.setenv("GITHUB_WORKFLOW", "CI")
    monkeypatch.setenv("GITHUB_JOB", "bench")
    program(tmp_path, "meprop-bench", 'echo "$GITHUB_WORKFLOW / $GITHUB_JOB" "${@:10}"')
    found, _ = run("gate", inputs=inputs, strategy=strategy)
    assert plain(found.stdout) == expected


PAGE = (ROOT / "meprop_bench/gate/README.md").read_text("utf-8")
BLOCKS = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


def _steps(block: Any) -> list[Mapping[str, Any]]:
    """Return the steps of a workflow's jobs, or those that stand alone."""
    if isinstance(block, list):
        return block
    return [step for job in block.get("jobs", {}).values() for step in job["steps"]]


def test_documented_workflows_give_the_action_inputs_that_it_has() -> None:
    uses = [step for block in BLOCKS for step in _steps(block) if step.get("uses") in ("./", "OWNER/meprop-bench@TAG")]
    assert len(uses) == 5
    for step in uses:
        assert set(step["with"]) <= set(ACTION["inputs"])


def test_the_documented_job_of_gitlab_is_a_command_of_the_gate() -> None:
    (job,) = [block["gate"] for block in BLOCKS if isinstance(block, dict) and "gate" in block]
    (command,) = [line for line in job["script"] if line.startswith("meprop-bench")]
    words = shlex.split(command)
    assert words[:2] == ["meprop-bench", "gate"]
    gate = cli.get_command(click.Context(cli), "gate")
    assert gate is not None
    given, rest, _ = gate.make_parser(click.Context(gate, resilient_parsing=True)).parse_args(words[2:])
    assert rest == []
    written = set(given["outputs"])
    assert {*job["artifacts"]["paths"], *job["artifacts"]["reports"].values()} == written
    assert all(name.endswith(tuple(FORMATS)) for name in written)
    assert job["allow_failure"] == {"exit_codes": [int(ExitCode.INCONCLUSIVE)]}
