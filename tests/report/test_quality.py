"""Figures of quality: percentages, and those in a unit of their own."""

import random
import statistics
from dataclasses import replace

import pytest

from meprop_bench.progress import outcome
from meprop_bench.report.document import parity_section
from meprop_bench.report.quality import POINTS, Quality, held, measure, more_seeds
from meprop_bench.results.costs import COSTS
from meprop_bench.results.schema import Parity
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


def parity(differences, margin=0.5):
    found = mean_difference([(0.0, each) for each in differences])
    return Parity(
        task="digits",
        seeds=tuple(range(len(differences))),
        steps=400,
        baseline=(90.0,) * len(differences),
        method=tuple(90.0 + each for each in differences),
        difference=found.estimate,
        low=found.low,
        high=found.high,
        margin=margin,
        verdict=non_inferiority(found, margin),
    )


@pytest.mark.parametrize(
    ("metric", "percent", "said"),
    [
        ("accuracy_percent", True, "accuracy"),
        ("UAS on the test set, at the best development score", True, "accuracy"),
        ("F1, at the end", True, "F1"),
        ("accuracy %, at the end", True, "accuracy"),  # as stored before
        (_METRIC, False, "-bits/character"),
    ],
)
def test_a_users_figure_has_its_own_name(metric, percent, said):
    assert measure(replace(parity([0.1, 0.2]), metric=metric, percent=percent)) == said


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.1, -0.1, 0.0, 0.1], "accuracy holds within 0.5 points (+0.03 [-0.13, +0.18])"),
        ([-2.0, -2.1, -1.9], "accuracy is lost: -2.00 [-2.25, -1.75] points, where 0.5 may be"),
        (
            [0.5, -0.5, 1.0, -1.0],
            "whether accuracy holds within 0.5 points is undecided (+0.00 [-1.45, +1.45]): about 25 more seeds"
            " would tell",
        ),
        (
            [-0.5, -0.6, -0.4],
            "whether accuracy holds within 0.5 points is undecided (-0.50 [-0.75, -0.25]): 1,000 seeds would"
            " hardly tell",
        ),
        ([0.5], "whether accuracy holds within 0.5 points is undecided (+0.50): one seed cannot tell"),
        (
            [0.0, 0.0],
            "accuracy holds within 0.5 points (+0.00 [+0.00, +0.00]), but all seeds differ alike, as those of"
            " models that"
            " learnt nothing yet: train for longer",
        ),
    ],
)
def test_what_came_of_a_comparison_is_a_clause(differences, said):
    assert held(parity(differences)) == said


def test_so_many_seeds_do_tell_eight_times_of_ten():
    """Of differences that are drawn as those that were seen."""
    source = random.Random(1)
    seen = [0.5, -0.5, 1.0, -1.0]
    count = len(seen) + more_seeds(parity(seen))
    spread = statistics.stdev(seen)
    passed = sum(parity([source.gauss(0, spread) for _ in range(count)]).verdict == "pass" for _ in range(400))
    assert 0.74 < passed / 400 < 0.86


def test_a_report_does_not_call_points_what_are_none(rows, others):
    section = parity_section(others)
    assert section.title == "Quality against dense"
    line = dict(zip(section.columns, (cell.text for cell in section.groups[0][0]), strict=True))
    assert (line["dense"], line["sparse"], line["margin"]) == ("-2.110", "-2.145", "0.01")
    assert line["difference"].startswith("-0.035 [-0.0")
    assert f"sparse minus dense in {_METRIC}, with" in section.remark
    assert "points" not in section.remark
    both = parity_section([*rows, *others]).remark
    assert f"in points of development-set accuracy or {_METRIC}, with" in both


def test_a_finished_case_names_the_metric(others):
    step = replace(others[0], phase="step")
    assert outcome((step,)).endswith(", -bits/character -0.035, fail")


def test_what_asv_tracks_is_a_share_of_denses_figure(others):
    assert COSTS["accuracy_gap"].of(others[0]) == pytest.approx(100 * 0.035 / 2.11)
