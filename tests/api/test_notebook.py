"""A `build` that is in no file, measured for real: the example's cells in a fresh `__main__`, and as a notebook."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_model.ipynb"
_QUICK = "utilization=False, processes=2, budget=0.2"


def _sources(cells: list[Any]) -> list[str]:
    """Return the code of the cells, which measures less closely here: short, and of one case."""
    found = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    found = ["".join(source) for source in found]
    quick = [
        re.sub(r"steps=\d+", "seeds=2, steps=10", source)
        .replace("utilization=False", _QUICK)
        .replace('method=["meprop", "unified"], k=[0.05, 0.2]', 'method="unified", k=0.2')
        for source in found
    ]
    assert any(_QUICK in source for source in quick)
    return quick


def test_the_committed_notebook_was_run_and_names_no_place() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell["outputs"]) for cell in code) == len(code) - 1  # what defines `build` prints nothing
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert not re.search(r"/(work|home|root|tmp|Users)/", text)
    assert len(text) < 150_000


def test_its_cells_run_as_what_is_typed_at_a_prompt(tmp_path: Path) -> None:
    define, measure, *_ = _sources(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])
    check = """
assert __name__ == "__main__"
assert [row.phase for row in found.rows] == ["forward", "backward", "update", "step"], found
assert all(row.passed and row.measurement.processes == 2 for row in found.rows), found
assert found.rows[-1].parity.metric == "accuracy, at the end"
assert found.rows[0].model.startswith("build@")
assert "2 of 3 layers are sparsified" in str(found)
assert "speed-up" in found._repr_html_()
print("measured")
"""
    done = subprocess.run(
        [sys.executable, "-"], input=f"{define}\n{measure}\n{check}", capture_output=True, text=True, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "measured\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_runs_as_a_notebook(tmp_path: Path) -> None:
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"runs a notebook: needs {package}")
    import nbformat  # type: ignore[import-not-found,unused-ignore]
    from nbclient import NotebookClient  # type: ignore[import-not-found,unused-ignore]

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    for cell, source in zip(code, _sources(code), strict=True):
        cell.source = source
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for output in code[1].outputs]
    (page,) = [data["text/html"] for data in shown if "text/html" in data]
    assert page.startswith('<div class="meprop-bench">')
    (table,) = [data["text/plain"] for data in shown if "text/html" in data]
    assert "2 of 3 layers are sparsified" in table
    assert [data["text/plain"] for data in shown if "text/html" not in data and data] == ["1 case measured"]
    assert any("Operators" in output.get("data", {}).get("text/html", "") for output in code[-1].outputs)
