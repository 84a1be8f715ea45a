"""Evaluation mode, and each module's own mode again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["evaluation_mode"]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and at the end, also of an exception, each module into the mode that it had.

    A model is often trained with parts of it in evaluation mode, such as a frozen batch norm; `model.train()` would
    have them go on with what they froze.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # a model's own `train` may do more than set the flag, as adapters do that merge
        for module, training in modes:
            module.training = training
