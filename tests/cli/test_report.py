import json
import subprocess
import sys
from datetime import UTC, datetime

import click
import pytest
from click.testing import CliRunner

from meprop_bench.cli.report import command
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.paper.experiment import experiment
from meprop_bench.paper.published import table
from meprop_bench.results.schema import Row
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store


def row(case_id="a", environment_id="e0", **changes):
    base = {"workload": "linear", "method": "unified", "kernel": "gather", "kernel_requested": "auto", "k": 8}
    base |= {"batch": 10, "in_features": 784, "out_features": 500, "device": "cpu", "threads": 2, "dtype": "float32"}
    base |= {"gradient": "rows", "allocator": "kept", "phase": "backward", "check": "passed", "speedup": 5.0}
    return Row.of(case_id=case_id, environment_id=environment_id, **{**base, **changes})


@pytest.fixture
def make(tmp_path):
    def made(*rows, name="quick"):
        with Store.create(
            tmp_path, name, "amd-2c", f"meprop-bench speedup --name {name}", {}, now=datetime(2026, 3, 4, tzinfo=UTC)
        ) as store:
            store.append(rows)
            store.write_environment({one.environment_id: {"cpu": "Some CPU"} for one in rows})
        return store.folder

    return made


def call(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)


def test_the_default_prints_the_table_and_writes_nothing(make):
    folder = make(row())
    result = call(folder)
    assert result.exception is None
    assert result.return_value == ExitCode.OK
    assert result.stdout.startswith("On this machine ")
    assert "5.00x" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == [ENVIRONMENT, MEASUREMENTS]


def test_a_search_is_its_answer_and_its_page_is_not_overwritten(make):
    folder = make(row())
    with Store.open(folder, write=True) as store:
        store.write_answer("Stay dense: nothing is faster.")
    assert call(folder).output.startswith("Stay dense: nothing is faster.")
    with pytest.raises(UserError, match=r"README\.md of .* is the answer of a search"):
        CliRunner().invoke(command, [str(folder), "--write"], standalone_mode=False, catch_exceptions=False)
    assert not (folder / "README.md").exists()


def test_write_writes_the_pages_and_prints(make):
    folder = make(row())
    result = call(folder, "--write")
    assert "5.00x" in result.stdout
    assert "README.md" in result.stderr
    assert (folder / "README.md").exists()


@pytest.mark.parametrize("name", [MEASUREMENTS, ENVIRONMENT])
def test_a_file_of_the_folder_names_it(make, name):
    folder = make(row())
    assert call(folder / name).stdout == call(folder).stdout


def test_each_row_is_read_once_for_the_table_and_the_pages(make, monkeypatch):
    folder, read = make(row("a"), row("b")), []
    once = Row.unchecked.__func__
    monkeypatch.setattr(Row, "unchecked", classmethod(lambda cls, record: read.append(record) or once(cls, record)))
    assert call(folder, "--write").exception is None
    assert len(read) == 2


@pytest.mark.parametrize("form", ["json", "csv", "md", "html"])
def test_other_formats_print_that_alone_and_write_nothing(make, form):
    folder = make(row())
    result = call(folder, "--format", form)
    assert result.exception is None
    start = {"json": "{", "csv": "case_id,", "md": "On this machine", "html": "<!doctype html>"}[form]
    assert result.stdout.startswith(start)
    assert result.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == [ENVIRONMENT, MEASUREMENTS]


def test_several_folders_of_one_environment_are_one_json(make):
    one, two = make(row("a"), row("b", "e1")), make(row("c"), name="other")
    record = json.loads(call(one, two, one, "--format", "json").stdout)
    assert [entry["case_id"] for entry in record["rows"]] == ["a", "b", "c"]
    assert set(record["environment"]) == {"e0", "e1"}
    assert record["command"] == "meprop-bench speedup --name quick; meprop-bench speedup --name other"


def test_different_environments_are_not_shown_together_silently(make):
    one, two = make(row()), make(row("b", "e1"), name="other")
    error = call(one, two).exception
    assert isinstance(error, UserError)
    assert error.exit_code == ExitCode.NOT_COMPARABLE
    assert "--mixed-environments" in str(error)
    assert not (one / "README.md").exists()
    assert call(one, two, "--mixed-environments").exception is None


def test_a_torn_last_line_is_told_and_the_rest_shown(make):
    folder = make(row("a"), row("b"))
    path = folder / MEASUREMENTS
    path.write_bytes(path.read_bytes()[:-9])
    result = call(folder, "--format", "json")
    assert [entry["case_id"] for entry in json.loads(result.stdout)["rows"]] == ["a"]
    assert "cut off" in result.stderr


def test_what_cannot_be_read_is_one_line_and_exit_2(make, tmp_path):
    corrupt = make(row())
    (corrupt / MEASUREMENTS).write_text("{}\n")
    for folder in (tmp_path / "nowhere", tmp_path, corrupt):
        error = call(folder).exception
        assert isinstance(error, UserError)
        assert error.exit_code == ExitCode.USAGE
        assert "\n" not in str(error)


def test_nothing_measured_has_a_code_of_its_own(make):
    assert call(make()).exception.exit_code == ExitCode.NOTHING_MEASURED


def test_wrong_usage_is_clicks(make):
    assert isinstance(call().exception, click.UsageError)
    assert isinstance(call(make(row()), "--format", "xml").exception, click.UsageError)


def test_help_and_json_load_neither_torch_nor_matplotlib(make):
    code = f"""
import sys
from meprop_bench.cli.report import command
assert not {{"rich", "jinja2", "matplotlib"}} & set(sys.modules)
command.main([{str(make(row()))!r}, "--format", "json"], standalone_mode=False)
assert not {{"torch", "scipy", "matplotlib"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_folder_of_a_paper_s_table_keeps_the_page_of_the_table(tmp_path):
    """The paper beside ours, and the verdicts: also where nothing was timed, and beside a folder of the usual kind."""
    plan = experiment(table("icml:3"), "smoke").to_json()
    with Store.create(tmp_path, "paper-icml-3-smoke", "amd-2c", "meprop-bench paper run icml:3", plan) as store:
        folder = store.folder
    result = call(folder, "--write")
    assert result.exception is None
    assert (result.return_value, "Verdicts" in result.stdout) == (ExitCode.OK, True)
    page = (folder / "README.md").read_text()
    assert "## MNIST (Adam): the paper and ours" in page
    assert "by `meprop-bench paper report" in page
    assert call(folder, "--format", "md").stdout.count("the paper and ours") == 3
    assert (folder / "README.md").read_text() == page
