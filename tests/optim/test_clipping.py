"""Clipping of rows and dense gradients together, against torch's of the same gradients, all dense."""

import math

import pytest
import torch
from torch import nn

from meprop_bench.optim import clip_grad_norm_
from tests.optim.conftest import parameters, rows


def both(*, by_rows):
    found, expected = (parameters((30, 7), (5,), (12, 4), seed=1) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    for i, (p, q) in enumerate(zip(found, expected, strict=True)):
        q.grad = torch.randn(q.shape, generator=generator)
        if i != 1 and by_rows:
            idx = torch.randint(0, len(p), (9,), generator=generator)  # some twice
            p.grad = rows(idx, torch.randn(9, *p.shape[1:], generator=generator), len(p), coalesced=False)
            q.grad = p.grad.to_dense()
        else:
            p.grad = q.grad.clone()
    return found, expected


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("by_rows", [False, True])
def test_as_torch_clips_dense_gradients(by_rows, max_norm, norm_type):
    found, expected = both(by_rows=by_rows)
    norm = clip_grad_norm_(found, max_norm, norm_type)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(expected, max_norm, norm_type))
    for p, q in zip(found, expected, strict=True):
        assert p.grad.is_sparse == (by_rows and p.dim() == 2)
        torch.testing.assert_close(p.grad.to_dense(), q.grad)


def test_a_norm_that_is_not_finite():
    (p, *_), _ = both(by_rows=True)
    p.grad._values()[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert clip_grad_norm_(p, 1.0).isnan()


def test_without_gradients():
    assert clip_grad_norm_(parameters((3, 4)), 1.0) == 0
