"""Checks of the options that tasks share: each raises a `UserError` of one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meprop_bench.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["check_count", "check_examples", "check_k", "check_model", "on_device"]


def on_device(device: str) -> torch.device:
    """Return the device, of CUDA's with its number; UserError if it is not there or neither the CPU nor CUDA's."""
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        raise UserError(f"the device {device} cannot be used: choose from cpu, cuda, cuda:N")
    if wanted.type == "cpu":
        return torch.device("cpu")
    number, count = wanted.index or 0, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        reason = f"torch finds {count} CUDA devices here" if count else "torch finds no CUDA device here"
        raise UserError(f"the device cuda:{number} is not there: {reason}; use --device cpu")
    return torch.device("cuda", number)


def check_count(what: str, value: object, least: int = 1) -> None:
    """Raise UserError unless the value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{what} must be an integer of at least {least}, not {value!r}")


def check_k(k: object) -> None:
    """Check as `ops.selection.check_k` does, which would load torch: "keep nothing" trains nothing."""
    if not isinstance(k, int | float) or isinstance(k, bool) or not (k >= 1 if isinstance(k, int) else 0 < k <= 1):
        raise UserError(f"k must be an int >= 1 or a ratio in (0, 1], not {k!r}")


def check_examples(wanted: int | None, count: int, what: str) -> int:
    """Return how many of the training examples to use, all for None; UserError unless there are as many."""
    if wanted is None:
        return count
    check_count("examples", wanted)
    if wanted > count:
        raise UserError(f"examples {wanted} are more than the {count} training {what}")
    return wanted


def check_model(*, dropout: float = 0.0, activation: str | None = None, **counts: int) -> None:
    """Raise UserError unless all counts are, dropout lies in [0, 1), and there is such an activation."""
    for what, count in counts.items():
        check_count(what, count)
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must lie in [0, 1), not {dropout}")
    if activation is not None:
        from meprop_bench.models.activations import activation_of

        try:
            activation_of(activation)
        except ValueError as error:
            raise UserError(str(error)) from None
