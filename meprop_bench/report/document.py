"""What a report is about: the rows of a results folder and where they come from, read once, printed in any format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain
from operator import attrgetter
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any, Protocol, Self

from meprop_bench.errors import UserError
from meprop_bench.report.cells import SHAPE, Cell, k_of, left_alone, memory, parity, quantity, shape
from meprop_bench.report.findings import Finding, findings, plain
from meprop_bench.report.identical import identical_section, identical_summary
from meprop_bench.report.machine import saving_sections, utilization_section
from meprop_bench.report.quality import Quality
from meprop_bench.report.reliability import common, doubts, legend, with_disagreements
from meprop_bench.report.sections import WORDS, Section, distinct_rows, sections
from meprop_bench.results.incoming import parsed, refused
from meprop_bench.results.redact import one_line, printable
from meprop_bench.results.schema import FIGURES, Parity, Row, Utilization, as_object
from meprop_bench.results.store import Store, folder_of, sound_row
from meprop_bench.stats import CANNOT_TELL

if TYPE_CHECKING:
    from meprop_bench.report.plots import Plot

__all__ = ["HOW_TO_READ", "NESTED", "Document", "Page", "Readable", "parity_section"]

_WORDS = {
    " ~": "A tilde (~) marks an interval wider than the target: the budget was spent first.",
    "not significant": "Not significant: not told apart from 1 at the 5% level when all speed-ups of the report are"
    " judged at once (Holm's correction), so that an interval may miss 1 by a little.",
    CANNOT_TELL: "Cannot tell: the interval reaches beyond half or twice the figure.",
    "do not believe": "Do not believe: the dense time differs by more than a quarter from another case's for the same"
    " dense work.",
    "no interval": "No interval: there was a single process.",
    "geometric mean": "The geometric mean is over the cases named, which were chosen: its interval says how well they"
    " are measured, not what others would give.",
}
"""What marks and words of a report mean, each said where it occurs."""

_BARS = "The bars over k are of the logarithm of the speed-up, from 1.00x, the shortest, to the highest of the table."
_ON_THE_WAY = "Below are the times that the search measured on the way; README.md has the accuracies that it compared."
_UNCHANGED = "A forward pass that the method leaves as it is has its time, and no verdict."

HOW_TO_READ = (
    "Speed-up is dense time divided by sparse time. The two were timed side by side, in pairs of random order and in"
    " several fresh processes; the brackets hold its 95% interval over the processes.",
    "A case that failed its correctness check has no speed-up.",
    *_WORDS.values(),
    _UNCHANGED,
    _BARS,
    "Dense and sparse are medians of one iteration of the phase. Efficiency is the floor divided by the sparse median;"
    " the floor is the least time that this machine's measured arithmetic rate and memory bandwidth allow.",
    "Peak memory is what the phase allocates on top of what it starts with, dense → sparse.",
)


class Readable(Protocol):
    """What the table and Markdown print: a `Document`, or a comparison of two."""

    @property
    def title(self) -> str:
        """What it is called."""

    @property
    def command(self) -> str:
        """What made it."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What was found, the verdicts first; before them why they are not to be believed, if anything says so."""

    @property
    def sections(self) -> list[Section]:
        """The tables."""

    @property
    def notes(self) -> Sequence[str]:
        """What was noticed while it was read."""

    @property
    def hints(self) -> Sequence[str]:
        """What the marks mean that occur in it."""


class Page(Readable, Protocol):
    """What a page of HTML shows: a `Document`, a comparison, or a list of results."""

    @property
    def started(self) -> str:
        """When it was measured, ISO 8601."""

    @property
    def how_to_read(self) -> Sequence[str]:
        """What its words mean."""

    @property
    def facts(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Titled lists of name and value."""


@dataclass(frozen=True)
class Document:
    """One results folder, ready to be printed."""

    title: str  # the folder's name
    command: str  # what made the results
    started: str  # when, ISO 8601
    rows: Sequence[Row]  # in the order of their measurement, marked where their dense times disagree
    environments: Mapping[str, Any] = field(default_factory=dict)  # what each environment id stands for
    peaks: Mapping[str, Any] = field(default_factory=dict)  # the machine's measured peaks, which the floors come from
    notes: Sequence[str] = ()  # what was noticed while the results were read
    states: Sequence[Mapping[str, Any]] = ()  # the machine's, each time that the run was begun
    question: str = ""  # what was to be found out, in words; the command, where nobody said
    answer: str = ""  # what a search found: its rows are what it timed on the way

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", with_disagreements(self.rows))

    @classmethod
    def of(cls, store: Store) -> Self:
        """Take what an open store holds now."""
        head, rows = store.header, store.rows()
        return cls(
            title=store.folder.resolve().name,
            command=head["command"],
            started=head["started"],
            rows=rows,
            environments=head["environments"],
            peaks=head["peaks"],
            notes=(
                *store.notes,
                *_shard(head),
                *_missing(rows, head),
                *_revisions(rows, head["environments"]),
            ),
            states=_states(head),
            question=_question(head),
            answer=head.get("answer") or "",
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a results folder, or a JSON file of the pytest-benchmark suite.

        Raises `UserError` if there is none or it is corrupt.
        """
        if (folder := folder_of(folder)).is_file():
            return cls._of_suite(folder)
        return cls.of(Store.open(folder))

    @classmethod
    def _of_suite(cls, path: Path) -> Self:
        """Read a file of `--benchmark-json` or `--benchmark-save` that this project's suite wrote.

            {"benchmarks": [{"extra_info": {"row": {...}, ...}, ...}, ...], "environments": {...}, "command": ..., ...}

        pytest-benchmark has medians and rounds of its own; a row has the pairs, the processes and the check beside
        them, so the rows are what a report is made from. A file of another project has none.
        """
        try:
            record = parsed(path.read_bytes())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None
        except ValueError as error:
            raise refused(str(path), error, "run the suite again") from None
        benchmarks = record.get("benchmarks") if isinstance(record, dict) else None
        if not isinstance(benchmarks, list):
            raise UserError(f"{path} is neither a results folder nor a file of pytest-benchmark's --benchmark-json")
        environments = record.get("environments")
        return cls(
            title=path.name,
            command=one_line(str(record.get("command") or "pytest --benchmark-json"), 2000),
            started=one_line(str(record.get("datetime") or "an unknown time"), 40),
            rows=[_suite_row(each, f"benchmark {place} of {path}") for place, each in enumerate(benchmarks, 1)],
            environments=printable(environments) if isinstance(environments, dict) else {},
        )

    @classmethod
    def joined(cls, documents: Sequence[Self]) -> Self:
        """Several documents as one, their rows one after another; a single one stays what it is."""
        if len(documents) == 1:
            return documents[0]
        return cls(
            title=" and ".join(document.title for document in documents),
            command="; ".join(document.command for document in documents),
            started=", ".join(document.started for document in documents),
            rows=[row for document in documents for row in document.rows],
            environments={key: env for document in documents for key, env in document.environments.items()},
            peaks={document.title: document.peaks for document in documents if document.peaks},
            notes=[f"{document.title}: {note}" for document in documents for note in document.notes],
            states=[state for document in documents for state in document.states],
        )

    @cached_property
    def doubts(self) -> list[str]:
        """A busy machine, and dense times that disagree."""
        return doubts(self.states, self.rows)

    @cached_property
    def distinct(self) -> frozenset[int]:
        """Identities of the rows whose speed-up differs from 1, all of them judged at once."""
        return distinct_rows(self.rows)

    @cached_property
    def findings(self) -> Sequence[Finding]:
        """What was found, what speaks against it first."""
        if self.answer:
            return [*plain(self.doubts, ()), Finding(self.answer, "answer"), Finding(_ON_THE_WAY)]
        found = findings(self.rows, self.distinct)
        return [
            *plain(self.doubts, ()),
            *found,
            *(Finding(text, "instrument") for text in identical_summary(self.rows)),
        ]

    @property
    def outcome(self) -> str:
        """What came of it, in a sentence or two."""
        verdicts = [found.text for found in self.findings if found.kind not in ("doubt", "remark")]
        return " ".join((verdicts or self.summary)[:2])

    @property
    def summary(self) -> list[str]:
        """The findings in words, without the doubts."""
        return [found.text for found in self.findings if found.kind != "doubt"]

    @cached_property
    def hints(self) -> Sequence[str]:
        """What the marks and words mean that occur, and the notes that all rows have."""
        texts = {cell.text for section in self.sections for group in section.groups for line in group for cell in line}
        said = "\n".join([*texts, *self.summary])
        marks = legend(self.rows)
        known = " ~" if any(note.kind == "budget" for row in self.rows for note in row.notes) else ""  # has its figure
        words = [meaning for word, meaning in _WORDS.items() if word in said and word != known]
        words += [_UNCHANGED] * any(map(left_alone, self.rows)) + [_BARS] * any(
            section.trends for section in self.sections
        )
        left = [self.left_out] if self.left_out else []
        return [*words, *marks, *(f"All rows: {text}" for text in self._common), *left]

    @cached_property
    def _common(self) -> list[str]:
        return common(self.rows)

    @cached_property
    def sections(self) -> list[Section]:
        """The tables: its own, times, and what stands beside them."""
        return [*self.own, *sections(self.rows, self.distinct, self._common), *self.beside]

    @property
    def own(self) -> list[Section]:
        """Tables that are not made of rows."""
        return []

    @cached_property
    def beside(self) -> list[Section]:
        """What belongs to the rows: A/A, what was to be expected, what the machine did meanwhile, accuracy."""
        made: dict[str, Callable[[], list[Section | None]]] = {
            "savings": lambda: [*saving_sections(self.rows, self.peaks)],
            "utilisation": lambda: [utilization_section(self.rows)],
            "accuracy": lambda: [parity_section(self.rows)],
        }
        others = [section for name, make in made.items() if name not in self._crowded for section in make()]
        return [section for section in (identical_section(self.rows), *others) if section is not None]

    @cached_property
    def _crowded(self) -> tuple[str, ...]:
        """What would have more lines beside the rows than anybody reads."""
        counts = {
            "savings": len(self.rows),
            "utilisation": sum(row.sparse.utilization is not None for row in self.rows),
            "accuracy": sum(row.parity is not None for row in self.rows),
        }
        return tuple(name for name, count in counts.items() if count > MOST_BESIDE)

    @property
    def left_out(self) -> str:
        """Say what does not stand beside the rows, "" where nothing is missing."""
        if not self._crowded:
            return ""
        what = " and ".join(filter(None, (", ".join(self._crowded[:-1]), self._crowded[-1])))
        return f"Of so many rows {what}, a line for each, are not shown: --format csv has them."

    def curves(self) -> list[Plot]:
        """Draw what a written report shows besides its rows; needs matplotlib (ImportError)."""
        return []

    @property
    def facts(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Environments and peaks as titled lists of name and value."""
        found = [(f"Environment {key}", list(_flat(value))) for key, value in self.environments.items()]
        if self.peaks:
            found.append(("Measured peaks", list(_flat(self.peaks))))
        return found

    @property
    def how_to_read(self) -> tuple[str, ...]:
        """What the tables' words and marks mean."""
        return HOW_TO_READ

    @property
    def again(self) -> str:
        """The command that makes the page again."""
        return f"meprop-bench report {self.title}"

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--format json` prints; `environment` maps each row's environment id to what it is."""
        doubts = {"doubts": self.doubts} if self.doubts else {}
        found = [finding.to_json() for finding in self.findings]
        return as_object(self.command, self.environments, self.rows, findings=found, **doubts)

    def lines(self) -> Iterator[list[Any]]:
        """Give the lines of a CSV file, the head first: each field but raw values and lists, nested ones apart."""
        apart = {name: [spec.name for spec in fields(kind)] for name, kind in NESTED.items()}
        yield [*FIGURES, *(f"{name}_{part}" for name, parts in apart.items() for part in parts)]
        nothing = {name: (None,) * len(parts) for name, parts in apart.items()}
        nothing_at_all = [None] * sum(map(len, apart.values()))
        parts_of = {name: attrgetter(*parts) for name, parts in apart.items()}
        for row in self.rows:
            found = (row.parity, row.sparse.utilization, row.dense.utilization)
            if found == _NOTHING:
                yield row.figures() + nothing_at_all
                continue
            nested = zip(apart, found, strict=True)
            parts = (nothing[name] if one is None else parts_of[name](one) for name, one in nested)
            yield [*row.figures(), *chain.from_iterable(parts)]


MOST_BESIDE = 2_000
"""Rows up to which what belongs to each of them stands in tables of its own."""

NESTED: Mapping[str, type] = {"parity": Parity, "utilization": Utilization, "baseline_utilization": Utilization}
"""Structures in a row, each field of which is a column."""
_NOTHING = (None,) * len(NESTED)


def _suite_row(benchmark: Any, where: str) -> Row:
    extra = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
    row = extra.get("row") if isinstance(extra, dict) else None
    if not isinstance(row, dict):
        raise UserError(f"{where} is not of this project's suite: it has no row in its extra_info")
    return sound_row(row, where, f"{where} holds no sound row")


def _question(head: Mapping[str, Any]) -> str:
    """Return the first sentence of what a sweep says it is for, or else the command."""
    analysis = head["plan"].get("analysis")
    first = re.split(r"(?<=[.?!])\s", analysis.strip(), maxsplit=1)[0] if isinstance(analysis, str) else ""
    return one_line(first or head["command"])


def _states(head: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the machine's states of a header; those of an older run may be none."""
    found = head.get("states")
    return [state for state in found if isinstance(state, Mapping)] if isinstance(found, list) else []


def _shard(head: Mapping[str, Any]) -> list[str]:
    """Say when it is a part of a run."""
    if (shard := head.get("shard")) is None:
        return []
    return [f"shard {shard.get('index')}/{shard.get('of')} of a run: `meprop-bench merge` puts the shards together"]


def _missing(rows: Sequence[Row], head: Mapping[str, Any]) -> list[str]:
    """Say when cases of the plan have no row, as after an interrupt or a deadline."""
    plan, shard = head["plan"], head.get("shard")
    if shard is not None and shard.get("plan") == plan:  # the plan of all shards: which ones are missing, merging says
        return []
    planned, found = len(plan.get("cases", ())), len({row.case_id for row in rows})
    return (
        [f"{planned - found} of {planned} cases are not measured: the run ended before them"] if found < planned else []
    )


def _revisions(rows: Sequence[Row], environments: Mapping[str, Any]) -> list[str]:
    """Say when the rows are of more than one revision of the code: a run that was resumed, or saw new commits."""
    of = {key: environment.get("git_revision") for key, environment in environments.items()}
    found = dict.fromkeys(row.git_revision or of.get(row.environment_id) for row in rows)
    revisions = [revision for revision in found if revision is not None]
    if len(revisions) < 2:
        return []
    return [f"the rows were measured at {len(revisions)} revisions of the code: {', '.join(revisions)}"]


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested JSON as pairs of a dotted name and a readable value; a list of pairs is a curve over sizes in bytes."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, list | tuple) and len(item) == 2 for item in value):
            yield name, ", ".join(f"{memory(size)}: {quantity(rate)}" for size, rate in value)
        else:
            yield name, ", ".join(str(item) for item in value)
    elif isinstance(value, float):
        yield name, quantity(value)
    else:
        yield name, "none" if value is None else str(value)


_METRICS = {"accuracy_percent": "development-set accuracy"}
"""`Parity.metric` in words, where it is not words already."""


def parity_section(rows: Iterable[Row]) -> Section | None:
    """Return the accuracy against dense, one line per case that was trained on both sides; None if none was."""
    trained = [(row, row.parity) for row in rows if row.parity is not None]
    if not trained:
        return None
    lines = [
        {
            "method": Cell(row.method),
            "k": Cell(k_of(row)),
            SHAPE: Cell(shape(row)),
            "task": Cell(found.task),
            "seeds": Cell(str(len(found.seeds))),
            "steps": Cell(str(found.steps)),
            "dense": Cell(Quality.of(found).figure(mean(found.baseline))),
            "sparse": Cell(Quality.of(found).figure(mean(found.method))),
            "difference": Cell(Quality.of(found).within(found.interval)),
            "margin": Cell(f"{found.margin:.4g}"),
            "verdict": Cell(found.verdict, parity(row).tone),
        }
        for row, found in trained
    ]
    every = [found for _, found in trained]
    metrics = [_metrics(every, percent=True), _metrics(every, percent=False)]
    remark = (
        "Dense and sparse were trained from the same seeds on the same batches; the difference is sparse minus dense in"
        f" {' or '.join(filter(None, metrics))}, with its 95% interval over the seeds. Trainings of a sweep are short"
        " ones, not a paper's table. Pass: the interval lies above minus the margin; fail: below it; inconclusive: it"
        " holds it."
    )
    groups = (tuple(tuple(line.values()) for line in lines),)
    return Section(
        title=f"{_measure(every)} against dense",
        columns=tuple(lines[0]),
        groups=groups,
        remark=remark,
        left=WORDS,
        keys=frozenset({"method", "k", SHAPE, "task"}),
        drop=("steps", "dense", "sparse"),
    )


def _metrics(every: Iterable[Parity], *, percent: bool) -> str:
    """Return what differences are in: points of percentages, or the unit of other figures."""
    found = dict.fromkeys(_METRICS.get(one.metric, one.metric) for one in every if one.percent == percent)
    return f"{'points of ' * percent}{' or '.join(found)}" if found else ""


def _measure(every: Iterable[Parity]) -> str:
    """Return what is compared, in a word."""
    return "Accuracy" if all(one.percent for one in every) else "Quality"
