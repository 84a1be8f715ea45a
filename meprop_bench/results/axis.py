"""What the package knows of one axis: how its value is typed, checked, named and shown. The table is `results.axes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meprop_bench.errors import one_of
from meprop_bench.results.incoming import conforming, parts

__all__ = ["DATA_PARALLEL", "EXCHANGES", "LAYERS", "MODELS", "OWN", "PERCEPTRONS", "TRANSFORMER", "Axis"]

LAYERS = ("linear", "conv", "lstm", "gru")
PERCEPTRONS = ("mlp", "mesimp", "meact")
TRANSFORMER = "transformer"
MODELS = (*PERCEPTRONS, "seq2seq", TRANSFORMER)
OWN = "model"
"""The workload that any model is timed by: a user's own, or that of a task."""
DATA_PARALLEL = ("mlp", TRANSFORMER)
"""Workloads that several processes can train together."""
EXCHANGES = {
    "ddp": "DDP",
    "fp16": "DDP with fp16_compress_hook",
    "bf16": "DDP with bf16_compress_hook",
    "powersgd": "DDP with PowerSGD",
}
"""How processes exchange dense gradients -> how a row says it."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What the package knows of an axis. Templates are filled with a value's `text`, those of asv with the value."""

    help: str  # in the options and in the reference
    option: str = ""  # as options and presets spell it; the field with hyphens unless said otherwise
    stored: str = ""  # field of a row, where that is not the case's
    carried_out: Any = None  # type of the value in a row, where that may be another: one of `parity`, say
    required: bool = False  # every stored row has it, as it has been there from the first version on
    choices: tuple[str, ...] = ()  # all that is allowed, of an axis of words
    workloads: Mapping[str, Any] | None = None  # that have it (None: all) -> own default (None: the usual one)
    sweep: tuple[Any, ...] = ()  # what `speedup` measures if nothing is said
    otherwise: Mapping[str, tuple[Any, ...]] | None = None  # workload -> the same, where it is not `sweep`
    usual: Any = ...  # needs no word, where that is not the default
    explicit: tuple[Any, ...] = ()  # is said even where it is usual, as the same without a word meant something else
    dense: bool = True  # the dense side's time depends on it; not if it is the sparse side's alone, or draws numbers
    heading: str = ""  # of its column; its option unless said otherwise
    titled: bool = False  # titles say it, and no column
    cell: str = "{}"  # how a table shows a value
    label: str = ""  # how the name of a case says a value that is not usual; by the option unless said otherwise
    place: int = 50  # of the label in the name
    variant: str = ""  # how that parameter of asv says it; by the field, behind the others, unless said otherwise
    percent: bool = False  # a value is shown in percent
    # These follow from the field.
    field: str = ""
    kind: Any = None  # type of a value, with its bounds
    default: Any = None  # None where the machine says, or the workload
    optional: bool = False  # a case may be without it
    nullable: bool = False  # so may a row, as where its workload lacks it

    @property
    def bases(self) -> tuple[Callable[[str], Any], ...]:
        """Python's types of a value, in the order in which a word is tried for them."""
        return tuple(base for base, _ in parts(self.kind))

    @property
    def words(self) -> bool:
        """Whether its column holds words, which begin at the left."""
        return str in self.bases or self.cell.count("{") > 1

    @property
    def came_later(self) -> bool:
        """Whether rows from before were what it is by default, as nobody could choose."""
        return not (self.required or self.nullable or self.default is None)

    def of(self, workload: str) -> bool:
        """Whether a workload has it; of one that is not known here, too."""
        return self.workloads is None or workload in self.workloads or workload not in (*LAYERS, *MODELS, OWN)

    def swept(self, workload: str) -> tuple[Any, ...]:
        """Return what `speedup` measures of a workload if nothing is said."""
        return (self.otherwise or {}).get(workload, self.sweep)

    def usual_in(self, workload: str, otherwise: Any = ...) -> Any:
        """Return the default that a workload has of its own, or else `otherwise` (what needs no word anywhere)."""
        own = (self.workloads or {}).get(workload)
        return own if own is not None else self.usual if otherwise is ... else otherwise

    def needs_no_word(self, value: Any, workload: str, usual: tuple[Any, ...]) -> bool:
        """Whether a value is the one that a workload has if nothing is said, or else one of these."""
        if value in self.explicit:
            return False
        own = () if self.sweep else self.swept(workload)
        return value in (own if len(own) == 1 and own[0] not in self.explicit else usual)

    def read(self, word: str) -> Any:
        """Return the value of a word that a user typed; `UserError` for one that is none."""
        for base in self.bases:
            try:
                return base(word)
            except ValueError:
                continue
        return conforming(self.option, word, self.kind)

    def check(self, value: object) -> None:
        """Raise `UserError` for a value that is not allowed."""
        if value is None and self.optional:
            return
        if self.choices:
            one_of(self.option, value, self.choices)
        conforming(self.option, value, self.kind)

    def text(self, value: Any) -> str:
        """Return a value as it is shown."""
        if isinstance(value, str):
            return value
        return number(100 * value if self.percent else value)

    def said(self, one: Any, *, always: bool = False) -> str:
        """Return how the name of a case, or of a row, says it; nothing where it is as usual."""
        value, always = getattr(one, self.stored), always or bool(self.sweep)
        if value is None or not self.of(one.workload):
            return ""
        if not always and self.needs_no_word(value, one.workload, (self.default, self.usual)):
            return ""
        text = self.text(value)
        return self.label.format(*(text,) * self.label.count("{"))


def number(value: float) -> str:
    """Return a number as short as it can be without being another's."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if float(text) == value else f"{value:.12g}"
