from __future__ import annotations

import pytest
import torch
from torch import Tensor

from meprop_bench.measure.arithmetic import adopted, is_tf32, tensor_type
from meprop_bench.nn import MePropLinear
from meprop_bench.ops import SELECTIONS
from meprop_bench.ops.kernels import KERNELS, Gradients, Kernel, Request
from meprop_bench.ops.kernels.operators import MASKED
from meprop_bench.workloads import check


def _check(
    *,
    k: int = 3,
    selection: str = "example",
    sparse: bool = False,
    dtype: torch.dtype = torch.float32,
    ties: bool = False,
) -> str:
    generator = torch.Generator().manual_seed(1)
    x, w, b, dy = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((6, 5), (9, 5), (9,), (6, 9)))
    if ties:
        dy = dy.sign()
    for tensor in (x, w, b):
        tensor.requires_grad_()
    return check.check_linear(x, w, b, dy, k=k, selection=selection, sparse=sparse, kernel="masked", seed=3)


@pytest.mark.parametrize("dtype", check.TOLERANCES)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_right_kernel_passes(selection: str, sparse: bool, dtype: torch.dtype) -> None:
    assert _check(selection=selection, sparse=sparse, dtype=dtype) == "passed"


@pytest.mark.parametrize("k", [1, 8, 9, 20])
def test_any_k_passes(k: int) -> None:
    assert _check(k=k) == "passed"


@pytest.mark.parametrize("selection", ["example", "unified"])
def test_ties_are_nobodys_fault(selection: str) -> None:
    assert _check(selection=selection, ties=True) == "passed"


def test_the_gap_keeps_what_was_greatest() -> None:
    dy = torch.tensor([[1.0, -3.0, 2.9], [4.0, 0.5, -3.9]])
    assert torch.equal(check.with_gap(dy, 1, "example"), dy * torch.tensor([[1, 2, 1], [2, 1, 1]]))
    assert torch.equal(check.with_gap(dy, 1, "unified"), dy * torch.tensor([1, 1, 2]))


class _Wrong(Kernel):
    """The oracle with one fault."""

    name = "masked"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        if self.fault == "smallest":
            kept = dy.abs().topk(request.k, largest=False).indices
            dy = torch.zeros_like(dy).scatter(1, kept, dy.gather(1, kept))
            return dy @ w, dy.t() @ x, dy.sum(0)
        if self.fault == "nan":
            dy = dy.nan_to_num()
        dx, dw, db = MASKED.backward(dy, x, w, request)
        assert db is not None
        if self.fault == "bias":
            db = db * 1.01
        if self.fault == "rounded":  # as TF32 rounds a factor
            return dx, dw * (1 + 2.0**-11), db
        if self.fault == "nothing":
            return torch.zeros_like(x), torch.zeros_like(w), db
        return dx, dw, db


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("smallest", "dx is off by"),
        ("bias", "db is off by 1.0e-02, relative; at most 1e-05 is rounding"),
        ("nothing", "dx is off by 1.0e+00"),
        ("nan", "a NaN in dy does not show in dx, dw, db"),
    ],
)
def test_a_wrong_kernel_is_found(fault: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    KERNELS["masked"]
    monkeypatch.setitem(KERNELS._loaded, "masked", _Wrong(fault))  # type: ignore[attr-defined]
    assert _check().startswith(found)


def test_what_tf32_rounds_is_right_where_products_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    KERNELS["masked"]
    monkeypatch.setitem(KERNELS._loaded, "masked", _Wrong("rounded"))  # type: ignore[attr-defined]
    assert _check() == "dw is off by 4.9e-04, relative; at most 1e-05 is rounding"
    with adopted("tf32"):
        assert _check() == "passed"
        assert _check(dtype=torch.float64).endswith("at most 1e-12 is rounding")
        monkeypatch.setitem(KERNELS._loaded, "masked", _Wrong("bias"))  # type: ignore[attr-defined]
        assert _check() == "db is off by 1.0e-02, relative; at most 2e-03 is rounding"


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16", "tf32"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_oracle_of_coarse_arithmetic_is_not_as_coarse(
    sparse: bool, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, bool]] = []
    product = Tensor.__matmul__

    def noted(self: Tensor, other: Tensor) -> Tensor:
        seen.append((self.dtype, is_tf32()))
        return product(self, other)

    x, dy = (torch.ones(shape, dtype=tensor_type(arithmetic)) for shape in ((2, 3), (2, 4)))
    layer = MePropLinear(3, 4, dtype=x.dtype, k=2, selection="unified", sparse=sparse)
    monkeypatch.setattr(Tensor, "__matmul__", noted)
    with adopted(arithmetic):
        found = check._by_definition(layer, x, dy, torch.tensor([1, 2]))
    assert seen == [(torch.float32, False)] * 2
    assert [gradient.dtype for gradient in found.values()] == [x.dtype] * 3
    assert torch.equal(found["dw"].to_dense().float(), torch.tensor([0.0, 2, 2, 0])[:, None].expand(4, 3))
