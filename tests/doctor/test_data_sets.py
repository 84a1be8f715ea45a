from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from meprop_bench.data.sources import VARIABLE, DataFile, Source
from meprop_bench.doctor import software as module

_CONTENTS = (b"hello", b"world!")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder for one set of two files, neither of which is there yet."""
    files = (DataFile(f"f{i}", len(c), hashlib.sha256(c).hexdigest(), ()) for i, c in enumerate(_CONTENTS))
    monkeypatch.setattr(module, "SOURCES", {"toy": Source("toy", "a test", "CC0", "https://example.org", tuple(files))})
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "toy").mkdir()
    return tmp_path / "toy"


def test_a_set_that_is_not_here_is_a_note(folder: Path) -> None:
    (found,) = module.data_sets(thorough=True)
    assert (found.state, found.advice) == ("note", "meprop-bench data fetch toy")


def test_whole_half_and_damaged_sets(folder: Path) -> None:
    (folder / "f0.gz").write_bytes(gzip.compress(b"hello"))
    assert [finding.state for finding in module.data_sets(thorough=True)] == ["warning"]
    (folder / "f1").write_bytes(b"world!")
    (found,) = module.data_sets(thorough=True)
    assert (found.state, "verified" in found.text) == ("ok", True)
    (folder / "f1").write_bytes(b"wurld!")
    assert [finding.state for finding in module.data_sets(thorough=False)] == ["ok"]  # sizes alone
    (found,) = module.data_sets(thorough=True)
    assert (found.state, "SHA-256" in found.text) == ("problem", True)
    (folder / "f1").write_bytes(b"")
    assert [finding.state for finding in module.data_sets(thorough=False)] == ["problem"]


def test_a_folder_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    (found,) = module.data_sets(thorough=True)
    assert (found.state, VARIABLE in found.text) == ("problem", True)
