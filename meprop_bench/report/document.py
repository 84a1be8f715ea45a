"""What a report is about: the rows of a results folder and where they come from, read once, printed in any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from meprop_bench.measure.machine import was_busy
from meprop_bench.measure.notes import Note
from meprop_bench.report.baselines import disagreement, with_disagreements
from meprop_bench.report.cells import memory, quantity
from meprop_bench.report.floors import saving_sections
from meprop_bench.report.identical import identical_section, identical_summary
from meprop_bench.report.sections import Section, parity_section, sections, summary
from meprop_bench.report.utilization import utilization_section
from meprop_bench.results.schema import Row, as_object
from meprop_bench.results.store import Store
from meprop_bench.results.suite_file import read_suite_file

if TYPE_CHECKING:
    from meprop_bench.report.plots import Plot

__all__ = ["HOW_TO_READ", "Document", "Readable", "doubts"]

HOW_TO_READ = (
    "Speed-up is dense time divided by sparse time. The two were timed side by side, in pairs of random order and in"
    " several fresh processes; the brackets hold its 95% interval over the processes.",
    "A tilde (~) marks an interval wider than the target: the budget was spent first. Not significant: not told apart"
    " from 1 at the 5% level when all speed-ups of the report are judged at once (Holm's correction), so that an"
    " interval may miss 1 by a little. A case that failed its correctness check has no speed-up.",
    "Cannot tell: the interval reaches beyond half or twice the figure. Do not believe: the dense time differs by more"
    " than a quarter from another case's for the same dense work.",
    "The geometric mean is over the cases named, which were chosen: its interval says how well they are measured, not"
    " what others would give.",
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
    def doubts(self) -> Sequence[str]:
        """Why it is not to be believed, before anything else; empty where nothing speaks against it."""

    @property
    def summary(self) -> list[str]:
        """The result in a few sentences."""

    @property
    def sections(self) -> list[Section]:
        """The tables."""

    @property
    def notes(self) -> Sequence[str]:
        """What was noticed while it was read."""

    @property
    def hints(self) -> Sequence[str]:
        """How to read it, where there is little room."""


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", with_disagreements(self.rows))

    @classmethod
    def of(cls, store: Store) -> Self:
        """Take what an open store holds now."""
        head = store.header
        return cls(
            title=store.folder.resolve().name,
            command=head["command"],
            started=head["started"],
            rows=store.rows(),
            environments=head["environments"],
            peaks=head["peaks"],
            notes=(
                *store.notes,
                *_missing(store.rows(), head["plan"]),
                *_revisions(store.rows(), head["environments"]),
            ),
            states=_states(head),
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a results folder, or a JSON file of the pytest-benchmark suite.

        Raises `UserError` if there is none or it is corrupt.
        """
        if folder.is_file():
            found = read_suite_file(folder)
            return cls(folder.name, found.command, found.started, found.rows, found.environments)
        return cls.of(Store.open(folder))

    @classmethod
    def joined(cls, documents: Sequence[Self]) -> Self:
        """Several documents as one, rows of each in turn; a single one stays what it is."""
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
    def summary(self) -> list[str]:
        """The result in a few sentences."""
        return [*summary(self.rows), *identical_summary(self.rows)]

    @property
    def hints(self) -> Sequence[str]:
        """What a tilde and a mean are."""
        return HOW_TO_READ[1:4]

    @cached_property
    def sections(self) -> list[Section]:
        """The tables: times, A/A, what was to be expected of them, what the machine did meanwhile, accuracy."""
        others = (
            identical_section(self.rows),
            *saving_sections(self.rows, self.peaks),
            utilization_section(self.rows),
            parity_section(self.rows),
        )
        return [*sections(self.rows), *(section for section in others if section is not None)]

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
        return as_object(self.command, self.environments, self.rows, **doubts)


def _states(head: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the machine's states of a header; those of an older run may be none."""
    found = head.get("states")
    return [state for state in found if isinstance(state, Mapping)] if isinstance(found, list) else []


def doubts(states: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """Return why figures are not to be believed, a line each: the machine was busy, equal dense times disagree.

    Args:
        states: the machine's, as recorded.
        rows: as `with_disagreements` gives them.

    """
    notes: dict[str, list[Note]] = {}
    for row in rows:
        notes.setdefault(row.case_id, []).extend(row.notes)
    return [line for line in (was_busy(states, notes), disagreement(rows)) if line]


def _missing(rows: Sequence[Row], plan: Mapping[str, Any]) -> list[str]:
    """Say when cases of the plan have no row, as after an interrupt or a deadline."""
    planned, found = len(plan.get("cases", ())), len({row.case_id for row in rows})
    return (
        [f"{planned - found} of {planned} cases are not measured: the run ended before them"] if found < planned else []
    )


def _revisions(rows: Sequence[Row], environments: Mapping[str, Any]) -> list[str]:
    """Say when the rows are of more than one revision of the code: a run that was resumed, or told of new commits."""
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
