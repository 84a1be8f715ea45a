from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from meprop_bench.measure.peaks import Peaks
from meprop_bench.report.document import Document
from meprop_bench.report.machine import peaks_of, saving_sections, utilization_section
from meprop_bench.report.terminal import write_as
from meprop_bench.results.schema import Row, Utilization
from tests.report.texts import as_csv

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


CPU = {"cpu_utilization": 198.0, "others_cpu_utilization": 3.0, "rss_bytes": 400 << 20, "page_faults": 5000}
GPU = {
    **CPU,
    "gpu_utilization": 97.0,
    "sm_utilization": 40.0,
    "sm_clock_mhz": 1980.0,
    "throttle_reasons": ("power cap",),
    "power_w": 412.6,
    "energy_per_step_j": 412.6 * 2.0 / 1000,
}


@pytest.fixture
def watched(make_row):
    """A row and what it was like to run it."""

    def make(case_id="a", found=None, reasons=None, **changes):
        found = found or CPU
        method = Utilization(seconds=2.0, iterations=1000, **found)
        baseline = Utilization(
            seconds=2.0,
            iterations=250,
            **{name: 4 * v if name == "energy_per_step_j" else v for name, v in found.items()},
        )
        return make_row(
            case_id, utilization=method, baseline_utilization=baseline, unavailable=reasons or {}, **changes
        )

    return make


def cells_of(section, line=0):
    return dict(zip(section.columns, [cell.text for cell in section.groups[0][line]], strict=True))


def test_nothing_watched_is_no_section(rows):
    assert utilization_section(rows) is None


def test_columns_are_those_that_have_a_figure(watched):
    section = utilization_section([watched()])
    assert section.columns == ("method", "k", "CPU", "others", "page faults", "resident")
    found = cells_of(section)
    assert (found["CPU"], found["others"]) == ("198% → 198%", "3% → 3%")
    assert found["page faults"] == "20 → 5"  # for one iteration
    assert "batch, m → n 1024, 8192 → 8192" in section.constants


def test_a_gpu_has_its_own(watched):
    found = cells_of(utilization_section([watched(found=GPU), watched("b")]))
    assert found["GPU"] == "97% → 97%"
    assert found["throttled"] == "power cap → power cap"
    assert (found["power"], found["energy"]) == ("413 W → 413 W", "3.30 J → 825 mJ")
    assert cells_of(utilization_section([watched(found=GPU), watched("b")]), line=1)["GPU"] == "–"
    calm = watched(found={**GPU, "throttle_reasons": ()})
    assert cells_of(utilization_section([calm]))["throttled"] == "no → no"


def test_what_varies_gets_a_column(watched):
    section = utilization_section([watched("a", k=8), watched("b", k=32, allocator="default", workload="mlp")])
    assert section.columns[:4] == ("workload", "allocator", "method", "k")


def test_why_a_figure_is_missing_is_said_once(watched):
    meter = "only root may read the RAPL energy counters"
    reasons = {"gpu_utilization": "the device is the CPU", "power_w": meter, "energy_per_step_j": meter}
    section = utilization_section([watched("a", reasons=reasons), watched("b", reasons=reasons)])
    assert section.footnotes == (f"No power and energy: {meter}.",)


def test_every_format_shows_it(watched, document):
    pytest.importorskip("jinja2", reason="the page needs the report extra")
    shown = replace(document, rows=[*document.rows, watched("w", found=GPU)])
    for form in ("table", "json", "md", "csv", "html"):
        target = io.StringIO()
        write_as(form, shown, target)
        words = {"json": '"power_w": 412.6', "csv": "412.6"}.get(form, "413 W → 413 W")
        assert words in target.getvalue(), form


def test_csv_and_json_keep_all_of_it(watched, document):
    row = watched(found=GPU, reasons={"cpu_utilization": "why", "power_w": "not"})
    shown = replace(document, rows=[row])
    (line,) = csv.DictReader(io.StringIO(as_csv(shown)))
    assert (line["power_w"], line["utilization_iterations"], line["baseline_utilization_iterations"]) == (
        "412.6",
        "1000",
        "250",
    )
    assert line["utilization_throttle_reasons"] == "power cap"
    assert line["unavailable"] == "cpu_utilization: why; power_w: not"
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
