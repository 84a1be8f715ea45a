"""The suite's own JSON through the gate, from end to end: measured once, compared with itself and with slower times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meprop_bench.errors import ExitCode
from meprop_bench.sweep.suite import PRESET, SWITCH

pytest.importorskip("pytest_benchmark", reason="not installed: pip install 'meprop-bench[suites]'")

_ROOT = Path(__file__).parents[2]
_CHOSEN = ("-q", "-p", "no:cacheprovider", "--benchmark-only", "-k", "linear and backward and unified")


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    tiny = {PRESET: str(_ROOT / "tests" / "suites" / "tiny.toml"), SWITCH: "all", "TMPDIR": str(folder)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **tiny}, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_suites_json_is_judged(tmp_path: Path) -> None:
    made = _run(tmp_path, "pytest", str(_ROOT / "benchmarks/pytest_suite"), *_CHOSEN, "--benchmark-json", "a.json")
    assert made.returncode == 0, made.stdout + made.stderr
    record = json.loads((tmp_path / "a.json").read_text())
    for one in record["benchmarks"]:
        row = one["extra_info"]["row"]
        row["values_s"] = [1000 * value for value in row["values_s"]]
        row["median_s"] *= 1000
        for name in ("speedup", "speedup_low", "speedup_high", "efficiency"):
            row[name] = row[name] and row[name] / 1000
    (tmp_path / "b.json").write_text(json.dumps(record))
    verdicts = {}
    for candidate in ("a.json", "b.json"):
        files = ("--baseline", "a.json", "--candidate", candidate)
        found = _run(tmp_path, "meprop_bench", "gate", *files, "--format", "json", "--margin", "0.5")
        outcome = json.loads(found.stdout)
        assert outcome["exit_code"] == found.returncode, found.stderr
        assert len({one["case"] for one in outcome["judgements"]}) == len(record["benchmarks"])
        verdicts[candidate] = {one["verdict"] for one in outcome["judgements"] if one["figure"] == "backward"}, outcome
    same, slower = verdicts["a.json"], verdicts["b.json"]
    assert "fail" not in same[0]
    assert same[1]["exit_code"] in (ExitCode.OK, ExitCode.INCONCLUSIVE)  # two processes decide little
    assert slower[1]["counts"]["pass"] > 0  # what has no noise did not change
    assert slower[0] <= {"fail", "inconclusive"}
    backward = [one for one in slower[1]["judgements"] if one["figure"] == "backward"]
    assert all(one["change"] == pytest.approx(1000) for one in backward)
