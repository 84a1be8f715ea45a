"""Dense weight gradients in kept memory: the bits of fresh ones, whoever holds or changes what was given before."""

import copy
import gc
import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("numba", reason="the native kernel needs Numba (extra `cpu`)")

from meprop_bench.nn import MePropLinear
from meprop_bench.ops import linear, node, reference
from meprop_bench.ops.kernels import kept, native
from tests.ops import kept_memory
from tests.ops.kept_memory import CHANGES, HOLDERS, REPLACED, B, K, M, N, Passes, same

registrations = import_module("meprop_bench.ops.linear")  # the function has the same name
PASSES = Passes("auto", "native")
weight, batch, fresh, backward, warm = PASSES.weight, PASSES.batch, PASSES.fresh, PASSES.backward, PASSES.warm


@pytest.fixture(params=["cxx", "python"], autouse=True)
def way(request):
    """Run each test with the C++ node and without."""
    before = registrations._node.call
    registrations._node.forget()
    if request.param == "python":
        registrations._node.call = node.nothing
    elif (reason := node.unavailable_reason()) is not None:
        pytest.skip(f"no C++ node: {reason}")
    yield request.param
    registrations._node.call = before


@pytest.fixture(params=["example", "unified"])
def selection(request):
    return request.param


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("n", "m", "b"), [(N, M, B), (515, 270, 40), (3000, 7, 3), (2000, 17, 1), (700, 100, 400), (70, 98003, 70)]
)
def test_the_same_bits_as_fresh_memory(n, m, b, threads, selection):
    w = weight(n, m)
    torch.set_num_threads(threads)
    for step, k in enumerate((5, 5, 1, 30, n // 4, 2, 5, 5)):
        assert same(backward(w, step, selection, k, b), fresh(w, step, selection, k, b))
        w.grad = None
    x, dy = batch(9, b, n, m)
    found = backward(w, 9, selection, 5, b)
    _, expected, _ = reference.backward(dy, x, w.detach(), reference.select(dy, 5, selection))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_large_gradients_are_written_past_the_caches(selection):
    w = weight(1100, 2056)
    for step in range(4):
        assert same(backward(w, step, selection, 3, 20), fresh(w, step, selection, 3, 20))
        w.grad = None


def test_a_batch_without_any_gradient(selection):
    w = weight()
    warm(w, selection)
    linear(batch(0)[0], w, k=K, selection=selection).backward(torch.zeros(B, N))
    assert not w.grad.any()
    w.grad = None
    assert same(backward(w, 1, selection), fresh(w, 1, selection))


def test_only_the_rows_written_last_are_zeroed(selection):
    kept_memory.check_that_it_is_kept(PASSES, selection)


@pytest.mark.parametrize("name", HOLDERS)
def test_memory_that_somebody_holds_is_left_alone(name, selection):
    kept_memory.check_holder(PASSES, name, selection)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place_are_found(name, steps, selection):
    kept_memory.check_change(PASSES, name, selection, steps)


def test_rows_are_found_where_most_inputs_are_dark():
    kept_memory.check_dark_inputs(PASSES, "native", seeds=50)


def test_what_was_found_once_is_never_trusted_again(selection):
    kept_memory.check_that_trust_is_lost(PASSES, selection)


@pytest.mark.parametrize("to_none", [True, False])
def test_accumulation(to_none, selection):
    w = weight()
    optimizer = torch.optim.SGD([w], lr=0.0)
    for step in range(4):
        expected = torch.zeros_like(w)
        for micro in range(4):
            backward(w, 10 * step + micro, selection)
            expected += fresh(w, 10 * step + micro, selection)
        assert torch.equal(w.grad, expected)
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)


def is_kept(grad):
    """Whether a record has the memory of a gradient, too."""
    users = [torch._C._storage_Use_Count(t.untyped_storage()._cdata) for t in (grad, grad.clone())]
    return users[0] > users[1]


def test_an_accumulating_gradient_is_the_one_that_is_kept(selection):
    w = weight()
    for _ in range(3):
        w.grad = None
        for micro in range(4):
            backward(w, micro, selection)
    assert is_kept(w.grad)


@pytest.mark.parametrize("changed", [False, True])
def test_memory_that_is_held_for_long_is_given_up(changed, selection):
    w, held = weight(), []
    for seed in range(12):
        held.append(backward(w, seed, selection))
        if changed:
            w.grad.add_(1)
        w.grad = None
    assert [seed for seed, grad in enumerate(held) if is_kept(grad)] == [9 if changed else 10]
    assert all(torch.equal(grad, fresh(w, seed, selection) + changed) for seed, grad in enumerate(held))


def test_a_look_at_a_storage_does_not_end_it(selection):
    """Python's object of a storage stays as long as that, and is a user of it."""
    w = weight()
    for seed in range(9):
        backward(w, seed, selection)
        if seed == 2:
            w.grad.add_(1).untyped_storage()
        if seed < 8:
            w.grad = None
    assert is_kept(w.grad)


def test_a_part_of_a_row_is_found_in_time(selection):
    """As places are others each time."""
    w = weight(20, 4096)
    row = (int(fresh(w, 0, selection, 1, 1).abs().sum(1).argmax()) + 1) % 20
    for _ in range(100):
        backward(w, 0, selection, 1, 1).data[row, :256] = 1
        w.grad = None
    assert same(backward(w, 0, selection, 1, 1), fresh(w, 0, selection, 1, 1))


def test_a_record_that_is_busy_lends_nothing():
    w, record = weight(), kept.Record()
    taken = record.take(N, M, w)
    assert record.take(N, M, w) is None
    record.give(taken.dw)
    assert record.take(N, M, w) is None  # `taken` has it
    del taken
    assert record.take(N, M, w) is not None


def test_a_record_that_fails_is_not_busy():
    w, record = weight(), kept.Record()
    without_memory = SimpleNamespace(dtype=w.dtype, device=w.device, new_empty=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record.take(N, M, without_memory)
    assert record.take(N, M, w) is not None


def test_another_shape_is_not_trusted(selection):
    """Of as many numbers: one of them lies where rows of the new shape are not looked at."""
    for column in range(3000, 3020):
        w = weight(20, 4096)
        x = torch.zeros(1, 4096)
        x[0, column] = 1
        linear(x, w, k=1, selection=selection).backward(batch(0, 1, 20, 4096)[1])
        w.grad, w.data = None, torch.ones(4096, 20)
        assert same(backward(w, 0, selection, 1, 1), fresh(w, 0, selection, 1, 1))


def test_another_device_is_other_memory():
    w, record = weight(), kept.Record()
    record.give(record.take(N, M, w).dw)
    assert record.take(N, M, w.to("meta")).dw.is_meta


def test_memory_that_other_processes_may_have_is_not_taken(selection):
    w = weight()
    warm(w, selection)
    backward(w, 0, selection).share_memory_()
    w.grad = None
    for seed in range(3):
        assert not backward(w, seed, selection).is_shared()
        w.grad = None


def test_less_memory_at_the_same_place_is_not_taken(selection):
    w, record = weight(), kept.Record()
    record.give(record.take(N, M, w).dw)
    record._last.untyped_storage().resize_(4 * N * M // 2)
    record._place = (record._last.untyped_storage().data_ptr(), 0)  # as it may come to be
    taken = record.take(N, M, w)
    assert taken.dw.untyped_storage().nbytes() == 4 * N * M
    assert taken.written[:-1].all()
    for seed in range(20):
        storage = backward(w, seed, selection).untyped_storage()
        storage.resize_(0)
        storage.resize_(4 * N * M // 2)
        del storage
        w.grad = None
        assert backward(w, seed, selection).untyped_storage().nbytes() == 4 * N * M
        w.grad = None


def test_one_graph_again_and_again(selection):
    w, (x, dy) = weight(), batch(0)
    y = linear(x, w, k=K, selection=selection)
    one, other = (torch.autograd.grad(y, w, factor * dy, retain_graph=True)[0] for factor in (1, 2))
    assert same(one, fresh(w, 0, selection))
    assert torch.equal(other, 2 * one)
    del other
    y.backward(dy, retain_graph=True)
    y.backward(dy)
    assert torch.equal(w.grad, 2 * one)
    for seed in range(4):
        x, dy = batch(seed)
        (found,) = torch.autograd.grad(linear(x, w, k=K, selection=selection), w, dy)
        assert same(found, fresh(w, seed, selection))
    assert same(one, fresh(w, 0, selection))


def test_double_backward(selection):
    w = weight()
    warm(w, selection)
    seconds = []
    for kernel in ("native", "masked"):
        x, dy = (t.requires_grad_() for t in batch(0))
        y = linear(x, w, k=K, selection=selection, kernel=kernel)
        (dw,) = torch.autograd.grad(y, w, dy, create_graph=True)
        backward(w, 1, selection)
        w.grad = None
        seconds.append((dw.detach().clone(), *torch.autograd.grad(dw.pow(2).sum(), (x, dy))))
        backward(w, 2, selection)
        w.grad = None
    torch.testing.assert_close(*seconds)


def test_hooks(selection):
    w, held = weight(), []
    handle = w.register_hook(held.append)
    for seed in range(4):
        assert same(backward(w, seed, selection), fresh(w, seed, selection))
        w.grad = None
    handle.remove()
    assert all(same(g, fresh(w, seed, selection)) for seed, g in enumerate(held))
    held.clear()
    handle = w.register_hook(lambda g: g.add_(1))
    for seed in range(3):
        assert torch.equal(backward(w, seed, selection), fresh(w, seed, selection) + 1)
        w.grad = None
    handle.remove()
    handle = w.register_hook(lambda g: 2 * g)
    for seed in range(3):
        assert torch.equal(backward(w, seed, selection), 2 * fresh(w, seed, selection))
        w.grad = None
    handle.remove()
    found = []

    def take(parameter):
        found.append(same(parameter.grad, fresh(w, len(found), selection)))
        parameter.grad = None

    w.register_post_accumulate_grad_hook(take)
    for seed in range(4):
        backward(w, seed, selection)
    assert found == [True] * 4


@pytest.mark.parametrize("uses", [2, 3, 5])
def test_a_weight_used_several_times_in_one_graph(uses, selection):
    w = weight()
    for step in range(4):
        batches = [batch(10 * step + i) for i in range(uses)]
        y = sum((linear(x, w, k=K, selection=selection) * dy).sum() for x, dy in batches)
        y.backward()
        alone = [fresh(w, 10 * step + i, selection) for i in range(uses)]
        torch.testing.assert_close(w.grad, sum(alone))
        w.grad = None


def test_a_weight_shared_by_two_modules_and_copies_of_it(selection):
    one = MePropLinear(M, N, k=K, selection=selection, bias=False)
    two = MePropLinear(M, N, k=K, selection=selection, bias=False)
    two.weight = one.weight
    for seed in range(4):
        x, dy = batch(seed)
        (one if seed % 2 else two)(x).backward(dy)
        assert same(one.weight.grad, fresh(one.weight, seed, selection))
        twin = copy.deepcopy(one)
        twin.weight.grad = copy.deepcopy(one.weight.grad)
        before = twin.weight.grad.clone()
        one.zero_grad()
        one(x).backward(dy * 2)
        assert same(twin.weight.grad, before)
        twin(x).backward(dy)
        assert torch.equal(twin.weight.grad, one.weight.grad)
        one.zero_grad()


def test_weights_that_are_computed_take_fresh_memory(selection):
    w = weight()
    for seed in range(3):
        x, dy = batch(seed)
        computed = w * 1.0
        assert kept.record(computed) is None
        linear(x, computed, k=K, selection=selection).backward(dy)
        assert same(w.grad, fresh(w, seed, selection))
        w.grad = None


def test_checkpointing(selection):
    w = weight()
    for seed in range(4):
        x, dy = batch(seed)
        y = checkpoint(lambda x: linear(x, w, k=K, selection=selection), x.requires_grad_(), use_reentrant=False)
        y.backward(dy)
        assert same(w.grad, fresh(w, seed, selection))
        w.grad = None


@pytest.mark.parametrize("name", REPLACED)
def test_weights_and_storages_that_change(name, selection):
    kept_memory.check_replaced(PASSES, name, selection)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True),
    "fused sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "maximized": lambda p: torch.optim.SGD(p, 0.1, maximize=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, weight_decay=0.1, foreach=True),
    "fused adam": lambda p: torch.optim.Adam(p, weight_decay=0.1, amsgrad=True, fused=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, fused=True),
    "fused adagrad": lambda p: torch.optim.Adagrad(p, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, centered=True, weight_decay=0.1, foreach=True),
    "rprop": torch.optim.Rprop,
    "adadelta": torch.optim.Adadelta,
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_same(name, monkeypatch, selection):
    def trained():
        w = weight()
        optimizer = OPTIMIZERS[name]([w])
        for seed in range(6):
            x, dy = batch(seed)

            def loss(x=x, dy=dy):
                optimizer.zero_grad()
                value = (linear(x, w, k=K, selection=selection) - dy).pow(2).mean()
                value.backward()
                return value

            if name == "lbfgs":
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()
        return w

    found = trained()
    monkeypatch.setattr(kept, "smallest", lambda: 0)
    if registrations._node.call is not node.nothing:
        registrations._node.forget()
    assert same(found, trained().detach())


def test_two_optimizers(selection):
    w = weight()
    one, two = torch.optim.SGD([w], 0.0, momentum=0.9), torch.optim.Adam([w], 0.0)
    for seed in range(4):
        assert same(backward(w, seed, selection), fresh(w, seed, selection))
        one.step()
        two.step()
        one.zero_grad()
        two.zero_grad()


def test_many_threads_at_once(selection):
    w, wrong = weight(), []

    def work(first):
        for seed in range(first, first + 25):
            x, dy = batch(seed)
            (found,) = torch.autograd.grad(linear(x, w, k=K, selection=selection), w, dy)
            kept_for_a_while = found.clone()
            if not (same(found, fresh(w, seed, selection)) and torch.equal(kept_for_a_while, found)):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("views", [False, True])
def test_distributed_data_parallel(views, tmp_path, selection):
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("torch without gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        module = MePropLinear(M, N, k=K, selection=selection, bias=False)
        parallel = torch.nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=views)
        for seed in range(5):
            x, dy = batch(seed)
            parallel(x).backward(dy)
            assert same(module.weight.grad, fresh(module.weight, seed, selection))
            module.weight.grad.data.add_(seed % 2)
            parallel.zero_grad(set_to_none=seed != 3)
            if seed == 3:
                parallel.zero_grad()
    finally:
        distributed.destroy_process_group()


def test_a_kernel_that_fails_leaves_nothing_behind(way, monkeypatch):
    if way == "cxx":
        pytest.skip("nothing in its place can be made to fail")
    w = weight(20, 4096)
    warm(w)

    def fails(dy, x, w, request, target):
        target.dw.numpy()[:, 3001] = 7  # as no change is found
        return 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(native, "_unified", fails)
        with pytest.raises(ZeroDivisionError):
            backward(w, 0)
    for seed in range(3):
        assert same(backward(w, seed), fresh(w, seed))
        w.grad = None


def test_a_cycle_of_garbage_is_collected_with_its_records():
    before = len(kept._records)
    for _ in range(3):
        module = MePropLinear(M, N, k=K, selection="unified")
        module.itself = [module]
        backward(module.weight, 0)
        del module
        gc.collect()
    assert len(kept._records) == before


PROGRAM = """
import os, sys, torch
torch.set_num_threads(1)
from meprop_bench.ops import linear
from meprop_bench.ops.kernels import Request, native
w = torch.nn.Parameter(torch.randn(200, 160))
def right():
    w.grad = None
    x, dy = torch.randn(6, 160), torch.randn(6, 200)
    linear(x, w, k=5, selection="unified").backward(dy)
    request = Request(5, "unified", False, True, True, True)
    return torch.equal(w.grad, native.KERNEL.backward(dy, x, w.detach(), request)[1])
assert all(right() for _ in range(3))
"""


def run(program, way, **environment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        env={**os.environ, node.SWITCH: way, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_goes_on_after_a_fork(way):
    program = """
child = os.fork()
if child == 0:
    os._exit(0 if all(right() for _ in range(3)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all(right() for _ in range(3))
"""
    done = run(program, way)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it reads /proc")
def test_the_memory_goes_with_the_weight(way, selection):
    """In a process of its own, whose heap has no room yet: blocks of more than 32 MiB are given back at once."""
    program = f"""
import gc
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
weight = torch.nn.Parameter(torch.randn(4096, 4096))
x = torch.randn(2, 4096)
for _ in range(2):
    linear(x, weight, k=3, selection="{selection}").sum().backward()
    weight.grad = None
graph = linear(x, weight, k=3, selection="{selection}")
whole = resident()
del weight  # the graph may yet want it, and its gradient
assert resident() > whole - 10, (whole, resident())
del graph
assert resident() < whole - 120, (whole, resident())
"""
    done = run(program, way)
    assert done.returncode == 0, done.stderr


def test_the_switch(way):
    program = """
storage = w.grad.untyped_storage()
w.grad = None
assert right()
print(torch._C._storage_Use_Count(storage._cdata))
"""
    users = {chosen: int(run(program, way, **{kept.SWITCH: chosen}).stdout) for chosen in ("kept", "fresh")}
    assert users["kept"] > users["fresh"]  # the record is one
    done = run("", way, **{kept.SWITCH: "none"})
    assert 'MEPROP_BENCH_GRADIENTS=none: its values are "kept" and "fresh"' in done.stderr
