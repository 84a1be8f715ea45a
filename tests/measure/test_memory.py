from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from meprop_bench.measure import memory
from meprop_bench.measure.memory import peak_of, peak_process_bytes, peak_tensor_bytes, peaks_of


def test_peak_of_a_running_sum():
    assert peak_of([]) == 0
    assert peak_of([(1, 10), (1, -10), (2, 30), (3, 5), (2, -30), (3, -5), (1, 20)]) == 35
    assert peak_of([(9, -50), (1, 3)]) == 3  # a block from before


def test_a_tensor_is_counted_to_the_byte():
    assert peak_tensor_bytes(lambda: torch.empty(1000)) == 4000
    assert peak_tensor_bytes(lambda: None) == 0


def test_the_peak_and_not_the_sum():
    def fn():
        for size in (1000, 3000, 2000):
            torch.empty(size, dtype=torch.float64)

    assert peak_tensor_bytes(fn) == 24_000


def test_what_was_there_before_is_not_counted_and_neither_is_its_release():
    box = [torch.empty(100_000)]

    def fn():
        box.clear()
        return torch.empty(10)

    assert peak_tensor_bytes(fn) == 40


def test_a_block_from_before_at_an_address_that_was_used_before_is_not_counted_either():
    """The profiler remembers the sizes of one session in the next one, also of blocks that were freed in between."""
    box = []

    def fn():
        box.clear()
        box.append(torch.empty(1000))

    for _ in range(5):
        assert peak_tensor_bytes(fn) == 4000
        box.clear()
        box.append(torch.empty(1000))  # nobody watches; it is likely to get the address that was just let go


def test_temporaries_inside_an_operator_are_seen():
    a, b = torch.ones(1000), torch.ones(1000, dtype=torch.float64)
    # The result and, within the operator, a converted copy of `a`.
    assert peak_tensor_bytes(lambda: a + b) == 8000 + 8000


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
    peak = peak_tensor_bytes(backward)
    assert x.grad is not None
    assert gradients <= peak <= gradients + 4 * batch * outputs
    x.grad = w.grad = None
    assert peak_tensor_bytes(backward) == peak


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
    assert 4_000_000 <= peak_tensor_bytes(y.backward) <= 4_000_200


def test_an_error_passes_through():
    with pytest.raises(RuntimeError, match="shape"):
        peak_tensor_bytes(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
    assert peak_tensor_bytes(lambda: torch.empty(1000)) == 4000


def test_an_unknown_device():
    with pytest.raises(ValueError, match="tpu"):
        peaks_of(lambda: None, "tpu")


def test_nothing_is_printed():
    code = (
        "import torch; from meprop_bench.measure.memory import peak_tensor_bytes as p;"
        "assert p(lambda: torch.empty(1000)) == 4000"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_blocks_are_rounded_to_512_bytes():
    assert peaks_of(lambda: torch.empty(1000, device="cuda:0"), "cuda:0").tensor_bytes == 4096


class Kernel:
    """The kernel's folder of a process whose resident set a test moves."""

    def __init__(self, folder):
        self.folder, self.resident = folder, 1000
        self.mark = 5000  # of something long ago
        self.show()

    def show(self):
        if (self.folder / "clear_refs").exists():
            assert (self.folder / "clear_refs").read_text() == "5"
            (self.folder / "clear_refs").unlink()
            self.mark = self.resident
        self.mark = max(self.mark, self.resident)
        (self.folder / "status").write_text(f"Name:\tpython\nVmHWM:\t {self.mark} kB\nVmRSS:\t {self.resident} kB\n")

    def run(self, *levels):
        for level in levels:
            self.resident = level
            self.show()


def test_the_process_is_told_by_its_high_water_mark(tmp_path):
    kernel = Kernel(tmp_path)
    found = peak_process_bytes(lambda: kernel.run(1000, 1700, 1100), proc=tmp_path)
    assert found == memory.ProcessPeak(1700 * 1024, 700 * 1024, exact=True)


def test_a_mark_below_the_resident_set_is_no_growth(tmp_path):
    kernel = Kernel(tmp_path)
    (tmp_path / "status").write_text("VmHWM:\t 990 kB\nVmRSS:\t 1000 kB\n")  # counted for each core, so not exact
    kernel.run()
    assert peak_process_bytes(lambda: None, proc=tmp_path).growth_bytes == 0


@pytest.mark.parametrize("folder", ["missing", "."])
def test_where_the_mark_cannot_be_set_back_the_resident_set_is_sampled(tmp_path, monkeypatch, folder):
    import psutil

    levels = iter([100, 300])
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(levels)))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(memory, "_SAMPLE_S", 60.0)  # the thread finds nothing to do
    (tmp_path / "status").write_text("Name:\tpython\n")  # a kernel that shows no resident set
    assert peak_process_bytes(lambda: None, proc=tmp_path / folder) == memory.ProcessPeak(300, 200, exact=False)


def test_sampling_sees_the_peak_within():
    seen = memory._sampled_peak(lambda: np.ones(8_000_000))
    assert seen.growth_bytes > 30 << 20
    assert not seen.exact
    with pytest.raises(RuntimeError, match="within"):
        memory._sampled_peak(_fail)


def _fail():
    raise RuntimeError("within")


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_this_very_process():
    def fn():
        np.ones(8_000_000)  # 64 MB that torch's allocator does not see, and gone at the end

    found = peaks_of(fn, "cpu")
    assert found.tensor_bytes == 0
    assert found.growth_bytes is not None
    assert found.process_bytes is not None
    assert 55 << 20 < found.growth_bytes < 80 << 20 or not found.exact
    assert found.process_bytes > found.growth_bytes
    assert (found.reserved_bytes, found.tensor_bytes) == (None, 0)


def test_what_a_call_needs_before_it_is_not_weighed():
    made = []
    found = peaks_of(lambda: made.append(torch.empty(10)), "cpu", before=lambda: made.append(torch.empty(5000)))
    assert found.tensor_bytes == 40
    assert [len(tensor) for tensor in made] == [5000, 10] * 2  # once for the tensors, once for the process
    with pytest.raises(ValueError, match="tpu"):
        peaks_of(lambda: None, "tpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_takes_segments_from_the_driver():
    found = peaks_of(lambda: torch.empty(30 << 20, dtype=torch.uint8, device="cuda:0"), "cuda:0")
    assert found.tensor_bytes == 30 << 20
    assert found.reserved_bytes is not None
    assert found.reserved_bytes >= found.tensor_bytes
    assert found.process_bytes is None
