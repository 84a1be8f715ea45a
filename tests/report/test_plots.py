from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs the report extra")
from meprop_bench.report.plots import plots


def test_a_plot_for_each_sweep_over_k_and_for_the_phases(rows):
    made = plots(rows)
    assert [plot.name for plot in made] == [
        "speedup-1-linear-backward-kept.svg",
        "speedup-2-linear-backward-kept.svg",
        "speedup-3-linear-backward-default.svg",
        "speedup-4-mlp-linear-backward-kept.svg",
        "speedup-5-mlp-backward-kept.svg",
        "speedup-6-mlp-step-kept.svg",
        "phases-7-mlp-step-kept.svg",
    ]
    assert "batch 1024, 8192 → 8192" in made[0].caption
    for plot in made:
        assert ElementTree.fromstring(plot.svg).tag.endswith("svg")


def test_the_same_rows_give_the_same_bytes(make_row):
    two = [make_row(f"a{k}", k=k, speedup=100 / k) for k in (8, 32)]
    assert plots(two) == plots(two)


def test_the_papers_curve_is_shown_where_the_shape_is_the_papers(make_row, monkeypatch):
    from matplotlib.axes import Axes

    labels = []
    real = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: labels.append(k.get("label")) or real(self, *a, **k))

    def drawn(**changes):
        labels.clear()
        plots([make_row(f"a{k}", k=k, speedup=100 / k, **changes) for k in (8, 32)])
        return [label for label in labels if label and "ICML" in label]

    assert drawn()
    assert not drawn(batch=50)
    assert not drawn(method="meprop")


def test_nothing_to_draw_is_no_plot(make_row, failed_row):
    assert plots([]) == []
    assert plots([make_row("a"), make_row("b", method="meprop"), failed_row("c", error="out of memory")]) == []


def test_odd_rows_are_drawn(make_row, failed_row):
    odd = [
        make_row("a", k=0.05, processes=1, method="$x_{", kernel_requested="masked", notes=["</svg>"]),
        make_row("b", k=0.1, processes=1, method="$x_{", kernel_requested="masked", floor_s=None, efficiency=None),
        failed_row("c", k=0.2, check="wrong"),
    ]
    (plot,) = plots(odd)
    ElementTree.fromstring(plot.svg)


def test_replays_and_launches_are_lines_and_bars_of_their_own(make_row):
    changes = {"device": "cuda:0", "gradient": "rows", "kernel_requested": "triton"}
    rows = [
        make_row(f"{launch}{k}", k=k, phase=phase, launch=launch, speedup=100 / k, **changes)
        for launch in ("eager", "graph")
        for k in (8, 32)
        for phase in ("forward", "backward")
    ]
    over_k, phases = (plot.svg.decode() for plot in plots(rows))
    for words in ("unified, rows gradient, triton<", "unified, rows gradient, triton, graph<"):
        assert words in over_k.replace(" --", "<")
    for words in ("unified k=8 (rows, triton)", "unified k=8 (rows, triton, graph)"):
        assert words in phases


def test_a_sweep_over_many_sizes_has_no_picture_for_each(make_row):
    def sizes(count):
        return [
            make_row(f"{batch}", batch=batch, phase=phase)
            for batch in range(10, 10 + count)
            for phase in ("forward", "backward")
        ]

    assert len(plots(sizes(8))) == 8
    assert plots(sizes(9)) == []
    assert len(plots([*sizes(9), make_row("b", batch=10, phase="forward", k=9), make_row("b", batch=10, k=9)])) == 2
