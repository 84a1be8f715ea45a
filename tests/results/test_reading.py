"""Rows that are read in a hurry are those that are read with care, and nothing unsound gets through."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from meprop_bench.results import reading
from meprop_bench.results.incoming import parsed
from meprop_bench.results.reading import rows_of
from meprop_bench.results.schema import Row
from tests.report.conftest import linear_rows, make_row, mlp_rows

REPORTS = Path(__file__).parents[2] / "reports"
FILES = sorted(path for path in REPORTS.glob("**/measurements.jsonl") if path.stat().st_size)


def line(record):
    return json.dumps(record).encode() + b"\n"


@pytest.fixture
def apart(monkeypatch):
    """The lines that took the careful way."""
    found = []
    once = Row.unchecked
    monkeypatch.setattr(Row, "unchecked", lambda record: found.append(record) or once(record))
    return found


@pytest.mark.parametrize("path", FILES, ids=[path.parent.name for path in FILES])
def test_committed_rows_are_the_same_either_way(path):
    lines = path.read_bytes().splitlines(keepends=True)[:60]
    rows = rows_of(lines)
    assert rows is not None
    for row, text in zip(rows, lines, strict=True):
        careful = Row.from_json(parsed(text))
        assert row == careful
        assert [type(getattr(row, spec.name)) for spec in fields(Row)] == [
            type(getattr(careful, spec.name)) for spec in fields(Row)
        ]
        assert row.to_json() == careful.to_json()


def test_rows_that_were_timed_take_the_short_way(apart):
    every = [*linear_rows(), *mlp_rows()]
    assert rows_of([line(row.to_json()) for row in every]) == every
    # What failed, or was trained as well, is looked at one by one.
    assert {record["case_id"] for record in apart} == {"wrong", "broken", "mlp-5", "mlp-20", "mlp-50"}
    assert len(apart) == 5


def test_texts_of_many_rows_are_kept_once():
    found = rows_of([line(make_row(f"a{k}", k=k).to_json()) for k in (8, 9)])
    assert found[0].workload is found[1].workload
    assert found[0].unavailable is found[1].unavailable


def test_colons_within_texts_are_no_keys(apart):
    record = make_row("a", device="cuda:0", notes=["noisy: or not: who knows", "a\\"]).to_json()
    assert rows_of([line(record)]) is not None
    assert apart == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"k": 8', b'"k": 9, "k": 8'),
        (b'"k": 8', b'"k"  : 9, "k": 8'),
        (b'"k": 8', b'"\\u006b": 9, "k": 8'),
        (b'"notes": []', b'"notes": ["a: b"], "notes": []'),
        (b'"notes": []', b'"notes": ["a \\u003a"], "k": 8'),
        (b'"unavailable": {}', b'"unavailable": {"a": "b", "a": "c"}'),
        (b'"k": 8', b'"newer": {"x": 1, "x": 2}, "k": 8'),
    ],
)
def test_a_key_that_is_there_twice_is_refused(old, new):
    text = line(make_row("a").to_json())
    assert old in text
    assert rows_of([text]) is not None
    assert rows_of([text, text.replace(old, new)]) is None


def test_keys_of_newer_versions_are_ignored(apart):
    record = {**make_row("a").to_json(), "newer": {"x": 1}}
    (row,) = rows_of([line(record)])
    assert row == make_row("a")
    assert len(apart) == 1


WRONG = {
    "median_s": 2e-3,
    "baseline_median_s": 1.0,
    "speedup": 5.1,
    "speedup_low": 4.0,
    "speedup_high": 5.2,
    "processes": 4,
    "efficiency": 0.7,
    "floor_s": 1e-5,
    "loops": 0,
    "run_lengths": [20],
    "check": "failed by 0.3",
    "error": "killed",
    "values_s": [1e-13] * 20,
    "workload": "li\u0007near",
    "threads": "two",
    "schema": "meprop-bench/9",
    "disturbed": [True],
    "note_kinds": [{"kind": "budget"}],
    "unavailable": {"power_w": 3},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused(name):
    record = make_row("a").to_json()
    sound = make_row("b", k=9).to_json()
    for wrong in (WRONG[name], None) if name in ("speedup_low", "speedup_high") else (WRONG[name],):
        assert rows_of([line(sound), line({**record, name: wrong})]) is None


@pytest.mark.parametrize("text", [b"", b"{", b"[]\n", b'{"schema": "meprop-bench/1"}\n', b"\xff\n", b"[" * 5000])
def test_what_is_no_row_is_refused(text):
    assert rows_of([text]) is None


def test_marked_pairs_count_as_they_do_one_by_one(apart):
    lengths = [4] * 5
    marks = [True, False, False, False] + [True] * 3 + [False] + [False] * 12
    record = make_row("a").to_json() | {"disturbed": marks, "run_lengths": lengths}
    for name in ("speedup", "speedup_low", "speedup_high", "converged"):
        record[name] = None
    own = Row.from_json(json.loads(json.dumps(record))).measurement.speedup
    record |= {"speedup": own.estimate, "speedup_low": own.low, "speedup_high": own.high}
    apart.clear()
    (row,) = rows_of([line(record)])
    assert row.measurement.speedup.estimate == pytest.approx(own.estimate, rel=1e-12)
    assert apart == []
    assert reading.rows_of([line({**record, "speedup": 1.01 * own.estimate})]) is None
