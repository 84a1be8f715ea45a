"""Dense weight gradients in kept memory: the bits of fresh ones, whoever holds or changes what was given before."""

import copy
import ctypes
import gc
import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("numba", reason="the native kernel needs Numba (extra `cpu`)")

from meprop_bench.nn import MePropLinear
from meprop_bench.ops import linear, node, reference
from meprop_bench.ops.kernels import Request, native
from meprop_bench.ops.kernels.native import kept

registrations = import_module("meprop_bench.ops.linear")  # the function has the same name
B, M, N, K = 6, 160, 200, 5  # 125 KiB


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


def weight(n=N, m=M, seed=0):
    return torch.nn.Parameter(torch.randn(n, m, generator=torch.Generator().manual_seed(seed)))


def batch(seed, b=B, n=N, m=M):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, m, generator=generator), torch.randn(b, n, generator=generator)


def fresh(w, seed, selection="unified", k=K, b=B):
    """What the kernel gives without a record."""
    x, dy = batch(seed, b, *w.shape)
    return native.KERNEL.backward(dy, x, w.detach(), Request(k, selection, False, False, True, False))[1]


def backward(w, seed, selection="unified", k=K, b=B, **keywords):
    x, dy = batch(seed, b, *w.shape)
    linear(x, w, k=k, selection=selection, **keywords).backward(dy)
    return w.grad


def same(found, expected):
    return torch.equal(found.detach().view(torch.int32), expected.view(torch.int32))


def warm(w, selection="unified", steps=2):
    """Take steps after which the memory of the last gradient is kept and trusted."""
    for seed in range(100, 100 + steps):
        backward(w, seed, selection)
        w.grad = None


def poke(w, address, row, column, value=7.0):
    ctypes.c_float.from_address(address + 4 * (row * w.shape[1] + column)).value = value


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
    """And what is said not to be found, is not: one number of a row without a gradient, changed behind torch's back."""
    w = weight(20, 4096)
    address = backward(w, 0, selection, 1, 1).data_ptr()
    w.grad = None
    written = {int(fresh(w, seed, selection, 1, 1).abs().sum(1).argmax()) for seed in (0, 1)}
    row = min(set(range(20)) - written)
    poke(w, address, row, 3001)
    found = backward(w, 1, selection, 1, 1)
    assert found.data_ptr() == address
    assert found[row, 3001] == 7
    found[row, 3001] = 0
    assert same(found, fresh(w, 1, selection, 1, 1))


HOLDERS = {
    "the gradient": lambda g: g,
    "a view": lambda g: g[3:].mT,
    "an alias": lambda g: g.detach(),
    "data": lambda g: g.data,
    "an array of NumPy": lambda g: g.numpy(),
    "a capsule of DLPack": torch.utils.dlpack.to_dlpack,
    "a tensor by way of DLPack": lambda g: torch.from_dlpack(g.numpy()),
    "its storage": lambda g: g.untyped_storage(),
    "a copy on write": torch._lazy_clone,
    "another graph": lambda g: torch.ones_like(g).requires_grad_() * g,
}


def held_numbers(holder):
    if isinstance(holder, torch.UntypedStorage):
        return torch.empty(0).set_(holder).clone()
    if torch.is_tensor(holder) and holder.grad_fn is not None:
        return torch.autograd.grad(holder.sum(), holder.grad_fn.next_functions[0][0].variable, retain_graph=True)[0]
    if not hasattr(holder, "shape"):  # a capsule can be read once
        return None
    return torch.as_tensor(holder).clone()


@pytest.mark.parametrize("name", HOLDERS)
def test_memory_that_somebody_holds_is_left_alone(name, selection):
    w = weight()
    warm(w, selection)
    holder = HOLDERS[name](backward(w, 0, selection))
    before, expected = held_numbers(holder), fresh(w, 0, selection)
    w.grad = None
    for seed in (1, 2, 3, 4):
        assert same(backward(w, seed, selection), fresh(w, seed, selection))
        w.grad = None
    if before is None:
        assert same(torch.utils.dlpack.from_dlpack(holder), expected)
    else:
        assert torch.equal(held_numbers(holder), before)
    del holder
    for seed in (5, 6, 7):
        assert same(backward(w, seed, selection), fresh(w, seed, selection))
        w.grad = None


COUNTED = {
    "one number": lambda w: w.grad.index_put_((torch.tensor(7), torch.tensor(3)), torch.tensor(1.0)),
    "one number more": lambda w: w.grad.select(0, 7).select(0, 3).fill_(1),
    "all": lambda w: w.grad.add_(1),
    "foreach": lambda w: torch._foreach_add_([w.grad], 1),
    "its transposed view": lambda w: w.grad.mT.add_(1),
    "an alias": lambda w: w.grad.detach().add_(1),
    "accumulation": lambda w: backward(w, 50),
    "clipping": lambda w: torch.nn.utils.clip_grad_norm_([w], 1e-3),
}
UNCOUNTED = {
    "weight decay": lambda w: w.grad.data.add_(w.data, alpha=1e-3),
    "weight decay of a pruned weight": lambda w: w.grad.data.add_(w.data * (torch.arange(M) % 16 == 5)),
    "a small constant": lambda w: w.grad.data.add_(1e-30),
    "minus zero": lambda w: w.grad.data.neg_(),
    "not a number": lambda w: w.grad.data.mul_(float("nan")),
    "NumPy": lambda w: w.grad.numpy().__iadd__(1),
    "DLPack": lambda w: torch.from_dlpack(w.grad.data).add_(1),
    "one row": lambda w: w.grad.data[7].fill_(1),
    "the last row": lambda w: w.grad.data[-1].fill_(1),
    "what another process has": lambda w: w.grad.data.add_(fresh(w, 50, k=1)),
    "all zeroed": lambda w: w.grad.data.zero_(),
    "a half": lambda w: w.grad.data.mul_(0.5),
    "noise": lambda w: w.grad.data.normal_(),
}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", [*COUNTED, *UNCOUNTED])
def test_changes_in_place_are_found(name, steps, selection):
    w = weight()
    warm(w, selection, steps)
    for seed in range(6):
        backward(w, seed, selection)
        ({**COUNTED, **UNCOUNTED})[name](w)
        w.grad = None
        assert same(backward(w, seed + 10, selection), fresh(w, seed + 10, selection))
        w.grad = None


def test_rows_are_found_where_most_inputs_are_dark():
    """A process adds a single row of another batch, of which, as in images, three in four inputs are always 0."""
    lit = torch.zeros(28, 28)
    lit[7:21, 7:21] = 1
    for seed in range(50):
        w = weight(500, 784)
        for step in range(3):
            x, dy = batch(1000 * seed + step, n=500, m=784)
            x = x * lit.flatten()
            linear(x, w, k=K, selection="unified").backward(dy)
            _, expected, _ = native.KERNEL.backward(dy, x, w.detach(), Request(K, "unified", False, True, True, True))
            assert same(w.grad, expected)
            w.grad.data[(seed * 7 + step) % 500].add_(x[1])
            w.grad = None


def test_what_was_found_once_is_never_trusted_again(selection):
    w = weight(20, 4096)
    address = backward(w, 0, selection, 1, 1).data_ptr()
    w.grad.data.add_(1)
    w.grad = None
    for seed in range(1, 6):
        found = backward(w, seed, selection, 1, 1)
        assert found.data_ptr() == address
        assert same(found, fresh(w, seed, selection, 1, 1))
        w.grad.data[seed, 100 * seed] = 1  # not to be found
        del found
        w.grad = None


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
        linear(x, w * 1.0, k=K, selection=selection).backward(dy)
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


CHANGED = {
    "other data": lambda w: setattr(w, "data", torch.randn(N, M)),
    "fewer rows": lambda w: setattr(w, "data", torch.randn(N - 30, M)),
    "other columns": lambda w: setattr(w, "data", torch.randn(M, N)),
    "a storage without memory": lambda w: w.grad.untyped_storage().resize_(0),
    "a larger storage": lambda w: w.grad.untyped_storage().resize_(8 * N * M),
    "shared memory": lambda w: w.grad.share_memory_(),
    "a smaller gradient": lambda w: w.grad.detach().resize_(3, 3),
    "a gradient that is set": lambda w: w.grad.set_(torch.zeros(N, M)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_weights_and_storages_that_change(name, selection):
    w = weight()
    warm(w, selection)
    for seed in range(3):
        backward(w, seed, selection)
        CHANGED[name](w)
        w.grad = None
        assert same(backward(w, seed + 10, selection), fresh(w, seed + 10, selection))
        w.grad = None


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
    w = weight()
    warm(w)
    with monkeypatch.context() as patch:
        patch.setattr(native, "_unified", lambda *_: 1 / 0)
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
