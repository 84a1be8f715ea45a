from datetime import UTC, datetime
from pathlib import Path

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.results.baselines import Baselines

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
ABOUT = {"source": "after.json (pytest-benchmark)", "machine": "a processor, 2 cores", "now": NOW}


@pytest.fixture
def baselines(tmp_path: Path) -> Baselines:
    return Baselines(tmp_path / "baselines")


def file(tmp_path: Path, text: str, name: str = "after.json") -> Path:
    (path := tmp_path / name).write_text(text)
    return path


def test_a_file_is_found_by_its_name_with_what_belongs_to_it(baselines, tmp_path):
    path, beside = file(tmp_path, "first"), file(tmp_path, "units", "benchmarks.json")
    saved = baselines.save("main", [path, beside], **ABOUT)
    path.write_text("changed since")
    found = baselines.named("main")
    assert found == saved
    assert found.results.read_text() == "first"
    assert (found.results.parent / "benchmarks.json").read_text() == "units"
    assert (found.source, found.machine, found.saved) == tuple(ABOUT.values())
    assert baselines.names() == ["main"]
    assert found.line == f"main ({found.digest}, saved 2026-11-28 from after.json (pytest-benchmark))"


@pytest.mark.parametrize("named", ["", "measurements.jsonl"])
def test_a_results_folder_is_one_again_whatever_else_lies_in_it(baselines, tmp_path, named):
    (folder := tmp_path / "2026-11-28_m_gate").mkdir()
    for name in ("measurements.jsonl", "environment.json", "README.md"):
        file(folder, name, name)
    baselines.save("main", [folder / named], **ABOUT)
    found = baselines.named("main").results
    assert found.name == folder.name
    assert sorted(path.name for path in found.iterdir()) == ["environment.json", "measurements.jsonl"]


def test_only_whoever_names_what_is_replaced_replaces_it(baselines, tmp_path):
    first = baselines.save("main", [file(tmp_path, "first")], **ABOUT)
    file(tmp_path, "second")
    for replaces in ("", "0" * 12):
        with pytest.raises(UserError, match=f"there is a baseline main \\({first.digest}, saved 2026-11-28"):
            baselines.save("main", [tmp_path / "after.json"], replaces=replaces, **ABOUT)
    assert baselines.named("main").results.read_text() == "first"
    second = baselines.save("main", [tmp_path / "after.json"], replaces=first.digest, **ABOUT)
    assert baselines.named("main") == second
    assert second.results.read_text() == "second"
    assert sorted(path.name for path in (baselines.folder / "main").iterdir()) == sorted(
        [second.digest, "baseline.json"]
    )


def test_the_same_results_are_no_replacement_even_from_the_baseline_itself(baselines, tmp_path):
    first = baselines.save("main", [file(tmp_path, "first")], **ABOUT)
    again = baselines.save("main", [first.results], **ABOUT)
    assert again.digest == first.digest
    assert baselines.named("main").results.read_text() == "first"


def test_a_save_that_is_cut_off_leaves_the_old_one(baselines, tmp_path, monkeypatch):
    first = baselines.save("main", [file(tmp_path, "first")], **ABOUT)

    def full(*_):
        raise UserError("cannot write: disk full")

    monkeypatch.setattr("meprop_bench.results.baselines.replace_file", full)
    with pytest.raises(UserError, match="disk full"):
        baselines.save("main", [file(tmp_path, "second")], replaces=first.digest, **ABOUT)
    assert baselines.named("main").results.read_text() == "first"


def test_results_that_were_changed_are_refused(baselines, tmp_path):
    found = baselines.save("main", [file(tmp_path, "first")], **ABOUT)
    found.results.write_text("faster")
    with pytest.raises(UserError, match="not those that were saved"):
        baselines.named("main")
    found.results.unlink()
    with pytest.raises(UserError, match="not those that were saved"):
        baselines.named("main")
    baselines.save("main", [tmp_path / "after.json"], **ABOUT)
    assert baselines.named("main").results.read_text() == "first"


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a b", "\x1b", "-x", "x" * 101])
def test_a_name_is_no_path(baselines, tmp_path, name):
    with pytest.raises(UserError, match="cannot be a baseline's name"):
        baselines.save(name, [file(tmp_path, "first")], **ABOUT)
    assert name not in baselines
    assert not baselines.folder.exists()


def test_one_that_is_not_there_names_what_is(baselines, tmp_path):
    with pytest.raises(UserError, match="there are none") as found:
        baselines.named("main")
    assert found.value.exit_code == ExitCode.NOT_COMPARABLE
    baselines.save("release-1", [file(tmp_path, "first")], **ABOUT)
    with pytest.raises(UserError, match="did you mean 'release-1'"):
        baselines.named("relaese-1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (('"digest":', '"digset":'), "has no 'digest'"),
        (("after.json", "../../../after.json"), "results"),
        (("baseline/1", "baseline/2"), "has the schema 'meprop-bench-baseline/2'"),
        (("{", ""), "no JSON"),
    ],
)
def test_a_record_that_is_not_sound_is_one_line(baselines, tmp_path, changes, words):
    baselines.save("main", [file(tmp_path, "first")], **ABOUT | {"source": "it"})
    record = baselines.folder / "main" / "baseline.json"
    record.write_text(record.read_text().replace(*changes))
    with pytest.raises(UserError, match=words) as found:
        baselines.named("main")
    assert "\n" not in str(found.value)
