"""Faults, by doing them: children that die, hang, run out of memory or talk nonsense; a parent that is killed; a disk
that takes no more; two runs in one folder.

The workers here are real processes that measure nothing: they answer as a worker would, without torch.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from meprop_bench import cli
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.environment import machine_slug
from meprop_bench.measure.peaks import PeaksCache
from meprop_bench.measure.worker import Worker
from meprop_bench.ops.kernels import KERNELS
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store
from meprop_bench.sweep.plan import Plan, plan_axes
from meprop_bench.sweep.runner import Runner
from meprop_bench.workloads.case import Case

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals, limits and process groups")

_WORKER = """
import os, resource, signal, sys, time
from meprop_bench.measure.worker import serve

NAMES = ["forward", "backward"]
ACTIVITY = dict(wall_s=1.0, cores=2, others_s=0.0, stolen_s=0.0, throttled_s=None, overheated=None, swapped_in=0)
k = None

def handle(message):
    global k
    match message["do"]:
        case "hello":
            return {"environment": {"device": "cpu"}, "environment_id": "e1"}
        case "peaks":
            return {"peaks": {"flops_per_s": {"float32": 1e11}, "bandwidth": [[1 << 20, 1e10]]}}
        case "setup":
            k = message["case"]["k"]
            return {"kernel": "gather", "k": k, "notes": [], "phases": NAMES, "costs": {}}
        case "check":
            return {"check": "passed", "loops": 1}
        case "measure":
            fault(k)
            time.sleep(0.002)
            pairs = [[4e-3, 1e-3 + 1e-6 * (os.getpid() % 7)]] * 20
            return {"pairs": dict.fromkeys(NAMES, pairs), "disturbed": [False] * 20, "activity": ACTIVITY}
        case "memory":
            return {"weights": {}}

def fault(k):
    if k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if k == 4:
        time.sleep(600)
    if k == 5:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        bytearray(8 << 30)
    if k == 6:
        for file in range(3, 12):  # native code that writes where it should not
            try:
                os.write(file, b"\\x00\\xffgarbage\\n")
            except OSError:
                pass
        time.sleep(600)
    if k == 7:
        print("assertion failed in native code", file=sys.stderr)
        os._exit(134)

serve(handle)
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "worker.py"
    path.write_text(_WORKER)
    return [sys.executable, str(path)]


class _Impatient(Worker):
    """A real worker, asked with a second's patience where a sweep has a quarter of an hour."""

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        return super().request(message, min(timeout, 1.0 if message["do"] == "measure" else 60.0))


def _plan(ks: Sequence[int], **settings: Any) -> Plan:
    cases = tuple(Case(k=k, threads=1, allocator="default") for k in ks)
    return Plan(name="t", cases=cases, **{"budget": 0.1, "processes": 2, "utilization": False, **settings})


@pytest.mark.parametrize("keep", [False, True])
def test_a_child_s_fault_costs_its_case_alone_and_the_row_says_so(
    program: list[str], tmp_path: Path, keep: bool
) -> None:
    plan = _plan(range(2, 9), keep_processes=keep)
    with Store.create(tmp_path, "t", "m", "command", plan.to_json()) as store:
        start = lambda _: _Impatient(program)  # noqa: E731
        Runner(plan, store, start=start, state=lambda _: {}, cache=PeaksCache(tmp_path / "peaks")).run()
    rows = Store.open(store.folder).rows()
    assert [row.k for row in rows if row.error is None] == [2, 2, 8, 8]
    errors = {row.k: row.error for row in rows if row.error is not None}
    words = {
        3: "killed by signal 9",
        4: "no answer within 1 s, so it was killed",
        5: "out of memory: MemoryError",
        6: "answered garbage: ",
        7: "exited with status 134; its last line: assertion failed in native code",
    }
    assert errors.keys() == words.keys()
    for k, word in words.items():
        assert word in errors[k]
        assert "\n" not in errors[k]


_PARENT = """
import sys
from pathlib import Path
from meprop_bench.measure.peaks import PeaksCache
from meprop_bench.measure.worker import Worker
from meprop_bench.results.store import Store
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.runner import Runner
from meprop_bench.workloads.case import Case

cases = tuple(Case(k=k, threads=1, allocator="default") for k in range(10, 22))
plan = Plan(name="t", cases=cases, budget=0.05, processes=2, keep_processes=True, utilization=False)
root = Path({root!r})
store = Store.find_resumable(root, "t", "m", plan.to_json())
store = store or Store.create(root, "t", "m", "command", plan.to_json())
print("go", flush=True)
cache = PeaksCache(root.parent / "peaks")
start = lambda _: Worker({program!r})
Runner(plan, store, start=start, state=lambda _: {{}}, cache=cache).run()
print("done", flush=True)
"""


def test_a_parent_that_is_killed_at_any_moment_leaves_a_store_that_opens_and_resumes(
    program: list[str], tmp_path: Path
) -> None:
    rng = random.Random(6)
    root = tmp_path / "reports"
    root.mkdir()
    code = textwrap.dedent(_PARENT).format(root=str(root), program=program)
    finished: frozenset[str] = frozenset()
    kept: dict[str, str] = {}
    kills = 0
    for attempt in range(40):
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        assert parent.stdout.readline() == "go\n"
        if attempt < 5:
            time.sleep(rng.uniform(0, 0.35))
            parent.send_signal(signal.SIGKILL)
        said, _ = parent.communicate(timeout=60)
        (folder,) = root.iterdir()
        store = Store.open(folder)
        assert finished <= store.done_case_ids()  # nothing that was done is lost
        finished = store.done_case_ids()
        assert set(Counter(row.case_id for row in store.rows()).values()) <= {2}  # no half case
        lines = {row.case_id + str(row.phase): json.dumps(row.to_json()) for row in store.rows()}
        assert kept.items() <= lines.items()  # and nothing is measured twice
        kept = lines
        if said == "done\n":
            break
        kills += 1
    assert kills >= 1
    assert len(finished) == 12
    lines_on_disk = (folder / MEASUREMENTS).read_text().splitlines()
    assert len(lines_on_disk) == len(kept) == 24


def test_two_runs_into_one_folder_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused before anything is measured, with one line; a reader may look all the while."""
    chosen = {"method": ["unified"], "k": [2], "hidden": [8], "batch": [4], "threads": [1]}
    plan = plan_axes(chosen)
    words = [f"--{axis}={value}" for axis, values in chosen.items() for value in values]
    with Store.create(tmp_path, plan.name, machine_slug(), "command", plan.to_json()) as store:
        before = (store.folder / ENVIRONMENT).read_bytes()
        assert cli.run(["speedup", *words, "--out", str(tmp_path), "--resume"]) == ExitCode.USAGE
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"meprop-bench: error: results folder {store.folder.name} cannot be locked: another run")
        assert err.count("\n") == 1
        assert (store.folder / ENVIRONMENT).read_bytes() == before
        assert Store.open(store.folder).rows() == []
    assert [path.name for path in tmp_path.iterdir()] == [store.folder.name]


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
from meprop_bench.cli import main
main()
"""
"""A file may not grow beyond `size` bytes: what a full disk does, without root and without filling one."""


def _speedup(tmp_path: Path) -> Callable[..., list[str]]:
    preset = tmp_path / "own.toml"
    preset.write_text(
        'name = "own"\nanalysis = "a test"\nchecks = ["gradients"]\nprocesses = 1\nkeep-processes = true\n'
        "utilization = false\nbudget = 0.4\ntarget = 1e-9\n"
        '[[sweep]]\nmethod = "unified"\nk = [2, 3, 4, 5]\nbatch = 4\nhidden = 8\nthreads = 1\n'
    )
    return lambda *more: ["speedup", "--preset", str(preset), "--out", str(tmp_path / "reports"), *more]


def _whole_cases(folder: Path) -> set[str]:
    rows = Store.open(folder).rows()
    assert all(row.passed and row.measurement for row in rows)
    assert set(Counter(row.case_id for row in rows).values()) <= {2}
    return {row.case_id for row in rows}


def test_a_real_run_survives_a_full_disk_and_a_kill(tmp_path: Path) -> None:
    """One sweep: its disk fills up, it is resumed and killed in the middle of a case, and resumed to its end."""
    for name in KERNELS:  # compiled and cached now: a cache that cannot be written is not what this is about
        with suppress(ImportError):
            KERNELS[name]
    words = _speedup(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    limited = [sys.executable, "-c", _LIMITED.format(size=12 << 10), *words()]
    full = subprocess.run(limited, capture_output=True, text=True, env=environment, check=False)
    assert full.returncode == ExitCode.USAGE, full.stderr
    last = full.stderr.splitlines()[-1]
    assert last.startswith("meprop-bench: error: cannot write ")
    assert last.endswith("; free some space or choose another folder")
    assert "Traceback" not in full.stderr
    (folder,) = (tmp_path / "reports").iterdir()
    saved = _whole_cases(folder)
    assert len(saved) < 3

    log = tmp_path / "log"
    with log.open("w") as err:
        again = [sys.executable, "-m", "meprop_bench", *words("--resume")]
        parent = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=err, env=environment)
    deadline = time.monotonic() + 120
    while f"[{len(saved) + 1}/4]" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # into the next case
    parent.kill()
    parent.wait()
    killed = _whole_cases(folder)
    assert saved < killed

    done = subprocess.run(again, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == ExitCode.OK, done.stderr
    assert [path.name for path in (tmp_path / "reports").iterdir()] == [folder.name]
    assert killed < _whole_cases(folder)
    assert len((folder / MEASUREMENTS).read_text().splitlines()) == 8
    assert len(Store.open(folder).header["states"]) == 3


def test_a_folder_without_its_description_is_refused_in_one_line(tmp_path: Path) -> None:
    """Killed between making the folder and describing it: nothing is lost, and nothing is taken for a result."""
    (tmp_path / "2026-03-04_m_t").mkdir()
    (tmp_path / "2026-03-04_m_t" / MEASUREMENTS).touch()
    with pytest.raises(UserError, match="not a results folder"):
        Store.open(tmp_path / "2026-03-04_m_t")
    assert Store.find_resumable(tmp_path, "t", "m", {}) is None
