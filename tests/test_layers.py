"""The layers of the package (pyproject.toml, [tool.importlinter]): a module imports from lower layers only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def test_no_module_imports_from_a_higher_layer() -> None:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    found = subprocess.run([sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_package_is_a_drawer_for_everything() -> None:
    forbidden = {"utils", "util", "helpers", "common", "base", "misc"}
    assert not [path for path in (_ROOT / "meprop_bench").rglob("*") if path.stem in forbidden]


def test_what_measures_does_not_load_torchs_compiler() -> None:
    program = """
import sys
from meprop_bench.sweep.worker import WorkerSession
WorkerSession().handle({"do": "hello", "threads": 1, "device": "cpu"})
import meprop_bench.nn
sys.exit("torch._dynamo" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
