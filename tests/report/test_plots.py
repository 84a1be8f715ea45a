import math
import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs the report extra")
from meprop_bench.report.plots import KINDS, STYLE, curve, plots
from meprop_bench.report.plots.accuracy import front
from meprop_bench.report.plots.svg import PALETTE, colours, log_ticks, name_of
from meprop_bench.report.plots.training import SeedCurve, learning, over_budgets, sizes
from meprop_bench.results.schema import Utilization
from meprop_bench.stats import Interval


def drawn(rows, kind=None):
    return [plot for plot in plots(rows)[0] if kind in (None, plot.figure)]


def words(plot):
    """Every text of a picture's file."""
    return [
        "".join(one.itertext()) for one in ElementTree.fromstring(plot.svg).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize(("low", "high"), [(0.98, 1.3), (0.95, 2.6), (2, 9.9), (3, 14), (1, 150), (0.2, 900)])
def test_a_logarithmic_axis_has_several_ticks(low, high):
    inside = [value for value in log_ticks(low, high).tick_values(low, high) if low <= value <= high]
    assert 3 <= len(inside) <= 12


def grid(make_row, **changes):
    return [
        make_row(f"{h}-{k}", k=k, in_features=h, out_features=h, speedup=h / k / 12, **changes)
        for h in (250, 500, 1000)
        for k in (10, 30, 100)
    ]


def test_no_two_pictures_have_one_name_or_say_the_same_above(rows, make_row):
    again = [replace(row, environment_id="0123", case_id=f"{row.case_id}-again") for row in rows]
    shares = [make_row(f"s{k}", k=k, speedup=3) for k in (0.05, 0.1)]
    made = drawn([*rows, *again, *grid(make_row), *shares])
    assert len({plot.name for plot in made}) == len(made)
    assert len({(plot.title, plot.detail) for plot in made}) == len(made)
    assert {plot.figure for plot in made} <= set(KINDS)
    for plot in made:
        assert ElementTree.fromstring(plot.svg).tag.endswith("svg")
        assert len(plot.lines) == plot.inline.count("<circle")
        assert all(len(line) == len(plot.columns) for line in plot.lines)


def test_what_varies_can_be_chosen(rows, make_row):
    made = drawn([*rows, *grid(make_row)], "over")
    choices = {key: {plot.choices[key] for plot in made} for key in ("phase", "over", "metric")}
    assert choices["phase"] == {"linear-backward", "backward", "update", "step"}  # a forward pass is left as it is
    assert choices["over"] == {"k", "size"}
    assert choices["metric"] == {"speed-up", "time", "peak memory"}
    files = [plot for plot in made if plot.main]
    assert len(files) == 3
    assert {plot.choices["metric"] for plot in files} == {"speed-up"}
    assert all(plot.name.startswith("speedup-") for plot in files)


def test_a_point_says_its_figure_with_the_interval_and_each_process(make_row):
    (plot,) = [one for one in drawn([make_row(f"a{k}", k=k, speedup=100 / k) for k in (8, 32)]) if one.main]
    assert plot.columns == ("line", "k", "speed-up", "dense → sparse", "of each process")
    name, k, speedup, times, each = plot.lines[0]
    assert (name, k) == ("unified, rows gradient", "k = 8")
    assert speedup == "12.5x [12.4, 12.6]"
    assert times == "12.5 ms → 1.00 ms"
    assert each == "12.4, 12.4, 12.5, 12.6, 12.6 (20 pairs)"


def test_colours_are_classes_so_that_a_dark_page_and_paper_have_theirs(make_row):
    two = [make_row(f"a{k}", k=k, speedup=100 / k) for k in (8, 32)]
    for plot in drawn([*two, *grid(make_row)]):
        inside = plot.inline
        assert not re.search(r"#[0-9a-f]{6}|style=|<style|currentColor|black|white", inside), plot.name
        assert set(re.findall(r'class="([^"]+)"', inside)) - {"plot", "points"} <= {
            f"{kind}-{name}" for kind in "fs" for name in PALETTE
        } | {f"f-{a} s-{b}" for a in PALETTE for b in PALETTE} | {f"s-{b} f-{a}" for a in PALETTE for b in PALETTE}
        assert b"prefers-color-scheme:dark" in plot.svg
        assert b'class="f-page"' in plot.svg
    assert "@media print" in colours()


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", [0, 1])
def test_lines_and_words_stand_out_from_the_page(place):
    """WCAG 2.2: 3 to 1 for what is drawn, 4.5 to 1 for text."""
    page = PALETTE["page"][place]
    for name in ("c0", "c1", "c2", "c3", "c4", "c5"):
        assert contrast(PALETTE[name][place], page) >= 3, name
    for name in ("ink", "quiet"):
        assert contrast(PALETTE[name][place], page) >= 4.5
    for shade in range(8):
        assert contrast(PALETTE["ink"][place], PALETTE[f"h{shade}"][place]) >= 4.5


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLIND = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}


def lab(colour, kind):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    r, g, b = (max(0.0, sum(w * v for w, v in zip(row, linear, strict=True))) for row in BLIND[kind])
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", list(BLIND))
def test_the_first_series_and_the_two_ends_are_told_apart_with_any_colour_vision(kind, place):
    series = [lab(PALETTE[f"c{number}"][place], kind) for number in range(3)]
    ends = [lab(PALETTE[name][place], kind) for name in ("h1", "h6")]
    stack = [lab(PALETTE[name][place], kind) for name in ("p0", "p1", "p2", "p3")]
    for group in (series, ends, stack):
        for index, one in enumerate(group):
            for other in group[index + 1 :]:
                assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 10


def test_the_same_rows_give_the_same_bytes(make_row):
    two = [make_row(f"a{k}", k=k, speedup=100 / k) for k in (8, 32)]
    assert plots(two) == plots(two)


def test_the_papers_curve_is_shown_where_the_shape_is_the_papers(make_row):
    def said(**changes):
        made = drawn([make_row(f"a{k}", k=k, speedup=100 / k, **changes) for k in (8, 32)], "over")
        return any("ICML" in text for plot in made if plot.main for text in words(plot))

    assert said()
    assert not said(batch=50)
    assert not said(method="meprop")


def test_a_convolutions_k_are_positions(make_row):
    def label(**changes):
        return [
            text
            for text in words(drawn([make_row(f"a{k}", k=k, **changes) for k in (8, 32)])[0])
            if text.endswith(", k")
        ]

    assert label() == ["neurons kept, k"]
    assert label(workload="conv", size=12, filter=5) == ["positions kept, k"]


def test_nothing_to_draw_is_no_plot(make_row, failed_row):
    assert drawn([]) == []
    assert drawn([make_row("a"), make_row("b", method="meprop"), failed_row("c", error="out of memory")], "over") == []


def test_odd_rows_are_drawn(make_row, failed_row):
    odd = [
        make_row("a", k=0.05, processes=1, method="$x_{\x00", kernel_requested="masked", notes=["</svg>"]),
        make_row("b", k=0.1, processes=1, method="$x_{\x00", kernel_requested="masked", floor_s=None, efficiency=None),
        failed_row("c", k=0.2, check="wrong"),
        make_row("d", k=0.05, method="n" * 10_000),
        make_row("e", k=0.1, method="n" * 10_000),
    ]
    for plot in drawn(odd):
        ElementTree.fromstring(plot.svg)
        assert max(map(len, words(plot))) < 200


def test_replays_and_launches_are_lines_and_bars_of_their_own(make_row):
    changes = {"device": "cuda:0", "gradient": "rows", "kernel_requested": "triton"}
    rows = [
        make_row(f"{launch}{k}", k=k, phase=phase, launch=launch, speedup=100 / k, **changes)
        for launch in ("eager", "graph")
        for k in (8, 32)
        for phase in ("forward", "backward")
    ]
    over_k = next(plot for plot in drawn(rows, "over") if plot.main)
    assert {"unified, rows gradient, triton", "unified, rows gradient, triton, graph"} <= set(words(over_k))
    (phases,) = drawn(rows, "phases")
    assert {"unified k=8 (rows, triton)", "unified k=8 (rows, triton, graph)"} <= set(words(phases))


def test_a_sweep_over_many_sizes_has_no_picture_of_phases_for_each(make_row):
    def sizes_of(count):
        return [
            make_row(f"{batch}", batch=batch, phase=phase)
            for batch in range(10, 10 + count)
            for phase in ("forward", "backward")
        ]

    assert len(drawn(sizes_of(8), "phases")) == 8
    assert drawn(sizes_of(9), "phases") == []
    more = [make_row("b", batch=10, phase="forward", k=9), make_row("b", batch=10, k=9)]
    assert len(drawn([*sizes_of(9), *more], "phases")) == 1


def test_pictures_are_bounded_and_it_is_said_how_many_are_left_out(make_row):
    rows = [make_row(f"{batch}-{k}", batch=batch, k=k) for batch in range(10, 90) for k in (8, 32)]
    made, left_out = plots(rows)
    assert sum(plot.figure == "over" for plot in made) == KINDS["over"].most
    assert left_out["over"] > 0


def test_a_line_of_many_cases_is_thinned_and_says_so(make_row):
    rows = [make_row(f"a{k}", k=k, speedup=1 + 100 / k) for k in range(1, 202)]
    plot = next(one for one in drawn(rows) if one.choices.get("metric") == "speed-up")
    ks = [int(line[1].removeprefix("k = ")) for line in plot.lines]
    assert len(ks) == 40
    assert (ks[0], ks[-1]) == (1, 201)
    assert max(after - before for before, after in pairwise(ks)) <= 6
    assert "Of a line with more than 40 cases so many are drawn" in plot.detail
    few = next(one for one in drawn(rows[:40]) if one.choices.get("metric") == "speed-up")
    assert len(few.lines) == 40
    assert "Of a line" not in few.detail


def test_where_it_pays_shows_each_case_and_the_line_between(make_row):
    made = drawn(grid(make_row), "heat")
    (plot,) = made
    assert len(plot.lines) == 9
    assert {"2.08", "0.21", "8.33"} <= set(words(plot))
    assert "break-even" in words(plot)
    assert plot.choices["over"] == "k and size"
    few = [row for row in grid(make_row) if row.k == 10 or row.out_features == 250]
    assert len(drawn(few, "heat")) == 1
    assert drawn([*few[:1], *few[3:4], few[-1]], "heat") == []
    assert "break-even" not in words(drawn([replace(row, speedup=2.0) for row in grid(make_row)], "heat")[0])


def test_the_front_is_what_no_other_point_beats_in_both():
    assert front([(1.0, 0.0), (2.0, -0.1), (1.5, -0.5), (3.0, -2.0), (0.5, -0.2)]) == [
        (1.0, 0.0),
        (2.0, -0.1),
        (3.0, -2.0),
    ]
    assert front([]) == []


def test_speed_against_accuracy_has_the_front_the_margin_and_the_verdicts(rows):
    steps = [plot for plot in drawn(rows, "accuracy") if plot.main]
    (plot,) = steps
    assert [line[3] for line in plot.lines] == ["fail", "pass", "inconclusive"]
    assert plot.lines[1][2] == "+0.04 [-0.26, +0.34]"
    assert "margin, -0.5 points" in words(plot)
    assert plot.title == "Speed of the training step against accuracy"


def test_what_was_watched_is_shown_dense_and_sparse(make_row):
    def used(power):
        return Utilization(seconds=2.0, iterations=100, power_w=power)

    row = make_row("a")
    row = replace(
        row, dense=replace(row.dense, utilization=used(90.0)), sparse=replace(row.sparse, utilization=used(45.0))
    )
    found = {plot.choices["metric"]: plot for plot in drawn([row], "watched")}
    assert set(found) == {"power", "peak memory"}
    assert found["power"].lines == (("unified k=8 (rows)", "90 W → 45 W", "0.50x"),)


def histories(epochs):
    return [
        {"epoch": float(at), "loss": 1.0 / at, "dev": 90.0 + at, "test": None, "seconds": 2.0 * at} for at in epochs
    ]


def ticks(svg):
    found = ElementTree.fromstring(svg)
    texts = ["".join(one.itertext()) for one in found.iter("{http://www.w3.org/2000/svg}text")]
    return texts[: next(place for place, text in enumerate(texts) if text.startswith("epochs"))]


@pytest.mark.parametrize(
    ("epochs", "expected"), [([1], {"1"}), ([1, 2], {"1", "2"}), ([0.5, 1, 1.5, 2], {"0.5", "1", "1.5", "2"})]
)
def test_ticks_of_a_learning_curve_are_epochs_that_there_are(epochs, expected):
    found = set(ticks(curve(histories(epochs), "digits", "accuracy"))) - {"digits"}
    assert expected <= found <= expected | {"0.75", "1.25", "1.75"}
    assert found == expected or len(epochs) > 2


def test_learning_is_shown_over_epochs_and_over_time_and_one_evaluation_is_no_curve():
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        arms = {"a": [SeedCurve([1, 2], [90, 92], 8.0), SeedCurve([1, 2], [91, 93], 8.0)]}
        over_epochs, over_time = learning("MNIST", "dev metric", arms, number=3)
        assert (over_epochs.name, over_epochs.choices["over"], over_time.choices["over"]) == (
            "curve-3.svg",
            "epochs",
            "time",
        )
        assert [line[1] for line in over_time.lines] == ["4.00 s", "8.00 s"]
        assert over_epochs.lines[0] == ("a", "1", "90.5", "90 to 91")
        assert learning("MNIST", "dev metric", {"a": [SeedCurve([1], [90], 8.0)]}, number=0) == []
        assert len(learning("MNIST", "dev metric", {"a": [SeedCurve([1, 2], [90, 91], 0.0)]}, number=0)) == 1
        (line,) = sizes("POS", {"p=0.1": {"hidden": [28.0, 30.0]}}, 128, number=0).lines
        assert line == ("p=0.1", "hidden", "29.0 of 128", "28, 30")


def test_learning_stands_against_steps_where_these_are_known():
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        arms = {
            "a": [SeedCurve([1, 2], [90, 92], 8.0, 11_000)],
            "larger batches": [SeedCurve([1, 2], [91, 93], 4.0, 1_100)],
        }
        over_steps, over_time = learning("MNIST", "dev metric", arms, number=3)
        assert (over_steps.choices["over"], over_time.choices["over"]) == ("steps", "time")
        assert over_steps.main
        assert [line[1] for line in over_steps.lines] == [
            "5,500 (epoch 1)", "11,000 (epoch 2)", "550 (epoch 1)", "1,100 (epoch 2)",
        ]  # fmt: skip
        assert ">steps<" in over_steps.inline
        arms["old"] = [SeedCurve([1, 2], [90, 92], 8.0)]
        assert learning("MNIST", "dev metric", arms, number=3)[0].choices["over"] == "epochs"


def test_names_of_files_are_plain_and_bounded():
    assert name_of("speedup", "k", "a/b → $c") == "speedup-k-a-b-c"
    assert len(name_of("speedup", "x" * 500)) < 120
    assert name_of("speedup", "x" * 500) != name_of("speedup", "x" * 501)


def test_qualities_over_budgets_have_dense_and_each_arm_with_intervals():
    sides = {
        "dense": [(30.0, Interval(90.0, 89.0, 91.0)), (120.0, Interval(95.0, math.nan, math.nan))],
        "unified k=0.25": [(30.0, Interval(91.5, 91.0, 92.0)), (120.0, Interval(96.0, 95.5, 96.5))],
    }
    drawn = over_budgets(sides, "mnist: accuracy in the same seconds", "accuracy %").decode()
    texts = {element.text for element in ElementTree.fromstring(drawn).iter() if element.text}
    assert {"dense", "unified k=0.25", "30 s", "2 min", "accuracy %"} <= texts
    assert drawn == over_budgets(sides, "mnist: accuracy in the same seconds", "accuracy %").decode()
