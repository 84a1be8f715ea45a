"""The results folders of tables' runs: how one is read, the page that shows the paper beside it, and the page of all.

    <root>/<date>_<machine>_paper-icml-3-short/
        environment.json     command, what was to be run (`plan`), environments          \\ of `results.store`
        measurements.jsonl   the timed cases' rows                                       /
        trainings.jsonl      every trained seed
        counts.json          sizes of the data, for the table about these
        decodings.json       what decoding costs before and after meSimp
        README.md, index.html, plots

A folder is read with the tables of this version: what it measured stays, how it is judged may get better. A verdict of
a level is only as good as the training was long; the curves show whether it still rose at its end.

The page of all claims, `reports/PAPERS.md`, is made from results folders alone, so that anybody can make it again, and
CI can see whether it is what the folders give. Of several folders of a table the widest scale counts, and of equal ones
the latest. A report of several runs, as `make gpu-report` writes one, is a folder with results folders in it: they
count, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from meprop_bench.errors import UserError
from meprop_bench.paper import PLAN_KEYS
from meprop_bench.paper.claims import PaperClaim, judge, overall
from meprop_bench.paper.evidence import ComparedFigure, Place, TableEvidence, lines
from meprop_bench.paper.experiment import Experiment, experiment_of, reasons
from meprop_bench.paper.published import COLUMNS, PublishedPart, published
from meprop_bench.paper.records import Decodings, TrainedArm, Trainings, counts_in
from meprop_bench.paper.subjects import SCALES
from meprop_bench.report.bundle import is_bundle, opened
from meprop_bench.report.cells import ABSENT, Cell, Tone, counted, digits, seconds
from meprop_bench.report.document import Document
from meprop_bench.report.findings import Finding
from meprop_bench.report.findings import plain as plain_findings
from meprop_bench.report.markdown import escaped
from meprop_bench.report.plots import STYLE, Plot
from meprop_bench.report.plots.training import SeedCurve, learning, sizes
from meprop_bench.report.sections import Section
from meprop_bench.results.store import Store, folder_of

__all__ = ["PaperDocument", "as_overview", "best_results", "curves", "load", "own_sections", "read"]


@dataclass(frozen=True)
class PaperDocument(Document):
    """A results folder of `paper run`, ready to be printed."""

    evidence: TableEvidence = field(kw_only=True)

    @property
    def claims(self) -> list[PaperClaim]:
        """Every claim of the table, judged."""
        return judge(self.evidence)

    @property
    def outcome(self) -> str:
        """How the claims came out, and how many trainings claim nothing."""
        lacking = self.evidence.lacking()
        return f"{overall(self.claims)}{f' ({lacking}: these claim nothing)' if lacking else ''}"

    @property
    def findings(self) -> Sequence[Finding]:
        """How the claims came out, and at what scale; what speaks against that first."""
        run = self.evidence.experiment
        claims = Finding(f"{run.table.table_id}, {run.table.title}: {self.outcome}.", "mixed")
        scale = Finding(f"Scale {run.scale}, {counted(len(run.seeds), 'seed')}.")
        return [*plain_findings(self.doubts, ()), claims, scale]

    @property
    def own(self) -> list[Section]:
        """The paper beside ours, and the verdicts: they stand before the timed rows."""
        return own_sections(self)

    def curves(self) -> list[Plot]:
        """Draw how the trainings went."""
        return curves(self.evidence)

    @property
    def how_to_read(self) -> tuple[str, ...]:
        """What the words mean."""
        own = (
            "Test figures are of the model that was best on the development set, as in the papers: mean ± standard"
            " deviation over seeds, and the best seed. Differences are paired over seeds (same weights, same batches)"
            " with their 95% interval.",
            "Reproduced, not reproduced, inconclusive: `meprop_bench/paper/claims.py` says when, and why. A direction"
            " (as good, faster) and a printed level (98.01%, 21.4x) are judged apart.",
            "Decoding is the evaluation of the test set by the model as it was and by one of the sizes that are left"
            " (means over seeds), interleaved, on one thread, by fresh processes; products are those that an item takes"
            " with the weights of linear and recurrent layers.",
            "Printed times are of the paper's machine and unit of work, ours of one iteration: only ratios compare.",
        )
        return (*own, *super().how_to_read) if self.rows else own

    @property
    def again(self) -> str:
        """The command that writes the page again."""
        return f"meprop-bench paper report {self.title}"


def own_sections(document: PaperDocument) -> list[Section]:
    """Return the paper beside ours, and the verdicts, without the timed rows."""
    return [*_side_by_side(document.evidence), _verdicts(document.claims)]


def load(folder: Path) -> tuple[Document, Store | None]:
    """Read a results folder of any command once, as what it is: of a paper's table there is more than rows.

    A JSON file of the pytest-benchmark suite is one without a store, and so is a bundle, which has no folder that its
    pages could be written to. `UserError`: no results there, or corrupt ones.
    """
    folder = folder_of(folder)
    if folder.is_file() and is_bundle(folder):
        with opened(folder) as inside:
            return load(inside)[0], None
    if folder.is_file():
        return Document.load(folder), None
    store = Store.open(folder)
    return (read(store) if store.header["plan"].keys() >= PLAN_KEYS else Document.of(store)), store


def read(store: Store) -> PaperDocument:
    """Take what a results folder holds now; `UserError` for one of another kind."""
    plan = store.header["plan"]
    if not plan.keys() >= PLAN_KEYS:
        name = store.folder.name
        raise UserError(f"{name} is no result of `meprop-bench paper run`: show it by `meprop-bench report`")
    found = experiment_of(plan)
    trainings = Trainings(store.folder)
    arms, every = [arm.arm_id for arm in found.distinct_arms], trainings.all()
    failed = [one for one in every if one.error is not None]
    plain = Document.of(store)
    evidence = TableEvidence(
        found,
        trained={arm: trainings.of(arm, found.seeds) for arm in arms},
        failed={arm: sum(one.arm_id == arm and one.seed in found.seeds for one in failed) for arm in arms},
        # A case without phases, which failed, comes last: it stands for the whole case.
        timed={
            (row.case_id, row.phase or "backward"): row for row in sorted(plain.rows, key=lambda row: not row.phase)
        },
        counts=counts_in(store.folder),
        decodings=Decodings(store.folder).found,
    )
    origins = Counter(one.origin for one in every if one.origin)
    taken = [f"{count} of {len(every)} trainings were made for {name}" for name, count in origins.items()]
    if any(one.data_published is False for one in every):
        taken.append("trainings were made on files that are not the published data: no level is compared")
    failures = (f"a training failed: {one.arm_id}, seed {one.seed}: {one.error}" for one in failed if one.error)
    notes = (*_differences(found), *plain.notes, *trainings.notes, *taken, *failures)
    question = f"{found.table.table_id}, {found.table.title}"
    return PaperDocument(**{**vars(plain), "notes": notes, "question": question}, evidence=evidence)


def _differences(run: Experiment) -> Iterator[str]:
    """Say what differs from the paper."""
    yield from (f"Differs from the paper: {change}." for change in reasons(run.changes))
    yield from (f"Not trained: {line}." for line in reasons(run.skipped))
    yield from (f"Of the paper: {note}" for note in run.table.notes)
    yield from (f"The papers disagree: {text}" for text in run.table.contradictions)


def _side_by_side(evidence: TableEvidence) -> list[Section]:
    columns = ("row", "figure", "paper", "ours, mean ± sd", "best", "seeds")
    notes = {part.name: part.notes for part in evidence.experiment.table.parts}
    sections = []
    for name, found in groupby(lines(evidence), key=lambda line: line.part):
        group = tuple(tuple(_cells(line)) for line in found)
        remark = " ".join(notes[name])
        title, keys = f"{name}: the paper and ours", frozenset(columns[:2])
        sections.append(Section(title, columns, (group,), remark=remark, left=keys, keys=keys, drop=("best",)))
    return sections


def _cells(line: ComparedFigure) -> list[Cell]:
    spread = "" if line.deviation is None else f" ± {line.deviation:.2f}"
    return [
        Cell(line.row),
        Cell(COLUMNS[line.column].title),
        Cell(_number(line.paper, line.unit)),
        Cell(line.doubt or _number(line.mean, line.unit, spread)),
        Cell(_number(line.best, line.unit)),
        Cell(str(line.seeds) if line.seeds else ABSENT, "" if line.seeds else "quiet"),
    ]


def _number(value: float | None, unit: str, spread: str = "") -> str:
    if value is None:
        return ABSENT
    if unit in ("%", "BLEU"):
        return f"{value:.2f}{spread}{'%' if unit == '%' else ' BLEU'}"
    if unit == "x":
        return f"{digits(value)}x"
    if unit in ("s", "ms"):
        return seconds(value if unit == "s" else value / 1e3) if value < 1000 else f"{value:,.0f} {unit}"
    return f"{value:,.0f}{spread}" if value == int(value) or unit == "neurons" else f"{value:.1f}{spread}"


_TONES: Mapping[str, Tone] = {"reproduced": "good", "not reproduced": "bad", "inconclusive": "quiet"}


def _verdicts(claims: Sequence[PaperClaim]) -> Section:
    columns = ("part", "row", "claim", "paper", "ours", "verdict", "why")

    def cells(one: PaperClaim) -> tuple[Cell, ...]:
        words = map(Cell, (one.part, one.row, one.says, one.paper, one.ours))
        return *words, Cell(one.verdict, _TONES[one.verdict]), Cell(one.why)

    groups = tuple(tuple(map(cells, found)) for _, found in groupby(claims, key=lambda claim: claim.part))
    left = frozenset(columns) - {"paper", "ours"}
    remark, keys = f"{overall(list(claims)).capitalize()}.", frozenset(columns[:3])
    return Section("Verdicts", columns, groups, remark=remark, left=left, keys=keys)


def curves(evidence: TableEvidence) -> list[Plot]:
    """Draw for each part what its trainings reached, and the sizes that meSimp left; needs matplotlib (ImportError)."""
    import matplotlib as mpl

    drawn: list[Plot] = []
    with mpl.rc_context(STYLE):
        for number, part in enumerate(evidence.experiment.table.parts):
            places = [Place(evidence, part, row) for row in part.rows]
            trained = {_trained_name(place): place.seeds for place in places if place.seeds}
            if not trained:
                continue
            drawn += _learning(part, trained, "dev metric", number, lambda seed: [one.dev for one in seed.evaluations])
            if all(seed.updates for seeds in trained.values() for seed in seeds):
                what = "mean change at an update"
                drawn += _learning(part, trained, what, number, lambda seed: seed.updates)
            if simplified := {name: found for name, seeds in trained.items() if (found := _sizes(seeds))}:
                whole = {
                    place.arm.setting.hidden for place in places if place.arm and _trained_name(place) in simplified
                }
                drawn.append(sizes(part.name, simplified, whole.pop() if len(whole) == 1 else None, number=number))
    return drawn


def _trained_name(place: Place) -> str:
    """Return a row's name with the h that was trained, which a scale may have made smaller than the paper's."""
    hidden = None if place.arm is None else place.arm.setting.hidden
    if hidden is None or hidden == place.row.setting.hidden:
        return place.row.name
    name, found = re.subn(r"\bh ?= ?\d+", f"h={hidden}", place.row.name)
    return name if found else f"{name}, h={hidden}"


def _learning(
    part: PublishedPart,
    trained: Mapping[str, Sequence[TrainedArm]],
    what: str,
    number: int,
    figures: Callable[[TrainedArm], Sequence[float]],
) -> list[Plot]:
    arms = {
        name: [
            SeedCurve([one.epoch for one in seed.evaluations], figures(seed), seed.seconds, seed.steps)
            for seed in seeds
        ]
        for name, seeds in trained.items()
    }
    return learning(part.name, what, arms, number=number, timed=what == "dev metric")


def _sizes(seeds: Sequence[TrainedArm]) -> dict[str, list[float]]:
    """Return the neurons left of each layer, seed by seed; empty where nothing was simplified."""
    return {
        layer: [seed.layers[layer] for seed in seeds]
        for layer in seeds[0].layers
        if all(layer in seed.layers for seed in seeds)
    }


def best_results(root: Path) -> Mapping[str, tuple[Path, PaperDocument]]:
    """Return the best result of each table that has one under a folder of results folders, by table id: where and what.

    A folder that is no result of `paper run` is skipped, and so is a shard of one; one that is damaged is an error, as
    its claims would vanish.
    """
    found: dict[str, tuple[tuple[int, str, str], Path, PaperDocument]] = {}
    for folder in sorted([*root.glob("*_paper-*"), *root.glob("*/*_paper-*")]) if root.is_dir() else ():
        if not (folder / "environment.json").is_file() or "shard" in (store := Store.open(folder)).header:
            continue
        document = read(store)
        run = document.evidence.experiment
        rank = (SCALES.index(run.scale), document.started, folder.name)
        if run.table.table_id not in found or found[run.table.table_id][0] < rank:
            found[run.table.table_id] = (rank, folder, document)
    return {table_id: (folder, document) for table_id, (_, folder, document) in found.items()}


def as_overview(root: Path) -> str:
    """Return the page of all tables as Markdown; `root` is where the results folders are."""
    results = {table_id: (folder.relative_to(root), found) for table_id, (folder, found) in best_results(root).items()}
    parts = [
        "# The papers' claims, and what was measured",
        "Made by `meprop-bench paper report --claims` from the results folders beside it. A direction and a printed"
        " level are judged apart; `meprop_bench/paper/claims.py` says when a claim counts as reproduced, not reproduced"
        " or inconclusive. `meprop-bench paper run TABLE` checks one again.",
        "| table | result | claims |\n| --- | --- | --- |\n"
        + "\n".join(_summary(table_id, results.get(table_id)) for table_id in published()),
    ]
    for table_id in published():
        if table_id in results:
            parts.append(_section(table_id, *results[table_id]))
    return "\n\n".join(parts) + "\n"


def _summary(table_id: str, result: tuple[Path, PaperDocument] | None) -> str:
    if result is None:
        return f"| {table_id} | not run | |"
    place, document = result
    scale = document.evidence.experiment.scale
    return f"| {table_id} | [{scale}]({place.as_posix()}/README.md) | {document.outcome} |"


def _section(table_id: str, place: Path, document: PaperDocument) -> str:
    run = document.evidence.experiment
    lines = [
        f"| {escaped(claim.part)} | {escaped(claim.row)}: {escaped(claim.says)} | {escaped(claim.paper)} "
        f"| {escaped(claim.ours)} | {claim.verdict} | {escaped(claim.why)} |"
        for claim in document.claims
    ]
    head = "| part | claim | paper | ours | verdict | why |\n| --- | --- | --- | --- | --- | --- |"
    changes = "".join(f"\n- {escaped(change)}" for change in reasons(run.changes))
    parts = [
        f"## {table_id}: {escaped(run.table.title)}",
        f"`{document.command}` ([page]({place.as_posix()}/README.md))",
    ]
    return "\n\n".join([*parts, *([changes.strip()] if changes else []), "\n".join([head, *lines])])
