"""The page of all results below a folder: what each asked, when, on which machine, what came of it, and where it is.

    reports/
        <date>_<machine>_<name>/     results folders, at two levels: a report of several runs is a folder of some
        index.toml                   what nobody can tell from a result: a heading, and questions in somebody's words
        README.md, index.html        this page, for a code host and for a browser
        trends.html                  the same cases over commits and machines (`report.trends`)

A result that cannot be read (damaged, or of another version's schema) has its line, with the reason in place of the
verdict: it neither vanishes nor keeps the others from being shown. Folders are read one after another, and no rows are
held: of each there is a `ListedResult`, and the points of its cases in trends.

The newest come first, and the page is bounded: what is beyond `MOST` lines is counted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import msgspec

from meprop_bench.errors import UserError
from meprop_bench.optional import unavailable_reason
from meprop_bench.report.cells import ABSENT, Cell, Tone, counted
from meprop_bench.report.document import Document
from meprop_bench.report.findings import Finding, plain
from meprop_bench.report.formats import missing_parts
from meprop_bench.report.markdown import escaped, table
from meprop_bench.report.page import as_html
from meprop_bench.report.sections import Section
from meprop_bench.report.trends import Trends, machine_name
from meprop_bench.results.baselines import FOLDER, Baseline, Baselines
from meprop_bench.results.incoming import checked
from meprop_bench.results.redact import one_line
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, replace_file

__all__ = [
    "MOST", "NOTES", "Index", "ListedResult", "Notes", "as_page", "baselines_of", "notes_of", "results_below",
    "write_index",
]  # fmt: skip

MOST = 2000
"""Lines of the page."""

NOTES = "index.toml"
_LONGEST = 600
"""Characters of a question, or of a verdict."""
_COLUMNS = ("date", "result", "question", "machine", "verdict")
TRENDS = "trends.html"
_TRENDS, _ALL = "The same cases over commits and machines", "All results"
_MADE_BY = "Made by `meprop-bench report --index`; what is written by hand is in `index.toml`."


class Notes(msgspec.Struct, forbid_unknown_fields=True):
    """What a person says of the results in a folder: the keys of `index.toml`."""

    title: str = "Reports"
    about: str = ""  # paragraphs of Markdown above the tables
    question: dict[str, str] = msgspec.field(default_factory=dict)  # name of a results folder -> what it asked


@dataclass(frozen=True)
class ListedResult:
    """One result, as the page shows it."""

    place: str  # of its folder, relative to the page, with slashes
    started: str  # ISO 8601; empty where that is not known
    kind: str  # heading of its table
    question: str
    machines: tuple[str, ...]
    verdict: str
    doubts: tuple[str, ...] = ()  # why it is not to be believed
    broken: bool = False  # whether it cannot be read: the verdict says why
    paged: bool = False  # whether there is an index.html in its folder

    @classmethod
    def of(cls, place: str, document: Document, *, kind: str, question: str = "", paged: bool = False) -> ListedResult:
        """Take what the page says of a result."""
        return cls(
            place=place,
            started=document.started,
            kind=kind,
            question=one_line(question or document.question, _LONGEST),
            machines=tuple(dict.fromkeys(map(machine_name, document.environments.values()))),
            verdict=one_line(document.outcome, _LONGEST),
            doubts=tuple(document.doubts),
            paged=paged,
        )

    @classmethod
    def unread(cls, place: str, error: UserError, *, kind: str, question: str = "") -> ListedResult:
        """Return the line of a result that cannot be read."""
        date = Path(place).name.partition("_")[0]
        return cls(place, date, kind, one_line(question, _LONGEST), (), one_line(str(error), _LONGEST), broken=True)

    def link(self, *, browsed: bool) -> str:
        """Where it is, as an address: for a code host its README.md, for a browser its page where there is one."""
        return quote(f"{self.place}/{'index.html' if browsed and self.paged else 'README.md'}")

    def cells(self, *, browsed: bool = False) -> tuple[Cell, ...]:
        """Return its line."""
        name = self.place.rpartition("/")[2]
        verdict = " ".join((*self.doubts, self.verdict))
        tone: Tone = "bad" if self.broken or self.doubts else ""
        return (
            Cell(self.started[:10] or ABSENT),
            Cell(name, link=self.link(browsed=browsed)),
            Cell(self.question or ABSENT),
            Cell("; ".join(self.machines) or ABSENT),
            Cell(f"cannot be read: {self.verdict}" if self.broken else verdict or ABSENT, tone),
        )


@dataclass(frozen=True)
class Index:
    """All of them, ready to be printed (`report.document.Readable`)."""

    entries: Sequence[ListedResult]
    command: str
    notes_by_hand: Notes = field(default_factory=Notes)
    steps: Sequence[str] = ()  # what moved, in words (`report.trends`)
    baselines: Sequence[Baseline] = ()  # what later results are compared with, by name
    wrong: Sequence[UserError] = ()  # what cannot be read of these
    browsed: bool = False  # whether its links are for a browser

    @property
    def title(self) -> str:
        """Its heading."""
        return self.notes_by_hand.title

    @property
    def started(self) -> str:
        """When the latest of them was begun."""
        return max((entry.started for entry in self.entries if not entry.broken), default="")

    @property
    def doubts(self) -> list[str]:
        """Results that cannot be read."""
        broken = sum(entry.broken for entry in self.entries)
        lines = [f"{broken} of {len(self.entries)} results cannot be read."] if broken else []
        return [*lines, *(f"A baseline cannot be read: {one_line(str(error), _LONGEST)}" for error in self.wrong)]

    @property
    def summary(self) -> list[str]:
        """How many there are, and what moved."""
        machines = dict.fromkeys(machine for entry in self.entries for machine in entry.machines)
        first = f"{counted(len(self.entries), 'result')} of {counted(len(machines), 'machine')}."
        return [first, *self.steps]

    @property
    def findings(self) -> Sequence[Finding]:
        """The same, what cannot be read first."""
        return plain(self.doubts, self.summary)

    @property
    def sections(self) -> list[Section]:
        """A table for each kind, the newest result first."""
        ordered = sorted(self.entries, key=lambda entry: (entry.started, entry.place), reverse=True)
        shown, more = ordered[:MOST], len(ordered) - MOST
        found = []
        for kind in dict.fromkeys(entry.kind for entry in self.entries):
            lines = tuple(entry.cells(browsed=self.browsed) for entry in shown if entry.kind == kind)
            if lines:
                found.append(Section(kind, _COLUMNS, (lines,), left=frozenset(_COLUMNS)))
        if more > 0 and found:
            last = found[-1]
            footnote = f"{more} older results are not listed: they are in the folder."
            found[-1] = Section(last.title, last.columns, last.groups, footnotes=(footnote,), left=last.left)
        return [*found, *_named(self.baselines)]

    @property
    def notes(self) -> Sequence[str]:
        """None: all that was noticed has a line."""
        return ()

    @property
    def hints(self) -> Sequence[str]:
        """How to read it."""
        return (
            "A verdict is that of the result's own page: its figures are of the machine that is named.",
            "What moved is a step in the history of one case on one machine; its page says by how much, and when.",
        )

    @property
    def how_to_read(self) -> Sequence[str]:
        """The same."""
        return self.hints

    @property
    def facts(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """It has none: each result has its own."""
        return []


def _named(baselines: Sequence[Baseline]) -> list[Section]:
    """Return the table of named baselines, none where there are none."""
    columns = ("name", "saved", "of", "machine", "digest")
    lines = tuple(
        tuple(map(Cell, (one.name, f"{one.saved:%Y-%m-%d}", one.source, one.machine, one.digest))) for one in baselines
    )
    return [Section("Named baselines", columns, (lines,), left=frozenset(columns))] if lines else []


def write_index(root: Path, index: Index, trends: Trends) -> list[Path]:
    """Write README.md of a folder, and the pages where what they need is installed; return the paths (`UserError`)."""
    contents = {}
    if unavailable_reason("jinja2") is None:
        pictures = trends.drawn() if unavailable_reason("matplotlib") is None else []
        contents["index.html"] = as_html(
            replace(index, browsed=True),
            [],
            missing_parts(),
            about=index.notes_by_hand.about,
            links=[(TRENDS, _TRENDS)],
        )
        contents[TRENDS] = as_html(trends, pictures, missing_parts(), links=[("index.html", _ALL)])
    contents["README.md"] = as_page(index, trends=TRENDS in contents)
    for name, content in contents.items():
        replace_file(root / name, content)
    return [root / name for name in contents]


def as_page(index: Index, *, trends: bool) -> str:
    """Return it as the README.md of the folder, with or without a link to the page of trends."""
    link = f"[{_TRENDS}]({TRENDS})." if trends else ""
    parts = [
        f"# {escaped(index.title)}",
        *(f"**{escaped(line)}**" for line in index.doubts),
        index.notes_by_hand.about.strip(),
        "\n".join(f"- {escaped(line)}" for line in index.summary),
        link,
        *(
            "\n\n".join([f"## {escaped(one.title)}", table(one), *map(escaped, one.footnotes)])
            for one in index.sections
        ),
        _MADE_BY,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def notes_of(root: Path) -> Notes:
    """Read what is written by hand (`UserError`: it is no such file); nothing where there is none."""
    path = root / NOTES
    try:
        return checked(tomllib.loads(path.read_text(encoding="utf-8")), Notes)
    except FileNotFoundError:
        return Notes()
    except (OSError, ValueError) as error:  # of TOML, of UTF-8, or of a structure
        raise UserError(f"{path}: {one_line(str(error), 240)}; correct it, or remove it") from None


def baselines_of(root: Path) -> tuple[list[Baseline], list[UserError]]:
    """Return the named baselines that lie beside a folder of results, or in it, and what is wrong with others."""
    found, wrong = list[Baseline](), list[UserError]()
    for baselines in (Baselines(place / FOLDER.name) for place in (root.resolve().parent, root)):
        for name in baselines.names():
            try:
                found.append(baselines.named(name))
            except UserError as error:
                wrong.append(error)
    return found, wrong


def results_below(root: Path) -> Iterator[Path]:
    """Give the results folders below a folder, at two levels; `UserError` where it cannot be read."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the one that the results folders are in")
    try:
        levels: Iterable[Path] = sorted([*root.glob("*/"), *root.glob("*/*/")])
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}; check its permissions") from None
    for folder in levels:
        if not folder.is_symlink() and ((folder / ENVIRONMENT).is_file() or (folder / MEASUREMENTS).is_file()):
            yield folder
