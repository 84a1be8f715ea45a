from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from meprop_bench.measure.memory import peak_of, peak_tensor_bytes


def test_peak_of_a_running_sum():
    assert peak_of([]) == 0
    assert peak_of([10, -10, 30, 5, -35, 20]) == 35
    assert peak_of([-5, 3]) == 0


def test_a_tensor_is_counted_to_the_byte():
    assert peak_tensor_bytes(lambda: torch.empty(1000), "cpu") == 4000
    assert peak_tensor_bytes(lambda: None, "cpu") == 0


def test_the_peak_and_not_the_sum():
    def fn():
        for size in (1000, 3000, 2000):
            torch.empty(size, dtype=torch.float64)

    assert peak_tensor_bytes(fn, "cpu") == 24_000


def test_what_was_there_before_is_not_counted_and_neither_is_its_release():
    box = [torch.empty(100_000)]

    def fn():
        box.clear()
        return torch.empty(10)

    assert peak_tensor_bytes(fn, "cpu") == 40


def test_temporaries_inside_an_operator_are_seen():
    a, b = torch.ones(1000), torch.ones(1000, dtype=torch.float64)
    # The result and, within the operator, a converted copy of `a`.
    assert peak_tensor_bytes(lambda: a + b, "cpu") == 8000 + 8000


def test_the_backward_pass_of_a_linear_layer():
    batch, inputs, outputs = 32, 100, 50
    x = torch.randn(batch, inputs, requires_grad=True)
    w = torch.randn(outputs, inputs, requires_grad=True)
    y = x @ w.t()
    dy = torch.randn_like(y)

    def backward():
        torch.autograd.backward(y, dy, retain_graph=True)

    # Afterwards dx (B, m) and dw (n, m) live in .grad; nothing of their size is needed besides.
    gradients = 4 * (batch * inputs + outputs * inputs)
    peak = peak_tensor_bytes(backward, "cpu")
    assert x.grad is not None
    assert gradients <= peak <= gradients + 4 * batch * outputs
    x.grad = w.grad = None
    assert peak_tensor_bytes(backward, "cpu") == peak


def test_a_custom_backward_is_seen():
    class Wasteful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            torch.empty(1_000_000)
            return dy

    x = torch.zeros(10, requires_grad=True)
    y = Wasteful.apply(x).sum()
    assert 4_000_000 <= peak_tensor_bytes(y.backward, "cpu") <= 4_000_200


def test_an_error_passes_through():
    with pytest.raises(RuntimeError, match="shape"):
        peak_tensor_bytes(lambda: torch.ones(2, 3) @ torch.ones(2, 3), "cpu")
    assert peak_tensor_bytes(lambda: torch.empty(1000), "cpu") == 4000


def test_an_unknown_device():
    with pytest.raises(ValueError, match="tpu"):
        peak_tensor_bytes(lambda: None, "tpu")


def test_nothing_is_printed():
    code = (
        "import torch; from meprop_bench.measure.memory import peak_tensor_bytes as p;"
        "assert p(lambda: torch.empty(1000), 'cpu') == 4000"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_blocks_are_rounded_to_512_bytes():
    assert peak_tensor_bytes(lambda: torch.empty(1000, device="cuda:0"), "cuda:0") == 4096
