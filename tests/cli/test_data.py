import gzip
import hashlib
import subprocess
import sys

import pytest
from click.testing import CliRunner

from meprop_bench.cli.data import command
from meprop_bench.data import sources
from meprop_bench.data.sources import VARIABLE, DataFile, Source
from meprop_bench.errors import ExitCode, UserError


def toy(name):
    contents = (b"hello", b"world!")
    files = (
        DataFile(f"f{i}", len(c), hashlib.sha256(c).hexdigest(), ("https://127.0.0.1:9/x",))
        for i, c in enumerate(contents)
    )
    return Source(name, "a test", "CC0", "https://example.org", tuple(files))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder in which `toy` is whole and `other` is not there."""
    monkeypatch.setattr(sources, "SOURCES", {"toy": toy("toy"), "other": toy("other")})
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/f0").write_bytes(b"hello")
    (tmp_path / "toy/f1.gz").write_bytes(gzip.compress(b"world!"))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(command, arguments, env={"COLUMNS": "200"})


def error(*arguments):
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert result.exception.exit_code == ExitCode.USAGE
    assert "\n" not in str(result.exception)
    return str(result.exception), result.stdout


def test_list_says_what_is_here_and_where(folder):
    (folder / "other").mkdir()
    (folder / "other/f0").write_bytes(b"hell")
    result = run("list")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    toy_line, other_line = (next(line for line in lines if name in line) for name in ("toy", "other"))
    assert "CC0" in toy_line
    assert "present" in toy_line
    assert "damaged" in other_line
    assert "other/f0.gz: wrong size: 4 bytes instead of the published 5" in lines
    assert f"other/f1.gz: missing: no f1.gz in {folder / 'other'}" in lines
    assert "digits" in result.stdout
    assert f"data folder: {folder} ({VARIABLE})" in result.stdout
    assert "\x1b" not in result.stdout


def test_check_verifies_what_is_here(folder):
    result = run("check")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["toy/f0.gz: verified", "toy/f1.gz: verified"]


def test_check_names_every_damaged_or_missing_file(folder):
    (folder / "toy/f0").write_bytes(b"hallo")
    (folder / "toy/f1.gz").unlink()
    message, stdout = error("check")
    assert message == "data are missing or damaged: run `meprop-bench data fetch toy`"
    lines = stdout.splitlines()
    assert lines[0] == "toy/f0.gz: corrupt: its SHA-256 is not the published one"
    assert lines[1].startswith("toy/f1.gz: missing")


def test_check_of_a_set_that_is_not_here(folder):
    message, _ = error("check", "other")
    assert "fetch other" in message


def test_check_of_an_empty_folder(folder):
    for path in (folder / "toy").iterdir():
        path.unlink()
    message, _ = error("check")
    assert message.startswith(f"no data set lies in {folder}")


def test_fetch_leaves_alone_what_is_whole(folder):
    result = run("fetch", "toy", "toy")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"toy: 0 fetched, 2 already here, in {folder / 'toy'}\n"


def test_fetch_that_fails(folder):
    message, _ = error("fetch", "other")
    assert "no mirror served other/f0.gz" in message


@pytest.mark.parametrize("verb", ["fetch", "check"])
def test_an_unknown_name(folder, verb):
    message, _ = error(verb, "othr")
    assert "did you mean 'other'?" in message


def test_loading_the_verb_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'rich', 'sklearn', 'urllib.request'}"
    code = f"import sys, meprop_bench.cli.data; print(*({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("deadline", ["0", "-1", "nan", "inf"])
def test_a_deadline_is_a_time(folder, deadline):
    message, _ = error("fetch", "other", "--deadline", deadline)
    assert message == f"a deadline must be more than 0 seconds, and finite, not {deadline}"


def test_the_deadline_is_that_of_the_command(folder):
    message, _ = error("fetch", "other", "--deadline", "1e-9")
    assert message.startswith("other/f0.gz was not here within the 1e-09 seconds for all of other: allow more")
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]
