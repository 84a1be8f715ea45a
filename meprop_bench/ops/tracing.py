"""Whether a tool reads the program instead of running it: `torch.export`, ONNX on top of it, `torch.jit.trace`.

What such a tool writes down is to be run without this package, and mostly without gradients. So there the layers are
torch's plain operators, whether or not gradients are recorded; a program that is trained after all is trained densely.
Not so under `torch.compile`, which is for training as well, and under `torch.fx`, whose graph calls the layers: both
keep the sparsified backward pass.
"""

from __future__ import annotations

import torch

__all__ = ["is_tracing"]


def is_tracing() -> bool:
    """Return whether the operators that run now are being written down for later."""
    if torch.compiler.is_compiling():
        return torch.compiler._is_exporting_flag  # to an older Dynamo `is_exporting()` is true in whatever it compiles
    return torch._C._get_tracing_state() is not None
