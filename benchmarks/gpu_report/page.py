"""The first page of a GPU's report: what came of its parts, how the targets stand, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_report.parts import KERNELS, SWEEP, TESTS, Outcome
from meprop_bench.errors import ExitCode
from meprop_bench.report import write_report
from meprop_bench.report.cells import ABSENT, ratio, seconds, speedup
from meprop_bench.report.markdown import escaped
from meprop_bench.results.redact import without_paths
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.results.store import Store, replace_file
from meprop_bench.workloads.case import Case

__all__ = ["TARGETS", "Target", "any_measured", "left_out", "results_of", "write_page"]

_CODES: Mapping[int, str] = {
    ExitCode.OK: "done",
    ExitCode.REGRESSION: "done; a check failed",
    ExitCode.USAGE: "could not be run",
    ExitCode.NOTHING_MEASURED: "nothing was measured",
    ExitCode.INTERRUPTED: "interrupted",
}


class Target(NamedTuple):
    """A speed-up that the project holds itself to on an H200: backward pass with the selection, B = 1024, 8192 -> 8192,
    against `F.linear`'s own in the same dtype."""

    method: str
    dtype: str
    gradient: str
    k: int
    least: float


_KS = (8, 32, 128, 512)
TARGETS = (
    *(Target("unified", "float32", "rows", k, x) for k, x in zip(_KS, (100, 75, 35, 12), strict=True)),
    *(Target("unified", "float32", "dense", k, x) for k, x in zip(_KS, (45, 38, 24, 10), strict=True)),
    *(Target("unified", "tf32", "rows", k, x) for k, x in zip(_KS, (12, 11, 9, 5), strict=True)),
    *(Target("unified", "bfloat16", "rows", k, x) for k, x in zip(_KS, (8, 8, 7, 4), strict=True)),
    *(Target("meprop", "float32", gradient, 32, 8) for gradient in ("rows", "dense")),
)


def results_of(folder: Path) -> list[Path]:
    """Return the results folders in a report, in the order of their making."""
    found = [path for path in folder.iterdir() if (path / "environment.json").is_file()]
    return sorted(found, key=lambda path: (Store.open(path).header["started"], path.name))


def any_measured(folder: Path) -> bool:
    """Whether any case of a report has figures."""
    return any(row.passed for path in results_of(folder) for row in Store.open(path).rows())


def left_out(folder: Path) -> dict[str, list[str]]:
    """Return why cases of a results folder have no figures: reason -> their names."""
    store = Store.open(folder)
    rows = {row.case_id: row for row in store.rows()}
    found: dict[str, list[str]] = {}
    for record in store.header["plan"].get("cases", ()):
        case = Case.from_json(record)
        if (row := rows.get(case.case_id)) is None:
            found.setdefault("its time had come before it was their turn", []).append(case.label)
        elif not row.passed:
            found.setdefault(row.error or f"the check failed: {row.check}", []).append(case.label)
    return found


def write_page(folder: Path, facts: Mapping[str, str], outcomes: Sequence[Outcome], missing: Iterable[str]) -> None:
    """Write README.md.

    Args:
        folder: of the report.
        facts: what it is of and how it was made, by name.
        outcomes: of the parts that have run.
        missing: what could not be done, or not well, since something is not installed.

    """
    results = results_of(folder)
    for path in results:
        if not (path / "README.md").is_file():  # whoever measured it was killed
            write_report(path)
    parts = [
        f"# {escaped(folder.resolve().name)}",
        _table(("what", "value"), [(name, without_paths(value)) for name, value in facts.items()]),
        "## Parts",
        _table(("part", "came to", "took", "of", "log"), [_part(outcome, folder) for outcome in outcomes]),
        "\n".join(f"- {_link(path)}" for path in results),
        *_targets(results),
        *_left_out(results, outcomes),
    ]
    if remarks := [f"- {escaped(line)}" for line in missing]:
        parts += ["## Not installed", "\n".join(remarks)]
    replace_file(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _part(outcome: Outcome, folder: Path) -> tuple[str, ...]:
    log = f"{outcome.part.name}.log"
    times = f"{outcome.took_s:.0f} s", f"{outcome.share_s:.0f} s"
    if outcome.code is None:
        return outcome.part.name, f"not run: {outcome.why}", ABSENT, times[1], ABSENT
    came_to = _CODES.get(outcome.code, f"ended with {outcome.code}")
    if said := [line for line in (folder / log).read_text(encoding="utf-8").splitlines() if line.strip()]:
        if outcome.part.name in (TESTS, KERNELS):
            came_to = said[-1].strip("= ")  # "12 passed, 3 skipped in 20 s"
        elif outcome.code not in (ExitCode.OK, ExitCode.REGRESSION):
            came_to += f": {said[-1]}"
    return outcome.part.name, "; ".join(filter(None, (came_to, outcome.why))), *times, log


def _link(folder: Path) -> str:
    return f"[{escaped(folder.name)}]({folder.name}/README.md)"


def _targets(results: Sequence[Path]) -> list[str]:
    """Return the table of targets, if the sweep has a case of one of them."""
    rows = [row for path in results if "paper-" not in path.name for row in Store.open(path).rows()]
    lines = []
    for target in TARGETS:
        for row in sorted((row for row in rows if _is_of(row, target)), key=lambda row: -(row.speedup or 0)):
            limit = row.baseline_median_s / row.floor_s if row.baseline_median_s and row.floor_s else None
            met = ABSENT if row.speedup is None else "met" if row.speedup >= target.least else "missed"
            efficiency = ABSENT if row.efficiency is None else f"{100 * row.efficiency:.0f}%"
            words = (target.method, row.dtype, str(target.k), target.gradient, row.launch, row.kernel or ABSENT)
            figures = (seconds(row.baseline_median_s), seconds(row.median_s), speedup(row).text)
            at_floor = ABSENT if limit is None else ratio(limit)
            lines.append((*words, *figures, f"{target.least:g}x", met, at_floor, efficiency))
    if not lines:
        return []
    heads = ("method", "dtype", "k", "gradient", "launch", "kernel", "dense", "sparse", "speed-up", "target", "")
    remark = (
        "The backward pass with the selection, B = 1024, 8192 → 8192, by each kernel that was measured, the fastest of"
        " a target first. At the floor: the dense time divided by the least time that this machine's measured peaks"
        " allow the sparse pass, which no kernel can beat; efficiency: that least time divided by the sparse one."
    )
    return ["## Targets", remark, _table((*heads, "at the floor", "efficiency"), lines)]


def _is_of(row: Row, target: Target) -> bool:
    shape = (row.batch, row.in_features, row.out_features, row.phase, row.workload)
    wanted = (1024, 8192, 8192, "backward", "linear")
    own = (row.method, row.dtype, row.gradient, row.k)
    return row.device != "cpu" and shape == wanted and own == target[:4] and row.check == PASSED


def _left_out(results: Sequence[Path], outcomes: Sequence[Outcome]) -> list[str]:
    """Return what was left out and why."""
    lines = [f"- the part {each.part.name}: {escaped(each.why)}" for each in outcomes if each.code is None]
    for path in results:
        for reason, names in left_out(path).items():
            cases = f"{len(names)} case{'s' * (len(names) != 1)}"
            lines.append(f"- {_link(path)}, {cases}: {escaped(reason)}")
            lines += [f"  - {escaped(name)}" for name in names]
    if not any(each.part.name == SWEEP and each.code is not None for each in outcomes):
        lines.append("- the sweep")
    return ["## Left out", "\n".join(lines) or "Nothing."]


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(
        f"| {' | '.join(word if row is rows[1] else escaped(str(word)) for word in row)} |" for row in rows
    )
