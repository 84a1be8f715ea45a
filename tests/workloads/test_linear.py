from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from meprop_bench.measure.arithmetic import tensor_type
from meprop_bench.measure.clock import WallClock
from meprop_bench.ops.cost import linear_backward
from meprop_bench.ops.kernels import Request
from meprop_bench.workloads import linear, setup
from meprop_bench.workloads.case import WORKLOADS, Case
from meprop_bench.workloads.linear import kernel_that_runs

_SMALL = {"k": 3, "batch": 4, "in_features": 6, "out_features": 10, "threads": 1}


@pytest.mark.parametrize("gradient", ["dense", "rows"])
@pytest.mark.parametrize("method", [method for method in WORKLOADS["linear"].methods if method != "dense"])
def test_every_method_passes_its_check(method: str, gradient: str) -> None:
    prepared = setup(Case(method=method, gradient=gradient, **_SMALL))  # type: ignore[arg-type]
    assert prepared.check() == "passed"
    assert prepared.phases == ("forward", "backward")
    assert set(prepared.costs) == set(prepared.memory) == {"forward", "backward"}


def test_both_sides_time_both_phases() -> None:
    prepared = setup(Case(**_SMALL))  # type: ignore[arg-type]
    ticks = count()
    clock = WallClock(timer=lambda: float(next(ticks)))
    for side in (prepared.baseline, prepared.method):
        assert side(2, clock) == {"forward": 0.5, "backward": 0.5}


def test_the_sides_share_their_numbers_and_differ_in_the_gradient() -> None:
    prepared = setup(Case(**_SMALL))  # type: ignore[arg-type]
    (dense_y, sparse_y), (dense, sparse) = ([call() for call in prepared.memory[p]] for p in ("forward", "backward"))
    assert torch.equal(dense_y, sparse_y)  # type: ignore[arg-type]
    assert len(dense) == len(sparse) == 3  # type: ignore[arg-type]
    assert not torch.equal(dense[0], sparse[0])  # type: ignore[index]
    assert torch.allclose(dense[2], sparse[2])  # type: ignore[index]


def test_the_backward_pass_is_what_is_run_steadily() -> None:
    prepared = setup(Case(**_SMALL))  # type: ignore[arg-type]
    assert prepared.main == ("backward", prepared.memory["backward"])


def test_the_seed_decides_the_numbers() -> None:
    first, again, other = (setup(Case(seed=seed, **_SMALL)).memory["forward"][0]() for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]


def test_a_gpu_s_cases_of_one_shape_have_numbers_that_were_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = linear.draw_on_host
    monkeypatch.setattr(linear, "draw_on_host", lambda seed: drawn.append(seed) or draw(seed))
    linear._cached_on_host.cache_clear()
    shape = {"batch": 4, "in_features": 6, "out_features": 10}

    def numbers(device: str, seed: int = 7, dtype: str = "float32") -> tuple[torch.Tensor, ...]:
        return linear._numbers(SimpleNamespace(device=device, seed=seed, dtype=dtype, **shape))  # type: ignore[arg-type]

    for dtype in ("float32", "tf32", "bfloat16"):
        x, _, _, dy = numbers("meta", dtype=dtype)  # what stands for a GPU
        assert (x.device.type, x.is_leaf, x.requires_grad, dy.dtype) == ("meta", True, True, tensor_type(dtype))
    assert drawn == [7]
    kept = linear._cached_on_host(7, 4, 6, 10)
    for _ in range(2):  # the processor's are fresh, as they may be written into
        for mine, theirs in zip(numbers("cpu"), kept, strict=True):
            assert torch.equal(mine, theirs)
            assert mine is not theirs
    numbers("meta", seed=8)
    assert drawn == [7, 7, 7, 8]
    assert not any(tensor.requires_grad for tensor in kept)


def test_k_is_resolved_and_k_of_all_is_dense() -> None:
    prepared = setup(Case(**{**_SMALL, "k": 0.25}))  # type: ignore[arg-type]
    assert prepared.k == 3
    full = setup(Case(**{**_SMALL, "k": 10}))  # type: ignore[arg-type]
    assert full.kernel == "dense"
    assert full.check() == "passed"
    assert full.costs["backward"][0] == full.costs["backward"][1]


def test_the_floor_counts_the_rows_that_were_selected() -> None:
    costs = setup(Case(method="meprop", gradient="rows", **_SMALL)).costs["backward"]  # type: ignore[arg-type]
    assert costs[0] == linear_backward(4, 6, 10, 4)
    candidates = [linear_backward(4, 6, 10, 4, "meprop", 3, "rows", rows) for rows in range(3, 11)]
    assert costs[1] in candidates


def test_the_kernel_that_runs_is_named() -> None:
    dy, x, w = torch.zeros(4, 10), torch.zeros(4, 6), torch.zeros(10, 6)
    request = Request(3, "example", False, True, True, True)
    assert kernel_that_runs("coo", dy, x, w, request) == "coo"
    assert kernel_that_runs("auto", dy, x, w, request) not in ("auto", "dense")


def test_a_kernel_that_cannot_do_it_says_so() -> None:
    with pytest.raises(ValueError, match="gather"):
        setup(Case(method="meprop", kernel="gather", **_SMALL))  # type: ignore[arg-type]
