"""What the tests of the optimizers by rows share."""

import pytest
import torch
from torch import nn

from meprop_bench.ops.kernels import compiled
from meprop_bench.optim import RowAdagrad, RowAdam, RowAdamW, RowSGD
from meprop_bench.optim.rows import RowOptimizer

KINDS = {
    RowAdagrad: torch.optim.Adagrad,
    RowSGD: torch.optim.SGD,
    RowAdam: torch.optim.Adam,
    RowAdamW: torch.optim.AdamW,
}
"""Each optimizer by rows, and torch's, which it is by dense gradients."""
VECTORS = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
"""Whether torch's fused steps are compiled with multiply-adds, as ours are."""


def rows(idx, values, n, *, coalesced=True):
    """A gradient `(n, *)` with the given rows; one that comes twice is summed when coalesced."""
    shape = (n, *values.shape[1:])
    return torch.sparse_coo_tensor(
        torch.as_tensor(idx, dtype=torch.int64)[None], values, shape, is_coalesced=coalesced, check_invariants=False
    )


@pytest.fixture(params=["compiled", "operators"])
def how(request, monkeypatch):
    """Run a test with compiled code, which must do everything, and as where there is no Numba."""
    if request.param == "operators":
        monkeypatch.setattr(compiled, "load", lambda module: None)
    else:
        request.getfixturevalue("compiled_alone")
    return request.param


@pytest.fixture
def compiled_alone(monkeypatch):
    """Fail where torch's operators are called upon."""
    if (reason := compiled.unavailable_reason()) is not None:
        pytest.skip(reason)

    def no_operators(self, moves):
        raise AssertionError(f"left to torch's operators: {[tuple(p.shape) for _, p, _ in moves]}")

    monkeypatch.setattr(RowOptimizer, "_by_operators", no_operators)


@pytest.fixture
def operators(monkeypatch):
    """Collect the parameters that are left to torch's operators."""
    found = []
    by_operators = RowOptimizer._by_operators

    def seen(self, moves):
        found.extend(p for _, p, _ in moves)
        by_operators(self, moves)

    monkeypatch.setattr(RowOptimizer, "_by_operators", seen)
    return found


@pytest.fixture
def two_threads():
    """Run a test on two threads."""
    torch.set_num_threads(2)


def parameters(*shapes, seed=0, dtype=torch.float32):
    """Return new parameters."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


class Plain:
    """The reference: one parameter, in float64, as the definitions have it."""

    def __init__(self, kind, w, **settings):
        defaults = kind([nn.Parameter(torch.zeros(1))]).defaults
        self.kind, self.at = kind, {**defaults, **settings}
        self.w = w.detach().double().clone()
        self.sum = torch.full_like(self.w, self.at.get("initial_accumulator_value", 0.0))
        self.buffer = None
        self.steps = 0
        self.m, self.v, self.counts = torch.zeros_like(self.w), torch.zeros_like(self.w), torch.zeros(len(self.w))

    def step(self, grad):
        """Move by a gradient, dense or by rows."""
        at, whole = self.at, grad.to_dense().double()
        g = -whole if at["maximize"] else whole
        self.steps += 1
        if self.kind in (RowAdam, RowAdamW):
            moved = (
                whole.reshape(len(whole), -1).ne(0).any(1)
                if grad.is_sparse
                else torch.ones(len(whole), dtype=torch.bool)
            )
            self._adam(g, moved)
            return
        g = g + at["weight_decay"] * self.w if at["weight_decay"] else g
        if self.kind is RowAdagrad:
            self.sum += g * g
            moved = at["lr"] / (1 + (self.steps - 1) * at["lr_decay"]) * g / (self.sum.sqrt() + at["eps"])
            self.w -= torch.where(g == 0, 0.0, moved)
            return
        if at["momentum"]:
            first = self.buffer is None
            self.buffer = g if first else at["momentum"] * self.buffer + (1 - at["dampening"]) * g
            g = g + at["momentum"] * self.buffer if at["nesterov"] else self.buffer
        self.w -= at["lr"] * g

    def _adam(self, g, moved):
        at, (b1, b2) = self.at, self.at["betas"]
        for i in moved.nonzero()[:, 0].tolist():
            self.counts[i] += 1
            c, w, gi = self.counts[i].item(), self.w[i], g[i]
            if self.kind is RowAdamW:
                w.mul_(1 - at["lr"] * at["weight_decay"])
            else:
                gi = gi + at["weight_decay"] * w
            self.m[i] = b1 * self.m[i] + (1 - b1) * gi
            self.v[i] = b2 * self.v[i] + (1 - b2) * gi**2
            w -= at["lr"] * (self.m[i] / (1 - b1**c)) / ((self.v[i] / (1 - b2**c)).sqrt() + at["eps"])


def step_both(first, ps, second, qs, *, steps, generator=None, by_rows=False):
    """Step two optimizers, each of its own parameters, by the same gradients: dense ones, or by rows for the first and
    the same as dense ones for the second, but for the fourth step, which is dense in both.
    """
    for step in range(steps):
        for p, q in zip(ps, qs, strict=True):
            if by_rows and step != 3:
                idx = torch.randperm(len(p), generator=generator)[: (len(p) + 1) // 2].sort().values
                p.grad = rows(idx, torch.randn(len(idx), *p.shape[1:], generator=generator), len(p))
                q.grad = p.grad.to_dense()
            else:
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                q.grad = p.grad.clone()
        first.step()
        second.step()
