"""Fully sharded and tensor parallel training: dense gradients are right, rows are refused before there are any."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from meprop_bench.distributed import DataParallel
from meprop_bench.nn import convert


def perceptron(sparse, selection="unified"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 4))
    convert(model, k=0.25, selection=selection, sparse=sparse)
    return model


def shard(rank, model):
    mesh = DeviceMesh.from_group(rank.group, "cpu")
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def split(rank, model):
    mesh = DeviceMesh.from_group(rank.group, "cpu")
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def gradients(model):
    found = [p.grad for p in model.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def case_fully_sharded(rank, selection):
    plain, model = perceptron(False, selection), shard(rank, perceptron(False, selection))
    x = torch.randn(rank.size, 8, 12, generator=torch.Generator().manual_seed(1))
    y = torch.arange(8) % 4
    for part in x:
        (F.cross_entropy(plain(part), y) / rank.size).backward()
    F.cross_entropy(model(x[rank.rank]), y).backward()
    torch.testing.assert_close(gradients(model), gradients(plain))


def case_tensor_parallel(rank, selection):
    plain, model = perceptron(False, selection), split(rank, perceptron(False, selection))
    x, y = torch.randn(8, 12, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    torch.testing.assert_close(model(x), plain(x))
    F.cross_entropy(plain(x), y).backward()
    F.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(gradients(model), gradients(plain))


def case_rows_are_refused(rank):
    x = torch.randn(8, 12)
    for make, message in ((shard, "fully_shard cannot reduce the sparse"), (split, "tensor parallel cannot reduce")):
        model = make(rank, perceptron(True))
        with pytest.raises(RuntimeError) as raised:
            model(x)
        assert message in str(raised.value)
        assert "set its sparse=False" in str(raised.value)
        with pytest.raises(ValueError, match="train it without DataParallel, with sparse=False") as refused:
            DataParallel(make(rank, copy.deepcopy(perceptron(True))), process_group=rank.group)
        for error in (raised, refused):
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("selection", ["unified", "example"])
@pytest.mark.parametrize("case", [case_fully_sharded, case_tensor_parallel], ids=lambda case: case.__name__)
def test_dense_gradients(ranks, case, selection):
    ranks(case, selection)


def test_rows_are_refused(ranks):
    ranks(case_rows_are_refused)
