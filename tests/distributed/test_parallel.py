"""Every exchange against one process with the whole batch: outputs, every gradient, and what training makes of them.

`case_…` run on all ranks at once (`conftest.Ranks`), each of which computes the reference by itself.
"""

import copy
import io
import itertools
import math
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from meprop_bench.distributed import DataParallel, ExchangeError, clip_grad_norm_
from meprop_bench.distributed.channel import Channel
from meprop_bench.nn import FusedMLP, MePropLinear, convert
from meprop_bench.ops.kernels import compiled
from meprop_bench.optim import RowAdagrad, RowAdam, RowSGD

CLOSE = {torch.float32: (1e-5, 1e-6), torch.float64: (1e-12, 1e-12), torch.bfloat16: (3e-2, 3e-3)}


def perceptron(k, *, selection="unified", sparse=True, dtype=torch.float32, widths=(13, 37, 29, 5), bias=True, seed=0):
    torch.manual_seed(seed)
    layers = []
    for m, n in itertools.pairwise(widths):
        layers += [nn.Linear(m, n, bias), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    convert(model, k=k, selection=selection, sparse=sparse)
    return model


def batch_of(sizes, *, inputs=13, classes=5, dtype=torch.float32, seed=1):
    """Return x and y of all ranks, and of each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), inputs, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, classes, (sum(sizes),), generator=generator)
    return x, y, list(zip(x.split(sizes), y.split(sizes), strict=True))


def dense_of(model):
    return {name: None if p.grad is None else p.grad.to_dense() for name, p in model.named_parameters()}


def same(found, expected, dtype=torch.float32):
    """Compare gradients by name, where there are any."""
    rtol, atol = CLOSE[dtype]
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(
                found[name], gradient, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


def averaged(model, parts):
    """Gradients that one process gets for the parts of a batch one after the other, averaged: what is gathered."""
    sums = {}
    for x, y in parts:
        single = copy.deepcopy(model)
        F.cross_entropy(single(x), y).backward()
        for name, gradient in dense_of(single).items():
            sums[name] = sums.get(name, 0) + gradient / len(parts)
    return sums


def wrapped(rank, model, exchange="gathered", **keywords):
    return DataParallel(model, exchange, process_group=rank.group, **keywords)


def is_same_everywhere(rank, model):
    """All ranks have the same bits."""
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        mine = p.grad.to_dense().contiguous()
        others = [torch.empty_like(mine) for _ in range(rank.size)]
        dist.all_gather(others, mine, group=rank.group)
        assert all(torch.equal(mine.nan_to_num(7), other.nan_to_num(7)) for other in others), name


def case_gathered(rank, k, selection, dtype):
    dtype = getattr(torch, dtype)
    model = perceptron(k, selection=selection, dtype=dtype)
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model, bucket_bytes=1)
    for seed in (1, 2):
        x, y, parts = batch_of([6] * rank.size, dtype=dtype, seed=seed)
        out = parallel(parts[rank.rank][0])
        torch.testing.assert_close(out, plain(parts[rank.rank][0]))
        F.cross_entropy(out, parts[rank.rank][1]).backward()
        same(dense_of(model), averaged(plain, parts), dtype)
        is_same_everywhere(rank, model)
        if selection == "example":  # each example selects by itself, wherever it is
            whole = copy.deepcopy(plain)
            F.cross_entropy(whole(x), y).backward()
            same(dense_of(model), dense_of(whole), dtype)
        if not isinstance(k, int) or k < 29:
            gradient = model[2].weight.grad
            rows = gradient._indices()[0]
            assert gradient.is_sparse
            assert rows.tolist() == sorted(set(rows.tolist()))
        parallel.zero_grad()


def case_agreed(rank, k, dtype, bias, sparse):
    dtype = getattr(torch, dtype)
    model = perceptron(k, dtype=dtype, bias=bias, sparse=sparse)
    whole = copy.deepcopy(model)
    parallel = wrapped(rank, model, "agreed")
    for seed in (1, 2):
        x, y, parts = batch_of([6] * rank.size, dtype=dtype, seed=seed)
        x.requires_grad_()
        own = parts[rank.rank][0].detach().clone().requires_grad_()
        F.cross_entropy(whole(x), y).backward()
        F.cross_entropy(parallel(own), parts[rank.rank][1]).backward()
        same(dense_of(model), dense_of(whole), dtype)
        same(
            {"x": own.grad / rank.size},
            {"x": x.grad.split([6] * rank.size)[rank.rank]},
            dtype,
        )
        is_same_everywhere(rank, model)
        if sparse:
            assert [model[i].weight.grad._values().shape[0] for i in (0, 2)] == [k, k]
        parallel.zero_grad()
        whole.zero_grad()


def case_dense_when_k_is_all(rank, exchange):
    model = perceptron(1000)
    whole = copy.deepcopy(model)
    parallel = wrapped(rank, model, exchange)
    x, y, parts = batch_of([4] * rank.size)
    for k in (1000, 3, 1000):
        for each in (model, whole):
            each.zero_grad()
            for layer in (each[0], each[2]):
                layer.k = k
        F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
        if k == 1000:
            F.cross_entropy(whole(x), y).backward()
            same(dense_of(model), dense_of(whole))
        assert model[0].weight.grad.is_sparse == (k == 3)


def case_numbers_of_rows_that_change(rank, exchange):
    """One collective suffices while they stay, and whatever they do, the gradients are right."""
    model = perceptron(5)
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model, exchange)
    control = []
    for step, k in enumerate((5, 5, 5, 5, 9, 9, 9, 2, 2, 2, 1000, 1000, 3, 3, 3)):
        for each in (model, plain):
            each.zero_grad()
            for layer in (each[0], each[2]):
                layer.k = k
        if step == 3:
            model[2].k = plain[2].k = 12  # more than there is room for
        x, y, parts = batch_of([4 + step % 3] * rank.size, seed=step)
        F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
        if exchange == "gathered":
            same(dense_of(model), averaged(plain, parts))
        else:
            F.cross_entropy(plain(x), y).backward()
            same(dense_of(model), dense_of(plain))
        is_same_everywhere(rank, model)
        control.append(parallel.bytes_sent)
    if exchange == "gathered":
        assert control[0] == control[2]  # in two collectives, and in one


def case_buckets_of_two_kinds(rank):
    """Rows that come beside what is announced, and rows that come after it, whichever a rank gets to first."""
    model = perceptron(5)
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model, bucket_bytes=1)
    heard_by_one(rank, parallel._buckets[0])
    for step in range(6):
        for each in (model, plain):
            each.zero_grad()
            each[2].k = 2 + step  # the first bucket's
        _, _, parts = batch_of([4] * rank.size, seed=step)
        F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
        same(dense_of(model), averaged(plain, parts))
        is_same_everywhere(rank, model)


def heard_by_one(rank, bucket):
    """Have one rank hear of all announcements as soon as it asks, and the others nothing until the end."""

    def announced():
        if rank.rank == 1:
            bucket._announced[1].wait()
        return rank.rank == 1

    bucket.announced = announced


def case_static_graph(rank):
    """The first pass of a static graph exchanges its dense gradients only at its end."""
    model = perceptron(16, widths=(13, 37, 37, 5))
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model, static_graph=True)
    for step in range(3):
        _, _, parts = batch_of([1] * rank.size, seed=step)
        F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
        same(dense_of(model), averaged(plain, parts))
        parallel.zero_grad()


def case_neurons_without_a_gradient(rank):
    """A unified selection of k has at most k rows: there is room for them beside what is announced."""
    model = perceptron(16, widths=(13, 37, 37, 5))
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model)
    (bucket,) = parallel._buckets
    counts = set()
    for step in range(8):
        _, _, parts = batch_of([1] * rank.size, seed=step)
        F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
        same(dense_of(model), averaged(plain, parts))
        is_same_everywhere(rank, model)
        counts.update(itertools.chain(*bucket.rows))
        assert bucket._early.capacity == [16, 16]
        if step:
            assert parallel.bytes_sent.rows == (rank.size - 1) * 4 * 16 * (37 + 13)
        parallel.zero_grad()
    assert min(counts) < max(counts) == 16


def case_passes_that_are_broken_off(rank, known):
    """What they have left behind is not taken for the next one's; if some rank alone breaks off, that is an error."""
    layers = {"bias": False, "selection": "unified", "sparse": True}
    torch.manual_seed(0)
    model = nn.Sequential(MePropLinear(13, 20, k=3, **layers), nn.ReLU(), MePropLinear(20, 5, k=2, **layers))
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model, bucket_bytes=1)
    if not known:
        heard_by_one(rank, parallel._buckets[0])

    def broken(weight):
        hook = weight.register_hook(fail)
        with pytest.raises(ZeroDivisionError):
            F.cross_entropy(parallel(x), y).backward()
        hook.remove()
        model.zero_grad()

    for step in range(8):
        _, _, parts = batch_of([4] * rank.size, seed=step)
        x, y = parts[rank.rank]
        if not known:  # how many rows there are
            model[2].k = plain[2].k = 1 + 2 * (step % 2)
        if step in (2, 4):  # before anything is sent, and when one bucket is
            broken(model[4 - step].weight)
            continue
        F.cross_entropy(parallel(x), y).backward()
        same(dense_of(model), averaged(plain, parts))
        model.zero_grad()
    if rank.rank == 0:
        broken(model[2].weight)
        broken(model[0].weight)
    else:
        with pytest.raises(ExchangeError, match=r"rank 0 is at its backward pass 10 .* rank 1 at 9: all ranks"):
            F.cross_entropy(parallel(x), y).backward()
    dist.barrier(group=rank.group)  # what is on its way is lost with the model


def fail(gradient):
    return gradient / (1 // 0)


def case_sums_that_cancel(rank):
    """A row of which one rank has 1 and the other -1 is a row, with the value 0."""
    model = nn.Sequential(MePropLinear(2, 4, bias=False, k=1, selection="unified", sparse=True), nn.Linear(4, 1, False))
    nn.init.ones_(model[1].weight)
    parallel = wrapped(rank, model)
    sign = 1.0 if rank.rank == 0 else -1.0
    out = parallel(torch.tensor([[1.0, 2.0]]))
    out.backward(torch.tensor([[sign]]))
    gradient = model[0].weight.grad
    assert gradient._indices().shape[1] == 1
    assert gradient._values().tolist() == [[0.0, 0.0]]
    assert model[1].weight.grad.tolist() == [[0.0] * 4]


def case_ties_and_nan(rank):
    for exchange, value in itertools.product(("gathered", "agreed"), (0.0, 1.0, math.nan, math.inf)):
        model = nn.Sequential(MePropLinear(3, 8, k=3, selection="unified", sparse=True), nn.Linear(8, 2))
        parallel = wrapped(rank, model, exchange)
        with torch.no_grad():
            model[1].weight.fill_(1.0)
        x = torch.full((4, 3), value if rank.rank == 1 else 1.0)
        parallel(x).sum().backward()
        is_same_everywhere(rank, model)
        rows = model[0].weight.grad._indices()[0].tolist()
        assert rows == sorted(set(rows))
        assert len(rows) == 3 or exchange == "gathered"
        found = model[0].weight.grad._values()
        assert bool(found.isfinite().all()) == math.isfinite(value)


def case_micro_steps(rank, exchange):
    model = perceptron(4)
    whole, steps = copy.deepcopy(model), 3
    parallel = wrapped(rank, model, exchange)
    expected = {}
    for repeat in range(2):
        batches = [batch_of([5] * rank.size, seed=10 * repeat + step) for step in range(steps)]
        for step, (x, y, parts) in enumerate(batches):
            if exchange == "agreed":
                (F.cross_entropy(whole(x), y) / steps).backward()
            else:
                for name, gradient in averaged(whole, parts).items():
                    expected[name] = expected.get(name, 0) + gradient / steps
            own, labels = parts[rank.rank]
            with parallel.no_sync() if step < steps - 1 else nullcontext():
                (F.cross_entropy(parallel(own), labels) / steps).backward()
        same(dense_of(model), dense_of(whole) if exchange == "agreed" else expected)
        is_same_everywhere(rank, model)
        # Gradients that nobody drops are added to.
    parallel.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def case_a_pass_without_gradients_in_between(rank, exchange):
    """What a rank computes without gradients between a forward pass and its backward pass changes nothing."""
    model = perceptron(4)
    whole = copy.deepcopy(model)
    parallel = wrapped(rank, model, exchange)
    for seed in (1, 2):
        x, y, parts = batch_of([5] * rank.size, seed=seed)
        loss = F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1])
        if rank.rank == 1:
            with torch.no_grad():
                parallel(parts[0][0])
        loss.backward()
        if exchange == "gathered":
            same(dense_of(model), averaged(whole, parts))
        else:
            F.cross_entropy(whole(x), y).backward()
            same(dense_of(model), dense_of(whole))
        for each in (model, whole):
            each.zero_grad()


def case_no_sync_exchanges_nothing(rank):
    model = perceptron(4)
    alone = copy.deepcopy(model)
    parallel = wrapped(rank, model)
    _, _, parts = batch_of([5] * rank.size)
    x, y = parts[rank.rank]
    F.cross_entropy(alone(x), y).backward()
    if rank.rank == 0:  # the others need not be there
        with parallel.no_sync():
            F.cross_entropy(parallel(x), y).backward()
        same(dense_of(model), dense_of(alone))


class Branches(nn.Module):
    """Layers of which a rank runs some."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 6, sparse=True)
        self.first = MePropLinear(6, 20, k=3, selection="unified", sparse=True)
        self.second = MePropLinear(6, 20, k=3, selection="unified", sparse=True)
        self.never = MePropLinear(6, 20, k=3, selection="unified", sparse=True)
        self.out = nn.Linear(20, 4)
        self.unused = nn.Linear(3, 3)

    def forward(self, tokens, which):
        return {"logits": self.out(torch.tanh(getattr(self, which)(self.table(tokens).mean(1))))}


def case_layers_that_do_not_run(rank):
    model = Branches()
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model, find_unused_parameters=True, bucket_bytes=1)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 50, (rank.size, 5, 7), generator=generator)
    for step in range(3):
        names = [("first", "second")[(r + step) % 2] for r in range(rank.size)]
        parallel.zero_grad()
        plain.zero_grad()
        for r, name in enumerate(names):
            (plain(tokens[r], name)["logits"].pow(2).mean() / rank.size).backward()
        parallel(tokens[rank.rank], names[rank.rank])["logits"].pow(2).mean().backward()
        expected = dense_of(plain)
        found = dense_of(model)
        assert found.pop("never.weight") is None
        assert found.pop("never.bias") is None
        assert model.table.weight.grad.is_sparse
        for name in ("never.weight", "never.bias"):
            expected.pop(name)
        same(found, expected)
        is_same_everywhere(rank, model)


def case_agreeing_needs_the_same_layers(rank):
    model = Branches()
    parallel = wrapped(rank, model, "agreed", find_unused_parameters=True)
    which = "first" if rank.rank == 0 else "second"
    out = parallel(torch.zeros(2, 3, dtype=torch.int64), which)["logits"]
    with pytest.raises(ExchangeError, match=r"has run other layers.*'gathered' does not$"):
        out.sum().backward()


def case_agreeing_needs_the_same_k(rank):
    """Also where the gradient is dense: there nobody would notice that others have selected other neurons."""
    model = perceptron(4, sparse=False)
    parallel = wrapped(rank, model, "agreed")
    model[2].k = 4 + rank.rank
    _, _, parts = batch_of([5] * rank.size)
    with pytest.raises(ExchangeError, match=r"another order, or another k.*'gathered' does not$"):
        F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()


def case_clipping(rank, exchange):
    model = perceptron(4)
    whole = copy.deepcopy(model)
    parallel = wrapped(rank, model, exchange)
    x, y, parts = batch_of([5] * rank.size)
    F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
    if exchange == "agreed":
        F.cross_entropy(whole(x), y).backward()
        expected = dense_of(whole)
    else:
        expected = averaged(whole, parts)
    for name, p in whole.named_parameters():
        p.grad = expected[name]
    norm = clip_grad_norm_(parallel.parameters(), 0.01)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(whole.parameters(), 0.01))
    same(dense_of(model), dense_of(whole))


def case_training(rank, exchange, kind):
    """A step is that of one process to rounding, and so are all that follow, as closely as dense DDP keeps to it."""
    for dtype in (torch.float64, torch.float32):
        found, dense = (drifts(rank, way, kind, dtype) for way in (exchange, "ddp"))
        eps = torch.finfo(dtype).eps
        assert found[0] <= 4 * eps
        assert found[-1] <= 4 * max(dense[-1], eps)


def drifts(rank, exchange, kind, dtype, steps=15):
    """Train by all ranks, and by one process that gets the same batches; return the largest difference of weights after
    each step, in units of the largest weight of its tensor. Ranks keep the same weights, and all have the same losses.
    """
    kind, rate = {"RowAdagrad": (RowAdagrad, 0.05), "RowSGD": (RowSGD, 0.5), "RowAdam": (RowAdam, 0.02)}[kind]
    model = perceptron(1000 if exchange == "ddp" else 6, sparse=exchange != "ddp", dtype=dtype)
    whole, start = copy.deepcopy(model), copy.deepcopy(model)
    ddp = exchange == "ddp"
    parallel = DistributedDataParallel(model, process_group=rank.group) if ddp else wrapped(rank, model, exchange)
    optimizer, reference = kind(parallel.parameters(), lr=rate), kind(whole.parameters(), lr=rate)
    found, losses = [], []
    for step in range(steps):
        x, y, parts = batch_of([8] * rank.size, seed=step % 3, dtype=dtype)
        loss = F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected = 0.0
        for own, labels in parts if exchange == "gathered" else [(x, y)]:  # of what is gathered, each part selects
            part = F.cross_entropy(whole(own), labels) / (rank.size if exchange == "gathered" else 1)
            part.backward()
            expected += part.item()
        reference.step()
        reference.zero_grad()
        mean = loss.detach() / rank.size
        dist.all_reduce(mean, group=rank.group)
        losses.append(mean.item())
        assert losses[-1] == pytest.approx(expected, rel=100 * torch.finfo(dtype).eps)
        found.append(max(((p - q).abs().max() / q.abs().max()).item() for p, q in pairs(model, whole)))
    for p, q in pairs(model, start):
        mine = p.detach().contiguous()
        others = [torch.empty_like(mine) for _ in range(rank.size)]
        dist.all_gather(others, mine, group=rank.group)
        assert all(torch.equal(mine, other) for other in others)
        assert not torch.equal(p, q)
    assert sum(losses[-3:]) < sum(losses[:3])
    return found


def pairs(model, other):
    return zip(model.parameters(), other.parameters(), strict=True)


def case_uneven_batches(rank, exchange):
    sizes = [7, 2, 0, 1][: rank.size]
    model = perceptron(5, selection="unified" if exchange == "agreed" else "example")
    whole = copy.deepcopy(model)
    parallel = wrapped(rank, model, exchange)
    x, y, parts = batch_of(sizes)
    F.cross_entropy(whole(x), y).backward()
    x, y = parts[rank.rank]
    loss = F.cross_entropy(parallel(x), y, reduction="sum") / max(1, len(x))
    (parallel.loss_weight(len(x)) * loss).backward()
    same(dense_of(model), dense_of(whole))


def case_checkpoints(rank):
    model = perceptron(4, seed=5)
    parallel, ddp = wrapped(rank, model), DistributedDataParallel(perceptron(4, sparse=False), process_group=rank.group)
    assert parallel.state_dict().keys() == ddp.state_dict().keys()
    assert parallel.module.state_dict().keys() == perceptron(4).state_dict().keys()
    file = io.BytesIO()
    torch.save(parallel.state_dict(), file)
    file.seek(0)
    other = wrapped(rank, perceptron(4, seed=6))
    other.load_state_dict(torch.load(file))
    for plain in (other.module, ddp.module):
        if plain is ddp.module:
            ddp.load_state_dict(parallel.state_dict())
        assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))
    other.load_state_dict(perceptron(4, seed=7).state_dict())
    assert torch.equal(other.module[0].weight, perceptron(4, seed=7)[0].weight)
    for exchange in ("gathered", "agreed"):
        other = wrapped(rank, perceptron(4), exchange)
        again = copy.deepcopy(other.module)  # an average of weights, for instance
        file = io.BytesIO()
        torch.save(other.module, file)
        file.seek(0)
        assert torch.load(file, weights_only=False)[0].choose is None
        again(torch.randn(3, 13)).sum().backward()
        assert again[0].weight.grad.is_sparse


def case_starts_from_the_first_rank(rank):
    model = perceptron(4, seed=rank.rank)
    wrapped(rank, model)
    for p, q in zip(model.parameters(), perceptron(4, seed=0).parameters(), strict=True):
        assert torch.equal(p, q)
    # So does what DistributedDataParallel would take care of, where nothing is left for it to train.
    model, first = (only_rows(seed) for seed in (rank.rank, 0))
    wrapped(rank, model)
    for name, tensor in first.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def only_rows(seed):
    torch.manual_seed(seed)
    rows = MePropLinear(13, 5, bias=False, k=2, selection="unified", sparse=True)
    rows.weight = nn.Parameter(torch.randn(13, 5).t())
    model = nn.Sequential(nn.Linear(7, 13).requires_grad_(False), rows, nn.BatchNorm1d(5, affine=False))
    nn.init.normal_(model[2].running_mean)
    return model


def case_alone_or_without_rows(rank):
    """All that is dense is left to DistributedDataParallel; where all is rows there is none."""
    dense = perceptron(4, sparse=False)
    x, y, parts = batch_of([5] * rank.size)
    expected = averaged(dense, parts)
    parallel = wrapped(rank, dense)
    F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
    same(dense_of(dense), expected)
    assert parallel.bytes_sent.total == parallel.bytes_sent.dense > 0
    rows = MePropLinear(13, 5, bias=False, k=2, selection="unified", sparse=True)
    whole = copy.deepcopy(rows)
    parallel = wrapped(rank, rows, "agreed")
    whole.load_state_dict(rows.state_dict())
    F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
    F.cross_entropy(whole(x), y).backward()
    same(dense_of(rows), dense_of(whole))


def case_bytes(rank):
    hidden, k, size = 29, 4, rank.size
    x, y = torch.randn(6, 13), torch.randint(0, 5, (6,))
    model = perceptron(k)
    dense = 4 * (37 + 29 + 5 * hidden + 5)
    ring = 2 * (size - 1) / size
    for exchange, hook in itertools.product(("gathered", "agreed"), (None, fp16_compress_hook, own_hook)):
        parallel = wrapped(rank, copy.deepcopy(model), exchange, comm_hook=hook)
        F.cross_entropy(parallel(x), y).backward()
        sent = parallel.bytes_sent
        half = hook is fp16_compress_hook
        assert sent.dense == (round(dense * ring / (1 + half)) if hook is None or half else None)
        numbers = 4 * k * (13 + 37)
        if exchange == "gathered":
            assert sent.rows == (size - 1) * numbers
            assert sent.indices == (size - 1) * 8 * 2 * k
            assert sent.scores == 0
        else:
            assert sent.rows == round(ring * numbers)
            assert sent.indices == 0
            assert sent.scores == round(ring * 4 * (37 + 29 + 2))
        assert 0 < sent.control < 200 * size


def own_hook(group, bucket):
    return dist.all_reduce(bucket.buffer(), group=group, async_op=True).get_future().then(lambda done: done.value()[0])


def case_operators(rank):
    """Without Numba."""
    load, compiled.load = compiled.load, lambda module: None
    try:
        case_gathered(rank, 3, "unified", "float32")
        case_agreed(rank, 3, "float32", True, True)
    finally:
        compiled.load = load


def case_collectives(rank):
    """Where there are no messages with tags, as on GPUs."""
    has_messages, Channel.has_messages = Channel.has_messages, lambda channel, device: False
    try:
        case_gathered(rank, 3, "unified", "float32")
        case_agreed(rank, 3, "float32", True, True)
        for exchange in ("gathered", "agreed"):
            case_numbers_of_rows_that_change(rank, exchange)
        case_buckets_of_two_kinds(rank)
    finally:
        Channel.has_messages = has_messages


def case_autocast_and_images(rank):
    model = perceptron(4)
    plain = copy.deepcopy(model)
    for exchange in ("gathered", "agreed"):
        parallel = wrapped(rank, copy.deepcopy(model), exchange)
        x = torch.randn(2, 3, 13, generator=torch.Generator().manual_seed(0))  # the same on all ranks
        for each in (parallel, plain):
            each.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                each(x).float().pow(2).mean().backward()
        same(dense_of(parallel.module), dense_of(plain), torch.bfloat16)


def case_refused(rank):
    cases = [
        (lambda: wrapped(rank, perceptron(4), "agree"), "exchange must be 'gathered' or 'agreed', not 'agree'"),
        (lambda: wrapped(rank, perceptron(4, selection="example"), "agreed"), "selection='example': take 'gathered'"),
        (lambda: wrapped(rank, perceptron(4), mixed_precision=1), "DataParallel has no 'mixed_precision'"),
        (lambda: wrapped(rank, wrapped(rank, perceptron(4))), "the model is wrapped in DataParallel already"),
        (lambda: wrapped(rank, perceptron(4 + rank.rank)), "has another model than rank"),
        (lambda: wrapped(rank, perceptron(4), ("gathered", "agreed")[rank.rank]), "exchange"),
        (lambda: wrapped(rank, perceptron(4, widths=(13, 37, 29, 5 + rank.rank))), "4.weight"),
        (lambda: wrapped(rank, perceptron(4, widths=(13, *[29] * (1 + rank.rank), 5))), "2.weight"),
        (lambda: wrapped(rank, perceptron(4, sparse=rank.rank == 0)), "of which 4 rows"),
        (lambda: wrapped(rank, halves(rank.rank), "agreed"), f"a selection of {2 * rank.rank} to agree on"),
        (lambda: wrapped(rank, tied()), "0.weight is also 1.weight, whose gradient is dense: set sparse=False"),
        (lambda: wrapped(rank, perceptron(4)).join(), "give all ranks as many batches"),
        (lambda: wrapped(rank, perceptron(4)).loss_weight(0), "no rank has an example"),
    ]
    for call, message in cases:
        with pytest.raises((ValueError, NotImplementedError)) as raised:
            call()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    fused = FusedMLP(13, 20, 5, k=3, selection="unified", sparse=True)
    wrapped(rank, fused)
    with pytest.raises(RuntimeError, match="has a hook, which would not be called"):
        fused.loss(torch.randn(4, 13), torch.zeros(4, dtype=torch.int64))
    fused = FusedMLP(13, 20, 5, k=3, selection="unified")
    wrapped(rank, fused, "agreed")
    with pytest.raises(RuntimeError, match="linear0 selects together with other processes; take model"):
        fused.loss(torch.randn(4, 13), torch.zeros(4, dtype=torch.int64))
    model = wrapped(rank, perceptron(4, sparse=False))
    model.module[0].sparse = True  # later
    with pytest.raises(RuntimeError, match="cannot reduce the sparse rows of this layer"):
        model(torch.randn(4, 13))


def halves(selects):
    """A model of which one layer of two is unified."""
    model = perceptron(4, widths=(13, 13, 13, 5), sparse=False)
    model[2 * (1 - selects)].selection = "example"
    return model


def tied():
    layer = MePropLinear(6, 6, k=2, sparse=True)
    model = nn.Sequential(layer, nn.Linear(6, 6))
    model[1].weight = layer.weight
    return model


def case_afterwards_it_is_as_before(rank):
    """A model that was wrapped once can be wrapped by torch, with dense gradients."""
    model = perceptron(4)
    wrapped(rank, model)
    for layer in (model[0], model[2]):
        layer.sparse = False
    _, _, parts = batch_of([5] * rank.size)
    expected = averaged(model, parts)
    ddp = DistributedDataParallel(model, process_group=rank.group)
    F.cross_entropy(ddp(parts[rank.rank][0]), parts[rank.rank][1]).backward()
    same(dense_of(model), expected)


def case_a_graph_that_is_kept_and_evaluation(rank):
    model = perceptron(4)
    plain = copy.deepcopy(model)
    parallel = wrapped(rank, model)
    _, _, parts = batch_of([5] * rank.size)
    x, y = parts[rank.rank]
    if rank.rank == 1:  # nothing is exchanged without gradients
        with torch.no_grad():
            parallel(x)
    parallel.eval()
    assert not model.training
    loss = F.cross_entropy(parallel(x), y)
    if rank.rank == 0:  # nor in a forward pass
        parallel(x)
        loss = F.cross_entropy(parallel(x), y)
    loss.backward()
    same(dense_of(model), averaged(plain, parts))


@pytest.mark.parametrize("selection", ["unified", "example", "random"])
@pytest.mark.parametrize("k", [1, 5, 0.3])
def test_gathered(ranks, k, selection):
    if selection != "random":
        ranks(case_gathered, k, selection, "float32")
    else:
        ranks(case_random, k)


def case_random(rank, k):
    model = perceptron(k, selection="random")
    parallel = wrapped(rank, model)
    _, _, parts = batch_of([6] * rank.size)
    F.cross_entropy(parallel(parts[rank.rank][0]), parts[rank.rank][1]).backward()
    is_same_everywhere(rank, model)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_gathered_in_other_dtypes(ranks, dtype):
    ranks(case_gathered, 5, "unified", dtype)
    ranks(case_gathered, 5, "example", dtype)


@pytest.mark.parametrize("k", [1, 5, 28])
def test_agreed(ranks, k):
    ranks(case_agreed, k, "float32", True, True)
    ranks(case_agreed, k, "float32", False, False)


def test_agreed_in_other_dtypes(ranks):
    ranks(case_agreed, 5, "float64", True, True)


def test_four_ranks(ranks):
    ranks(case_gathered, 5, "unified", "float32", size=4)
    ranks(case_agreed, 5, "float32", True, True, size=4)
    ranks(case_micro_steps, "agreed", size=4)
    ranks(case_layers_that_do_not_run, size=4)
    ranks(case_bytes, size=4)


@pytest.mark.parametrize("exchange", ["gathered", "agreed"])
@pytest.mark.parametrize(
    "case",
    [
        case_dense_when_k_is_all, case_numbers_of_rows_that_change, case_micro_steps, case_clipping,
        case_a_pass_without_gradients_in_between,
    ],
    ids=lambda case: case.__name__,
)  # fmt: skip
def test_both(ranks, case, exchange):
    ranks(case, exchange)


@pytest.mark.parametrize("known", [True, False])
def test_passes_that_are_broken_off(ranks, known):
    ranks(case_passes_that_are_broken_off, known)


@pytest.mark.parametrize("exchange", ["gathered", "agreed"])
def test_uneven_batches(ranks, exchange):
    ranks(case_uneven_batches, exchange)
    ranks(case_uneven_batches, exchange, size=4)


@pytest.mark.parametrize("kind", ["RowAdagrad", "RowSGD", "RowAdam"])
@pytest.mark.parametrize("exchange", ["gathered", "agreed"])
def test_training(ranks, exchange, kind):
    ranks(case_training, exchange, kind)


@pytest.mark.parametrize(
    "case",
    [
        case_buckets_of_two_kinds, case_static_graph, case_neurons_without_a_gradient,
        case_sums_that_cancel, case_ties_and_nan,
        case_no_sync_exchanges_nothing, case_layers_that_do_not_run,
        case_agreeing_needs_the_same_layers, case_agreeing_needs_the_same_k,
        case_checkpoints, case_starts_from_the_first_rank,
        case_alone_or_without_rows, case_bytes, case_operators, case_collectives, case_autocast_and_images,
        case_refused,
        case_afterwards_it_is_as_before, case_a_graph_that_is_kept_and_evaluation,
    ],
    ids=lambda case: case.__name__,
)  # fmt: skip
def test_one(ranks, case):
    ranks(case)


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="run under torchrun, and call init_process_group first"):
        DataParallel(perceptron(4))
