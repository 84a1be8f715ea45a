"""Many estimates at once are what each is alone."""

import math

import pytest

from meprop_bench.stats.estimates import Estimate
from meprop_bench.stats.many import p_values, ratios

ESTIMATES = [
    Estimate(0.7, 0.1, 3), Estimate(-0.2, 0.4, 7), Estimate(1e-3, 1e-9, 1), Estimate(0.0, 0.0, 4),
    Estimate(0.3, 0.0, 4), Estimate(2.0, math.nan, 0), Estimate(900.0, 5.0, 2.5),
]  # fmt: skip


def test_p_values_are_those_of_each():
    assert p_values(ESTIMATES).tolist() == pytest.approx([one.p_value() for one in ESTIMATES], nan_ok=True)
    assert p_values([]).tolist() == []


def test_ratios_are_those_of_each():
    found = zip(*(column.tolist() for column in ratios(ESTIMATES)), strict=True)
    for one, (estimate, low, high) in zip(ESTIMATES, found, strict=True):
        alone = one.ratio()
        assert (estimate, low, high) == pytest.approx((alone.estimate, alone.low, alone.high), nan_ok=True)
