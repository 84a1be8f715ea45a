import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.files import read, read_file
from meprop_bench.results.schema import Parity, Row
from meprop_bench.results.store import MEASUREMENTS, Store

ENVIRONMENT = {"cpu_model": "AMD EPYC", "python": "CPython 3.11", "torch": "2.13.0", "cpu_caches": {"l2": "1 MiB"}}
PARITY = Parity(
    task="digits",
    seeds=(2, 1),
    steps=400,
    baseline=(96.0, 95.0),
    method=(96.5, 95.5),
    difference=0.5,
    low=0.5,
    high=0.5,
    margin=0.5,
    verdict="pass",
)


def row(case_id="a", *, factor=1.0, **changes):
    """Two processes of three pairs each; the first pair of the second was disturbed."""
    values = [1e-3 * factor * share for share in (1.0, 1.1, 1.2, 9.0, 1.3, 1.5)]
    base = {"workload": "linear", "method": "unified", "kernel": "gather", "kernel_requested": "auto", "k": 8}
    base |= {"batch": 10, "in_features": 784, "out_features": 500, "device": "cpu", "threads": 2, "dtype": "float32"}
    base |= {"gradient": "dense", "allocator": "kept", "environment_id": "e0", "check": "passed", "phase": "backward"}
    base |= {"values_s": values, "baseline_values_s": [4e-3] * 6, "run_lengths": [3, 3], "loops": 5}
    base |= {"disturbed": [False, False, False, True, False, False], "peak_memory_bytes": 1000, "flops": 2e6}
    return Row.of(case_id=case_id, **{**base, **changes})


def folder(root, rows, *, name="quick", day=1, environments=None):
    now = datetime(2026, 3, day, tzinfo=UTC)
    with Store.create(root, name, "amd-2c", "meprop-bench speedup", {"name": name}, now=now) as store:
        store.append(rows)
        store.write_environment(environments or {"e0": ENVIRONMENT})
        return store.folder


def document(path, rows, environments=None):
    found = {"schema": "meprop-bench/1", "command": "x", "environment": environments or {"e0": ENVIRONMENT}}
    path.write_text(json.dumps({**found, "rows": [each.to_json() for each in rows]}))
    return path


CASE = "linear 784→500 B=10 unified k=8 cpu:2"


def test_a_row_tells_its_figures_process_by_process(tmp_path):
    base = folder(tmp_path, [row(parity=PARITY)])
    found = {one.name: one for one in read(base, folder(tmp_path, [row(factor=2.0, parity=PARITY)], day=2))}
    time = found[f"{CASE}/backward"]
    assert time.base == pytest.approx((1.1e-3, 1.4e-3))
    assert time.head == pytest.approx((2.2e-3, 2.8e-3))
    assert time.own_processes
    ratio = found[f"{CASE}/sparse/dense backward"]
    assert ratio.base == pytest.approx((1.1 / 4, 1.4 / 4))
    assert (ratio.quantity, ratio.unit) == ("ratio", "1")
    accuracy = found[f"{CASE}/accuracy"]
    assert accuracy.base == accuracy.head == (95.5, 96.5)  # by seed
    assert found[f"{CASE}/peak memory backward"].base == (1000.0,)
    assert found[f"{CASE}/flops backward"].quantity == "count"
    assert len(found) == 5


def test_a_quality_that_is_no_percentage_is_judged_as_a_share(tmp_path):
    figures = {"metric": "-bits/character", "percent": False, "baseline": (-2.0, -2.1), "method": (-2.1, -2.2)}
    other = replace(PARITY, **figures, difference=-0.1, low=-0.1, high=-0.1, margin=0.01, verdict="fail")
    base, head = (folder(tmp_path, [row(parity=other)], day=day) for day in (1, 2))
    (found,) = (one for one in read(base, head) if one.figure == "accuracy")
    assert (found.unit, found.base) == ("%", (-2.2, -2.1))  # by seed


def test_folder_lines_and_document_are_the_same(tmp_path):
    rows = [row(), row("b", k=30), row(phase="forward")]
    there = folder(tmp_path, rows)
    (apart := tmp_path / "moved.txt").write_bytes((there / MEASUREMENTS).read_bytes())
    paths = (there, there / MEASUREMENTS, apart, document(tmp_path / "printed.json", rows))
    sides = [read_file(path) for path in paths]
    for found in sides:
        assert {(kind, case) for kind in found.kinds for case in found.places(kind)} == {
            (kind, case) for kind in sides[0].kinds for case in sides[0].places(kind)
        }
        assert len(found) == 12
    assert len(read(apart, paths[3])) == 12  # the ids are the same, which says enough


def test_other_environments_are_refused_but_for_ratios(tmp_path):
    other = {**ENVIRONMENT, "torch": "2.14.0", "cpu_caches": {"l2": "2 MiB"}, "load_average": [3.0]}
    base = folder(tmp_path, [row()], environments={"e0": {**ENVIRONMENT, "load_average": [1.0]}})
    head = folder(tmp_path, [row(environment_id="e1")], environments={"e1": other}, day=2)
    with pytest.raises(UserError) as caught:
        read(base, head)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE
    assert "torch is 2.13.0 and 2.14.0, cpu_caches.l2 is 1 MiB and 2 MiB;" in str(caught.value)
    assert "load_average" not in str(caught.value)
    (one,) = read(base, head, ratios_only=True)
    assert one.figure == "sparse/dense backward"


def test_environments_that_nobody_describes_are_told_by_their_ids(tmp_path):
    for name, id_ in (("a.jsonl", "e0"), ("b.jsonl", "e1")):
        (tmp_path / name).write_text(json.dumps(row(environment_id=id_).to_json()) + "\n")
    with pytest.raises(UserError, match=r"their environments are e0 and e1"):
        read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_a_case_that_fails_in_the_head_is_a_failure_and_one_that_failed_in_the_base_is_not(tmp_path):
    broken = {"values_s": None, "baseline_values_s": None, "run_lengths": None, "disturbed": None, "flops": None}
    broken |= {"peak_memory_bytes": None, "phase": None}
    base = folder(tmp_path, [row(), row("b", k=0.5, error="out of memory", **broken)])
    head = folder(tmp_path, [row(k=0.016, check="dx is wrong", **broken), row("b", k=250)], day=2)
    found = {one.figure: one for one in read(base, head)}
    assert found["backward"].failure == "dx is wrong"
    assert found["backward"].head == ()
    assert len(found) == 4
    assert "in 2026-03-02_amd-2c_quick only" in read(base, head).notes[0]


def test_accuracies_of_other_seeds_are_not_compared(tmp_path):
    more = replace(PARITY, seeds=(1, 2, 3), baseline=(95.0, 95.0, 95.0), method=(95.5, 95.5, 95.5))
    found = read(folder(tmp_path, [row(parity=PARITY)]), folder(tmp_path, [row(parity=more)], day=2))
    assert "accuracy" not in {one.figure for one in found}
    assert found.notes == (
        f"1 not judged, measured by another version of the benchmark, or with other seeds: {CASE}/accuracy",
    )


def test_the_candidate_is_the_newest_of_the_same_preset(tmp_path):
    folder(tmp_path, [row()], day=1)
    base = folder(tmp_path, [row()], day=2)
    folder(tmp_path, [row()], day=3)
    folder(tmp_path, [row()], day=4)
    folder(tmp_path, [row()], day=5, name="targets")
    broken = folder(tmp_path, [row()], day=6)
    (broken / "environment.json").write_text("{")
    found = read(base, reports=tmp_path)
    assert found.head.startswith("2026-03-04_amd-2c_quick ")
    assert "2026-03-04_amd-2c_quick, the newest result of the same preset" in found.notes[0]
    with pytest.raises(UserError, match=r"no results of 'targets'.* newer than") as caught:
        read(tmp_path / "2026-03-05_amd-2c_targets", reports=tmp_path)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE
    with pytest.raises(UserError, match=r"newer than"):
        read(base, reports=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"schema": "meprop-bench/1", "case', "line 2 of rows.txt is not a row, or was cut off"),
        (b'{"schema": "meprop-bench/2", "case_id": "b"}', "line 2 of rows.txt: results of schema"),
        (b'{"schema": "meprop-bench/1", "case_id": "b"}', "line 2 of rows.txt is not a row: the record has no"),
        (b"[1]", "line 2 of rows.txt is not a row"),
        (b"\xff", "not a text in UTF-8"),
    ],
)
def test_bad_lines_are_told_by_their_number(tmp_path, line, message):
    (path := tmp_path / "rows.txt").write_bytes(json.dumps(row().to_json()).encode() + b"\n" + line)
    with pytest.raises(UserError, match=message) as caught:
        read_file(path)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_line_that_is_not_utf_8_far_into_a_long_file_is_told(tmp_path):
    good = json.dumps(row().to_json()).encode() + b"\n"
    (path := tmp_path / "rows.txt").write_bytes(good * (3 * (1 << 20) // len(good)) + b"\xff")
    with pytest.raises(UserError, match="not a text in UTF-8"):
        read_file(path)


def test_a_document_with_a_case_twice_or_a_bad_row_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"twice"):
        read_file(document(tmp_path / "twice.json", [row(), row()]))
    path = document(tmp_path / "bad.json", [row()])
    path.write_text(path.read_text().replace('"loops": 5', '"loops": -1.5'))
    with pytest.raises(UserError, match=r"row 1 of bad.json is not a row: loops"):
        read_file(path)


def test_the_suites_own_file_is_read_as_a_results_folder_is(tmp_path, write, bench):
    rows = [row(), row(phase="forward")]
    suite = [bench(f"test_{each.phase}", extra_info={"k": 8, "row": each.to_json()}) for each in rows]
    path = write("suite.json", *suite, environments={"e0": ENVIRONMENT})
    found = read(folder(tmp_path, rows), path)
    assert len(found) == 8
    assert found.notes == ()
    assert next(iter(found)).own_processes
    assert {one.figure for one in read(path, path, ratios_only=True)} == {
        "sparse/dense backward",
        "sparse/dense forward",
    }


@pytest.mark.parametrize("field", ["values_s", "baseline_values_s"])
def test_times_of_0_in_pairs_are_refused_with_their_line(tmp_path, field):
    record = row().to_json()
    record[field][0] = 0.0
    (path := tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=rf"line 1 of rows.jsonl is not a row: {field}\[0\] is 0.0") as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


def test_an_integer_of_thousands_of_digits_is_a_line_that_is_no_row(tmp_path):
    line = json.dumps(row().to_json())
    (path := tmp_path / "rows.jsonl").write_text(f"{line}\n{line.replace('784', '7' * 5000)}\n")
    with pytest.raises(UserError, match=r"line 2 of rows.jsonl is not a row"):
        read_file(path)
