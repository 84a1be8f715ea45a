"""A case: one point of a sweep, everything that a measurement depends on and nothing that it results in.

    axes      what a case is made of: see the table `results.axes.Axes`
    workload  what is run: see `WORKLOADS`
    method    which entries of dy survive; the baseline is always the dense layer in the same dtype, threads and
    allocator

A case is checked when it is made, so that a sweep of an hour does not find a misspelt word in its last row. Its id is
a hash of what differs from the defaults (and of the threads, whose default is the machine's): an axis that is added
later leaves the ids of stored rows alone. Nothing here imports torch: planning and `--help` must not wait three
seconds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib import import_module
from typing import Any, Never, Self

from meprop_bench.errors import UserError, one_of
from meprop_bench.measure.arithmetic import TF32
from meprop_bench.methods import METHODS, SPARSE, Method
from meprop_bench.optimizers import OPTIMIZERS
from meprop_bench.results.axes import AXES, Axes, case_name
from meprop_bench.tasks import TASKS
from meprop_bench.tasks.build import is_model
from meprop_bench.tasks.recipe import Recipe, by_layer, check_exchange

__all__ = ["DATA", "ONE_WIDTH", "TEXT", "WORKLOADS", "Case", "Workload", "recipe_of"]

DATA = {"mnist": 784, "digits": 64}
"""Data of the mlp -> entries of one example."""

TEXT: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "multi30k": ("language", {"data": "multi30k"}),
    "ud-ewt": ("language", {"data": "ud-ewt"}),
    "made-up": ("toy-language", {}),
}
"""Data of the transformer -> the task that learns them, and its options."""

_SPACING = 64
"""Steps between two removals of meSimp at least, as in the workload mesimp: an eighth of an epoch of the digits says
little of a neuron."""


_EACH = tuple(name for name in SPARSE if "unified" not in name)
"""Those that select for each example, as a convolution's maps have it."""

ONE_WIDTH = ("linear", "lstm", "gru", "mlp", "mesimp", "seq2seq")
"""Workloads whose k are of `out_features` everywhere."""

_RECURRENT = "it leaves recurrent layers to Python, torch's own as well"


@dataclass(frozen=True)
class Workload:
    """What a workload is besides its axes."""

    methods: tuple[str, ...]  # it can be run with; the first is its usual one
    trains: bool = False  # whether it is a model in training: on the CPU's default dtype, with an optimizer
    uncompiled: str = ""  # why torch.compile cannot have its sparsified side; empty where it can
    module: str = ""  # of this package, where it has another name
    kernels: str = "kernels"  # registry of `ops` that its kernels are in


WORKLOADS: Mapping[str, Workload] = {
    # One layer, (B, m) -> (B, n).
    "linear": Workload((*SPARSE, "dense")),
    # The papers' perceptron in training, in - h - ... - h - 10.
    "mlp": Workload(SPARSE, trains=True),
    # One convolution, m maps of size x size -> n maps; k are positions.
    "conv": Workload(_EACH, kernels="conv"),
    # One recurrent layer over a number of time steps, m inputs -> n neurons in each gate.
    "lstm": Workload(SPARSE, module="recurrent", kernels="recurrent", uncompiled=_RECURRENT),
    "gru": Workload(SPARSE, module="recurrent", kernels="recurrent", uncompiled=_RECURRENT),
    # A GPT in training on windows of text (`models.gpt`), timed as any task's model is.
    "transformer": Workload(SPARSE, trains=True, module="model"),
    # Encoder and decoder of n neurons in training on sentences of random words.
    "seq2seq": Workload(SPARSE, trains=True),
    # The perceptron simplified during training, then against the one that was not: forward pass and step.
    "mesimp": Workload(("mesimp",), trains=True, uncompiled="meSimp changes the sizes of its layers"),
    # The perceptron trained through each example's own neurons.
    "meact": Workload(("meact",), trains=True, uncompiled="meAct masks its layers by hooks"),
    # A user's own model, or that of a task, in training.
    "model": Workload((*SPARSE, "dense"), trains=True),
}
"""Name -> what it is. Its axes are in the table of them."""


@dataclass(frozen=True, kw_only=True)
class Case(Axes[Never]):
    """One point of a sweep: a value for each axis, filled in where the workload or the method has its own default.

    meact, which has a share in its place, and dense do without k; of dense it is 1. The device "cuda" is "cuda:0". Data
    are None for what is fed random numbers.

    Raises:
        UserError: a value that is not allowed, in one line.

    """

    def __post_init__(self) -> None:
        one_of("workload", self.workload, WORKLOADS)
        one_of("method", self.method, METHODS)
        for axis in AXES.values():
            axis.check(getattr(self, axis.field))
        self._fill_in()
        one_of(f"method of the workload {self.workload}:", self.method, self._workload.methods)
        self._check_method()
        self._check_dense()
        object.__setattr__(self, "device", _device(self.device))
        if self.dtype == TF32 and self.device == "cpu":
            raise UserError("dtype 'tf32' is the rounding of a GPU's products: use --device cuda, or --dtype float32")
        self._check_launch()
        self._check_compile()
        if self.kernel != "auto":  # the names live with the kernels, and those load torch
            kernels = import_module(f"meprop_bench.ops.{self._workload.kernels}").KERNELS
            one_of("kernel", self.kernel, tuple(kernels))
        if AXES["data"].of(self.workload):
            self._check_data()
        if self.size is not None and self.filter is not None:
            self._check_maps(self.size, self.filter)
        elif self.workload in ONE_WIDTH and isinstance(self.k, int) and self.k > self.out_features:
            raise UserError(
                f"k {self.k} is more than the layer's {self.out_features} outputs: take at most {self.out_features}, or"
                " a ratio in (0, 1]"
            )
        self._check_model()
        self._check_optimizer()
        self._check_ranks()

    @property
    def _workload(self) -> Workload:
        return WORKLOADS[self.workload]

    def _fill_in(self) -> None:
        """Fill in what the workload has, and refuse what it has not."""
        for axis in AXES.values():
            value = getattr(self, axis.field)
            if axis.of(self.workload):
                if value is None:
                    object.__setattr__(self, axis.field, axis.usual_in(self.workload, None))
            elif value != axis.default:
                raise UserError(
                    f"{axis.option} {value!r} does nothing in the workload {self.workload}: it is for the workload"
                    f" {', '.join(axis.workloads or ())}"
                )

    def _check_method(self) -> None:
        """Refuse a method with a `convert` of its own where `nn`'s layers would be timed under its name."""
        module = METHODS[self.method].module
        if module != Method.module and (self._workload.module or self.workload) != "model":
            raise UserError(
                f"the workload {self.workload} is made of meprop_bench.nn's layers, and the method {self.method} makes"
                f" those of {module}: time a model or a task by --model"
            )

    def _check_dense(self) -> None:
        """Fill in and refuse what the method dense alone has, or has not."""
        if self.method != "dense":
            if self.slowdown is not None:
                raise UserError(f"slowdown {self.slowdown!r} is for --method dense: leave it out of {self.method}")
            return
        object.__setattr__(self, "k", 1)
        slowdown = self.slowdown or 0.0
        if slowdown and self.device != "cpu":
            raise UserError(f"slowdown {slowdown!r} makes the CPU wait: use --device cpu, not {self.device}")
        if AXES["slowdown"].of(self.workload):
            object.__setattr__(self, "slowdown", float(slowdown))
        for name, usual in (("gradient", "dense"), ("kernel", "auto")):
            if getattr(self, name) != usual:
                raise UserError(f"{name} {getattr(self, name)!r} does nothing with --method dense: leave it out")

    def _check_optimizer(self) -> None:
        if not self._workload.trains or self.optimizer == "own":
            return
        rows = self.gradient == "rows"
        if rows and not OPTIMIZERS[self.optimizer].rows:
            raise UserError(
                f"optimizer {self.optimizer} takes no gradient as rows: add --optimizer sgd (or adagrad), or --gradient"
                " dense"
            )
        if not rows and self.optimizer.startswith("row"):
            raise UserError(
                f"optimizer {self.optimizer} is {self.optimizer.removeprefix('row')} where gradients are dense: add"
                " --gradient rows"
            )

    def _check_ranks(self) -> None:
        """Fill in and refuse what several processes alone have, or have not."""
        if self.world_size == 1:
            for name in ("exchange", "dense_exchange"):
                if getattr(self, name) is not None:
                    option = name.replace("_", "-")
                    raise UserError(f"{option} {getattr(self, name)!r} is for several processes: add --world-size 2")
            return
        for name, usual in (("exchange", "gathered"), ("dense_exchange", "ddp")):
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)
        if self.gradient != "rows":
            raise UserError(
                "a dense gradient is exchanged whole, as the dense side's is: with --world-size 2 add --gradient rows"
            )
        check_exchange(self.exchange, self.method)
        if self.compile != "off" or self.fused_step != "none":
            what = "compile" if self.compile != "off" else "fused-step"
            raise UserError(f"{what} does not go with --world-size {self.world_size}: leave one of them out")

    def _check_launch(self) -> None:
        if self.launch == "eager":
            return
        if self.device == "cpu":
            raise UserError("launch 'graph' replays CUDA graphs: use --device cuda, or leave it out")
        if self._workload.trains:
            # The next batch and the optimizer's count of steps are Python's, and would stand still in a replay.
            raise UserError(
                f"launch 'graph' is for layers: the workload {self.workload} decides in Python what comes next"
            )

    def _check_compile(self) -> None:
        if self.baseline == "fused" and not self._workload.trains:
            raise UserError(
                f"baseline 'fused' is about an optimizer, and the workload {self.workload} has none: leave it out"
            )
        if self.baseline == "best" and self.method == "dense":
            raise UserError("baseline 'best' is for a method: --method dense times one dense side against itself")
        if self.launch == "graph" and (self.compile, self.baseline) != ("off", "same"):
            raise UserError(
                "launch 'graph' captures what is launched call by call: leave --compile and --baseline out, or it"
            )
        if self.compile == "off":
            return
        if self.fused_step != "none":
            raise UserError("a fused step leaves nothing to torch.compile: leave --compile or --fused-step out")
        if reason := self._workload.uncompiled:
            raise UserError(f"compile 'on' does not go with the workload {self.workload}: {reason}; leave it out")
        if self.gradient == "rows":
            raise UserError(
                "gradient 'rows' cannot be compiled, as nothing says beforehand how many rows there are: use"
                " --gradient dense, or --compile off"
            )

    def _check_maps(self, size: int, filter: int) -> None:
        if filter > size:
            raise UserError(f"filter {filter} is larger than maps of {size} x {size}: take a larger --size")
        positions = (size - filter + 1) ** 2
        if isinstance(self.k, int) and self.k > positions:
            raise UserError(f"k {self.k} is more than the {positions} positions of a map: take a ratio in (0, 1]")

    def _check_model(self) -> None:
        by_layer(self.k_by_layer)
        if self.workload == "model":
            if self.model is None:
                raise UserError("the workload model needs one: add --model path/to/file.py:function, or a task's name")
            if not is_model(self.model):
                one_of("model", self.model, tuple(TASKS))
            elif self.options is not None:
                raise UserError(f"options {self.options!r} are those of a task: {self.model} has its own in its code")
            _options(self.options)
        own = self.model is not None and is_model(self.model)
        if self.optimizer == "own" and not own:
            raise UserError(f"optimizer own is that of a model of your own: choose {', '.join(OPTIMIZERS)}")

    def _check_data(self) -> None:
        if self.workload == "transformer":
            one_of("data", self.data, TEXT)
            assert self.heads is not None
            if self.out_features % self.heads:
                raise UserError(f"hidden {self.out_features} is not a multiple of {self.heads} heads")
            return
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
        return hashlib.sha256(json.dumps(self.changed(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Its name, which tells it apart on one line (`results.axes`)."""
        return case_name(self)

    @property
    def kernel_requested(self) -> str:
        """The kernel, by the name that a row has it under: a row's `kernel` is the one that `auto` chose."""
        return self.kernel

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    def changed(self) -> dict[str, Any]:
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


def recipe_of(case: Case, steps: int | None = None) -> Recipe:
    """Return the training of a case's method, for so many steps; UserError where it does not fit.

    Of several ranks it is theirs where there are so many steps to learn in; else, as what is timed, that of one. meSimp
    removes in stages of five epochs with it and five without, as in the paper, up to eight times an epoch. Of meAct's
    epochs the first half settles what each example trains.
    """
    if case.model is not None:
        options = {**_options(case.options), "device": case.device}
        recipe = Recipe(case.model, options, optimizer=case.optimizer, steps=steps)
    else:
        assert case.data is not None
        task, more = TEXT.get(case.data, (case.data, {}))
        sizes: dict[str, Any] = {
            "batch": case.batch,
            "hidden": case.out_features,
            "layers": case.layers,
            "device": case.device,
        }
        if case.data in TEXT:
            sizes |= {"heads": case.heads, "length": case.length}
        ranks = 1 if steps is None else case.world_size
        recipe = Recipe(task, {**sizes, **more}, optimizer=case.optimizer, steps=steps, world_size=ranks)
    if case.method == "meact":
        return replace(recipe, method="meact", details={"share": case.share, "pretrain": 0.5})
    if case.method == "dense":
        return recipe
    details = {"rate": case.rate, "spacing": _SPACING} if case.method == "mesimp" else {}
    exchange = None if steps is None else case.exchange
    sparse = replace(recipe, method=case.method, k=case.k, details=details, exchange=exchange)
    return replace(sparse, gradient=case.gradient, kernel=case.kernel, leave=case.leave, k_by_layer=case.k_by_layer)


def _options(text: str | None) -> dict[str, Any]:
    """Return a task's options from their text, `batch=256;hidden=2048`; UserError for what is none."""
    found: dict[str, Any] = {}
    for part in text.split(";") if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"options are written as batch=256;hidden=2048, and not as {part!r}")
        found[name.replace("-", "_")] = _number(value)
    return found


def _number(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _device(device: object) -> str:
    if device == "cpu":
        return "cpu"
    if match := re.fullmatch(r"cuda(?::(\d+))?", device if isinstance(device, str) else ""):
        return f"cuda:{int(match[1] or 0)}"
    one_of("device", device, ("cpu", "cuda", "cuda:0", "cuda:1"))
    raise AssertionError("unreachable: every allowed device was returned above")
