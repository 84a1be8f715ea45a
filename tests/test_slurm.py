"""examples/slurm.sh as Slurm would run it: its array's jobs at once, each with a temporary folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.report.document import Document
from meprop_bench.results.store import Store

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "slurm.sh"
BASH = shutil.which("bash")
pytestmark = [pytest.mark.skipif(BASH is None, reason="there is no bash"), pytest.mark.timeout(900)]

_PRESET = """
name = "tiny"
analysis = "Two tiny cases."
checks = ["gradients"]
processes = 1
budget = 0.2
utilization = false
[[sweep]]
method = "unified"
k = [2, 3]
batch = 4
hidden = 8
kernel = "masked"
threads = 1
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder that all nodes see, with the preset, and one for each node's temporary files."""
    (tmp_path / "tiny.toml").write_text(_PRESET)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "meprop-bench"
    program.write_text(
        f'#!/bin/sh\necho "$TMPDIR" >> "{tmp_path}/temporary"\nexec {sys.executable} -m meprop_bench "$@"\n'
    )
    program.chmod(0o755)
    return tmp_path


def submit(cluster: Path, task: int, *words: str, shards: int = 2, budget: str = "0.2") -> subprocess.Popen[str]:
    """Start what `sbatch --array=1-N examples/slurm.sh speedup ...` starts on a node."""
    node = cluster / f"node-{task}"
    node.mkdir(exist_ok=True)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(cluster / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": f"10{task}",
        "SLURM_ARRAY_JOB_ID": "100",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_COUNT": "1",
        "SLURMD_NODENAME": "node",  # all of one name
        "SLURM_TMPDIR": str(node),
        "SHARDS": str(shards),
    }
    options = ("--preset", str(cluster / "tiny.toml"), "--budget", budget, "--out", str(cluster / "reports"))
    command = [str(BASH), str(SCRIPT), "speedup", *options, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cluster, env=env, stdout=pipe, stderr=pipe, text=True)


def test_the_jobs_of_an_array_run_at_once_and_are_merged(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [submit(cluster, task) for task in (1, 2)]
    for job in jobs:
        _, said = job.communicate(timeout=600)
        assert job.returncode == ExitCode.OK, said
        assert "no earlier run of this sweep" in said  # neither resumed what the other had begun
    folders = sorted((cluster / "reports").iterdir())
    assert [folder.name.partition("_tiny-")[2] for folder in folders] == ["shard-1-of-2", "shard-2-of-2"]
    temporary = (cluster / "temporary").read_text().split()
    assert {Path(path).parent.name for path in temporary} == {"node-1", "node-2"}
    assert not any(Path(path).exists() for path in temporary)
    sizes = [len(Store.open(folder).done_case_ids()) for folder in folders]
    assert sizes == [1, 1]

    again = submit(cluster, 1)  # requeued: there is nothing left to do
    _, said = again.communicate(timeout=300)
    assert again.returncode == ExitCode.OK, said
    assert sorted((cluster / "reports").iterdir()) == folders
    assert len(Store.open(folders[0]).done_case_ids()) == sizes[0]

    monkeypatch.setattr("meprop_bench.report.formats.draw", lambda _: ([], "", {}))  # that takes seconds
    assert run(["merge", *map(str, folders), "--out", str(cluster / "all")]) == ExitCode.OK
    capsys.readouterr()
    merged = Document.load(cluster / "all")
    assert [row.k for row in merged.rows if row.phase == "backward"] == [2, 3]
    assert not merged.notes
    rows = {(row.case_id, row.phase): row for folder in folders for row in Store.open(folder).rows()}
    assert {(row.case_id, row.phase): row for row in Store.open(cluster / "all").rows()} == rows


def test_slurm_ends_a_job_before_its_time_is_over(cluster: Path) -> None:
    job = submit(cluster, 1, "--target", "1e-9", budget="120")
    deadline = time.monotonic() + 120
    while not (cluster / "reports").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=300)
    assert job.returncode == ExitCode.INTERRUPTED, said
    assert "meprop-bench: interrupted" in said
    assert list((cluster / "node-1").iterdir()) == []


def test_an_array_that_counts_from_0_is_one_line(cluster: Path) -> None:
    job = submit(cluster, 0)
    _, said = job.communicate(timeout=60)
    assert job.returncode == ExitCode.USAGE
    assert said.count("\n") == 1
    assert "an array job counts from 1 by --array=1-N" in said


def test_the_script_asks_for_a_whole_node() -> None:
    asked = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--exclusive", "--nodes=1", "--array=1-4", "--signal=B:TERM@300"} <= set(asked)
    assert os.access(SCRIPT, os.X_OK)
