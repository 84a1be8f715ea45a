from __future__ import annotations

import json
import math

import pytest
import torch

from meprop_bench.measure import peaks as peaks_module
from meprop_bench.measure.peaks import Peaks, measure_peaks

PEAKS = Peaks({"float32": 100e9}, ((1 << 16, 20e9), (1 << 20, 80e9), (1 << 24, 50e9), (1 << 28, 10e9)))


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (0, 80e9),
        (1 << 16, 80e9),  # a small set pays for the call: never believed below what a larger one reached
        (1 << 20, 80e9),
        ((1 << 24) - 1, 80e9),  # between two points the faster neighbour counts
        (1 << 24, 50e9),
        ((1 << 28) - 1, 50e9),
        (1 << 28, 10e9),
        (1 << 40, 10e9),
    ],
)
def test_bandwidth_is_an_upper_bound(nbytes, expected):
    assert PEAKS.bandwidth_at(nbytes) == expected


def test_the_floor_is_the_larger_of_arithmetic_and_traffic():
    assert PEAKS.floor_s(200e9, 0) == pytest.approx(2.0)
    assert PEAKS.floor_s(0, 20e9) == pytest.approx(2.0)
    assert PEAKS.floor_s(300e9, 20e9) == pytest.approx(3.0)
    assert PEAKS.floor_s(0, 0) == 0.0


def test_a_dtype_may_be_left_out_only_when_there_is_one():
    both = Peaks({"float32": 2.0, "float64": 1.0}, ((1, 1.0),))
    assert both.floor_s(4.0, 0, "float64") == 4.0
    assert PEAKS.floor_s(1e9, 0, "float32") == PEAKS.floor_s(1e9, 0)
    for peaks, dtype in ((both, None), (PEAKS, "bfloat16")):
        with pytest.raises(ValueError, match=f"{dtype!r}"):
            peaks.floor_s(1.0, 1.0, dtype)


def test_points_are_sorted_and_survive_json():
    shuffled = Peaks(PEAKS.flops_per_s, PEAKS.bandwidth[::-1])
    assert shuffled == PEAKS
    assert Peaks.from_json(json.loads(json.dumps(PEAKS.to_json()))) == PEAKS


def test_merging_keeps_the_best_of_each():
    other = Peaks({"float32": 90e9, "float64": 50e9}, ((1 << 16, 30e9), (1 << 30, 9e9)))
    merged = PEAKS.merged(other)
    assert merged.flops_per_s == {"float32": 100e9, "float64": 50e9}
    assert merged.bandwidth == ((1 << 16, 30e9), *PEAKS.bandwidth[1:], (1 << 30, 9e9))
    assert other.merged(PEAKS) == merged


@pytest.mark.parametrize(
    ("flops", "bandwidth"),
    [({}, ((1, 1.0),)), ({"float32": 1.0}, ()), ({"float32": 0.0}, ((1, 1.0),)), ({"float32": 1.0}, ((1, math.nan),))],
)
def test_peaks_are_positive(flops, bandwidth):
    with pytest.raises(ValueError, match="positive"):
        Peaks(flops, bandwidth)


@pytest.mark.parametrize(("flops", "nbytes"), [(-1, 0), (0, -1), (math.nan, 0)])
def test_counts_are_not_negative(flops, nbytes):
    with pytest.raises(ValueError, match="at least 0"):
        PEAKS.floor_s(flops, nbytes)


@pytest.fixture
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(peaks_module, "_ARITHMETIC_S", 0.01)
    monkeypatch.setattr(peaks_module, "_BANDWIDTH_S", 0.01)
    monkeypatch.setattr(peaks_module, "_SETS", peaks_module._SETS[:5])


def test_measured_peaks_are_plausible(in_a_hurry):
    before = torch.get_num_threads()
    peaks = measure_peaks("cpu", "float32", 1)
    assert torch.get_num_threads() == before
    assert [size for size, _ in peaks.bandwidth] == [1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24]
    assert 1e6 < peaks.flops_per_s["float32"] < 1e16
    assert all(1e5 < rate < 1e15 for _, rate in peaks.bandwidth)


@pytest.mark.parametrize("dtype", ["float33", "int64", "nn"])
def test_only_floating_point(dtype):
    with pytest.raises(ValueError, match=dtype):
        measure_peaks("cpu", dtype, 1)


def test_no_room_for_the_largest_set_is_no_error(in_a_hurry, monkeypatch):
    ones = torch.ones

    def small(*shape, **options):
        if shape[0] > 1 << 18:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return ones(*shape, **options)

    monkeypatch.setattr(torch, "ones", small)
    assert [size for size, _ in measure_peaks("cpu", "float32", 1).bandwidth] == [1 << 16, 1 << 18, 1 << 20]
