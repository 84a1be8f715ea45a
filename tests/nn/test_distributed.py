"""Two processes: dense gradients are reduced as those of torch's layers are, and sparse rows are refused."""

import os
import subprocess
import sys

import pytest
import torch

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


def test_two_processes(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROCESS]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
