"""One name for a case, wherever it is shown: `linear 784→500 B=50 unified k=30 cpu:2`.

A plan's case and a stored row are named by the same function, so that a verdict, a line of progress and a stored
result say the same of the same thing, and two cases that differ have two names. What most cases have (kernel "auto", a
dense gradient, float32, ...) is left out; the threads are not, since their usual number is another on each machine.
"""

from __future__ import annotations

from typing import Any

__all__ = ["WITHOUT_K", "case_name"]

WITHOUT_K = ("meact", "dense")
"""Methods that have no k."""


def case_name(one: Any, *, in_features: int | None, kernel: str) -> str:
    """Name a case by all that tells it apart.

    Args:
        one: a `workloads.case.Case`, or a `Row` of one: their fields have the same names, but for the other two.
        in_features: its inputs, where it is a layer; None where it is a model, whose inputs its data say.
        kernel: that was asked for.

    """
    whole = one.data is not None or in_features is None
    shape = f"h={one.out_features}" if whole else f"{in_features}→{one.out_features}"
    numbers = (
        ("filter", one.filter),
        ("T", one.length),
        ("layers", None if one.layers == 2 else one.layers),
        ("B", one.batch),
    )
    amounts = (("k", None if one.method in WITHOUT_K else one.k), ("p", one.rate), ("p", one.share))
    usual = (
        (one.optimizer, "adam", ""),
        (kernel, "auto", " kernel"),
        (one.gradient, "dense", " gradient"),
        (one.dtype, "float32", ""),
        (one.allocator, "kept", " allocator"),
        (one.caches, "warm", " caches"),
        (one.launch, "eager", " launch"),
    )
    words = [
        one.workload,
        one.data,
        shape,
        None if one.size is None else f"{one.size}x{one.size}",
        *(f"{name}={_number(value)}" for name, value in numbers if value is not None),
        one.method,
        *(f"{name}={_number(value)}" for name, value in amounts if value is not None),
        f"+{_number(100 * one.slowdown)}%" if one.slowdown else None,
        *(f"{value}{what}" for value, common, what in usual if value not in (None, common)),
        f"cpu:{one.threads}" if one.device == "cpu" and one.threads else one.device,
        f"seed={one.seed}" if one.seed else None,
    ]
    return " ".join(word for word in words if word)


def _number(value: float) -> str:
    """Return a number as short as it can be without being another's."""
    text = f"{value:g}"
    return text if float(text) == value else f"{value:.12g}"
