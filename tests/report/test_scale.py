"""Reports of many rows: what is done for a row is done once, and in bounded memory. No time is asserted."""

from __future__ import annotations

import json
import sys
import tracemalloc
from dataclasses import replace

import pytest

from meprop_bench.measure.many import settle
from meprop_bench.measure.paired import Measurement
from meprop_bench.report.document import Document
from meprop_bench.report.machine import saving_sections
from meprop_bench.report.sections import sections
from meprop_bench.results.schema import Row
from meprop_bench.results.store import MEASUREMENTS, Store
from tests.report.texts import as_csv, as_markdown


@pytest.fixture
def many(make_folder, make_row):
    """A function that stores so many rows, each of its own case, and returns the folder."""

    def made(count):
        folder = make_folder(
            [make_row("a", unavailable={"power_w": "no meter"}, notes=["a note"])], name=f"many-{count}"
        )
        record = json.loads((folder / MEASUREMENTS).read_text())
        with (folder / MEASUREMENTS).open("w") as file:
            for number in range(count):
                file.write(json.dumps({**record, "case_id": f"case-{number}", "k": 1 + number}) + "\n")
        return folder

    return made


def calls(function, *names):
    """How often functions of these names were called."""
    found = dict.fromkeys(names, 0)

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_name in found:
            found[frame.f_code.co_name] += 1

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def whole_calls(folder):
    def run():
        document = Document.load(folder)
        as_markdown(document)
        as_csv(document)

    count = 0

    def watch(_, event, __):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def test_the_work_grows_as_the_rows_do(many):
    small, large = whole_calls(many(100)), whole_calls(many(400))
    assert large < 4.4 * small


def test_the_statistics_of_rows_are_worked_out_together_and_once(many):
    folder = many(50)

    def run():
        document = Document.load(folder)
        as_markdown(document)
        as_csv(document)

    assert calls(run, "settle", "_median_log_ratio") == {"settle": 1, "_median_log_ratio": 0}


def test_statistics_worked_out_together_are_those_of_each(rows):
    apart = [row.measurement for row in rows if row.measurement is not None]
    short = Measurement(
        "step", (((3.0, 1.0),), ((5.0, 1.0), (2.0, 1.0), (4.0, 4.0))), 1, ((True,), (False, True, False))
    )
    even = Measurement("step", [[(1e-3 * place, 2e-3) for place in range(1, 1 + count)] for count in (1, 2, 64, 65)], 1)
    alike = Measurement("step", [[(0.1, 0.3)] * 3] * 3, 1)
    found = [replace(one) for one in (*apart, short, even, alike)]
    settle(found)
    for one in found:
        alone = replace(one)
        assert "estimate" in vars(one)
        assert "estimate" not in vars(alone)
        assert (one.median_s, one.baseline_median_s) == (alone.median_s, alone.baseline_median_s)
        assert list(one.log_medians) == pytest.approx(alone.log_medians)
        assert one.estimate.value == pytest.approx(alone.estimate.value)
        assert one.estimate.error == pytest.approx(alone.estimate.error, nan_ok=True)
        assert one.estimate.degrees == alone.estimate.degrees
    assert found[-1].estimate.error == 0.0
    settle([])


def test_rows_of_many_pairs_take_little_more_than_their_numbers(make_row):
    pairs = 2_000
    record = make_row("a").to_json()
    record |= dict.fromkeys([name for name in record if name.startswith(("speedup", "converged"))])
    record |= dict.fromkeys(["median_s", "baseline_median_s", "efficiency", "disturbed"])
    record |= {"values_s": [1e-3 + 1e-7 * n for n in range(pairs)], "baseline_values_s": [5e-3] * pairs}
    record |= {"run_lengths": [pairs // 5] * 5}
    text = json.dumps(record)
    tracemalloc.start()
    try:
        rows = [Row.from_json(json.loads(text)) for _ in range(20)]
        held = tracemalloc.get_traced_memory()[0] / len(rows)
    finally:
        tracemalloc.stop()
    assert held < 1.3 * 2 * 8 * pairs


def test_what_rows_say_alike_is_held_once(many):
    rows = Store.open(many(3)).rows()
    assert len({id(row.workload) for row in rows}) == 1
    assert len({id(row.unavailable) for row in rows}) == 1


def test_a_measurement_of_flat_lists_is_the_one_of_runs():
    runs = (((0.4, 0.1), (0.5, 0.2)), ((0.6, 0.3),))
    one = Measurement("step", runs, 3, ((False, True), (False,)))
    again = Measurement.from_values(
        "step", one.baseline_values_s, one.values_s, one.run_lengths, 3, one.disturbed_values
    )
    assert again == one
    assert hash(again) == hash(one)
    assert again.runs == runs
    assert list(again.runs[0]) == [(0.4, 0.1), (0.5, 0.2)]
    assert again.runs[0][-1] == (0.5, 0.2)
    assert again.runs[0][:1] == ((0.4, 0.1),)


def test_a_key_of_a_picture_is_worked_out_once_for_rows_that_differ_in_k_and_figures(make_row):
    from meprop_bench.report.plots.grouping import PerKind, grouped, setting_of

    rows = [make_row(f"a{k}-{batch}", k=k, batch=batch) for k in (1, 2, 3) for batch in (8, 9)]
    seen = []
    key = PerKind(rows)(lambda row: seen.append(row) or setting_of(row))
    assert grouped(rows, key) == grouped(rows, setting_of)
    assert len(seen) == 2
    share = [make_row("whole", k=1), make_row("share", k=1.0)]
    assert len(grouped(share, PerKind(share)(lambda row: type(row.k)))) == 2


def test_the_peaks_are_read_once_for_all_rows(document, monkeypatch):
    from meprop_bench.report import machine

    seen = []
    once = machine.peaks_of
    monkeypatch.setattr(machine, "peaks_of", lambda row, peaks: seen.append(1) or once(row, peaks))
    saving_sections(list(document.rows), document.peaks)
    assert len(seen) <= len({(row.device, row.dtype, row.threads) for row in document.rows}) * len(
        sections(document.rows)
    )


def test_cells_that_say_alike_are_one(rows):
    (section,) = [one for one in sections(rows) if one.title == "linear, kept allocator"]
    found = [cell for group in section.groups for line in group for cell in line[:3]]
    assert len({id(cell) for cell in found}) == len(set(found))
