from __future__ import annotations

from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs the report extra")
from meprop_bench.report.plots import STYLE
from meprop_bench.report.plots import roofline as module

PEAKS = {"cpu float32, 2 threads": {"flops_per_s": {"float32": 1e11}, "bandwidth": [[1 << 16, 8e10], [1 << 29, 2e10]]}}
COUNTS = {"flops": 4e6, "bytes": 2e6, "baseline_flops": 4e8, "baseline_bytes": 4e6}


def rooflines(rows, peaks):
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        return module.rooflines(rows, peaks, 8)[0]


def _row(make_row, name="a", **changes):
    return make_row(name, **{**COUNTS, **changes})


def _drawn(monkeypatch, rows, peaks=PEAKS):
    """Every line that is drawn, by its label."""
    from matplotlib.axes import Axes

    lines, real = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: lines.append((k.get("label"), *a)) or real(self, *a, **k))
    plots = rooflines(rows, peaks)
    return plots, lines


def test_a_point_is_operations_per_byte_and_a_second(make_row, monkeypatch):
    row = _row(make_row, median=1e-3, speedup=5.0)
    (plot,), lines = _drawn(monkeypatch, [row])
    found = {label: points for label, *points in lines}
    assert found["dense"] == [(100.0,), (pytest.approx(4e8 / 5e-3),)]
    assert found["unified, rows gradient"] == [(2.0,), (pytest.approx(4e6 / 1e-3),)]
    assert plot.name == "roofline-cpu-2-threads-float32-kept-allocator.svg"
    assert "cpu, 2 threads, float32, kept allocator" in plot.caption
    ElementTree.fromstring(plot.svg)


def test_the_roofs_meet_at_the_machines_balance(make_row, monkeypatch):
    _, lines = _drawn(monkeypatch, [_row(make_row)])
    roofs = {label: (xs, ys) for label, xs, ys in lines if label and ("B/s" in label or "FLOP/s" in label)}
    assert {label: (xs[1], ys[1]) for label, (xs, ys) in roofs.items() if "B/s" in label} == {
        "fastest cache, 80.0 GB/s": (1e11 / 8e10, 1e11),
        "main memory, 20.0 GB/s": (1e11 / 2e10, 1e11),
    }
    (xs, ys) = roofs["arithmetic, 100 GFLOP/s"]
    assert xs[0] == 1e11 / 8e10
    assert ys == [1e11, 1e11]
    assert min(xs[1] for xs, _ in roofs.values()) <= 100 < max(xs[1] for xs, _ in roofs.values())


def test_k_of_one_shape_are_joined_and_a_series_is_named_once(make_row, monkeypatch):
    rows = [_row(make_row, f"a{k}", k=k, flops=1e5 * k) for k in (32, 8)]
    rows.append(_row(make_row, "b", k=8, batch=50))
    _, lines = _drawn(monkeypatch, rows)
    series = [(label, xs) for label, xs, _ in lines if label is None or "gradient" in label]
    assert series == [("unified, rows gradient", (0.4, 1.6)), (None, (2.0,))]


@pytest.mark.parametrize("peaks", [{}, {"cpu float64, 2 threads": PEAKS["cpu float32, 2 threads"]}, {"a": 3}])
def test_without_floors_there_is_no_roofline(make_row, peaks):
    assert rooflines([_row(make_row)], peaks) == []


def test_peaks_that_cannot_be_read_are_none(make_row):
    assert rooflines([_row(make_row)], {"cpu float32, 2 threads": {"flops_per_s": {}}}) == []


def test_only_what_passed_and_was_counted_is_drawn(make_row, failed_row):
    failed = [failed_row("w", check="wrong", **COUNTS), make_row("uncounted"), _row(make_row, "f", phase="forward")]
    assert rooflines(failed, PEAKS) == []
    assert len(rooflines([*failed, _row(make_row)], PEAKS)) == 1


def test_each_device_and_allocator_has_its_own_and_a_case_is_drawn_once(make_row):
    rows = [_row(make_row), _row(make_row, "b", allocator="default"), _row(make_row, phase="linear-backward")]
    assert [plot.name for plot in rooflines(rows, PEAKS)] == [
        "roofline-cpu-2-threads-float32-kept-allocator.svg", "roofline-cpu-2-threads-float32-default-allocator.svg"
    ]  # fmt: skip
    assert [row.phase for row in module._main(rows)] == ["linear-backward", "backward"]


def test_the_same_rows_give_the_same_bytes(make_row):
    assert rooflines([_row(make_row)], PEAKS)[0].svg == rooflines([_row(make_row)], PEAKS)[0].svg


def test_a_report_shows_it(make_row, make_folder):
    from meprop_bench.report.formats import write_report
    from meprop_bench.results.store import Store

    folder = make_folder([_row(make_row)])
    with Store.open(folder) as store:
        store.write_environment({}, PEAKS)
    (folder / "roofline-7-old.svg").touch()
    names = [path.name for path in write_report(folder)]
    assert "roofline-cpu-2-threads-float32-kept-allocator.svg" in names
    assert not (folder / "roofline-7-old.svg").exists()
    assert "(roofline-cpu-2-threads-float32-kept-allocator.svg)" in (folder / "README.md").read_text()
    assert "Roofline of the backward passes" in (folder / "index.html").read_text()
