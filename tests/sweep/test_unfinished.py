from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from meprop_bench.sweep import unfinished
from meprop_bench.sweep.unfinished import discard_unfinished


def test_what_may_be_half_a_library_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "ab").mkdir()
    (tmp_path / "locks").mkdir()
    for name in ("held", "new"):
        (tmp_path / "locks" / f"{name}.lock").touch()
    for name, age_s in (("old.so", 90.0), ("new.main.so", 2.0), ("new.cpp", 2.0), ("held.so", 2.0), ("none.so", 2.0)):
        (tmp_path / "ab" / name).touch()
        os.utime(tmp_path / "ab" / name, (1e9 - age_s, 1e9 - age_s))
    with (tmp_path / "locks" / "held.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        discard_unfinished(lambda: 1e9)
    assert sorted(path.name for path in (tmp_path / "ab").iterdir()) == ["held.so", "new.cpp", "none.so", "old.so"]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nowhere"))
    discard_unfinished()


def test_the_cache_is_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert str(unfinished._cache()) == default_cache_dir()
