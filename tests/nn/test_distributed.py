"""Two processes: dense gradients are reduced as those of torch's layers are, also in kept memory, and sparse rows are
refused.
"""

import os
import subprocess
import sys

import pytest
import torch

from meprop_bench.ops import node
from meprop_bench.ops.kernels import kept

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs torch with gloo"
)

PROCESS = """
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from meprop_bench.nn import convert

rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(7)
batches = torch.randn(2, 4, 12)


def mlp(sparse=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 4))
    convert(model, k=0.2, sparse=sparse)
    return model


def shard(model):
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def later(model):  # converted when it is wrapped already
    plain = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in model))
    plain.load_state_dict(model.state_dict())
    wrapped = DistributedDataParallel(plain)
    assert list(convert(wrapped, k=0.2)) == ["module.0", "module.2"]
    return wrapped


def one_local_step(batch):
    model = mlp()
    model(batch).pow(2).mean().backward()
    return [p.grad for p in model.parameters()]


expected = [(a + b) / 2 for a, b in zip(*map(one_local_step, batches))]
assert int(expected[0].ne(0).any(1).sum()) < 24
for wrap in (
    DistributedDataParallel,
    lambda m: DistributedDataParallel(m, find_unused_parameters=True),
    lambda m: DistributedDataParallel(m, static_graph=True, gradient_as_bucket_view=True),
    later,
    shard,
):
    model = wrap(mlp())
    for _ in range(2):
        model.zero_grad()
        model(batches[rank]).pow(2).mean().backward()
    found = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    torch.testing.assert_close(found, expected)

for wrap, name in ((DistributedDataParallel, "DistributedDataParallel"), (shard, "fully_shard")):
    model = wrap(mlp(sparse=True))
    try:
        model(batches[rank])
    except RuntimeError as error:
        assert name in str(error) and "cannot reduce the sparse rows of this layer: set its sparse=False" in str(error)
        assert "\\n" not in str(error)
    else:
        raise AssertionError(name)
    dense = model.module if name == "DistributedDataParallel" else model
    with torch.no_grad():
        model(batches[rank])
    for layer in (dense[0], dense[2]):  # what the error says helps
        layer.sparse = False
    model(batches[rank]).pow(2).mean().backward()
    found = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    torch.testing.assert_close(found, expected)

plain, own = nn.Sequential(nn.Linear(12, 24), nn.Linear(24, 4)), mlp(sparse=True)
converted = convert(shard(plain), k=0.2, filter=lambda *_: True)
assert set(converted.left.values()) == {"fully_shard has changed its class: convert first, shard then"}, converted.left
own(batches[rank]).sum().backward()  # outside of any wrapper
assert own[0].weight.grad.is_sparse
dist.destroy_process_group()
"""


KEPT = """
import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from importlib import import_module
from itertools import product

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from meprop_bench.nn import convert
from meprop_bench.ops.kernels import kept

rank, file, way = int(sys.argv[1]), sys.argv[2], os.environ["MEPROP_BENCH_NODE"]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
node = import_module("meprop_bench.ops.linear")._node
in_use = []


def trained(selection, views, to_none):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(160, 200), nn.ReLU(), nn.Linear(200, 180), nn.ReLU(), nn.Linear(180, 4))
    convert(model, k=0.05, selection=selection)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=views)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    seen = []
    for step in range(7):
        for part in range(1 + step % 2):  # every other step accumulates first
            draws = torch.Generator().manual_seed(100 * step + 10 * part + rank)
            with nullcontext() if part == step % 2 else wrapped.no_sync():
                wrapped(torch.randn(8, 160, generator=draws)).pow(2).mean().backward()
        if step == 4:
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        seen += [p.grad.clone() for p in model.parameters()]
        in_use.extend(layer.weight.grad.eq(0).all(1).any().item() for layer in (model[0], model[2]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    record = kept.record(model[0].weight)
    assert (record is not None and record._last is not None) == (way == "python" and kept.smallest() > 0)
    return seen


cases = [*product(("unified", "example"), (False, True), (False, True))]
found = [trained(*case) for case in cases]
assert all(in_use)  # there are rows of zeros
assert (node.call.__name__ == "linear") == (way == "cxx")
os.environ["MEPROP_BENCH_GRADIENTS"] = "fresh"
kept.smallest.cache_clear()
node.forget()
for case, each in zip(cases, found):
    for step, (one, other) in enumerate(zip(each, trained(*case), strict=True)):
        assert torch.equal(one, other), (case, step)
dist.destroy_process_group()
"""


def two_processes(program, folder, **variables):
    """Run a program in two processes, which get their rank and where they meet."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-W", "ignore", "-c", program]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store")], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


def test_two_processes(tmp_path):
    two_processes(PROCESS, tmp_path)


@pytest.mark.parametrize("way", ["cxx", "python"])
def test_gradients_in_kept_memory_are_those_in_fresh_memory(way, tmp_path):
    pytest.importorskip("numba", reason="the native kernel needs Numba (extra `cpu`)")
    if way == "cxx" and (reason := node.unavailable_reason()) is not None:
        pytest.skip(f"no C++ node: {reason}")
    two_processes(KEPT, tmp_path, **{node.SWITCH: way, kept.SWITCH: "kept"})
