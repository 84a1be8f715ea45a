"""Every example runs, at a small size, and prints what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

SMALL = {
    "own_model.py": (["--processes", "2", "--seconds", "0.1", "--width", "64"], r"^step +\d+\.\d\dx \[\d"),
    "row_adam.py": (["--width", "256", "--steps", "100"], r"^unified, RowAdam +accuracy [2-9]\d\.\d%"),
    "simplify.py": (["--steps", "400"], r"^[1-9]\d?% of the operations are left, accuracy [5-9]\d"),
}
"""Example -> arguments that make it quick, and what it then prints."""


def test_each_is_tried_and_listed():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(SMALL)
    assert names == set(re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name: str, tmp_path: Path) -> None:
    arguments, expected = SMALL[name]
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.MULTILINE), done.stdout
    assert list(tmp_path.iterdir()) == []
