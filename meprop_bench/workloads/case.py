"""A case: one point of a sweep, everything that a measurement depends on and nothing that it results in.

    workload  linear: one layer (B, m) -> (B, n) · mlp: the papers' perceptron, in - h - ... - h - 10
    method    which entries of dy survive; the baseline is always the dense layer in the same dtype, threads and
    allocator

A case is checked when it is made, so that a sweep of an hour does not find a misspelt word in its last row. Its id is
a hash of what differs from the defaults (and of the threads, whose default is the machine's): an axis that is added
later leaves the ids of stored rows alone. Nothing here imports torch: planning and `--help` must not wait three
seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import Any, Self

from meprop_bench.errors import UserError
from meprop_bench.measure.allocator import ALLOCATORS, unavailable_reason

__all__ = ["METHODS", "OPTIMIZERS", "WORKLOADS", "Case", "default_allocator", "default_threads", "one_of"]

METHODS = {"meprop": "example", "unified": "unified", "random": "random", "random-unified": "random-unified"}
"""The papers' name of a method -> the selection that makes it."""

WORKLOADS = ("linear", "mlp")
DTYPES = ("float32", "float64", "bfloat16", "float16")
GRADIENTS = ("dense", "rows")
DATA = {"mnist": 784, "digits": 64}
"""Data of the mlp -> entries of one example."""

# SparseAdam is left out: it moves only the rows it is given, which is another algorithm than Adam.
OPTIMIZERS = ("adam", "sgd", "adagrad")


def one_of(what: str, value: object, allowed: Collection[str]) -> str:
    """Return `value` if it is allowed.

    Raises:
        UserError: it is not; the message names what was probably meant, and all that is allowed.

    """
    if isinstance(value, str) and value in allowed:
        return value
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"unknown {what} {value!r}: {hint}choose from {', '.join(allowed)}")


@cache
def default_threads() -> int:
    """Return the physical cores this process may run on: a second thread on one adds nothing to a product."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@cache
def default_allocator() -> str:
    """Return what serves a training process best: "kept" where the C library can do it, else "default"."""
    return "default" if unavailable_reason("kept") else "kept"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of a sweep.

    Attributes:
        workload: "linear" or "mlp".
        method: a key of `METHODS`.
        k: neurons kept: an int >= 1, or a ratio of the layer's outputs in (0, 1].
        batch: B, examples in a batch.
        in_features: m; of the mlp, the entries of an example.
        out_features: n; of the mlp, the width of the hidden layers.
        kernel: a name in `meprop_bench.ops.kernels.KERNELS`.
        gradient: "dense", or "rows": the weight gradient as sparse rows.
        device: "cpu" or "cuda:N" ("cuda" becomes "cuda:0").
        threads: of torch, for both sides.
        dtype: of parameters and data.
        allocator: what a fresh large tensor costs: see `meprop_bench.measure.allocator`.
        data: "mnist" or "digits" for the mlp, None for a layer (its numbers are random).
        layers: hidden layers of the mlp.
        optimizer: of the mlp, the same for both sides.
        seed: of weights, data and selections.

    Raises:
        UserError: a value that is not allowed, in one line.

    """

    workload: str = "linear"
    method: str = "meprop"
    k: float = 30
    batch: int = 50
    in_features: int = 500
    out_features: int = 500
    kernel: str = "auto"
    gradient: str = "dense"
    device: str = "cpu"
    threads: int = field(default_factory=default_threads)
    dtype: str = "float32"
    allocator: str = field(default_factory=default_allocator)
    data: str | None = None
    layers: int = 2
    optimizer: str = "adam"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            one_of(name, getattr(self, name), allowed)
        for name in ("batch", "in_features", "out_features", "threads", "layers"):
            _check_count(name.replace("_", "-"), getattr(self, name))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be an integer of at least 0 and below 2^32, not {self.seed!r}")
        _check_k(self.k)
        object.__setattr__(self, "device", _device(self.device))
        _check_kernel(self.kernel)
        if self.workload == "mlp":
            self._check_mlp()
        elif self.data is not None:
            raise UserError(f"data {self.data!r} is for the workload mlp: a single layer is fed random numbers")

    def _check_mlp(self) -> None:
        one_of("data", self.data, DATA)
        assert self.data is not None
        if self.in_features != DATA[self.data]:
            raise UserError(
                f"in-features {self.in_features} do not fit the {self.data} data, which have {DATA[self.data]}"
            )
        if self.gradient == "rows" and self.optimizer == "adam":
            raise UserError(
                "optimizer adam takes no gradient as rows: add --optimizer sgd (or adagrad), or --gradient dense"
            )
        if self.dtype != "float32":
            raise UserError(
                f"dtype {self.dtype} is for the workload linear: the mlp trains in float32, as the papers' do"
            )

    @property
    def selection(self) -> str:
        """The selection that makes the method."""
        return METHODS[self.method]

    @property
    def case_id(self) -> str:
        """12 hexadecimal digits that stay the same for the same case."""
        defaults = {spec.name: spec.default for spec in fields(self)}
        told = {
            name: value
            for name, value in self.to_json().items()
            if defaults[name] is MISSING or value != defaults[name] or isinstance(value, float)
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """What tells the case apart on one line, for progress and errors."""
        shape = (
            f"{self.in_features}→{self.out_features}"
            if self.workload == "linear"
            else f"{self.data} h={self.out_features}"
        )
        extras = [
            name
            for name, usual in (
                (self.kernel, "auto"),
                (self.gradient, "dense"),
                (self.dtype, "float32"),
                (self.device, "cpu"),
            )
            if name != usual
        ]
        if self.allocator != default_allocator():
            extras.append(f"{self.allocator} allocator")
        return " ".join([self.workload, shape, f"B={self.batch}", self.method, f"k={self.k}", *extras])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build from a JSON object; UserError for a key that a case does not have."""
        names = [spec.name for spec in fields(cls)]
        for key in record:
            one_of("field of a case", key, names)
        return cls(**record)


_CHOICES: dict[str, Collection[str]] = {
    "workload": WORKLOADS,
    "method": tuple(METHODS),
    "gradient": GRADIENTS,
    "dtype": DTYPES,
    "allocator": tuple(ALLOCATORS),
    "optimizer": OPTIMIZERS,
}


def _check_count(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what} must be an integer of at least 1, not {value!r}")


def _check_k(k: object) -> None:
    """Check as `ops.check_k` does (which would load torch): "keep nothing" is never a case."""
    if isinstance(k, bool) or not ((isinstance(k, int) and k >= 1) or (isinstance(k, float) and 0 < k <= 1)):
        raise UserError(f"k must be an integer of at least 1 or a ratio in (0, 1], not {k!r}")


def _device(device: object) -> str:
    if device == "cpu":
        return "cpu"
    if match := re.fullmatch(r"cuda(?::(\d+))?", device if isinstance(device, str) else ""):
        return f"cuda:{int(match[1] or 0)}"
    one_of("device", device, ("cpu", "cuda", "cuda:0", "cuda:1"))
    raise AssertionError("unreachable: every allowed device was returned above")


def _check_kernel(kernel: object) -> None:
    if kernel == "auto":  # the names live with the kernels, and those load torch
        return
    from meprop_bench.ops.kernels import KERNELS

    one_of("kernel", kernel, tuple(KERNELS))
