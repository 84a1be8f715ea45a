"""A whole report from a folder, as `meprop_bench.report` writes it."""

import subprocess
import sys

import pytest

from meprop_bench.errors import UserError
from meprop_bench.report import document, formats
from meprop_bench.report.page import as_html
from meprop_bench.results.store import Store

PAGES = ["README.md", "index.html"]


def test_a_report_holds_pages_and_plots_and_is_written_anew(folder):
    (folder / "speedup-9-stale.svg").write_text("old")
    (folder / "mine.txt").write_text("not ours")
    written = formats.write_report(folder)
    assert [path.name for path in written][-2:] == PAGES
    assert all(path.stat().st_size for path in written)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in written} | {"mine.txt", "measurements.jsonl", "environment.json"}
    text = (folder / "README.md").read_text()
    assert all(f"({path.name})" in text for path in written if path.suffix == ".svg")
    assert formats.write_report(folder) == written


def test_no_path_of_the_machine_is_in_a_report(make_folder, rows, failed_row, tmp_path):
    bad = failed_row("oom", error=f"cannot allocate, see {tmp_path}/core.dump")
    folder = make_folder([*rows, bad], command=f"meprop-bench speedup --out {tmp_path}")
    for path in formats.write_report(folder):
        assert str(tmp_path).encode() not in path.read_bytes()
    assert "core.dump" in (folder / "README.md").read_text()


def test_of_many_rows_what_belongs_to_each_has_no_table(make_row, monkeypatch):
    monkeypatch.setattr(document, "MOST_BESIDE", 3)
    counts = {"flops": 4e6, "bytes": 2e6, "baseline_flops": 4e8, "baseline_bytes": 4e6}
    rows = [make_row(f"a{k}", k=k, **counts) for k in range(1, 5)]
    few, many = (document.Document("t", "c", "s", own) for own in (rows[:3], rows))
    assert [one.title for one in few.sections] == [
        "linear, kept allocator", "Predicted against measured saving: linear, kept allocator",
    ]  # fmt: skip
    assert [one.title for one in many.sections] == ["linear, kept allocator"]
    said = "Of so many rows savings, a line for each, are not shown: --format csv has them."
    assert said in many.hints
    assert few.left_out == ""
    assert said in as_html(many, [])
    assert said not in as_html(few, [])


@pytest.mark.parametrize(("absent", "kept"), [(["matplotlib"], PAGES), (["matplotlib", "jinja2"], PAGES[:1])])
def test_without_the_extra_the_readme_is_written_and_says_so(folder, monkeypatch, absent, kept):
    monkeypatch.setattr(formats, "unavailable_reason", lambda name: "cannot be imported" if name in absent else None)
    assert [path.name for path in formats.write_report(folder)] == kept
    assert "pip install 'meprop-bench\\[report\\]'" in (folder / "README.md").read_text()


def test_empty_results_make_a_report(make_folder):
    assert [path.name for path in formats.write_report(make_folder([]))] == PAGES


def test_no_results_are_one_line(tmp_path):
    with pytest.raises(UserError, match="not a results folder"):
        formats.write_report(tmp_path)


def test_a_report_never_loads_torch(folder):
    code = f"""
import sys
from pathlib import Path
from meprop_bench.report.formats import write_report
write_report(Path({str(folder)!r}))
assert not {{"torch", "scipy.stats", "numba", "sklearn"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_of_several_revisions_are_said_to_be(make_folder, make_row):
    folder = make_folder([make_row("a", git_revision="one"), make_row("b", k=9, git_revision="two")])
    formats.write_report(folder)
    assert "the rows were measured at 2 revisions of the code: one, two" in (folder / "README.md").read_text()
    alone = make_folder([make_row("a", git_revision="one"), make_row("b", k=9, git_revision="one")], name="alone")
    formats.write_report(alone)
    assert "revisions of the code" not in (alone / "README.md").read_text()


@pytest.mark.parametrize(("planned", "said"), [(2, True), (1, False)])
def test_cases_of_the_plan_without_a_row_are_counted(tmp_path, make_row, planned, said):
    plan = {"cases": [{"k": k} for k in range(planned)]}
    with Store.create(tmp_path, "quick", "amd-epyc-2c", "meprop-bench speedup", plan) as store:
        store.append([make_row("a", phase="forward"), make_row("a")])
    formats.write_report(store.folder)
    assert ("1 of 2 cases are not measured: the run ended" in (store.folder / "README.md").read_text()) is said
