"""One name for a case, wherever it is shown: `linear 784→500 B=50 unified k=30 cpu:2`.

A plan's case and a stored row are named by the same function, so that a verdict, a line of progress and a stored
result say the same of the same thing, and two cases that differ have two names. What most cases have (kernel "auto", a
dense gradient, float32, ...) is left out; the threads are not, since their usual number is another on each machine.
"""

from __future__ import annotations

from typing import Any

from meprop_bench.results.axes import AXES, Axes

__all__ = ["WITHOUT_K", "case_name", "device_name"]

WITHOUT_K = ("meact", "dense")
"""Methods that have no k."""

_TOGETHER = ("in_features", "threads")
"""Axes that another one says, too: the shape, and the device."""


def case_name(one: Axes[Any]) -> str:
    """Name a case, which may be a `workloads.case.Case` or a `Row`, by all that tells it apart."""
    words = {
        axis.field: axis.said(one)
        for axis in sorted(AXES.values(), key=lambda axis: axis.place)
        if axis.field not in _TOGETHER
    }
    # The inputs of a model are said by its data.
    if one.data is None and one.in_features is not None and AXES["in-features"].of(one.workload):
        words["out_features"] = f"{one.in_features}→{one.out_features}"
    if one.method in WITHOUT_K:
        del words["k"]
    words["device"] = device_name(one)
    return " ".join(filter(None, words.values()))


def device_name(one: Axes[Any]) -> str:
    """Return the device with its threads, `cpu:2`; a GPU has its number alone."""
    return f"cpu:{one.threads}" if one.device == "cpu" and one.threads else one.device
