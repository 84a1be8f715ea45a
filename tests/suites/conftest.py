"""Both suites run in processes of their own, on a preset that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meprop_bench.sweep.suite import PRESET, SWITCH

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs `python -m` in a home of its own (asv's file of machines is there), with the user's caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")

    tiny = Path(__file__).with_name("tiny.toml")

    def go(*arguments: str | Path, part: str = "all", preset: Path = tiny) -> subprocess.CompletedProcess[str]:
        variables = {
            **os.environ,
            "HOME": str(tmp_path),
            "XDG_CACHE_HOME": caches,
            PRESET: str(preset),
            SWITCH: part,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    return go
