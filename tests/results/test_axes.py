"""An axis is written once: a line that is added to the table is in every place that knows axes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.results.axes import AXES
from meprop_bench.results.schema import Row
from meprop_bench.workloads.case import Case

ROOT = Path(__file__).parents[2]
LINE = '    ballast: Size = field(default=1, metadata=_axis("Made up, for a test."))\n'
USUAL = Case(threads=2, allocator="kept")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package with one more line says of that axis, by `made_up`."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("meprop_bench", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    table = folder / "meprop_bench" / "results" / "axes.py"
    before, end, after = table.read_text().partition("    # fmt: on\n")
    table.write_text(before + LINE + end + after)
    command = [sys.executable, str(Path(__file__).with_name("made_up.py"))]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("option of speedup", True),
        ("option of profile", True),
        ("given", {"ballast": [1, 3]}),
        ("typed", [1, 3]),
        ("preset", [1, 3]),
        ("case", 3),
        ("row", 3),
        ("row of before", 1),
        ("names", [USUAL.label, USUAL.label.replace("cpu:2", "ballast=3 cpu:2")]),
        ("names of rows", [USUAL.label, USUAL.label.replace("cpu:2", "ballast=3 cpu:2")]),
        ("column", ["1", "3"]),
        ("line of a plot", ["meprop", "dense gradient", "ballast 3"]),
        ("csv", True),
        ("dense times that may differ", None),
        ("export asv", ["'usual'", "'ballast 3'"]),
        ("page", [["1", "3"]]),
        ("parquet", "int"),
        ("keyword", [1, 3]),
        ("rows of results", True),
        ("claim of a test", 3),
        ("model of a gate", [1, 3]),
        ("compare", [1, 3]),
        ("compare, csv", True),
        ("compare, column", True),
        ("suites' grid", "ballast"),
        ("extra_info", True),
        ("docs", True),
    ],
)
def test_a_made_up_axis_is_everywhere(found: dict[str, Any], place: str, expected: object) -> None:
    assert found[place] == expected


def test_a_wrong_value_of_it_is_refused_by_name(found: dict[str, Any]) -> None:
    assert "'balast': did you mean 'ballast'?" in found["preset, misspelt"]
    assert found["preset, wrong"].endswith("sweep[0].ballast must be an integer of at least 1, not 0")
    assert found["case, wrong"] == "ballast must be an integer of at least 1, not 0"
    assert "ballast is 0" in found["row, wrong"]


def test_what_is_as_usual_needs_no_word_and_keeps_its_id(found: dict[str, Any]) -> None:
    assert "ballast 3" in found["above a table"]
    assert "ballast" not in found["not above a table"]
    usual, other = found["ids"]
    assert usual == USUAL.case_id != other


def test_every_axis_is_a_field_of_a_case_and_of_a_row() -> None:
    assert {axis.field for axis in AXES.values()} == set(Case().to_json())
    assert {axis.stored for axis in AXES.values()} <= set(Row.__dataclass_fields__)
