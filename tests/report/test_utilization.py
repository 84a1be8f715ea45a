import csv
import io
import json
from dataclasses import replace

import pytest

from meprop_bench.report.formats import FORMATS, as_csv, write_as
from meprop_bench.report.machine import utilization_section
from meprop_bench.results.schema import Row, Utilization

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
    for form in FORMATS:
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
