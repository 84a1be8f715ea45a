from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest

from meprop_bench import __version__, cli
from meprop_bench.errors import ExitCode, UserError


def _raise(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make the verb `data` end with an error."""

    def install(error: BaseException) -> None:
        module = import_module("meprop_bench.cli.data")
        monkeypatch.setattr(module, "command", click.Command("data", callback=_raise(error)))

    return install


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_the_help_that_the_list_shows(verb: str) -> None:
    command = import_module(f"meprop_bench.cli.{verb}").command
    assert isinstance(command, click.Command)
    assert command.short_help == cli.VERBS[verb]


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from meprop_bench import cli
code = cli.run(["--help"])
heavy = {"torch", "numpy", "scipy", "matplotlib", "rich", "numba", "jinja2"} & set(sys.modules)
sys.exit(f"{heavy} imported" if heavy else code)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert all(verb in found.stdout for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_verbs_help_does_not_load_torch(verb: str) -> None:
    program = f"""
import sys
from meprop_bench import cli
code = cli.run([{verb!r}, "--help"])
sys.exit("torch imported" if "torch" in sys.modules else code)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"meprop-bench {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["spedup"], "unknown verb 'spedup': did you mean 'speedup'?"),
        (["zzz"], "choose from speedup, profile, report"),
        (["speedup", "--metod", "meprop"], "--method"),
        (["speedup", "--format", "xml"], "'xml' is not one of"),
        (["--verson"], "--version"),
    ],
)
def test_wrong_usage_is_one_line_with_a_suggestion(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("meprop-bench: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_no_verb_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: meprop-bench" in err
    assert "speedup" in err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("wrong\nhere"), 2, "error: wrong here"),
        (UserError("nothing", ExitCode.NOTHING_MEASURED), 5, "error: nothing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "error: out of memory: close other programs, or measure smaller cases"),
        (OSError(28, "No space left on device", "here"), 2, "error: No space left on device: here"),
    ],
)
def test_errors_are_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error)
    assert cli.run(["data"]) == code
    assert capsys.readouterr().err == f"meprop-bench: {line}\n"


def test_a_bug_is_not_hidden(failing: Callable[[BaseException], None]) -> None:
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.run(["data"])


def test_a_reader_who_closes_the_pipe_hears_no_complaint(tmp_path: Path) -> None:
    command = f"{sys.executable} -m meprop_bench --help; echo $? > {tmp_path}/code"
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate()
    assert err == b""
    assert (tmp_path / "code").read_text() == "141\n"


@pytest.mark.parametrize(
    ("redirection", "form"),
    [("> /dev/full", "json"), ("2>&1 >&- | cat", "json"), ("| exec true", "json"), ("| exec true", "table")],
)
def test_a_verdict_outlives_a_standard_output_that_cannot_be_written(
    redirection: str, form: str, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.meprop-bench.gat]\n")  # a problem: exit code 2 of doctor's own
    command = f"cd {tmp_path}; {sys.executable} -m meprop_bench doctor --fast --format {form} {redirection}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    codes = []
    for line in (command, f"cd {tmp_path}; {sys.executable} -m meprop_bench doctor --fast --format json > out"):
        done = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], env=environment, check=False)
        codes.append(done.returncode)
    assert codes[0] == codes[1] != 0


@pytest.mark.parametrize(("redirection", "code"), [("| exec true", 141), ("> /dev/full 2> /dev/full", 2)])
def test_what_cannot_be_printed_is_no_regression(redirection: str, code: int, tmp_path: Path) -> None:
    command = f"cd {tmp_path}; {sys.executable} -m meprop_bench data list {redirection}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(["bash", "-c", command], env=environment, check=False).returncode == code
