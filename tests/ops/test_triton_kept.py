"""Dense gradients of kernel `triton_kept` in kept memory: those of `triton_gather`, whoever holds or changes the last.

As in test_triton.py they are interpreted on the CPU where there is no GPU. Then what was found there is not read by the
host either, as on a device.
"""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from meprop_bench.nn import MePropLinear
from meprop_bench.ops import kernels, linear, memory
from meprop_bench.ops.kernels import KERNELS, Request, kept
from tests.ops import kept_memory
from tests.ops.conftest import arrange, device_of_triton
from tests.ops.kept_memory import CHANGES, HOLDERS, ON_A_CPU, REPLACED, K, M, N, Passes, same

pytest.importorskip("triton", reason="needs Triton (extra `gpu`)")

from meprop_bench.ops.kernels import triton
from meprop_bench.ops.kernels.triton import zeros

DEVICE = device_of_triton()
PASSES = Passes("triton_kept", "triton_gather", DEVICE)
weight, batch, fresh, backward, warm = PASSES.weight, PASSES.batch, PASSES.fresh, PASSES.backward, PASSES.warm
on_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU, without TRITON_INTERPRET")


def here(names):
    return [name for name in names if DEVICE == "cpu" or name not in ON_A_CPU]


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    """The host does not read what was found; what the interpreter leaves behind, storages among it, is collected."""
    monkeypatch.setattr(memory, "is_read_at_once", lambda _: False)
    if DEVICE != "cpu":
        return
    monkeypatch.setattr(zeros, "_ROWS", 256)  # the interpreter takes as long for a program as for a small one
    monkeypatch.setattr(zeros, "_COLUMNS", 1024)
    blanked = zeros.blanked

    def without_garbage(*arguments):
        gc.disable()  # what is young stays so
        try:
            return blanked(*arguments)
        finally:
            gc.collect(0)
            gc.enable()

    monkeypatch.setattr(zeros, "blanked", without_garbage)


@pytest.mark.parametrize(
    ("n", "m", "b", "layout", "dtype"),
    [
        (37, 7, 3, "plain", torch.float32),
        (90, 17, 1, "plain", torch.float16),
        (35, 70, 9, "strided", torch.bfloat16),
        (35, 70, 9, "transposed", torch.float32),
    ],
)
def test_the_same_bits_as_fresh_memory(n, m, b, layout, dtype, monkeypatch):
    """Of several programs, also by rows, without a weight gradient, and without a record."""
    monkeypatch.setattr(kept, "smallest", lambda: 1)
    monkeypatch.setattr(zeros, "_ROWS", 16)
    monkeypatch.setattr(zeros, "_COLUMNS", 16)
    w = torch.nn.Parameter(torch.randn(n, m).to(DEVICE, dtype))
    kernel = KERNELS["triton_kept"].keeping(w)
    addresses = set()
    for step, k in enumerate((5, 5, 1, n - 1, 2, 5)):
        torch.manual_seed(step)
        dy, x = (arrange(torch.randn(b, width).to(DEVICE, dtype), layout) for width in (n, m))
        for request in (
            Request(k, "unified", False, True, True, True),
            Request(k, "random-unified", False, False, True, False),
            Request(k, "unified", True, True, True, True),
            Request(k, "unified", False, True, False, True),
        ):
            torch.manual_seed(step)
            found = kernel.backward(dy, x, w.detach(), request)
            torch.manual_seed(step)
            expected = KERNELS["triton_gather"].backward(dy, x, w.detach(), request)
            for grad, e in zip(found, expected, strict=True):
                assert (grad is None) == (e is None)
                if grad is not None:
                    assert same(grad.to_dense(), e.to_dense())
            if request.need_dw and not request.rows:
                addresses.add(found[1].data_ptr())
            del found, grad
    assert len(addresses) == 1


def test_a_batch_without_any_gradient():
    w = weight()
    warm(w)
    x, dy = batch(0)
    linear(x, w, k=K, selection="unified", kernel="triton_kept").backward(torch.zeros_like(dy))
    assert not w.grad.any()
    w.grad = None
    assert same(backward(w, 1), fresh(w, 1))


def test_only_the_rows_written_last_are_zeroed():
    kept_memory.check_that_it_is_kept(PASSES, "unified")


@pytest.mark.parametrize("name", here(HOLDERS))
def test_memory_that_somebody_holds_is_left_alone(name):
    kept_memory.check_holder(PASSES, name, "unified")


@pytest.mark.parametrize("name", here(CHANGES))
def test_changes_in_place_are_found(name):
    kept_memory.check_change(PASSES, name, "unified", 1)


@pytest.mark.parametrize("name", here(REPLACED))
def test_weights_and_storages_that_change(name):
    kept_memory.check_replaced(PASSES, name, "unified")


def test_rows_are_found_where_most_inputs_are_dark():
    kept_memory.check_dark_inputs(PASSES, "triton_gather", seeds=2)


def test_what_was_found_once_is_never_trusted_again():
    kept_memory.check_that_trust_is_lost(PASSES, "unified")


def test_another_dtype_is_other_memory():
    layer = MePropLinear(M, N, k=K, selection="unified", bias=False, kernel="triton_kept", device=DEVICE)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float32):
        layer.to(dtype)
        for seed in range(3):
            x, dy = (t.to(dtype) for t in batch(seed))
            layer.zero_grad()
            layer(x).backward(dy)
            request = Request(K, "unified", False, False, True, False)
            expected = KERNELS["triton_gather"].backward(dy, x, layer.weight.detach(), request)[1]
            assert same(layer.weight.grad, expected)


def test_on_another_stream_nothing_is_trusted(monkeypatch):
    """A number that is not to be found shows whether rows were zeroed."""
    w = weight(20, 4096)
    row = (int(fresh(w, 0, k=1, b=1).abs().sum(1).argmax()) + 1) % 20
    for stream, trusted in ((1, False), (1, True), (2, False), (2, True), (1, False), (0, False), (0, True)):
        monkeypatch.setattr(kept, "_stream", lambda _, stream=stream: stream)
        found = backward(w, 0, k=1, b=1)
        assert found[row, 3001] == (7 if trusted else 0)
        found.data[row, 3001] = 7
        del found
        w.grad = None


def test_a_graph_is_refused(monkeypatch):
    x, dy = batch(0)
    w = weight()
    y = linear(x, w, k=K, selection="unified", kernel="triton_kept")
    monkeypatch.setattr(triton, "_capturing", lambda _: True)
    with pytest.raises(ValueError, match="kernel 'triton_kept' does not support this case: a graph has memory of its"):
        linear(x, w, k=K, selection="unified", kernel="triton_kept")
    with pytest.raises(RuntimeError, match="take 'triton_gather'"):
        y.backward(dy)
    y = linear(x, w, k=K, selection="unified", sparse=True, kernel="triton_kept")  # in its own memory
    y.backward(dy)
    assert w.grad.is_sparse


class NothingIsWaitedFor(TorchDispatchMode):
    """Fail on operators that bring a value or a size from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "unique", "bincount", "masked_select", "is_nonzero", "equal")
        assert not any(part in func.name() for part in waits), func
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_nothing():
    w = weight()
    kernel = KERNELS["triton_kept"].keeping(w)
    request = Request(K, "unified", False, True, True, True)
    x, dy = batch(0)
    for change in (lambda g: None, lambda g: g.add_(1), lambda g: g.data.add_(1)):
        with NothingIsWaitedFor():
            found = kernel.backward(dy, x, w.detach(), request)[1]
        change(found)
        del found


def test_auto_leaves_it_to_be_measured():
    x, dy = batch(0)
    request = Request(K, "unified", False, True, True, True)
    assert kernels.get("auto").choose(dy.half(), x.half(), weight().half(), request).name == "gather"


@pytest.mark.cuda
@on_gpu
def test_on_streams():
    """A backward pass runs on the stream of its forward pass; what was handed out on another is not taken."""
    w = weight(2000, 1600)
    side = torch.cuda.Stream()
    for seed in range(12):
        stream = side if seed % 3 else torch.cuda.default_stream()
        stream.wait_stream(side)
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            backward(w, seed)
        torch.cuda.current_stream().wait_stream(stream)
        assert same(w.grad, fresh(w, seed))
        w.grad = None


@pytest.mark.cuda
@on_gpu
def test_the_driver_is_not_waited_for():
    w = weight(2000, 1600)
    warm(w, steps=3)
    x, dy = batch(0, n=2000, m=1600)
    y = linear(x, w, k=K, selection="unified", kernel="triton_kept")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y.backward(dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(w.grad, fresh(w, 0))


@pytest.mark.cuda
@on_gpu
def test_a_captured_graph_is_refused():
    w = weight()
    x, dy = batch(0)
    y = linear(x, w, k=K, selection="unified", kernel="triton_kept")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        request = Request(K, "unified", False, True, True, True)
        assert "memory of its own" in KERNELS["triton_kept"].unsupported(dy, x, w, request)
        with pytest.raises(RuntimeError, match="take 'triton_gather'"):
            KERNELS["triton_kept"].keeping(w).backward(dy, x, w.detach(), request)
        dy.zero_()
    del y
