"""The page of all results below a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from meprop_bench.cli.report import command
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.report import index as index_module
from meprop_bench.report.index import Index, ListedResult, Notes, as_page, notes_of, results_below
from meprop_bench.results.baselines import Baselines
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store

MACHINE = {"cpu_model": "AMD EPYC", "cpu_usable_cores": 2, "cpu_capability": "AVX2", "git_revision": "abc123"}


def call(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def make(tmp_path, make_row):
    """A function that stores a result in `root`, on a day of March."""
    root = tmp_path / "reports"

    def made(day=1, name="quick", rows=None, plan=None, environment=MACHINE, under=root):
        now = datetime(2026, 3, day, tzinfo=UTC)
        with Store.create(
            under, name, "amd-epyc-2c", f"meprop-bench speedup --name {name}", plan or {}, now=now
        ) as store:
            store.append([make_row("a")] if rows is None else rows)
            store.write_environment({"aabbccddeeff": environment})
        return store.folder

    made.root = root
    return made


def test_every_result_has_a_line_with_date_machine_question_verdict_and_link(make):
    make(1, plan={"analysis": "Is it faster? This is how."})
    make(2, name="later")
    result = call("--index", make.root)
    assert (result.exception, result.return_value) == (None, ExitCode.OK)
    text = (make.root / "README.md").read_text()
    first, second = text.index("| 2026-03-02 |"), text.index("| 2026-03-01 |")
    assert first < second  # the newest first
    line = text[second:].splitlines()[0]
    assert "(2026-03-01_amd-epyc-2c_quick/README.md)" in line
    assert "Is it faster?" in line
    assert "This is how" not in line
    assert "AMD EPYC, 2 cores, AVX2" in line
    assert "5.00x" in line
    assert "meprop-bench speedup --name later" in text[first:].splitlines()[0]
    page = (make.root / "index.html").read_text()
    assert 'href="2026-03-01_amd-epyc-2c_quick/README.md"' in page
    assert "default-src 'none'" in page


def test_what_is_written_by_hand_stays(make):
    folder = make()
    (make.root / "index.toml").write_text(
        f'title = "Ours"\nabout = "Read *this*."\n[question]\n"{folder.name}" = "What | does it gain?"\n'
    )
    assert call("--index", make.root).exception is None
    text = (make.root / "README.md").read_text()
    assert text.startswith("# Ours\n")
    assert "Read *this*." in text
    assert "What \\| does it gain?" in text


@pytest.mark.parametrize("text", ["titel = 'x'", "title = 3", "title = ", "\x00"])
def test_a_file_by_hand_that_is_wrong_is_one_line(make, text):
    make()
    (make.root / "index.toml").write_text(text)
    with pytest.raises(UserError, match=r"index\.toml"):
        notes_of(make.root)


def test_a_result_that_cannot_be_read_is_named_and_the_others_stay(make):
    make(1)
    broken, other = make(2, name="broken"), make(3, name="other")
    with (broken / MEASUREMENTS).open("a") as file:
        file.write("{}\n")
    head = json.loads((other / ENVIRONMENT).read_text())
    (other / ENVIRONMENT).write_text(json.dumps({**head, "schema": "meprop-bench/9"}))
    result = call("--index", make.root)
    assert result.return_value == ExitCode.USAGE
    assert result.stderr.count("broken") >= 1
    text = (make.root / "README.md").read_text()
    assert "**2 of 3 results cannot be read.**" in text
    assert "cannot be read: " in text
    assert "meprop-bench/9" in text
    assert "5.00x" in text


def test_folders_in_folders_count_and_others_do_not(make, tmp_path):
    inner = make(1, under=make.root / "gpu")
    (make.root / "notes").mkdir()
    assert list(results_below(make.root)) == [inner]
    (make.root / "link").symlink_to(inner)
    assert list(results_below(make.root)) == [inner]


def test_named_baselines_are_listed(make, tmp_path):
    folder = make(1)
    Baselines(tmp_path / "baselines").save("main", [folder], source="quick", machine="AMD EPYC")
    assert call("--index", make.root).exception is None
    text = (make.root / "README.md").read_text()
    assert "## Named baselines" in text
    assert "| main | 20" in text
    assert "1 result of" in text  # the baseline is none of them
    (tmp_path / "baselines/main/baseline.json").write_text("{}")
    assert call("--index", make.root).return_value == ExitCode.USAGE
    assert "A baseline cannot be read" in (make.root / "README.md").read_text()


def test_no_result_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for place, code in ((tmp_path / "empty", ExitCode.NOTHING_MEASURED), (tmp_path / "absent", ExitCode.USAGE)):
        found = call("--index", place).exception
        assert isinstance(found, UserError)
        assert found.exit_code == code


def test_the_page_is_bounded(monkeypatch):
    monkeypatch.setattr(index_module, "MOST", 3)
    entries = [ListedResult(f"folder-{n}", f"2026-03-{n:02}", "Measurements", "q", (), "v") for n in range(1, 8)]
    text = as_page(Index(entries, "c"), trends=False)
    assert [f"folder-{n}" in text for n in range(1, 8)] == [False] * 4 + [True] * 3
    assert "4 older results are not listed" in text


def test_nothing_from_a_result_is_live_in_the_page(make, make_row):
    evil = "</script><img src=x onerror=alert(1)>[a](javascript:x) @here \u202e"
    make(plan={"analysis": evil + "x" * 10_000}, environment={**MACHINE, "cpu_model": evil})
    assert call("--index", make.root).exception is None
    page, text = (make.root / "index.html").read_text(), (make.root / "README.md").read_text()
    assert "<img src=x" not in page
    assert "<script" not in page.replace("&lt;", "<!")
    assert "[a](" not in text
    assert "@here" not in text
    assert "\u202e" not in page + text
    assert len(text) < 10_000


def test_the_same_results_give_the_same_page(make):
    make(1)
    make(2, name="b")
    call("--index", make.root)
    before = (make.root / "README.md").read_bytes()
    call("--index", make.root)
    assert (make.root / "README.md").read_bytes() == before


def test_a_doubt_stands_before_the_verdict(document):
    doubted = replace(document)
    object.__setattr__(doubted, "doubts", ["The machine was busy."])
    entry = ListedResult.of("x", doubted, kind="Measurements")
    assert entry.cells()[-1].text.startswith("The machine was busy.")
    assert entry.cells()[-1].tone == "bad"
    assert Notes().title == "Reports"
