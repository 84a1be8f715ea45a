from pathlib import Path

import pytest

from meprop_bench.data.sources import SOURCES, VARIABLE, data_folder, locate
from meprop_bench.errors import UserError


def test_the_variable_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert data_folder() == tmp_path


def test_a_variable_that_names_no_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"MEPROP_BENCH_DATA=.*none is not a folder: create it, or unset"):
        data_folder()


@pytest.mark.parametrize("variable", [None, ""])
def test_the_cache(tmp_path, monkeypatch, variable):
    monkeypatch.delenv(VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(VARIABLE, variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data_folder() == tmp_path / "xdg/meprop-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert data_folder() == tmp_path / ".cache/meprop-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path(tmp_path) / ".cache/meprop-bench"


def test_gzip_first_then_plain(tmp_path):
    source = SOURCES["mnist"]
    file = source.files[0]
    folder = tmp_path / "mnist"
    folder.mkdir()
    assert locate(tmp_path, source, file) is None
    (folder / file.name).touch()
    assert locate(tmp_path, source, file) == folder / file.name
    (folder / file.stored_name).touch()
    assert locate(tmp_path, source, file) == folder / file.stored_name
