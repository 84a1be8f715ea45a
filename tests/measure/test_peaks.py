from __future__ import annotations

import json
import math

import pytest
import torch

from meprop_bench.measure import peaks as peaks_module
from meprop_bench.measure.peaks import Peaks, PeaksCache, measure_peaks, peaks_key

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


@pytest.mark.parametrize(
    ("flops", "nbytes", "bound"), [(200e9, 0, "arithmetic"), (0, 20e9, "memory"), (0, 0, "memory")]
)
def test_what_bounds_a_floor(flops, nbytes, bound):
    assert PEAKS.bound(flops, nbytes) == bound


def test_the_name_of_peaks():
    assert peaks_key("cpu", "float32", 1) == "cpu float32, 1 thread"
    assert peaks_key("cuda:0", "bfloat16", 2) == "cuda:0 bfloat16, 2 threads"


class _Measure:
    """Peaks that are one after the other asked for; each counts."""

    def __init__(self, *rates):
        self.rates, self.calls = list(rates), 0

    def __call__(self):
        self.calls += 1
        return Peaks({"float32": self.rates.pop(0)}, ((1, 1.0),))


def test_the_cache_is_trusted_after_three_measurements_and_holds_the_best(tmp_path):
    measure = _Measure(5.0, 9.0, 7.0)
    found = [PeaksCache(tmp_path).peaks("e1", "cpu", measure).flops_per_s["float32"] for _ in range(5)]
    assert found == [5.0, 9.0, 9.0, 9.0, 9.0]
    assert measure.calls == 3
    assert [path.name for path in tmp_path.iterdir()] == ["e1.json"]  # nothing temporary is left


def test_environments_and_kinds_of_peaks_are_kept_apart(tmp_path):
    cache = PeaksCache(tmp_path)
    for environment, key, rate in (("e1", "a", 1.0), ("e1", "b", 2.0), ("e2", "a", 3.0)):
        assert cache.peaks(environment, key, _Measure(rate)).flops_per_s["float32"] == rate


def test_the_cache_is_forgotten_after_30_days(tmp_path):
    days = iter([0.0, 1.0, 1.0])
    now = [0.0]
    cache = PeaksCache(tmp_path, now=lambda: now[0])
    for day in days:
        now[0] = day * 86400
        cache.add("e", "k", Peaks({"float32": 8.0}, ((1, 1.0),)))
    slower = _Measure(2.0)
    now[0] = 29.9 * 86400
    assert cache.peaks("e", "k", slower).flops_per_s["float32"] == 8.0
    now[0] = 30 * 86400
    assert cache.peaks("e", "k", slower).flops_per_s["float32"] == 2.0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"k": 3}', '{"k": {"peaks": {}, "first": 0, "times": 1}}'])
def test_a_damaged_cache_is_none(tmp_path, content):
    (tmp_path / "e.json").write_text(content)
    assert PeaksCache(tmp_path).peaks("e", "k", _Measure(4.0)).flops_per_s["float32"] == 4.0
    assert PeaksCache(tmp_path).peaks("e", "k", _Measure(3.0)).flops_per_s["float32"] == 4.0


def test_a_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").touch()
    cache = PeaksCache(tmp_path / "file" / "sub")
    assert [cache.peaks("e", "k", _Measure(rate)).flops_per_s["float32"] for rate in (4.0, 3.0)] == [4.0, 3.0]


def test_the_cache_lies_where_xdg_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    PeaksCache().add("e", "k", PEAKS)
    assert (tmp_path / "meprop-bench" / "peaks" / "e.json").is_file()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    PeaksCache().add("e", "k", PEAKS)
    assert (tmp_path / "home" / ".cache" / "meprop-bench" / "peaks" / "e.json").is_file()
