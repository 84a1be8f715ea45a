"""The page of claims, `reports/PAPERS.md`: what the papers claim, what stored results say about it, and why.

It is made from results folders alone, so that anybody can make it again, and CI can see whether it is what the folders
give. Of several folders of a table the widest scale counts, and of equal ones the latest. A report of several runs, as
`make gpu-report` writes one, is a folder with results folders in it: they count, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from meprop_bench.paper.experiment import reasons
from meprop_bench.paper.folder import PaperDocument, read
from meprop_bench.paper.published import published
from meprop_bench.paper.scale import SCALES
from meprop_bench.report.markdown import escaped
from meprop_bench.results.store import Store

__all__ = ["as_overview", "best_results"]


def best_results(root: Path) -> Mapping[str, PaperDocument]:
    """Return the result of each table that has one under a folder of results folders, by table id.

    A folder that is no result of `paper run` is passed by; one that is damaged is an error, as its claims would vanish.
    """
    return {table_id: document for table_id, (_, document) in _best(root).items()}


def _best(root: Path) -> Mapping[str, tuple[Path, PaperDocument]]:
    """Return the folder of each table's result, with what it holds."""
    found: dict[str, tuple[tuple[int, str, str], Path, PaperDocument]] = {}
    for folder in sorted([*root.glob("*_paper-*"), *root.glob("*/*_paper-*")]) if root.is_dir() else ():
        if not (folder / "environment.json").is_file():
            continue
        document = read(Store.open(folder))
        run = document.evidence.experiment
        rank = (SCALES.index(run.scale), document.started, folder.name)
        if run.table.table_id not in found or found[run.table.table_id][0] < rank:
            found[run.table.table_id] = (rank, folder, document)
    return {table_id: (folder, document) for table_id, (_, folder, document) in found.items()}


def as_overview(root: Path, tables: Iterable[str] | None = None) -> str:
    """Return the page as Markdown.

    Args:
        root: where the results folders are.
        tables: those to show (default: all).

    Raises:
        UserError: a folder is damaged.

    """
    results = {table_id: (folder.relative_to(root), found) for table_id, (folder, found) in _best(root).items()}
    parts = [
        "# The papers' claims, and what was measured",
        "Made by `meprop-bench paper report --claims` from the results folders beside it. A direction and a printed"
        " level are judged apart; `meprop_bench/paper/claims.py` says when a claim counts as reproduced, not reproduced"
        " or inconclusive. `meprop-bench paper run TABLE` checks one again.",
        "| table | result | claims |\n| --- | --- | --- |\n"
        + "\n".join(_summary(table_id, results.get(table_id)) for table_id in tables or published()),
    ]
    for table_id in tables or published():
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
