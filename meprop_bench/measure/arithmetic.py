"""The arithmetic behind a dtype's name: the type of the tensors, and what their products are rounded to.

    float64, float32     tensors of that type, products in it
    bfloat16, float16    tensors of that type; a GPU adds their products up in float32
    tf32                 tensors of float32; a GPU's tensor cores round each factor to 10 bits of mantissa, as float16
                         has them, and add the products up in float32

torch has no type for the last one: it is a switch of the whole process. Whoever measures sets it for each case, both
ways, since what is usual differs: products of matrices are exact unless the switch is thrown, cuDNN's convolutions and
recurrent layers round to TF32 unless it is taken back. The two sides of a pair run in one process, and so alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["TF32", "adopt", "adopted", "is_tf32", "tensor_type"]

TF32 = "tf32"


def tensor_type(dtype: str) -> torch.dtype:
    """Return torch's type for a dtype's name; ValueError for one that is no floating-point type."""
    import torch

    kind = torch.float32 if dtype == TF32 else getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype is a floating-point type of torch, or {TF32}, got {dtype!r}")
    return kind


def adopt(dtype: str) -> None:
    """Have float32 products rounded from now on as a dtype has it: to TF32 for "tf32", not at all for any other."""
    import torch

    # The function and the flag that old and new versions of torch have; their new names do not mix with the old ones.
    torch.set_float32_matmul_precision("high" if dtype == TF32 else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == TF32


@contextmanager
def adopted(dtype: str) -> Iterator[None]:
    """Have float32 products rounded as a dtype has it within the block, and then as before."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    adopt(dtype)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def is_tf32() -> bool:
    """Whether float32 products of a GPU are rounded now."""
    import torch

    return torch.get_float32_matmul_precision() != "highest"
