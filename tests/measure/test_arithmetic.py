from __future__ import annotations

import pytest
import torch

from meprop_bench.measure import arithmetic
from meprop_bench.measure.peaks import measure_peaks


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_tf32_are_tensors_of_float32():
    assert arithmetic.tensor_type("tf32") is torch.float32
    assert arithmetic.tensor_type("bfloat16") is torch.bfloat16


@pytest.mark.parametrize("dtype", ["float33", "int64", "nn", "TF32"])
def test_only_floating_point(dtype):
    with pytest.raises(ValueError, match=rf"or tf32, got '{dtype}'"):
        arithmetic.tensor_type(dtype)


def test_a_case_sets_the_switches_both_ways():
    """cuDNN rounds to TF32 unless it is told not to, cuBLAS does not unless it is told to."""
    for dtype, rounded in (("float32", False), ("tf32", True), ("bfloat16", False)):
        arithmetic.adopt(dtype)
        assert arithmetic.is_tf32() is rounded
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (rounded, rounded)


def test_a_block_leaves_the_switches_as_they_were():
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = False
    seen = []

    def fails():
        with arithmetic.adopted("float32"):
            seen.append(arithmetic.is_tf32())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert seen == [False]
    assert arithmetic.is_tf32()
    assert not torch.backends.cudnn.allow_tf32


def test_peaks_are_measured_in_the_arithmetic_that_they_are_of(monkeypatch):
    from meprop_bench.measure import peaks as peaks_module

    seen = []
    monkeypatch.setattr(
        peaks_module, "_arithmetic", lambda device, kind, *_: seen.append((kind, arithmetic.is_tf32())) or 1e12
    )
    monkeypatch.setattr(peaks_module, "_bandwidth", lambda *_: ((1, 1e9),))
    for dtype in ("tf32", "float32"):
        assert list(measure_peaks("cpu", dtype, 1).flops_per_s) == [dtype]
        assert not arithmetic.is_tf32()
    assert seen == [(torch.float32, True), (torch.float32, False)]
