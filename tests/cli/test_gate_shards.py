"""A gate that two runners measure, for real: a project of two functions, one of which got slower."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meprop_bench.errors import ExitCode

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs locks that end with their process"),
    pytest.mark.timeout(900),
]

_ROOT = Path(__file__).parents[2]
_SETTINGS = """
[tool.meprop-bench.gate]
functions = [{function = "bench.py:one", threads = 1}, {function = "bench.py:two", threads = 1}]
pairs = 2
margin = 1.0
confidence = 0.6
budget = 600
"""


def _git(folder: Path, *words: str) -> None:
    own = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, check=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (folder := tmp_path / "project").mkdir()
    (folder / "pyproject.toml").write_text(_SETTINGS)
    _git(folder, "init", "-q")
    for pause in ("pass", "import time; time.sleep(0.02)"):
        (folder / "bench.py").write_text(f"def one():\n    return sum(range(9))\n\n\ndef two():\n    {pause}\n")
        _git(folder, "add", ".")
        _git(folder, "commit", "-q", "-m", pause)
    return folder


def _gate(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(_ROOT), "XDG_CACHE_HOME": str(project.parent / "cache")}
    program = [sys.executable, "-P", "-m", "meprop_bench", "gate", *words]
    return subprocess.run(program, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=240)


def test_two_runners_come_to_one_verdict(project: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        file = str(tmp_path / f"shard-{index}.json")
        done = _gate(project, "--base", "HEAD~", "--head", "HEAD", "--shard", f"{index}/2", "--save", file)
        assert done.returncode == ExitCode.OK, done.stderr  # whatever it found
        assert done.stdout == ""
        assert f"measured 1 of 2 cases for shard {index}/2, saved as shard-{index}.json" in done.stderr
    for index in (1, 2):
        alone = _gate(project, "merge", str(tmp_path / f"shard-{index}.json"))
        assert alone.returncode == ExitCode.NOT_COMPARABLE
        assert f"no verdict without shard {3 - index}/2 (1 of 2 cases)" in alone.stderr
    both = [str(tmp_path / f"shard-{index}.json") for index in (2, 1)]
    done = _gate(project, "merge", *both, "--format", "json")
    assert done.returncode == ExitCode.REGRESSION, done.stderr
    found = json.loads(done.stdout)
    calls = {one["case"]: one["verdict"] for one in found["judgements"] if one["figure"] == "call"}
    assert calls["bench.py:two"] == "fail"
    assert list(calls) == ["bench.py:one", "bench.py:two"]
    assert found["repeat"][:1] == ["gate"]
    assert not {"--shard", "--save"} & set(found["repeat"])
    assert found["environment"]["cpu_usable_cores"]
    explained = _gate(project, "explain", "bench.py:two/call")
    assert "bench.py:two/call: fail" in explained.stdout, explained.stderr
