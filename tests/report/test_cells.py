import pytest

from meprop_bench.report import cells
from meprop_bench.stats import Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345, "1.23 s"),
        (0.99996, "1.00 s"),
        (0.0123, "12.3 ms"),
        (4.56e-5, "45.6 µs"),
        (3e-9, "3.00 ns"),
        (240, "240 s"),
    ],
)
def test_times_have_three_digits_and_a_unit_that_fits(value, text):
    assert cells.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (1536, "1.50 KiB"), (256 << 20, "256 MiB"), (5 << 30, "5.00 GiB")]
)
def test_sizes(value, text):
    assert cells.memory(value) == text


def test_energies_and_shares():
    assert [cells.joules(value) for value in (None, 12.34, 0.05, 2e-6)] == [
        cells.ABSENT,
        "12.3 J",
        "50.0 mJ",
        "2.00 µJ",
    ]
    assert [cells.percent(value) for value in (None, 198.4, 0.0)] == [cells.ABSENT, "198%", "0%"]
    assert cells.pair("1", "2") == "1 → 2"
    assert cells.pair(cells.ABSENT, "2") == f"{cells.ABSENT} → 2"
    assert cells.pair(cells.ABSENT, cells.ABSENT) == cells.ABSENT


def test_what_does_not_apply_is_a_dash():
    assert cells.seconds(None) == cells.memory(None) == cells.ABSENT


@pytest.mark.parametrize(
    ("changes", "text", "tone"),
    [
        ({"speedup": 5.12, "half": 0.0195}, "5.12x [5.02, 5.22]", "good"),
        ({"speedup": 120.0, "half": 0.01}, "120x [119, 121]", "good"),
        ({"speedup": 0.8, "half": 0.01}, "0.80x [0.79, 0.81]", "bad"),
        ({"speedup": 5.0, "half": 0.04}, "5.00x [4.81, 5.20] ~", "good"),
        ({"speedup": 1.01, "half": 0.02}, "1.01x [0.99, 1.03] not significant", "quiet"),
        ({"speedup": 5.0, "processes": 1}, "5.00x no interval", "quiet"),
        ({"speedup_low": 0.02, "speedup_high": 1080.0}, "cannot tell", "quiet"),
        ({"speedup_low": 3.0, "speedup_high": 100.0}, "cannot tell, above 3.00x", "good"),
        ({"baseline_disagreement": 2.9}, "5.00x [4.95, 5.05] do not believe", "bad"),
    ],
)
def test_a_speed_up_says_how_sure_it_is(make_row, changes, text, tone):
    assert cells.speedup(make_row("a", **changes)) == cells.Cell(text, tone)


def test_an_interval_that_misses_1_alone_is_not_enough(make_row):
    row = make_row("a", speedup=1.04, half=0.02)
    assert cells.speedup(row, distinct=False) == cells.Cell("1.04x [1.02, 1.06] not significant", "quiet")


def test_a_method_without_k_has_a_dash(make_row):
    assert [cells.k_of(make_row("a", method=method)) for method in ("unified", "dense", "meact")] == ["8", "–", "–"]
    assert cells.label(make_row("a", method="dense", phase="step")).startswith("linear dense, 1024")


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"check": "dx is off"}, "FAILED"), ({"error": "out of memory"}, "ERROR"), ({"check": None}, "NOT CHECKED")],
)
def test_no_speed_up_without_a_passed_check(failed_row, changes, word):
    row = failed_row("a", **changes, **({} if "error" in changes else {"median_s": 1.0, "efficiency": 0.5}))
    assert cells.speedup(row).text == cells.efficiency(row).text == cells.ABSENT
    assert cells.check(row) == cells.Cell(word, "bad")


def test_points_that_span_too_much_are_no_figure():
    assert cells.points(Interval(0.04, -0.26, 0.34)) == "+0.04 [-0.26, +0.34]"
    assert cells.points(Interval(-2.5, -47.0, 42.0)) == "cannot tell"
    assert cells.points(Interval.of(-2.5, None, None)) == "-2.50"


def test_a_speed_up_without_its_interval_is_a_figure_or_none(make_row):
    assert cells.plain_speedup(make_row("a", speedup=5.12)) == "5.12x"
    assert cells.plain_speedup(make_row("a", speedup_low=0.01, speedup_high=900.0)) == "cannot tell"
    assert cells.plain_speedup(make_row("a", baseline_disagreement=2.0)) == "do not believe"


def test_a_time_within_its_interval():
    assert cells.seconds_within(Interval(4e-4, 3.9e-4, 4.1e-4)) == "400 µs ±2%"
    assert cells.seconds_within(Interval.of(4e-4, None, None)) == "400 µs"
    assert cells.seconds_within(Interval(-4e-6, -4.4e-6, -3.6e-6)) == "-4.00 µs ±10%"
    assert cells.seconds_within(Interval(4e-6, -4e-6, 12e-6)) == "cannot tell"
