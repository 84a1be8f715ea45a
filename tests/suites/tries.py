"""How often do the suites and the gate cry wolf, and how often do they miss a slowdown? Tried out, no part of CI.

    python -m tests.suites.tries asv         `asv continuous` over two commits, in the environment that asv builds
    python -m tests.suites.tries pytest      two files of --benchmark-json through `meprop-bench gate`
    python -m tests.suites.tries gate        `meprop-bench gate` of a scratch repository with a model of its own
    python -m tests.suites.tries gate-here   the same of a clone of this one, one layer of the preset `gate`, or --cases

In a scratch repository there are three commits: one, the same once more, and one that is slower. Each try compares the
first with the second, in which nothing may be reported, and the first with the third, which must be. By asv and pytest
sparsified backward passes of linear layers take 10% longer, and what is compared is the ratio to dense of the preset
beside this file. By the gate it is 5%, of the model's forward and backward pass or of the layer's backward pass, all
settings are the defaults, and identical code has to pass: to leave it undecided is wrong, too. Other settings:

    python -m tests.suites.tries gate --slower 0.03 --options '--margin 0.03 --budget 120'

Ten tries take two hours by asv, which installs each commit anew, an hour and a quarter by pytest, and 20 minutes by
the gate. Nothing else may run on the machine meanwhile. Exit code: 0 when all tries came out right, else 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from meprop_bench.measure.environment import machine_slug
from meprop_bench.sweep.suite import PRESET, SWITCH

_ROOT = Path(__file__).parents[2]
_WHO = ("-c", "user.name=tries", "-c", "user.email=tries@example.org")
_LAYER = "linear 1024*unified*"

SLOWER = """

# Waits for a share of its own time after each backward pass of a sparsified linear layer.
import time as _time

_unslowed = linear


def linear(*args, **kwargs):
    y = _unslowed(*args, **kwargs)
    node = y.grad_fn
    if node is None or "Addmm" in node.name() or "Mm" in node.name():
        return y
    begun = []

    def after(*_):
        end = _time.perf_counter()
        end += SHARE * (end - begun.pop())
        while _time.perf_counter() < end:
            pass

    node.register_prehook(lambda *_: begun.append(_time.perf_counter()) and None)
    node.register_hook(after)
    return y
"""
"""Appended to `ops/linear.py`. Hooks of the graph, which see any kernel in any language."""

OWN_MODEL = """
import time

import torch
from torch import nn
from torch.nn import functional as F

import meprop_bench as mb

SHARE = 0.0  # by how much a commit is slower


def _end(begun):
    now = time.perf_counter()
    return now + SHARE * (now - begun)


def _wait(end):
    while time.perf_counter() < end:
        pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )
        self.begun = 0.0
        if SHARE:  # the first layer's weight gets its gradient last
            self.inner[0].weight.register_post_accumulate_grad_hook(lambda _: _wait(_end(self.begun)))

    def begin(self, gradient):
        self.begun = time.perf_counter()

    def forward(self, x):
        begun = time.perf_counter()
        y = self.inner(x)
        if SHARE:
            end = _end(begun)
            if y.requires_grad:  # what this takes is a part of the share
                y.register_hook(self.begin)
            _wait(end)
        return y


def build():
    x, y = torch.randn(512, 256), torch.randint(10, (512,))
    return mb.Training(
        model=Model(),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        batches=list(zip(x.split(64), y.split(64), strict=True)),
    )
"""
"""The model of a repository that knows nothing else of this package."""

OWN_SETTINGS = """
[tool.meprop-bench.gate]
models = ["my_model.py:build"]
"""


class Repository:
    """A scratch repository with its three commits.

    Args:
        folder: empty, or a clone.
        slow: makes the code in the folder slower.

    """

    def __init__(self, folder: Path, slow: Callable[[Path], None]) -> None:
        self.folder = folder
        self.first = self._git("rev-parse", "HEAD")
        self._git(*_WHO, "commit", "--quiet", "--allow-empty", "--message", "the same once more")
        self.same = self._git("rev-parse", "HEAD")
        self._git("checkout", "--quiet", "--detach", self.first)
        slow(folder)
        self._git(*_WHO, "commit", "--quiet", "--all", "--message", "slower")
        self.slower = self._git("rev-parse", "HEAD")

    @classmethod
    def clone(cls, folder: Path, share: float) -> Repository:
        """Return a clone of this one, in which backward passes of sparsified layers get slower by a share."""
        _run(["git", "clone", "--quiet", str(_ROOT), str(folder)], _ROOT)

        def slow(folder: Path) -> None:
            with (folder / "meprop_bench/ops/linear.py").open("a") as file:
                file.write(SLOWER.replace("SHARE", str(share)))

        return cls(folder, slow)

    @classmethod
    def own(cls, folder: Path, share: float) -> Repository:
        """Return one with a model of its own, which gets slower by a share."""
        folder.mkdir()
        model = folder / "my_model.py"
        model.write_text(OWN_MODEL)
        (folder / "pyproject.toml").write_text(OWN_SETTINGS)
        for arguments in (["init", "--quiet"], ["add", "."], [*_WHO, "commit", "--quiet", "--message", "a model"]):
            _run(["git", "-C", str(folder), *arguments], folder)
        return cls(folder, lambda _: model.write_text(OWN_MODEL.replace("SHARE = 0.0", f"SHARE = {share}")) and None)

    def check_out(self, commit: str) -> None:
        self._git("checkout", "--quiet", "--detach", commit)

    def _git(self, *arguments: str) -> str:
        return _run(["git", "-C", str(self.folder), *arguments], self.folder).stdout.strip()


def _run(
    command: list[str], folder: Path, variables: Mapping[str, str] | None = None, *, codes: tuple[int, ...] = (0,)
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode not in codes:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done


def by_asv(clone: Repository, factor: str) -> Callable[[str], tuple[int, str]]:
    """Return what compares the first commit with another by `asv continuous`."""
    home = clone.folder.parent / "home"
    home.mkdir(exist_ok=True)
    variables = {
        "HOME": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
        PRESET: str(Path(__file__).with_name("tries.toml")),
        SWITCH: "all",
    }
    asv, machine = [sys.executable, "-m", "asv"], machine_slug()
    _run([*asv, "machine", "--yes", "--machine", machine], clone.folder, variables)
    options = ["--machine", machine, "--launch-method", "forkserver", "--record-samples", "--factor", factor]
    chosen = ["--bench", r"linear\.Backward\.track_ratio"]

    def compare(commit: str) -> tuple[int, str]:
        command = [*asv, "continuous", *options, *chosen, clone.first, commit]
        said = _run(command, clone.folder, variables, codes=(0, 1)).stdout
        ratios = re.findall(r"^\|[^|]*\|[^|]*\|[^|]*\|\s*([\d.]+)\s*\|", said, re.MULTILINE)
        if not ("PERFORMANCE" in said or "NOT SIGNIFICANTLY CHANGED" in said):
            sys.exit(f"asv continuous compared nothing:\n{said[-3000:]}")
        return int("PERFORMANCE DECREASED" in said), f"changed: {', '.join(ratios) or 'nothing'}"

    return compare


def by_pytest(clone: Repository, margin: str) -> Callable[[str], tuple[int, str]]:
    """Return what measures the first commit and another by the pytest suite, and has our gate judge the two files."""
    variables = {
        "PYTHONPATH": str(clone.folder),
        PRESET: str(Path(__file__).with_name("tries.toml")),
        SWITCH: "all",
    }
    suite = ["benchmarks/pytest_suite", "-q", "-p", "no:cacheprovider", "-k", "linear and backward"]

    def measure(commit: str, name: str) -> str:
        clone.check_out(commit)
        path = str(clone.folder.parent / name)
        _run([sys.executable, "-m", "pytest", *suite, "--benchmark-json", path], clone.folder, variables)
        return path

    def compare(commit: str) -> tuple[int, str]:
        if commit == clone.same:  # a try begins: both comparisons of it are with one run
            measure(clone.first, "first.json")
        files = ["--baseline", str(clone.folder.parent / "first.json"), "--candidate", measure(commit, "other.json")]
        gate = [sys.executable, "-m", "meprop_bench", "gate", *files, "--ratios-only", "--margin", margin]
        done = _run(gate, _ROOT, codes=(0, 1, 4))
        return done.returncode, f"exit code {done.returncode}"

    return compare


def by_gate(repository: Repository, *options: str) -> Callable[[str], tuple[int, str]]:
    """Return what measures the first commit against another by the gate, all but these options as it is by default."""

    def compare(commit: str) -> tuple[int, str]:
        gate = [sys.executable, "-m", "meprop_bench", "gate", "--base", repository.first, "--head", commit, *options]
        done = _run(gate, repository.folder, {"PYTHONPATH": str(_ROOT)}, codes=(0, 1, 4))
        return done.returncode, f"exit code {done.returncode}: {done.stdout.splitlines()[0]}"

    return compare


def main() -> int:
    """Try and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["asv", "pytest", "gate", "gate-here"])
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--factor", default="1.05", help="of asv continuous")
    parser.add_argument("--margin", default="0.03", help="of the gate that judges pytest's files")
    parser.add_argument("--cases", default=_LAYER, help="glob of the preset's cases, of gate-here; * for all of them")
    parser.add_argument("--slower", type=float, default=0.05, help="share by which the slower commit is, of the gate's")
    parser.add_argument("--options", default="", help="of the gate, as '--margin 0.03 --budget 120'")
    arguments = parser.parse_args()
    right = 0
    with tempfile.TemporaryDirectory(prefix="meprop-bench-tries-") as temporary:
        folder, suite = Path(temporary) / "scratch", arguments.suite
        share = arguments.slower if suite.startswith("gate") else 0.1
        repository = Repository.own(folder, share) if suite == "gate" else Repository.clone(folder, share)
        if suite == "asv":
            compare = by_asv(repository, arguments.factor)
        elif suite == "pytest":
            compare = by_pytest(repository, arguments.margin)
        else:
            cases = ("--cases", arguments.cases) if suite == "gate-here" else ()
            compare = by_gate(repository, *cases, *shlex.split(arguments.options))
        # 4 is inconclusive: no alarm, and of two files that were measured at two times enough.
        passing = {0, 4} if suite == "pytest" else {0}
        tried = (("the same", repository.same, passing), (f"{share:.0%} slower", repository.slower, {1}))
        for number in range(1, arguments.tries + 1):
            for what, commit, wanted in tried:
                begun = time.monotonic()
                code, said = compare(commit)
                right += code in wanted
                verdict = (
                    f"{'reported' if code == 1 else 'not reported'}, {'as' if code in wanted else 'NOT as'} wanted"
                )
                print(f"try {number}, {what}: {verdict} ({said}; {time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{right} of {2 * arguments.tries} came out right")
    return 0 if right == 2 * arguments.tries else 1


if __name__ == "__main__":
    sys.exit(main())
