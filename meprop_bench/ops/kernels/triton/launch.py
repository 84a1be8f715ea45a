"""Where the kernels run, and how a product of tiles rounds.

Triton compiles a kernel for a CUDA device at its first launch, or, with TRITON_INTERPRET=1 in the environment before
Triton is imported, interprets it program by program on the CPU: slow, and the way the tests hold every kernel against
the oracle on machines without a GPU. The interpreter knows no bfloat16 products; float32 ones of the same numbers are
the same, bit for bit, as a product of two bfloat16 numbers is exact in float32.
"""

import os
from functools import cache

import torch

from meprop_bench import optional

__all__ = ["interpreting", "precision", "unavailable_reason", "widened"]

_OLDEST = (8, 0)
"""Compute capability of the first GPUs with TF32 and bfloat16 in their tensor cores."""


def interpreting() -> bool:
    """Whether Triton interprets kernels on the CPU; read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "y", "yes"}


def unavailable_reason(device: torch.device) -> str | None:
    """Why no Triton kernel can run on a device, or None."""
    if (reason := optional.unavailable_reason("triton")) is not None:
        return f"Triton {reason} (extra `gpu`)"
    if device.type == "cpu":
        return None if interpreting() else "it runs on a CUDA device, or on the CPU with TRITON_INTERPRET=1"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it runs on NVIDIA's GPUs, not on {device.type}"
    capability = _capability(device)
    if capability < _OLDEST:
        return "it needs a GPU of compute capability 8.0 or above, not {}.{}".format(*capability)
    return None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def precision(dtype: torch.dtype) -> str:
    """Return how factors of a product are rounded, in Triton's words: float32 as torch's own products have it."""
    if dtype != torch.float32:
        return "ieee"
    products, everything = torch.backends.cuda.matmul, torch.backends
    chosen = getattr(products, "fp32_precision", None)
    if chosen is None:  # a torch before the switch was named so; later ones refuse the old question once it was used
        return "tf32" if products.allow_tf32 else "ieee"
    return "tf32" if (getattr(everything, "fp32_precision", "") if chosen == "none" else chosen) == "tf32" else "ieee"


def widened(dtype: torch.dtype) -> bool:
    """Whether a kernel has to widen the factors of a product itself."""
    return dtype == torch.bfloat16 and interpreting()
