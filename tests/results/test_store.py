import json
import multiprocessing
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meprop_bench.errors import UserError
from meprop_bench.results import store as store_module
from meprop_bench.results.schema import SCHEMA, Row
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store, replace_file

PEAKS = {"flops_per_s": {"float32": 2e11}, "bandwidth": [[65536, 4e10]]}
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PLAN = {"cases": [{"k": 8}, {"k": 32}], "target": 0.02}


def row(case_id="a", phase="backward", **changes):
    base = {"workload": "linear", "method": "unified", "kernel": "gather", "kernel_requested": "auto", "k": 8}
    base |= {"batch": 10, "in_features": 784, "out_features": 500, "device": "cpu", "threads": 2, "dtype": "float32"}
    base |= {"gradient": "rows", "allocator": "kept", "environment_id": "e0", "check": "passed"}
    return Row.of(case_id=case_id, phase=phase, **{**base, **changes})


def create(root, name="quick", now=NOW, plan=PLAN):
    return Store.create(root, name, "amd-2c", "meprop-bench speedup --out /home/me/reports", plan, now=now)


@pytest.fixture
def store(tmp_path):
    with create(tmp_path) as store:
        yield store


def test_a_folder_is_made_and_read_again(store, tmp_path):
    assert store.folder == tmp_path / "2026-03-04_amd-2c_quick"
    store.append([row(phase="forward"), row(phase="backward")])
    store.append([row("b")])
    store.write_environment({"e0": {"cpu": "Some CPU"}}, {"e0": {**PEAKS, "bandwidth": [(65536, 4e10)]}})
    read = Store.open(store.folder)
    assert read.rows() == store.rows() == [row(phase="forward"), row(phase="backward"), row("b")]
    assert read.done_case_ids() == {"a", "b"}
    assert read.header["environments"] == {"e0": {"cpu": "Some CPU"}}
    assert read.header["peaks"] == {"e0": PEAKS}
    assert read.header["schema"] == SCHEMA
    assert read.header["started"] == "2026-03-04T05:06:07+00:00"
    assert sorted(path.name for path in store.folder.iterdir()) == [ENVIRONMENT, MEASUREMENTS]


def test_what_was_appended_is_held_as_it_is(store):
    one = row(notes=["a note"])
    store.append([one])
    assert store.rows()[0] is one
    assert Store.open(store.folder).rows() == [one]


def test_cases_are_taken_from_another_folder_with_where_they_were_measured(store, tmp_path):
    with create(tmp_path, "sweep") as other:
        other.append([row("a", phase="forward"), row("a")])
        other.append([row("failed", phase=None, check=None, error="died")])
        other.append([row("unwanted", environment_id="e7")])
        other.append([row("b", environment_id="e1"), row("there")])
        other.write_environment({"e0": {"cpu": "x"}, "e1": {"cpu": "y"}, "e7": {}}, {"cpu float32": PEAKS})
    store.append([row("there", notes=("own",))])
    assert store.take(other, ["b", "a", "failed", "there", "absent"]) == 2
    read = Store.open(store.folder)
    assert read.done_case_ids() == {"there", "a", "b"}
    assert [(found.case_id, found.phase) for found in read.rows()] == [
        ("there", "backward"), ("b", "backward"), ("a", "forward"), ("a", "backward")
    ]  # fmt: skip
    assert [[note.text for note in found.notes] for found in read.rows()] == [
        ["own"],
        *[["measured for 2026-03-04_amd-2c_sweep"]] * 3,
    ]
    assert read.header["environments"] == {"e0": {"cpu": "x"}, "e1": {"cpu": "y"}}
    assert read.header["peaks"] == {"cpu float32": PEAKS}
    assert store.take(other, ["b", "a"]) == 0


def test_an_environment_stays_what_the_first_rows_were_measured_in(store):
    """Those that do not name their revision have the environment's; a run goes on at a later one."""
    store.write_environment({"e0": {"git_revision": "one"}}, {"e0": PEAKS})
    store.close()
    with Store.open(store.folder, write=True) as again:
        better = {**PEAKS, "bandwidth": [[65536, 5e10]]}
        again.write_environment({"e0": {"git_revision": "two"}, "e1": {}}, {"e0": better})
        again.append([row("b", git_revision="two")])
    read = Store.open(store.folder)
    assert read.header["environments"] == {"e0": {"git_revision": "one"}, "e1": {}}
    assert read.header["peaks"] == {"e0": better}  # settled again
    assert read.rows()[-1].git_revision == "two"


def test_the_users_folders_are_not_stored(store):
    assert "/home" not in (store.folder / ENVIRONMENT).read_text()
    assert store.header["command"] == "meprop-bench speedup --out …/reports"


def test_nothing_is_overwritten(store, tmp_path):
    names = [create(tmp_path).folder.name for _ in range(2)]
    assert names == ["2026-03-04_amd-2c_quick-2", "2026-03-04_amd-2c_quick-3"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_name_stays_inside_the_root(name, tmp_path):
    with pytest.raises(UserError, match="folder's name"):
        create(tmp_path, name)


def test_a_later_row_of_a_case_and_phase_replaces_the_earlier_in_its_place(store):
    store.append([row("a", error="out of memory", check=None), row("b")])
    store.append([row("a", median_s=1.0)])
    assert Store.open(store.folder).rows() == [row("a", median_s=1.0), row("b")]


@pytest.mark.parametrize("cut", [1, 30, 60, 200])
def test_a_torn_last_line_costs_its_case_alone(store, cut):
    store.append([row("whole", "forward"), row("whole", "backward")])
    good = (store.folder / MEASUREMENTS).read_bytes()
    store.append([row("torn", "forward"), row("torn", "backward")])
    store.close()
    path = store.folder / MEASUREMENTS
    path.write_bytes(path.read_bytes()[:-cut])
    torn = path.read_bytes()

    read = Store.open(store.folder)
    assert read.done_case_ids() == {"whole"}
    assert "cut off" in read.notes[0]
    assert path.read_bytes() == torn  # reading changes nothing

    with Store.open(store.folder, write=True) as again:
        assert path.read_bytes() == good
        again.append([row("torn", "forward"), row("torn", "backward")])
    assert Store.open(store.folder).notes == []


def test_a_torn_line_of_the_next_case_leaves_the_one_before_it(store):
    store.append([row("whole", "forward"), row("whole", "backward")])
    with (store.folder / MEASUREMENTS).open("ab") as file:
        file.write(json.dumps(row("next").to_json())[:70].encode())
    assert Store.open(store.folder).done_case_ids() == {"whole"}


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", "null", '{"schema": "meprop-bench/1"}', '{"schema": "other"}', "[" * 100_000, '"\\ud800"', ""],
)
def test_a_corrupt_line_is_one_line_that_says_where(store, line):
    store.append([row()])
    with (store.folder / MEASUREMENTS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 2") as caught:
        Store.open(store.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", "\x00", '{"schema": "meprop-bench/1", "command": 3}', "[" * 100_000])
def test_a_corrupt_environment_is_one_line(store, text):
    (store.folder / ENVIRONMENT).write_text(text)
    with pytest.raises(UserError) as caught:
        Store.open(store.folder)
    assert "\n" not in str(caught.value)


def test_no_results_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a results folder"):
        Store.open(tmp_path)
    with pytest.raises(UserError, match="not a results folder"):
        Store.open(Path("/dev/null"))


def test_two_writers_do_not_mix_and_readers_may_look(store):
    with pytest.raises(UserError, match="another run"):
        Store.open(store.folder, write=True)
    assert Store.open(store.folder).rows() == []
    store.close()
    Store.open(store.folder, write=True).close()
    with pytest.raises(ValueError, match="not open for writing"):
        store.append([row()])


def _write_and_die(folder):
    Store.open(folder, write=True).append([row("a")])
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_lock_of_a_killed_run_is_gone(store):
    store.close()
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(store.folder,))
    process.start()
    process.join()
    with Store.open(store.folder, write=True) as again:
        assert again.done_case_ids() == {"a"}


def test_resume_finds_the_latest_folder_with_this_very_plan(tmp_path):
    create(tmp_path, now=datetime(2026, 3, 1, tzinfo=UTC)).close()
    create(tmp_path).close()
    wanted = create(tmp_path, now=NOW.replace(hour=9))
    wanted.append([row()])
    wanted.close()
    create(tmp_path, plan={"cases": ()}, now=NOW.replace(day=5)).close()
    broken = create(tmp_path, now=NOW.replace(day=6))
    (broken.folder / ENVIRONMENT).write_text("{")
    broken.close()
    found = Store.find_resumable(tmp_path, "quick", "amd-2c", {"target": 0.02, "cases": ({"k": 8}, {"k": 32})})
    assert found is not None
    assert found.folder == wanted.folder
    found.append([row("b")])
    found.close()
    assert Store.find_resumable(tmp_path, "quick", "intel", PLAN) is None
    assert Store.find_resumable(tmp_path, "other", "amd-2c", PLAN) is None
    assert Store.find_resumable(tmp_path / "nowhere", "quick", "amd-2c", PLAN) is None


def test_a_full_disk_leaves_whole_cases_only(store, monkeypatch):
    store.append([row("a")])
    before = (store.folder / MEASUREMENTS).read_bytes()
    real = os.write

    def full(fd, data):
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(fd, data[:50])

    monkeypatch.setattr(store_module.os, "write", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        store.append([row("b")])
    assert (store.folder / MEASUREMENTS).read_bytes() == before
    assert store.done_case_ids() == {"a"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_device_that_takes_nothing_says_so_even_if_it_cannot_be_cut_back(store):
    store.append([row("a")])
    before = (store.folder / MEASUREMENTS).read_bytes()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, store._fd)
    os.close(full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        store.append([row("b")])
    assert Store.open(store.folder).rows() == [row("a")]
    assert (store.folder / MEASUREMENTS).read_bytes() == before


def test_the_machine_s_states_are_kept_run_by_run(store):
    assert store.header["states"] == []
    store.write_state({"warnings": ["busy"]}, now=NOW)
    store.close()
    with Store.open(store.folder, write=True) as again:
        again.write_state({"warnings": []}, now=NOW.replace(hour=6))
    states = Store.open(store.folder).header["states"]
    assert states == [
        {"at": "2026-03-04T05:06:07+00:00", "warnings": ["busy"]},
        {"at": "2026-03-04T06:06:07+00:00", "warnings": []},
    ]


def test_an_unwritable_root_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        create(tmp_path / "file")


def test_replacing_a_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    replace_file(path, "old")
    monkeypatch.setattr(store_module.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        replace_file(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("page.html", "old")]


def test_what_a_file_says_of_a_machine_is_printable_lines(store):
    store.append([row()])
    path = store.folder / ENVIRONMENT
    header = json.loads(path.read_text())
    header["environments"] = {"e0": {"cpu_model": "x\u202e\x1b[31m</script>\ny", "caches": {"a\x00b": ["c\x07", 3]}}}
    header["command"] = "meprop-bench\x1b]0;title\x07 speedup"
    header["states"] = [{"warnings": ["\u202eevil" + "x" * 10_000]}]
    path.write_text(json.dumps(header))
    found = Store.open(store.folder).header
    assert found["environments"]["e0"] == {"cpu_model": "x [31m</script> y", "caches": {"a b": ["c", 3]}}
    assert found["command"] == "meprop-bench ]0;title speedup"
    assert len(found["states"][0]["warnings"][0]) == 2000


def test_what_was_begun_on_another_machine_of_the_same_name_is_not_gone_on_with(tmp_path, monkeypatch):
    here = {"cpu_model": "AMD EPYC", "cpu_caches": {"L3": "32768K"}, "cpu_flags": "aaaa"}
    monkeypatch.setattr("meprop_bench.measure.environment.hardware", lambda: here)
    begun = create(tmp_path)
    begun.close()
    same = Store.find_resumable(tmp_path, "quick", "amd-2c", PLAN)
    assert same is not None
    same.close()
    monkeypatch.setattr("meprop_bench.measure.environment.hardware", lambda: {**here, "cpu_flags": "bbbb"})
    assert Store.find_resumable(tmp_path, "quick", "amd-2c", PLAN) is None
    # A run of an older version says what it was begun on by its environments alone.
    path = begun.folder / ENVIRONMENT
    header = json.loads(path.read_text())
    del header["hardware"]
    path.write_text(json.dumps({**header, "environments": {"e": {"cpu_caches": {"L3": "32768K"}}}}))
    found = Store.find_resumable(tmp_path, "quick", "amd-2c", PLAN)
    assert found is not None
    found.close()
    path.write_text(json.dumps({**header, "environments": {"e": {"cpu_caches": {"L3": "16384K"}}}}))
    assert Store.find_resumable(tmp_path, "quick", "amd-2c", PLAN) is None
