"""Write the README's plot, verdict and table from the newest committed report of the preset `quick`.

python docs/excerpt.py

A report that says itself that it is not to be believed (a busy machine, dense times that disagree) is passed over.
Everything is copied from the report's own page, so that the README cannot say more than the report does.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- From here to the end mark written by `python docs/excerpt.py`. -->\n"
END = "<!-- End of what `python docs/excerpt.py` writes. -->\n"
COLUMNS = ("batch, m → n", "method", "k", "gradient", "dense", "sparse", "speed-up", "efficiency")


def current(reports: Path) -> Path:
    """Return the newest folder of the preset `quick` whose page raises no doubts."""
    pages = reports.glob("*_quick*/README.md")
    for page in sorted(pages, key=lambda page: _order(page.parent.name), reverse=True):
        if not re.search(r"^\*\*", page.read_text(encoding="utf-8"), re.MULTILINE):
            return page.parent
    raise SystemExit(f"no report of the preset quick in {reports} that can be believed: make report")


def _order(name: str) -> tuple[str, int]:
    number = re.search(r"_quick-(\d+)$", name)
    return name[:10], int(number[1]) if number else 1


def excerpt(folder: Path) -> str:
    """Return the excerpt of one report, marks included."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    plot = re.search(r"^!\[[^\]]*\]\((speedup-\d+-linear-backward[^)]*)\)", page, re.MULTILINE)
    if plot is None:
        raise SystemExit(f"{folder.name} has no plot of the backward pass over k")
    cpu = re.search(r"device cpu; threads (\d+); dtype (\w+)", page)
    where = f"`{cpu[2]}`, {cpu[1]} threads" if cpu else "see the report"
    verdict = re.findall(r"^- ((?:linear|mlp|Accuracy)\b.*)$", page, re.MULTILINE)
    lines = [
        f"![Speed-up of the backward pass over k, with 95% intervals](reports/{folder.name}/{plot[1]})\n",
        f"[{folder.name}](reports/{folder.name}/README.md) ({where}), against `F.linear`'s own backward pass:\n",
        *(f"- {line}" for line in verdict),
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- " * len(COLUMNS) + "|",
        *(f"| {' | '.join(row[name] for name in COLUMNS)} |" for row in _backward(page)),
    ]
    return BEGIN + "\n".join(lines).replace("\\", "") + "\n" + END


def _backward(page: str) -> list[dict[str, str]]:
    """The rows of the page's first table that are backward passes; what a speed-up is marked with is left out."""
    table = re.search(r"^\|.*\n\|[ -:|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert table is not None
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()]
    found = [dict(zip(head, row, strict=True)) for row in rows]
    for row in found:
        row["speed-up"] = re.sub(r"\s*(\\~|\([a-z, ]+\))", "", row["speed-up"])
    return [row for row in found if row["phase"] == "backward"]


def main() -> None:
    """Write the excerpt into the README."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    readme.write_text(before + excerpt(current(ROOT / "reports")) + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
