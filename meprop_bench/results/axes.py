"""The axes of a sweep, each written once: what a measurement depends on, and nothing that it results in.

    Axes  ->  AXES  ->  options of the command line, keys of presets, the reference of the docs
          ->  Case  (`workloads.case`): a point of a sweep; each axis has a value
          ->  Row   (`results.schema`): what was measured there, as stored; null where the workload lacks the axis
          ->  names of cases, columns and lines of reports, parameters of asv exports, comparisons, the suites' fields

An axis that is added is one line in `Axes`. Until it says otherwise the dense side is taken to depend on it, so that
its times are not held against those of cases that differ in it. Rows from before have its default.

Nothing here imports torch: planning and `--help` must not wait three seconds.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, make_dataclass, replace
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeAlias, TypeVar, get_type_hints

from msgspec import Meta

from meprop_bench.measure.allocator import ALLOCATORS, unavailable_reason
from meprop_bench.measure.arithmetic import TF32
from meprop_bench.measure.clock import CACHES, LAUNCHES
from meprop_bench.measure.procfs import usable_cores
from meprop_bench.methods import SPARSE
from meprop_bench.results.axis import DATA_PARALLEL, EXCHANGES, LAYERS, MODELS, OWN, PERCEPTRONS, TRANSFORMER, Axis
from meprop_bench.results.incoming import Name, Share

__all__ = [
    "AXES", "DENSE_AXES", "OWN", "TRANSFORMER", "WITHOUT_K", "Axes", "Axis", "StoredAxes", "case_name",
    "default_allocator", "default_threads", "device_name", "method_name",
]  # fmt: skip

Size: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 40, description="an integer of at least 1")]
K: TypeAlias = Size | Annotated[float, Meta(gt=0, le=1, description="a ratio in (0, 1]")]
MeanK: TypeAlias = Size | Annotated[float, Meta(gt=0, le=1e12)]
"""Of a method that decides by itself how many neurons an example trains: their mean."""
Part: TypeAlias = Annotated[float, Meta(gt=0, lt=1, description="between 0 and 1")]
Delay: TypeAlias = Annotated[float, Meta(ge=0, le=100, description="a share from 0 to 100 (0.03 is 3%)")]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 32) - 1, description="an integer of at least 0")]

Absent = TypeVar("Absent")
"""What stands for an axis that does not apply: a case has none (`Never`), a row `None`."""


@cache
def default_threads() -> int:
    """Return the physical cores this process may run on: a second thread on one adds nothing to a product."""
    import psutil

    allowed = usable_cores()
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@cache
def default_allocator() -> str:
    """Return what serves a training process best: "kept" where the C library can do it, else "default"."""
    return "default" if unavailable_reason("kept") else "kept"


def _axis(help: str, **marks: Any) -> Mapping[str, Axis]:
    """Return the metadata of a field of `Axes`."""
    return {"axis": Axis(help=help, **marks)}


@dataclass(frozen=True, kw_only=True)
class Axes(Generic[Absent]):
    """The table. Its order is that of the options, and of the columns of a report."""

    # fmt: off
    workload: Name = field(default="linear", metadata=_axis(
        "What is timed. A layer: linear, conv, lstm, gru; or a model in training: mlp, transformer, seq2seq, "
        "mesimp, meact, model.",
        required=True, sweep=("linear",), titled=True, label="{}", place=0,
    ))
    model: Name | None = field(default=None, metadata=_axis(
        "Your own model: file.py:function or package.module:function, which returns a Training; or a task, by name.",
        workloads={OWN: None}, label="{}", place=1,
    ))
    options: Name | None = field(default=None, metadata=_axis(
        "Options of the task named by --model, as for train, separated by ;: batch=256;hidden=2048.",
        workloads={OWN: None}, label="{}", place=2,
    ))
    method: Name = field(default="meprop", metadata=_axis(
        f"Sparsification: {', '.join(SPARSE)}; dense times the baseline against itself (A/A).",
        required=True, dense=False, sweep=("meprop", "unified"), label="{}", place=8,
    ))
    k: K = field(default=30, metadata=_axis(
        "Outputs that get a gradient (for a convolution: positions): an integer, or a ratio in (0, 1].",
        carried_out=MeanK, required=True, dense=False, sweep=(10, 30, 100), label="k={}", place=9,
        otherwise={"conv": (0.01, 0.05, 0.1), "seq2seq": (30,), "mesimp": (80,), "meact": (1,),
                   TRANSFORMER: (0.0625, 0.125, 0.25), OWN: (0.02, 0.05, 0.1)},
    ))
    # Of a convolution the papers' second one, 16 -> 32 maps with filters of 5 x 5, on what pooling left of an image; of
    # a recurrent layer the papers' tagger, 50 + 7 x 20 dimensions.
    out_features: Size | Absent = field(default=500, metadata=_axis(
        "Outputs of a layer, output channels of a convolution, neurons of a gate or a hidden layer, width of a "
        "transformer.",
        option="hidden", required=True, workloads=dict.fromkeys((*LAYERS, *MODELS)), usual=500, sweep=(500,),
        otherwise={"conv": (32,), TRANSFORMER: (256,)}, label="h={}", place=2,
    ))
    batch: Size | Absent = field(default=50, metadata=_axis(
        "Examples in a batch; for a transformer, windows of text.", required=True,
        workloads=dict.fromkeys((*LAYERS, *MODELS)), usual=50, label="B={}", place=7, sweep=(50,),
        otherwise={"conv": (10,), "lstm": (1, 10), "gru": (1, 10), "seq2seq": (20,), TRANSFORMER: (16,)},
    ))
    in_features: Size | Absent = field(default=500, metadata=_axis(
        "Inputs of a layer, input channels of a convolution [default: the same as --hidden].",
        required=True, workloads=dict.fromkeys((*LAYERS, *PERCEPTRONS)), label="m={}", place=2,
        otherwise={"conv": (16,), "lstm": (190,), "gru": (190,)},
    ))
    gradient: Name = field(default="dense", metadata=_axis(
        "Weight gradient: dense, or rows (a sparse tensor of the selected rows).",
        choices=("dense", "rows"), required=True, dense=False,
        workloads=dict.fromkeys(("linear", "mlp", TRANSFORMER, OWN)), label="{} gradient", place=15,
        variant="gradient {}",
    ))
    kernel: Name | Absent = field(default="auto", metadata=_axis(
        "Implementation of the method [default: auto].", stored="kernel_requested", required=True, dense=False,
        workloads=dict.fromkeys((*LAYERS, "mlp", TRANSFORMER, OWN)), label="{} kernel", place=14, variant="kernel {}",
    ))
    device: Name = field(default="cpu", metadata=_axis("cpu, cuda or cuda:N.", required=True, label="{}", place=80))
    threads: Size | Absent = field(default_factory=default_threads, metadata=_axis(
        "CPU threads of torch [default: the physical cores].", required=True,
        label="{} threads", place=81, variant="{} threads",
    ))
    dtype: Name = field(default="float32", metadata=_axis(
        "Data type: float32, float64, bfloat16, float16; on a GPU also tf32 (float32 with TF32 products).",
        choices=("float32", "float64", "bfloat16", "float16", TF32), required=True, workloads=dict.fromkeys(LAYERS),
        label="{}", place=16, variant="{}",
    ))
    allocator: Name = field(default_factory=default_allocator, metadata=_axis(
        "How the C library allocates memory: kept, huge-pages or default.", choices=tuple(ALLOCATORS),
        required=True, usual="kept", titled=True, label="{} allocator", place=17, variant="{} allocator",
    ))
    data: Name | None = field(default=None, metadata=_axis(
        "Training data of a perceptron: auto, mnist or digits; of a transformer: auto, multi30k, ud-ewt or made-up.",
        workloads=dict.fromkeys((*PERCEPTRONS, TRANSFORMER)), label="{}", place=1,
        otherwise=dict.fromkeys((*PERCEPTRONS, TRANSFORMER), ("auto",)),
    ))
    layers: Size | Absent = field(default=2, metadata=_axis(
        "Hidden layers of a perceptron; layers of the encoder and the decoder; blocks of a transformer.",
        workloads=dict.fromkeys(MODELS), otherwise={TRANSFORMER: (4,)}, label="layers={}", place=6, variant="{} layers",
    ))
    heads: Size | None = field(default=None, metadata=_axis(
        "Attention heads of a transformer; a divisor of its width.", workloads={TRANSFORMER: 4}, label="heads={}",
        place=6, variant="{} heads",
    ))
    # SparseAdam is left out: it moves only the rows it is given, which is another algorithm than Adam.
    optimizer: Name | Absent = field(default="adam", metadata=_axis(
        "Optimizer of the trained workloads: adam, adamw, sgd, adagrad; rowadam, rowadamw (Adam by rows, another "
        "algorithm than the dense side's Adam); your own model has its own.",
        choices=("adam", "adamw", "sgd", "adagrad", "rowadam", "rowadamw", "own"),
        workloads=dict.fromkeys((*MODELS, OWN)), otherwise={OWN: ("own",)}, label="{}", place=13, variant="{}",
    ))
    leave: Name | None = field(default=None, metadata=_axis(
        "Layers of a model that stay dense: patterns of their names, separated by ;.",
        workloads=dict.fromkeys((TRANSFORMER, OWN)),
        dense=False, label="without {}", place=15, variant="without {}",
    ))
    k_by_layer: Name | None = field(default=None, metadata=_axis(
        "k of some layers of a model, instead of --k: by patterns of names, as in 'blocks.0.*=0.25;*.up=0.1'.",
        workloads=dict.fromkeys((TRANSFORMER, OWN)), dense=False, label="with {}", place=9, variant="with {}",
    ))
    size: Size | None = field(default=None, metadata=_axis(
        "Height and width of a convolution's input maps.", workloads={"conv": 12}, heading="maps", cell="{} x {}",
        label="{}x{}", place=3,
    ))
    filter: Size | None = field(default=None, metadata=_axis(
        "Height and width of a convolution's filters [default: 5].", workloads={"conv": 5}, cell="{} x {}",
        label="filter={}", place=4,
    ))
    length: Size | None = field(default=None, metadata=_axis(
        "Time steps of lstm and gru; words in a sentence of seq2seq, characters in a window of a transformer.",
        workloads={"lstm": 25, "gru": 25, "seq2seq": 20, TRANSFORMER: 128}, label="T={}", place=5,
    ))
    rate: Part | None = field(default=None, metadata=_axis(
        "meSimp's p: neurons active in a smaller share of the examples are removed.",
        carried_out=Share, workloads={"mesimp": 0.1}, dense=False,
        label="p={}", place=10, variant="rate {}",
    ))
    share: Part | None = field(default=None, metadata=_axis(
        "meAct's p: share of the gradient above which a neuron is trained.", workloads={"meact": 0.004},
        dense=False, label="p={}", place=11, variant="share {}",
    ))
    slowdown: Delay | None = field(default=None, metadata=_axis(
        "With --method dense: share by which the second side is slowed down.", workloads={"linear": None},
        usual=0.0, dense=False, percent=True, cell="{}%", label="+{}%", place=12, variant="slowdown {}",
    ))
    caches: Name = field(default="warm", metadata=_axis(
        "State of the caches before each timed call: warm or cold.", choices=CACHES,
        label="{} caches", place=18, variant="{} caches",
    ))
    launch: Name = field(default="eager", metadata=_axis(
        "Launches on a GPU: eager, or graph (a layer's calls replayed as CUDA graphs).", choices=LAUNCHES,
        label="{} launch", place=19, variant="{} launch",
    ))
    compile: Name = field(default="off", metadata=_axis(
        "Both sides as they are (off), or through torch.compile (on).", choices=("off", "on"),
        label="compile={}", place=20, variant="compile {}",
    ))
    baseline: Name = field(default="same", metadata=_axis(
        "Dense side: same (as the method's, its optimizer not fused, as in the papers), fused (with torch's fused "
        "optimizer), or best (the fastest here of eager and compiled, with every optimizer that computes the same) "
        "[default: same for layers, fused for models in training, best for your own model].",
        choices=("same", "fused", "best"), otherwise={**dict.fromkeys(MODELS, ("fused",)), OWN: ("best",)},
        explicit=("fused",), label="{} baseline", place=21, variant="{} baseline",
    ))
    fused_step: Name = field(default="none", metadata=_axis(
        "Sides whose training step is one function without autograd (nn.FusedMLP): none, method (dense in torch's "
        "modules), or both.",
        choices=("none", "method", "both"), workloads={"mlp": None}, label="fused step of {}", place=22,
        variant="fused step of {}",
    ))
    world_size: Size = field(default=1, metadata=_axis(
        "Processes that train together, each on a batch of its own, with --threads each; speedup measures them.",
        workloads=dict.fromkeys(DATA_PARALLEL), label="P={}", place=82, variant="{} ranks",
    ))
    exchange: Name | None = field(default=None, metadata=_axis(
        "What processes exchange of row gradients: gathered (each one's rows), or agreed (one selection for all) "
        "[default: gathered].",
        choices=("gathered", "agreed"), workloads=dict.fromkeys(DATA_PARALLEL), dense=False,
        label="rows {}", place=83, variant="rows {}",
    ))
    dense_exchange: Name | None = field(default=None, metadata=_axis(
        "How the dense side's processes exchange: ddp (DistributedDataParallel), fp16 or bf16 (its compress hooks), "
        "powersgd, or best (the fastest here) [default: ddp].",
        choices=(*EXCHANGES, "best"), workloads=dict.fromkeys(DATA_PARALLEL),
        label="against {}", place=84, variant="against {}",
    ))
    seed: Seed | Absent = field(default=0, metadata=_axis(
        "Seed of weights, data, selections and orders; each of several makes a case [default: 0].", dense=False,
        label="seed={}", place=90,
    ))
    # fmt: on


def _axes() -> Iterator[Axis]:
    """Fill in what follows from the name and the type of each axis."""
    for name, kind in get_type_hints(Axes, include_extras=True).items():
        spec = Axes.__dataclass_fields__[name]
        own: Axis = spec.metadata["axis"]
        option = own.option or name.replace("_", "-")
        empty = {Absent, type(None)} & set(getattr(kind, "__args__", ()))
        default = None if spec.default is MISSING else spec.default
        nullable = bool(empty) and not own.stored
        yield replace(
            own,
            field=name,
            option=option,
            stored=own.stored or name,
            kind=reduce(or_, (part for part in kind.__args__ if part not in empty)) if empty else kind,
            default=default,
            optional=type(None) in empty,
            nullable=nullable,
            usual=own.usual if own.usual is not ... else None if nullable and own.workloads else default,
            heading=own.heading or option,
            label=own.label or f"{option}={{}}",
        )


AXES: Mapping[str, Axis] = {axis.option: axis for axis in _axes()}
"""Option -> axis, in the order of the table."""

DENSE_AXES = tuple(axis.field for axis in AXES.values() if axis.dense)
"""Fields that the dense side depends on: cases that are equal in these do the same dense work."""

WITHOUT_K = ("meact", "dense")
"""Methods that have no k."""

_TOGETHER = ("in_features", "threads")
"""Axes that another one says, too: the shape, and the device."""


def case_name(one: Axes[Any]) -> str:
    """Name a case, a `workloads.case.Case` or a `Row`: `linear 784→500 B=50 unified k=30 cpu:2`.

    A verdict, a line of progress and a stored result so say the same of the same thing, and two cases that differ have
    two names. What most cases have (kernel "auto", a dense gradient, float32, ...) is left out; the threads are not,
    since their usual number is another on each machine.
    """
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
    if one.method == "dense" and one.baseline == AXES["baseline"].default:  # nothing else stands beside it
        del words["baseline"]
    words["device"] = device_name(one)
    return " ".join(filter(None, words.values()))


def method_name(one: Axes[Any], only: Container[str] | None = None) -> str:
    """Name what the sparse side alone depends on, `unified k=0.05 rows gradient`; `only`: of axes with these options.

    Method and k are always named.
    """
    always = {"method"} if one.method in WITHOUT_K else {"method", "k"}
    own = sorted((axis for axis in AXES.values() if not axis.dense), key=lambda axis: axis.place)
    chosen = (
        axis for axis in own if axis.option in always or (axis.option != "k" and (only is None or axis.option in only))
    )
    return " ".join(filter(None, (axis.said(one) for axis in chosen)))


def device_name(one: Axes[Any]) -> str:
    """Return the device with its threads, `cpu:2`; a GPU has its number alone."""
    return f"cpu:{one.threads}" if one.device == "cpu" and one.threads else one.device


if TYPE_CHECKING:

    @dataclass(frozen=True, kw_only=True)
    class StoredAxes(Axes[None]):
        """The axes as a row has them."""

        case_id: str
        kernel_requested: str

else:

    def _stored(axis: Axis) -> tuple[Any, ...]:
        """Return a row's field; rows from before have null there, or what it was when nobody could choose."""
        null = axis.nullable or (axis.default is None and not axis.required)
        kind = axis.carried_out or axis.kind
        return (
            axis.stored,
            kind | None if null else kind,
            field() if axis.required else field(default=None if null else axis.default),
        )

    StoredAxes = make_dataclass(
        "StoredAxes", [("case_id", Name), *map(_stored, AXES.values())], frozen=True, kw_only=True
    )
