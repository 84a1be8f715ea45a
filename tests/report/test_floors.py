from __future__ import annotations

import pytest

from meprop_bench.measure.peaks import Peaks
from meprop_bench.report.document import Document
from meprop_bench.report.machine import peaks_of, saving_sections

ONE = {"flops_per_s": {"float32": 1e11}, "bandwidth": [[1 << 16, 8e10], [1 << 29, 2e10]]}
BETTER = {"flops_per_s": {"float32": 2e11}, "bandwidth": [[1 << 29, 1e10]]}
PEAKS = {"cpu float32, 2 threads": ONE}
COUNTS = {"flops": 1e6, "bytes": 2e6, "baseline_flops": 4e8, "baseline_bytes": 4e6}


def _line(sections):
    (section,) = sections
    ((line,),) = section.groups
    return dict(zip(section.columns, (cell.text for cell in line), strict=True))


def test_predicted_beside_measured(make_row):
    row = make_row("a", median=1e-3, speedup=5.0, floor_s=1e-4, baseline_floor_s=4e-3, **COUNTS)
    line = _line(saving_sections([row], PEAKS))
    assert line == {
        "method": "unified", "k": "8", "operations": "400x", "bytes": "2.00x", "at the floors": "40.0x",
        "measured": "5.00x", "efficiency": "80% → 10%",
    }  # fmt: skip
    (section,) = saving_sections([row], PEAKS)
    assert section.constants.endswith("; bound by arithmetic → memory")
    assert section.title == "Predicted against measured saving: linear, kept allocator"


def test_without_peaks_only_the_bound_is_missing(make_row):
    (section,) = saving_sections([make_row("a", **COUNTS)], {})
    assert _line([section])["operations"] == "400x"
    assert "bound by" not in section.constants


def test_phases_in_which_nothing_is_spared_do_not_appear(make_row, failed_row):
    same = {"flops": 4e6, "bytes": 2e6, "baseline_flops": 4e6, "baseline_bytes": 2e6}
    rows = [make_row("a", phase="forward", **same), make_row("b"), failed_row("c", check="wrong", **COUNTS)]
    assert saving_sections(rows, PEAKS) == []


def test_a_table_for_each_workload_and_allocator_with_the_phases_in_order(make_row):
    rows = [
        make_row("a", phase="step", workload="mlp", **COUNTS),
        make_row("a", phase="linear-backward", workload="mlp", **COUNTS),
        make_row("b", **{**COUNTS, "bytes": 1}),
        make_row("b", allocator="default", environment_id="other", **COUNTS),
    ]
    sections = saving_sections(rows, PEAKS)
    assert [section.title.partition(": ")[2] for section in sections] == [
        "mlp, kept allocator",
        "linear, kept allocator",
        "linear, default allocator",
    ]
    mlp = sections[0]
    assert [group[0][0].text for group in mlp.groups] == ["linear-backward", "step"]
    assert [bool(section.remark) for section in sections] == [True, False, False]
    assert "device cpu" in mlp.constants


def test_what_bounds_has_a_column_only_where_it_differs(make_row):
    (section,) = saving_sections([make_row("a", **COUNTS), make_row("b", k=9, **{**COUNTS, "bytes": 1.0})], PEAKS)
    assert section.columns[-1] == "bound by"
    assert [line[-1].text for line in section.groups[0]] == ["arithmetic → memory", "arithmetic"]


def test_an_update_that_costs_nothing_to_compute_is_no_error(make_row):
    row = make_row("a", flops=0, bytes=8, baseline_flops=10, baseline_bytes=8)
    assert _line(saving_sections([row], PEAKS))["operations"] == "–"


def test_peaks_of_a_row_in_one_folder_and_in_several(make_row):
    row = make_row("a")
    assert peaks_of(row, PEAKS) == Peaks.from_json(ONE)
    joined = {"first": PEAKS, "second": {"cpu float32, 2 threads": BETTER}, "third": {"cpu float64, 2 threads": ONE}}
    assert peaks_of(row, joined) == Peaks.from_json(ONE).merged(Peaks.from_json(BETTER))
    assert peaks_of(make_row("a", threads=None), PEAKS) is None


@pytest.mark.parametrize("found", [{}, [], 3, {"flops_per_s": {"float32": 0.0}, "bandwidth": [[1, 1.0]]}])
def test_odd_peaks_are_none(make_row, found):
    assert peaks_of(make_row("a"), {"cpu float32, 2 threads": found}) is None


def test_the_document_has_the_section(make_row):
    document = Document("t", "c", "s", [make_row("a", **COUNTS)], peaks=PEAKS)
    assert any(section.title.startswith("Predicted against measured") for section in document.sections)
