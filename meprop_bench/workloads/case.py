"""A case: one point of a sweep, everything that a measurement depends on and nothing that it results in.

    workload  what is run: see `WORKLOADS`, which also says what axes each has besides those of all
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
from importlib import import_module
from typing import Any, Self

from meprop_bench.errors import UserError
from meprop_bench.measure.allocator import ALLOCATORS, unavailable_reason
from meprop_bench.measure.arithmetic import TF32
from meprop_bench.measure.clocks import CACHES, LAUNCHES
from meprop_bench.methods import METHODS
from meprop_bench.results.naming import case_name

__all__ = [
    "AXES",
    "DENSE_AXES",
    "OPTIMIZERS",
    "WORKLOADS",
    "Case",
    "Workload",
    "default_allocator",
    "default_threads",
    "one_of",
]

DTYPES = ("float32", "float64", "bfloat16", "float16", TF32)
GRADIENTS = ("dense", "rows")
DATA = {"mnist": 784, "digits": 64}
"""Data of the mlp -> entries of one example."""

# SparseAdam is left out: it moves only the rows it is given, which is another algorithm than Adam.
OPTIMIZERS = ("adam", "sgd", "adagrad")

_TOP_K = ("meprop", "unified", "random", "random-unified")


@dataclass(frozen=True)
class Workload:
    """What a workload has that not all have.

    Attributes:
        methods: those it can be run with; the first is its usual one.
        fields: of a case, with what they are when nothing is said; None leaves the default of `Case`.
        trains: whether it is a model in training: on the CPU's default dtype, with an optimizer.

    """

    methods: tuple[str, ...]
    fields: Mapping[str, Any]
    trains: bool = False


_LAYER = {"in_features": None, "kernel": None, "dtype": None}
_TRAINING = {"data": None, "layers": None, "optimizer": None}

WORKLOADS: Mapping[str, Workload] = {
    # One layer, (B, m) -> (B, n).
    "linear": Workload((*_TOP_K, "dense"), {**_LAYER, "gradient": None, "slowdown": None}),
    # The papers' perceptron in training, in - h - ... - h - 10.
    "mlp": Workload(_TOP_K, {**_TRAINING, "in_features": None, "kernel": None, "gradient": None}, trains=True),
    # One convolution, m maps of size x size -> n maps; k are positions.
    "conv": Workload(("meprop", "random"), {**_LAYER, "size": 12, "filter": 5}),
    # One recurrent layer over a number of time steps, m inputs -> n neurons in each gate.
    "lstm": Workload(_TOP_K, {**_LAYER, "length": 25}),
    "gru": Workload(_TOP_K, {**_LAYER, "length": 25}),
    # Encoder and decoder of n neurons in training on sentences of random words.
    "seq2seq": Workload(("meprop", "unified"), {"length": 20, "layers": None, "optimizer": None}, trains=True),
    # The perceptron simplified during training, then against the one that was not: forward pass and step.
    "mesimp": Workload(("mesimp",), {**_TRAINING, "in_features": None, "rate": 0.1}, trains=True),
    # The perceptron trained through each example's own neurons.
    "meact": Workload(("meact",), {**_TRAINING, "in_features": None, "share": 0.004}, trains=True),
}
"""Name -> what it has. `Case` says what the fields mean."""

_OF_SOME = tuple(dict.fromkeys(name for workload in WORKLOADS.values() for name in workload.fields))


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


_NOT_DENSE: Mapping[str, bool] = {"dense": False}
"""Marks an axis that the dense side's time does not depend on: it is the sparse side's alone, or draws numbers."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of a sweep.

    Attributes:
        workload: a key of `WORKLOADS`.
        method: one of the workload's.
        k: neurons kept: an int >= 1, or a ratio of the layer's outputs in (0, 1]; of a convolution, positions of a map.
            meact, which has a share in its place, and dense do without; of dense it is 1.
        batch: B, examples in a batch.
        in_features: m: inputs; maps that come in; of a perceptron, the entries of an example.
        out_features: n: outputs; maps that come out; neurons of a gate or of a hidden layer.
        kernel: a name in the registry of the layer's kernels.
        gradient: "dense", or "rows": the weight gradient as sparse rows.
        device: "cpu" or "cuda:N" ("cuda" becomes "cuda:0").
        threads: of torch, for both sides.
        dtype: of parameters and data; "tf32" is float32 whose products a GPU rounds (`measure.arithmetic`).
        allocator: what a fresh large tensor costs: see `meprop_bench.measure.allocator`.
        data: "mnist" or "digits" for a perceptron, None for what is fed random numbers.
        layers: hidden layers of a perceptron, layers of the encoder and of the decoder.
        optimizer: of what trains, the same for both sides.
        size: height and width of the maps that come in.
        filter: height and width of the convolution's filters.
        length: time steps, or words of a sentence.
        rate: meSimp's p: neurons that are active in a smaller share of the examples are removed.
        share: meAct's p: an example trains the neurons with at least this share of its gradient.
        slowdown: of the method dense: its second side waits for this share of its own time in each call.
        caches: "warm", as the last call left them, or "cold", emptied before each iteration.
        launch: "eager", call by call, or "graph": recorded once and replayed as a CUDA graph; a layer on a GPU.
        seed: of weights, data and selections.

    Raises:
        UserError: a value that is not allowed, in one line.

    """

    workload: str = "linear"
    method: str = field(default="meprop", metadata=_NOT_DENSE)
    k: float = field(default=30, metadata=_NOT_DENSE)
    batch: int = 50
    in_features: int = 500
    out_features: int = 500
    kernel: str = field(default="auto", metadata=_NOT_DENSE)
    gradient: str = field(default="dense", metadata=_NOT_DENSE)
    device: str = "cpu"
    threads: int = field(default_factory=default_threads)
    dtype: str = "float32"
    allocator: str = field(default_factory=default_allocator)
    data: str | None = None
    layers: int = 2
    optimizer: str = "adam"
    size: int | None = None
    filter: int | None = None
    length: int | None = None
    rate: float | None = field(default=None, metadata=_NOT_DENSE)
    share: float | None = field(default=None, metadata=_NOT_DENSE)
    slowdown: float | None = field(default=None, metadata=_NOT_DENSE)
    caches: str = "warm"
    launch: str = "eager"
    seed: int = field(default=0, metadata=_NOT_DENSE)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            one_of(name, getattr(self, name), allowed)
        self._check_fields()
        one_of(f"method of the workload {self.workload}:", self.method, self._has.methods)
        for name in ("batch", "in_features", "out_features", "threads", "layers", "size", "filter", "length"):
            if (value := getattr(self, name)) is not None:
                _check_count(name.replace("_", "-"), value)
        for name in ("rate", "share"):
            if (value := getattr(self, name)) is not None:
                _check_share(name, value)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be an integer of at least 0 and below 2^32, not {self.seed!r}")
        _check_k(self.k)
        self._check_dense()
        object.__setattr__(self, "device", _device(self.device))
        if self.dtype == TF32 and self.device == "cpu":
            raise UserError("dtype 'tf32' is the rounding of a GPU's products: use --device cuda, or --dtype float32")
        self._check_launch()
        _check_kernel(self.workload, self.kernel)
        if "data" in self._has.fields:
            self._check_data()
        if self.size is not None and self.filter is not None:
            self._check_maps(self.size, self.filter)
        if self.gradient == "rows" and self._has.trains and self.optimizer == "adam":
            raise UserError(
                "optimizer adam takes no gradient as rows: add --optimizer sgd (or adagrad), or --gradient dense"
            )

    @property
    def _has(self) -> Workload:
        return WORKLOADS[self.workload]

    def _check_fields(self) -> None:
        """Fill in what the workload has, and refuse what it has not."""
        usual = {spec.name: spec.default for spec in fields(self)}
        for name in _OF_SOME:
            value = getattr(self, name)
            if name in self._has.fields:
                if value is None and self._has.fields[name] is not None:
                    object.__setattr__(self, name, self._has.fields[name])
            elif value != usual[name]:
                owners = [other for other, workload in WORKLOADS.items() if name in workload.fields]
                raise UserError(
                    f"{name.replace('_', '-')} {value!r} does nothing in the workload {self.workload}: it is for the"
                    f" workload {', '.join(owners)}"
                )

    def _check_dense(self) -> None:
        """Fill in and refuse what the method dense alone has, or has not."""
        if self.method != "dense":
            if self.slowdown is not None:
                raise UserError(f"slowdown {self.slowdown!r} is for --method dense: leave it out of {self.method}")
            return
        object.__setattr__(self, "k", 1)
        slowdown = 0.0 if self.slowdown is None else self.slowdown
        if isinstance(slowdown, bool) or not isinstance(slowdown, int | float) or not 0 <= slowdown <= _SLOWEST:
            raise UserError(f"slowdown must be a share from 0 to {_SLOWEST} (0.03 is 3%), not {slowdown!r}")
        if slowdown and self.device != "cpu":
            raise UserError(f"slowdown {slowdown!r} is a wait of the processor: use --device cpu, not {self.device}")
        object.__setattr__(self, "slowdown", float(slowdown))
        for name, usual in (("gradient", "dense"), ("kernel", "auto")):
            if getattr(self, name) != usual:
                raise UserError(f"{name} {getattr(self, name)!r} does nothing with --method dense: leave it out")

    def _check_launch(self) -> None:
        if self.launch == "eager":
            return
        if self.device == "cpu":
            raise UserError("launch 'graph' replays CUDA graphs: use --device cuda, or leave it out")
        if self._has.trains:
            # The next batch and the optimizer's count of steps are Python's, and would stand still in a replay.
            raise UserError(
                f"launch 'graph' is for layers: the workload {self.workload} decides in Python what comes next"
            )

    def _check_maps(self, size: int, filter: int) -> None:
        if filter > size:
            raise UserError(f"filter {filter} is larger than maps of {size} x {size}: take a larger --size")
        positions = (size - filter + 1) ** 2
        if isinstance(self.k, int) and self.k > positions:
            raise UserError(f"k {self.k} is more than the {positions} positions of a map: take a ratio in (0, 1]")

    def _check_data(self) -> None:
        one_of("data", self.data, DATA)
        assert self.data is not None
        if self.in_features != DATA[self.data]:
            raise UserError(
                f"in-features {self.in_features} do not fit the {self.data} data, which have {DATA[self.data]}"
            )

    @property
    def selection(self) -> str:
        """The selection that makes the method; ValueError for one that is made of none."""
        if (selection := METHODS[self.method].selection) is None:
            raise ValueError(f"{self.method} selects otherwise")
        return selection

    @property
    def case_id(self) -> str:
        """12 hexadecimal digits that stay the same for the same case."""
        return hashlib.sha256(json.dumps(self.told(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Its name, which tells it apart on one line (`results.naming`)."""
        layer = "in_features" in self._has.fields and self.data is None
        return case_name(self, in_features=self.in_features if layer else None, kernel=self.kernel)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    def told(self) -> dict[str, Any]:
        """Return what differs from the defaults, and the threads and the allocator, whose defaults are the machine's.

        `from_json` makes the same case of it, in an older revision too unless it has a field that is new.
        """
        defaults = {spec.name: spec.default for spec in fields(self)}
        return {
            name: value
            for name, value in self.to_json().items()
            if defaults[name] is MISSING or value != defaults[name] or isinstance(value, float)
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build from a JSON object; UserError for a key that a case does not have."""
        names = [spec.name for spec in fields(cls)]
        for key in record:
            one_of("field of a case", key, names)
        return cls(**record)


AXES: Mapping[str, Any] = {
    {"kernel": "kernel_requested"}.get(spec.name, spec.name): None if spec.default is MISSING else spec.default
    for spec in fields(Case)
}
"""Field of a row (`results.schema.Row`) -> what an axis of a case is when nothing is said; None where the machine says.

A row has the kernel that was asked for under another name: its `kernel` is the one that `auto` chose."""

DENSE_AXES = tuple(spec.name for spec in fields(Case) if spec.metadata.get("dense", True))
"""The axes that the dense side depends on: cases that are equal in these do the same dense work."""

_CHOICES: dict[str, Collection[str]] = {
    "workload": tuple(WORKLOADS),
    "method": tuple(METHODS),
    "gradient": GRADIENTS,
    "dtype": DTYPES,
    "allocator": tuple(ALLOCATORS),
    "optimizer": OPTIMIZERS,
    "caches": CACHES,
    "launch": LAUNCHES,
}
_SLOWEST = 100
_MOST = 1 << 40


def _check_count(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what} must be an integer of at least 1, not {value!r}")
    if value > _MOST:
        raise UserError(f"{what} must be at most {_MOST}: no memory holds more")


def _check_share(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"{what} must be between 0 and 1, not {value!r}")


def _check_k(k: object) -> None:
    """Check as `ops.check_k` does (which would load torch): "keep nothing" is never a case."""
    if isinstance(k, bool) or not ((isinstance(k, int) and 1 <= k <= _MOST) or (isinstance(k, float) and 0 < k <= 1)):
        raise UserError(f"k must be an integer of at least 1 or a ratio in (0, 1], not {k!r}")


def _device(device: object) -> str:
    if device == "cpu":
        return "cpu"
    if match := re.fullmatch(r"cuda(?::(\d+))?", device if isinstance(device, str) else ""):
        return f"cuda:{int(match[1] or 0)}"
    one_of("device", device, ("cpu", "cuda", "cuda:0", "cuda:1"))
    raise AssertionError("unreachable: every allowed device was returned above")


def _check_kernel(workload: str, kernel: object) -> None:
    if kernel == "auto":  # the names live with the kernels, and those load torch
        return
    registries = {"conv": "conv", "lstm": "recurrent", "gru": "recurrent"}
    registry = import_module(f"meprop_bench.ops.{registries.get(workload, 'kernels')}")
    one_of("kernel", kernel, tuple(registry.KERNELS))
