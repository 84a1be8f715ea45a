"""Write the README's plot, verdicts and tables from the newest committed reports of the presets `quick` and `step`.

make readme

A report that says itself that it is not to be believed (a busy machine, dense times that disagree) is passed over. What
is said is the report's own: its findings, lines of its table, its plot.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from meprop_bench.report.cells import ABSENT, k_of, parity, ratio, shape
from meprop_bench.report.document import Document
from meprop_bench.report.formats import draw
from meprop_bench.report.markdown import findings, table
from meprop_bench.report.plots import Plot
from meprop_bench.report.sections import plain_section
from meprop_bench.results.schema import Row

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- From here to the end mark written by `make readme`. -->\n"
END = "<!-- End of what `make readme` writes. -->\n"
PLOT = Path("docs/speedup.svg")
COLUMNS = ("batch, m → n", "method", "k", "gradient", "dense", "sparse", "speed-up", "efficiency")


def current(reports: Path, preset: str = "quick") -> Path:
    """Return the newest folder of a preset whose report raises no doubts."""
    folders = [path.parent for path in reports.glob(f"*_{preset}*/measurements.jsonl")]
    for folder in sorted(folders, key=lambda folder: _order(folder.name), reverse=True):
        if not Document.load(folder).doubts:
            return folder
    raise SystemExit(
        f"no report of the preset {preset} in {reports} that can be believed: meprop-bench speedup --preset {preset}"
    )


def _order(name: str) -> tuple[str, int]:
    number = re.search(r"-(\d+)$", name)
    return name[:10], int(number[1]) if number else 1


def excerpt(folder: Path) -> str:
    """Return the excerpt of one report, marks included."""
    document = Document.load(folder)
    first = next(row for row in document.rows if row.workload == "linear")
    lines = [
        f"![Speed-up of the backward pass over k, with 95% intervals]({PLOT.as_posix()})",
        f"[{folder.name}](reports/{folder.name}/README.md) (`{first.dtype}`, {first.threads} threads), against"
        " `F.linear`'s own backward pass:",
        *findings(document),
        _backward(document),
        *steps(current(folder.parent, "step")),
    ]
    return BEGIN + "\n\n".join(lines).replace("\\", "") + "\n" + END


def _backward(document: Document) -> str:
    """The lines of the first table that are backward passes; what a speed-up is marked with is left out."""
    section = document.sections[0]
    places = [section.columns.index(name) for name in COLUMNS]
    phase = section.columns.index("phase")
    group = tuple(
        tuple(replace(line[place], text=re.sub(r" (~|\([a-zD, 0-9]+\))", "", line[place].text)) for place in places)
        for group in section.groups
        for line in group
        if line[phase].text == "backward"
    )
    return table(replace(section, columns=COLUMNS, groups=(group,)))


def steps(folder: Path) -> list[str]:
    """Return what the preset `step` found: in words, and a line for each model and optimizer."""
    document = Document.load(folder)
    models: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in document.rows:
        if row.phase == "step" and row.baseline == "fused" and row.fused_step in (None, "none", "method"):
            model = row.workload, shape(row), row.method, k_of(row), str(row.optimizer)
            models.setdefault(model, {})[row.fused_step or "none"] = row
    lines = [
        (*model, _within(rows["none"]), _within(rows.get("method")), parity(rows["none"]).text)
        for model, rows in models.items()
    ]
    columns = (
        "whole step of",
        "batch, m → n",
        "method",
        "k",
        "optimizer",
        "modules",
        "one function",
        "accuracy, points",
    )
    words = ("whole step of", "batch, m → n", "method", "optimizer", "accuracy, points")
    return [
        f"A whole training step ([{folder.name}](reports/{folder.name}/README.md)), against torch's modules with its"
        " fused optimizer; by modules, or as one function (`nn.FusedMLP`):",
        *findings(document),
        table(plain_section("", columns, lines, left=words)),
    ]


def _within(row: Row | None) -> str:
    """Return a speed-up with its interval."""
    if row is None or row.speedup is None or row.speedup_low is None or row.speedup_high is None:
        return ABSENT
    return f"{ratio(row.speedup)} [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"


def plot(folder: Path) -> Plot:
    """Return the picture of the backward pass over k."""
    drawn, missing, _ = draw(Document.load(folder))
    wanted = {"phase": "backward", "over": "k", "metric": "speed-up"}
    linear = (one for one in drawn if one.detail.startswith("linear,"))
    found = next((one for one in linear if one.choices.items() >= wanted.items()), None)
    if found is None:
        raise SystemExit(missing or f"{folder.name} has no plot of the backward pass over k")
    return found


def main() -> None:
    """Write the excerpt into the README, and the plot beside this file."""
    readme, folder = ROOT / "README.md", current(ROOT / "reports")
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    (ROOT / PLOT).write_bytes(plot(folder).svg)
    readme.write_text(before + excerpt(folder) + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
