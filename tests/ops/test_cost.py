from __future__ import annotations

import operator

import pytest

from meprop_bench.ops.cost import (
    Cost,
    expected_rows,
    linear_backward,
    linear_forward,
    linear_stages,
    recurrent_backward,
    recurrent_forward,
    update,
)

B, M, N = 3, 5, 7


def test_costs_add_up():
    assert Cost(1, 2) + Cost(10, 20) == Cost(11, 22)
    with pytest.raises(TypeError):
        operator.add(Cost(1, 2), (1, 2))


def test_the_dense_layer_from_its_definition():
    assert linear_forward(B, M, N, 4) == (2 * B * M * N + B * N, 4 * (B * M + N * M + N + B * N))
    dense = linear_backward(B, M, N, 4)
    assert dense == (4 * B * M * N + B * N, 4 * (B * N + 2 * B * M + 2 * N * M + N))
    assert linear_backward(B, M, N, 4, "unified", k=N) == linear_backward(B, M, N, 4, "unified", k=N + 1) == dense


@pytest.mark.parametrize(("method", "selection"), [("unified", 2), ("meprop", 1)])
def test_the_sparse_layer_from_its_definition(method, selection):
    found = linear_backward(B, M, N, 8, method, k=2, rows=2)
    assert found.flops == 4 * B * 2 * M + B * N + selection * B * N
    assert found.bytes == 8 * (B * N + 2 * B * M + N + 2 * M + N * M)
    rows = linear_backward(B, M, N, 8, method, k=2, gradient="rows", rows=2)
    assert found.bytes - rows.bytes == 8 * (N - 2) * M


def test_expected_rows_of_a_few_examples():
    assert expected_rows(1, 10, 3) == pytest.approx(3)
    assert expected_rows(2, 2, 1) == pytest.approx(1.5)  # the same one in half of the cases
    assert expected_rows(10_000, 10, 1) == pytest.approx(10)


@pytest.mark.parametrize("method", ["dense", "meprop", "unified", "random", "random-unified"])
@pytest.mark.parametrize("gradient", ["dense", "rows"])
def test_stages_do_the_work_of_the_whole_and_read_no_less(method, gradient):
    """The arithmetic is the same; what several stages read (dy, its kept values) counts for each of them."""
    whole = linear_backward(B, M, N, 4, method, 2, gradient)
    stages = linear_stages(B, M, N, 4, method, 2, gradient)
    assert sum(cost.flops for cost in stages.values()) == whole.flops
    assert sum(cost.bytes for cost in stages.values()) >= whole.bytes
    assert ("zeros" in stages) == (method != "dense" and gradient == "dense")


def test_a_stage_from_its_definition():
    stages = linear_stages(B, M, N, 4, "unified", 2)
    assert stages["dx"] == (2 * B * 2 * M, 4 * (B * 2 + 2 * M + B * M))
    assert stages["dW"] == (2 * B * 2 * M, 4 * (B * 2 + B * M + 2 * M))
    assert stages["zeros"] == (0, 4 * (N - 2) * M)
    dense = linear_stages(B, M, N, 4)
    assert dense["selection"] == (B * N, 4 * (B * N + N))
    assert dense == linear_stages(B, M, N, 4, "meprop", N)


@pytest.mark.parametrize(("optimizer", "flops", "moved"), [("sgd", 2, 3), ("adagrad", 7, 5), ("adam", 12, 7)])
def test_updates_count_reads_and_writes(optimizer, flops, moved):
    assert update(optimizer, 100, 4) == (100 * flops, 100 * moved * 4)
    assert all(isinstance(part, int) for part in update(optimizer, 99.7, 4))


def test_updates_count_what_torch_does():
    """Each tensor that torch's step reads or writes, of the parameter's size: parameter, gradient and state."""
    import torch

    kinds = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}
    for name, kind in kinds.items():
        p = torch.nn.Parameter(torch.ones(10))
        p.grad = torch.ones(10)
        optimizer = kind([p], lr=0.1)
        optimizer.step()
        states = [s for s in optimizer.state[p].values() if isinstance(s, torch.Tensor) and s.numel() == 10]
        reads, writes = 2 + len(states), 1 + len(states)
        assert update(name, 10, 4).bytes == 40 * (reads + writes)


def test_a_recurrent_layer_from_its_definition():
    t, h, gates = 4, N, 3
    rows, width = t * B, gates * h
    assert recurrent_forward(t, B, M, h, gates, 4) == (
        2 * rows * width * (M + h + 1),
        4 * (rows * (M + h + width) + width * (M + h + 2)),
    )
    dense = recurrent_backward(t, B, M, h, gates, 4)
    outside = rows * (2 * h + width + 2 * M) + 2 * width
    assert dense == (4 * rows * width * (M + h) + rows * width, 4 * (outside + 2 * width * (M + h)))
    assert recurrent_backward(t, B, M, h, gates, 4, "meprop", h) == dense
    for method, choices, selection in (("meprop", rows, 1), ("unified", t, 2)):
        sparse = recurrent_backward(t, B, M, h, gates, 4, method, 2)
        assert sparse.flops == 4 * rows * gates * 2 * (M + h) + (1 + selection) * rows * width
        assert sparse.bytes == round(4 * (outside + (gates * expected_rows(choices, h, 2) + width) * (M + h)))
