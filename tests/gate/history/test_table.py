import json
import math
import os

import numpy as np
import pytest

from meprop_bench.errors import UserError
from meprop_bench.gate.evidence import disagreement
from meprop_bench.gate.files import read_file
from meprop_bench.gate.history import read_history
from meprop_bench.gate.history.runs import FAILED, Columns, RunReader
from meprop_bench.gate.history.table import _cache


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read, and not taken from the cache."""
    found = []
    plain = RunReader.read

    def read(self, path):
        found.append(path.name)
        return plain(self, path)

    monkeypatch.setattr(RunReader, "read", read)
    return found


def test_runs_are_in_the_order_of_their_commits(suite):
    for number in (3, 1, 2):
        suite.run(number, name=f"{9 - number}.json")
    found = read_history(suite.folder)
    assert [run.commit[-1] for run in found.runs] == ["1", "2", "3"]
    assert found.values.shape == (3, 120)


def test_a_figure_is_what_the_gate_reads_of_the_same_file(suite):
    path = suite.run(1, failed=("m.B.time_3",))
    found, figures = read_history(suite.folder), read_file(path)
    for kind in figures.kinds:
        for case, place in figures.places(kind).items():
            column = found.columns.find(kind, case)
            assert found.values[0, column] == figures.side(place).median
            own = disagreement(figures.sides(np.array([place])), np.zeros(1, np.bool_))
            assert found.disagreement[0, column] == pytest.approx(own[0], rel=1e-6)
    failed = {found.columns.cases[column] for column in np.flatnonzero(found.values[0] == FAILED)}
    assert failed == set(figures.failures)
    assert len(found.columns) == len(figures) + len(failed)


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ({"stats_ci_99_a": 0.98, "stats_ci_99_b": 1.02, "stats_q_25": 0.9, "stats_q_75": 1.2}, None),
        ({"stats_ci_99_a": -math.inf, "stats_ci_99_b": math.inf, "stats_q_25": 0.9, "stats_q_75": 1.2}, 0.15),
        ({"stats_q_25": 0.9, "stats_q_75": 1.2}, 0.15),
        ({}, 0.0),
        ({"samples": [1.0, 1.0, 2.0, 2.0, 2.0]}, math.log(2) / 2),
    ],
)
def test_how_far_its_values_disagree_is_what_the_gate_reads(suite, columns, value):
    path = suite.run(1)
    record = json.loads(path.read_text())
    names = ["result", "params", "version", "stats_repeat", *columns]
    record |= {
        "result_columns": names,
        "results": {"m.time_x": [[1.0], [], "v", [9], *([one] for one in columns.values())]},
    }
    path.write_text(json.dumps(record))
    found, figures = read_history(suite.folder), read_file(path)
    own = disagreement(figures.sides(np.zeros(1, np.int64)), np.zeros(1, np.bool_))
    assert found.disagreement[0, 0] == pytest.approx(own[0], rel=1e-6)
    if value is not None:
        assert found.disagreement[0, 0] == pytest.approx(value)


def test_the_cache_spares_reading_what_did_not_change(suite, reads):
    suite.runs(4)
    first = read_history(suite.folder)
    assert len(reads) == 4
    again = read_history(suite.folder)
    assert len(reads) == 4
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(first.disagreement, again.disagreement)
    assert again.disagreement.any()
    assert [(run.name, run.when, run.where) for run in first.runs] == [
        (run.name, run.when, run.where) for run in again.runs
    ]
    assert again.columns.find(again.columns.kinds[0], "m.B.time_0(2)") == 1


def test_what_is_new_or_was_changed_is_read_and_what_is_gone_is_forgotten(suite, reads):
    suite.runs(4)
    before = read_history(suite.folder)
    path = suite.run(2, everything=2.0)
    os.utime(path, (1, 1))
    suite.run(7)
    (suite.folder / "00000000-env.json").unlink()
    reads.clear()
    found = read_history(suite.folder)
    assert sorted(reads) == ["00000002-env.json", "00000007-env.json"]
    assert len(found.runs) == 4
    assert found.values[1] == pytest.approx(2 * before.values[2])


@pytest.mark.parametrize("damage", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_cache_that_cannot_be_read_is_made_anew(suite, reads, damage):
    suite.runs(2)
    read_history(suite.folder)
    _cache(suite.folder).write_bytes(damage)
    assert len(read_history(suite.folder).runs) == 2
    assert len(reads) == 4
    read_history(suite.folder)
    assert len(reads) == 4


def test_other_units_make_the_cache_useless(suite, reads):
    suite.runs(2)
    read_history(suite.folder)
    (suite.folder.parent / "benchmarks.json").write_text(json.dumps({"m.B.time_0": {"unit": "bytes"}}))
    found = read_history(suite.folder)
    assert len(reads) == 4
    assert found.columns.kinds[0].quantity == "memory"


def test_without_a_place_for_the_cache_the_files_are_read_each_time(suite, reads, monkeypatch):
    monkeypatch.setattr("meprop_bench.gate.history.table.writable", lambda name: None)
    suite.runs(2)
    assert read_history(suite.folder).values.shape == read_history(suite.folder).values.shape
    assert len(reads) == 4


def test_files_that_are_no_runs_are_named_and_kept_out(suite):
    suite.runs(2)
    (suite.folder / "machine.json").write_text("{}")
    (suite.folder / "broken.json").write_text('{"commit_hash": "a", "result_columns"')
    (suite.folder / "other.json").write_text('{"a": 1}')
    cut = suite.run(5)
    cut.write_text(cut.read_text().replace('"result_columns": ["result", "params"', '"result_columns": ["params", "x"'))
    for _ in range(2):  # from the files, then from the cache
        found = read_history(suite.folder)
        assert len(found.runs) == 2
        assert [name for name, _ in found.unread] == ["00000005-env.json", "broken.json", "other.json"]
        assert all("\n" not in why and why for _, why in found.unread)


def test_a_result_that_does_not_fit_its_parameters_is_named(suite):
    path = suite.run(1)
    record = json.loads(path.read_text())
    record["results"]["m.B.time_0"][0] = [1.0]
    path.write_text(json.dumps(record))
    ((_, why),) = read_history(suite.folder).unread
    assert "does not fit its parameters" in why


@pytest.mark.parametrize("value", [-1.0, 1e301])
def test_numbers_of_which_there_is_no_ratio_are_left_out(suite, value):
    path = suite.run(1)
    record = json.loads(path.read_text())
    record["results"]["m.B.time_0"][0][1] = value
    path.write_text(json.dumps(record))
    found = read_history(suite.folder)
    assert math.isnan(found.values[0, 1])
    assert found.values[0, 0] > 0


def test_a_folder_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a folder: name one of asv's results"):
        read_history(tmp_path / "nowhere")


def test_progress_is_shown(suite):
    suite.runs(3)
    seen = []
    read_history(suite.folder, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_columns_are_the_same_for_the_same_names():
    columns = Columns()
    from meprop_bench.gate.files.figures import Kind

    kind, other = Kind("value", "time", "s", "1"), Kind("value", "time", "s", "2")
    names = ["a", "b"]
    assert columns.places(kind, names).tolist() == columns.places(kind, names).tolist() == [0, 1]
    assert columns.places(other, names).tolist() == [2, 3]
    assert columns.places(kind, ["b", "c"]).tolist() == [1, 4]
    assert (columns.find(kind, "c"), columns.find(kind, "d")) == (4, None)
