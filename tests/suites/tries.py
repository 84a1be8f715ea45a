"""How often do the suites cry wolf, and how often do they miss a slowdown? Tried out, not reckoned; no part of CI.

    python -m tests.suites.tries asv      `asv continuous` over two commits, in the environment that asv builds
    python -m tests.suites.tries pytest   two files of --benchmark-json through `meprop-bench gate`

In a scratch clone there are three commits: the checkout's, the same once more, and one whose sparsified backward passes
of linear layers take 10% longer. Each try compares the first with the second, in which nothing may be reported, and
the first with the third, which must be. Ten tries take two hours by asv, which installs each commit anew, and an hour
and a quarter by pytest. Nothing else may run on the machine meanwhile.

What is compared is the ratio to dense of the preset beside this file. Exit code: 0 when all tries came out right, else
1.
"""

from __future__ import annotations

import argparse
import os
import re
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

SLOWER = """

# Waits for a tenth of its own time after each backward pass of a sparsified linear layer.
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
        end += 0.1 * (end - begun.pop())
        while _time.perf_counter() < end:
            pass

    node.register_prehook(lambda *_: begun.append(_time.perf_counter()) and None)
    node.register_hook(after)
    return y
"""
"""Appended to `ops/linear.py`. Hooks of the graph, which see any kernel in any language."""


class Clone:
    """A scratch clone with its three commits.

    Args:
        folder: empty.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _run(["git", "clone", "--quiet", str(_ROOT), str(folder)], _ROOT)
        self.first = self._git("rev-parse", "HEAD")
        self._git(*_WHO, "commit", "--quiet", "--allow-empty", "--message", "the same once more")
        self.same = self._git("rev-parse", "HEAD")
        self._git("checkout", "--quiet", "--detach", self.first)
        with (folder / "meprop_bench/ops/linear.py").open("a") as file:
            file.write(SLOWER)
        self._git(*_WHO, "commit", "--quiet", "--all", "--message", "slower by a tenth")
        self.slower = self._git("rev-parse", "HEAD")

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


def by_asv(clone: Clone, factor: str) -> Callable[[str], tuple[bool, str]]:
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

    def compare(commit: str) -> tuple[bool, str]:
        command = [*asv, "continuous", *options, *chosen, clone.first, commit]
        said = _run(command, clone.folder, variables, codes=(0, 1)).stdout
        ratios = re.findall(r"^\|[^|]*\|[^|]*\|[^|]*\|\s*([\d.]+)\s*\|", said, re.MULTILINE)
        if not ("PERFORMANCE" in said or "NOT SIGNIFICANTLY CHANGED" in said):
            sys.exit(f"asv continuous compared nothing:\n{said[-3000:]}")
        return "PERFORMANCE DECREASED" in said, f"changed: {', '.join(ratios) or 'nothing'}"

    return compare


def by_pytest(clone: Clone, margin: str) -> Callable[[str], tuple[bool, str]]:
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

    def compare(commit: str) -> tuple[bool, str]:
        if commit == clone.same:  # a try begins: both comparisons of it are with one run
            measure(clone.first, "first.json")
        files = ["--baseline", str(clone.folder.parent / "first.json"), "--candidate", measure(commit, "other.json")]
        gate = [sys.executable, "-m", "meprop_bench", "gate", *files, "--ratios-only", "--margin", margin]
        # 4 is inconclusive: neither an alarm nor a catch.
        done = _run(gate, _ROOT, codes=(0, 1, 4))
        return done.returncode == 1, f"exit code {done.returncode}"

    return compare


def main() -> int:
    """Try and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["asv", "pytest"])
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--factor", default="1.05", help="of asv continuous")
    parser.add_argument("--margin", default="0.03", help="of the gate")
    arguments = parser.parse_args()
    right = 0
    with tempfile.TemporaryDirectory(prefix="meprop-bench-tries-") as temporary:
        clone = Clone(Path(temporary) / "clone")
        compare = by_asv(clone, arguments.factor) if arguments.suite == "asv" else by_pytest(clone, arguments.margin)
        for number in range(1, arguments.tries + 1):
            for what, commit, wanted in (("the same", clone.same, False), ("10% slower", clone.slower, True)):
                begun = time.monotonic()
                reported, said = compare(commit)
                right += reported is wanted
                verdict = (
                    f"{'reported' if reported else 'not reported'}, {'as' if reported is wanted else 'NOT as'} wanted"
                )
                print(f"try {number}, {what}: {verdict} ({said}; {time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{right} of {2 * arguments.tries} came out right")
    return 0 if right == 2 * arguments.tries else 1


if __name__ == "__main__":
    sys.exit(main())
