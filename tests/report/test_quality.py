"""Figures of quality: percentages, and those in a unit of their own."""

from dataclasses import replace

import pytest

from meprop_bench.progress import outcome
from meprop_bench.report.document import parity_section, summary
from meprop_bench.report.quality import POINTS, Quality
from meprop_bench.results.costs import COSTS
from meprop_bench.stats import Interval, mean_difference, non_inferiority

_METRIC = "-bits/character on the development set, at the end"


def _other(parity, baseline=(-2.10, -2.12, -2.11), method=(-2.13, -2.16, -2.145), **changes):
    found = mean_difference(list(zip(baseline, method, strict=True)))
    own = {"difference": found.estimate, "low": found.low, "high": found.high, "margin": 0.01}
    own |= {"verdict": non_inferiority(found, 0.01), "seeds": (1, 2, 3), "metric": _METRIC, "percent": False}
    return replace(parity, baseline=baseline, method=method, **{**own, **changes})


@pytest.fixture
def others(rows):
    return [replace(row, parity=_other(row.parity)) for row in rows if row.parity]


def test_points_of_percentages():
    assert POINTS.figure(97.416) == "97.42%"
    assert POINTS.within(Interval(0.04, -0.26, 0.34)) == "+0.04 [-0.26, +0.34]"
    assert POINTS.within(Interval(-2.5, -47.0, 42.0)) == "cannot tell"
    assert POINTS.within(Interval.of(-2.5, None, None)) == "-2.50"


@pytest.mark.parametrize(
    ("scale", "figure", "shown", "change"),
    [
        (2.1, -2.1434, "-2.143", "-0.031"),
        (0.97, 0.97123, "0.9712", "-0.0310"),
        (12345.6, -12345.6, "-12346", "-0"),
        (1e-9, 1.2346e-9, "1.235e-09", "-3.100e-02"),
        (0.0, 0.0, "0.000", "-0.031"),
    ],
)
def test_figures_in_a_unit_of_their_own_have_its_digits(scale, figure, shown, change):
    quality = Quality(False, scale)
    assert (quality.figure(figure), quality.change(-0.031)) == (shown, change)


def test_how_wide_is_too_wide_goes_by_the_scale():
    quality = Quality(False, 2.0)
    assert quality.within(Interval(-0.03, -0.05, -0.01)) == "-0.030 [-0.050, -0.010]"
    assert quality.within(Interval(-0.03, -0.3, 0.2)) == "cannot tell"
    assert POINTS.within(Interval(-0.03, -0.3, 0.2)) == "-0.03 [-0.30, +0.20]"


def test_a_report_does_not_call_points_what_are_none(rows, others):
    section = parity_section(others)
    assert section.title == "Quality against dense"
    line = dict(zip(section.columns, (cell.text for cell in section.groups[0][0]), strict=True))
    assert (line["dense"], line["sparse"], line["margin"]) == ("-2.110", "-2.145", "0.01")
    assert line["difference"].startswith("-0.035 [-0.0")
    assert f"sparse minus dense in {_METRIC}, with" in section.remark
    assert "points" not in section.remark
    assert summary(others)[-1] == "Quality parity with dense: broken in 3."
    both = parity_section([*rows, *others]).remark
    assert f"in points of development-set accuracy or {_METRIC}, with" in both


def test_a_finished_case_names_the_metric(others):
    step = replace(others[0], phase="step")
    assert outcome((step,)).endswith(", -bits/character -0.035, fail")


def test_what_asv_tracks_is_a_share_of_denses_figure(others):
    assert COSTS["accuracy_gap"].of(others[0]) == pytest.approx(100 * 0.035 / 2.11)
