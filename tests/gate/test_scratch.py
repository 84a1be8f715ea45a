"""The gate for real: a scratch repository with this package in it, a kernel that gets slower, a base that does not even
start, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import meprop_bench
from meprop_bench.errors import ExitCode

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs locks that end with their process")

_PRESET = """
name = "scratch"
analysis = "One tiny case."
checks = ["gradients"]
budget = 60
processes = 3
utilization = false
[[sweep]]
method = "unified"
k = 4
batch = 8
hidden = 32
kernel = "masked"
threads = 1
"""
_GATE = (
    *("--preset", "preset.toml", "--budget", "600", "--pairs", "4", "--margin", "0.9"),  # a busy machine takes its time
    *("--cases", "*/backward"),
)
"""By the default confidence a loss is certain from so many standard errors above what is small as Student's t has at
1/200: 64 with two pairs of processes, 9.9 with three, 5.8 with four. The slowed kernel below takes 200 times as long,
5.3 on the log scale, so that three pairs are certain of it if they spread by less than a factor of 2.5, and two only if
by less than one of 1.12. The fourth is for one that the machine disturbs, which is left out."""
_PATIENCE_S = 600


def _git(folder: Path, *words: str) -> str:
    own = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose base is not Python, and whose HEAD is this package."""
    root = tmp_path_factory.mktemp("scratch") / "a repository"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(meprop_bench.__file__).parent, root / "meprop_bench", ignore=ignore)
    # Compiling takes a minute, and this is not about compiled kernels: "not installed" is what they say of themselves.
    (root / "meprop_bench/ops/kernels/native/__init__.py").write_text("raise ImportError('left out')\n")
    (root / "preset.toml").write_text(_PRESET)
    module = root / "meprop_bench/ops/selection.py"
    sound = module.read_text()
    module.write_text("def (:\n")
    _git(root, "init", "-q")
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "broken")
    module.write_text(sound)
    _git(root, "commit", "-q", "-am", "mended")
    return root


def _start(repository: Path, *words: str, options: Sequence[str] = _GATE) -> subprocess.Popen[str]:
    folder = repository.parent
    env = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder),  # nobody waits for what else this machine measures
        "PYTHONPATH": str(Path(meprop_bench.__file__).parents[1]),  # the gate is the one under test
    }
    program = [sys.executable, "-P", "-m", "meprop_bench", "gate", *words, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(program, cwd=repository, env=env, stdout=pipe, stderr=pipe, text=True)


def _left(repository: Path) -> list[str]:
    return sorted(path.name for path in (repository.parent / "cache/meprop-bench/gate").iterdir())


def test_a_kernel_that_got_slower_fails(repository: Path) -> None:
    kernel = repository / "meprop_bench/ops/kernels/operators.py"
    before = kernel.read_text()
    method = before.index("    def backward(", before.index("class _Masked"))
    body = before.index("\n", before.index(":\n", method))  # the end of its signature
    kernel.write_text(before[:body] + "\n        __import__('time').sleep(0.02)" + before[body:])
    try:
        gate = _start(repository, "--base", "HEAD", "--format", "json")
        printed, said = gate.communicate(timeout=_PATIENCE_S)
    finally:
        kernel.write_text(before)
    assert gate.returncode == ExitCode.REGRESSION, printed + said
    outcome = json.loads(printed)
    (backward,) = [one for one in outcome["judgements"] if one["figure"] == "backward"]
    assert backward["verdict"] == "fail"
    assert backward["head"] - backward["base"] > 0.01
    assert outcome["notes"][0] == "the head is a snapshot of the work tree with 1 uncommitted files"
    assert outcome["repeat"][-2:] == ["--base", _git(repository, "rev-parse", "HEAD")]
    assert len(backward["processes"]) == 4
    assert _left(repository) == ["slot-0.lock"]
    text, said = _start(repository, "explain", "backward", options=()).communicate(timeout=_PATIENCE_S)
    assert text.startswith(f"{backward['case']}/backward: fail\n"), said
    assert text.count("●") == 4


def test_a_base_with_a_syntax_error_is_a_line(repository: Path) -> None:
    gate = _start(repository, "--base", "HEAD~1")
    printed, said = gate.communicate(timeout=_PATIENCE_S)
    assert (gate.returncode, printed) == (ExitCode.NOT_COMPARABLE, "")
    line = said.strip().splitlines()[-1]
    assert "the base, HEAD~1 (" in line
    assert "SyntaxError" in line
    assert "Traceback" not in said
    assert _left(repository) == ["slot-0.lock"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_neither_folders_nor_processes(repository: Path, number: signal.Signals) -> None:
    gate = _start(repository, "--base", "HEAD")
    slot = repository.parent / "cache/meprop-bench/gate/slot-0/head/meprop_bench"
    until = time.monotonic() + _PATIENCE_S
    while not slot.exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)  # the workers are importing
    gate.send_signal(number)
    printed, said = gate.communicate(timeout=_PATIENCE_S)
    assert (gate.returncode, printed) == (ExitCode.INTERRUPTED, "")
    assert said.strip().splitlines()[-1] == "meprop-bench: interrupted"
    assert "Traceback" not in said
    assert _left(repository) == ["slot-0.lock"]
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(repository.parent) not in running
