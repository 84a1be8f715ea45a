"""Results of this project: a results folder, its `measurements.jsonl`, or what `--format json` printed.

Each row tells several figures of its case, none of which has pairs with the other file's. What is independent is the
process, so a time is one value for each process (the median of its pairs that count, `Measurement.judged_runs`), and so
is the ratio sparse / dense, whose two times were taken next to each other and which therefore hardly depends on the
machine. Accuracy has one value for each seed; sizes and counts have one value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.files.figures import Figures, Kind, flat
from meprop_bench.gate.files.stream import number
from meprop_bench.gate.judgement import Quantity
from meprop_bench.gate.names import quoted, shown
from meprop_bench.measure.environment import NOT_IN_ID
from meprop_bench.report.cells import failure
from meprop_bench.report.document import Document
from meprop_bench.results.axes import case_name
from meprop_bench.results.costs import judged_pairs
from meprop_bench.results.incoming import parsed, refused
from meprop_bench.results.schema import Row
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store
from meprop_bench.stats import median

__all__ = ["add_row", "comparable", "newest", "of_document", "of_folder", "of_lines"]

_SIZES: Mapping[str, tuple[str, Quantity, str]] = {
    "peak_memory_bytes": ("peak memory", "memory", "B"),
    "flops": ("flops", "count", "1"),
    "bytes": ("bytes", "count", "B"),
}
"""Field of a row -> name, quantity and unit of the figure that it tells; the phase follows the name."""


def of_folder(folder: Path) -> Figures:
    """Read a results folder; raises `UserError` if there is none or it is corrupt."""
    store = Store.open(folder)
    source = f"{folder.resolve().name} (meprop-bench, {store.header['started']})"
    found = Figures(folder.name or str(folder), source)
    found.when = datetime.fromisoformat(store.header["started"]).timestamp()
    found.notes.extend(f"{found.name}: {note}" for note in store.notes)
    document = Document.of(store)
    found.doubts.extend(f"{document.title}: {line}" for line in document.doubts)
    return _filled(found, store.rows(), store.header["environments"])


def of_document(name: str, document: Mapping[str, Any]) -> Figures:
    """Read the object that `--format json` prints."""
    rows, environments = document.get("rows"), document.get("environment")
    if not isinstance(rows, list) or not isinstance(environments, Mapping):
        raise UserError(f"{name} has no list of rows and no environments: it is not what --format json prints")
    return _filled(
        Figures(name, f"{name} (meprop-bench)"),
        [_row(record, f"row {number} of {name}") for number, record in enumerate(rows, 1)],
        environments,
    )


def of_lines(path: Path) -> Figures:
    """Read rows of a results folder, one on each line; its folder, if it has stayed there, tells the rest."""
    if path.name == MEASUREMENTS and (path.parent / ENVIRONMENT).is_file():
        return of_folder(path.parent)
    name, rows = shown(path.name, 120), {}
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not a text in UTF-8; measure again, or convert it") from None
    for place, line in enumerate(text.rstrip("\n").split("\n"), 1):
        where = f"line {place} of {name}"
        try:
            row = _row(parsed(line), where)
        except ValueError as error:
            raise refused(f"{where} is not a row, or was cut off", error, "delete it, or measure again") from None
        rows[row.case_id, row.phase] = row  # a later row of a case and phase replaces an earlier one
    return _filled(Figures(name, f"{name} (meprop-bench)"), rows.values(), {})


def newest(root: Path, baseline: Path) -> Path:
    """Return the newest results folder under `root` of the same preset as `baseline`, and newer than that.

    Raises `UserError` where there is none.
    """
    folder = baseline if baseline.is_dir() else baseline.parent
    own = Store.open(folder).header
    name, started = own["plan"].get("name"), own["started"]
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if not (path / ENVIRONMENT).is_file():
            continue
        try:
            header = Store.open(path).header
        except UserError:  # a broken neighbour is no reason not to find the others
            continue
        if header["plan"].get("name") == name and header["started"] > started and "shard" not in header:
            found.append((header["started"], path))
    if not found:
        raise UserError(
            f"no results of {name!r} under {root} are newer than {folder.name}: measure, or name them with --candidate",
            ExitCode.NOT_COMPARABLE,
        )
    return max(found)[1]


def add_row(found: Figures, row: Row) -> None:
    """Add what a row tells of its case, or why it tells nothing."""
    case = case_name(row)
    found.ids[case] = row.case_id
    if not row.passed:
        found.failures[case] = failure(row) or "its check was not run"
        return
    phase, where = row.phase or "step", row.environment_id
    if row.measurement is not None:
        runs = judged_pairs(row)
        times = tuple(median(method_s for _, method_s in run) for run in runs)
        ratios = tuple(median(method_s / baseline_s for baseline_s, method_s in run) for run in runs)
        found.add(case, Kind(phase, "time", "s"), times, where, own_processes=True)
        found.add(case, Kind(f"sparse/dense {phase}", "ratio", "1"), ratios, where, own_processes=True)
    for field, (name, quantity, unit) in _SIZES.items():
        if (value := getattr(row.sparse, field)) is not None:
            size = number(value, f"{found.name}: the {name} of {quoted(case)}")
            found.add(case, Kind(f"{name} {phase}", quantity, unit), (size,), where)
    if row.parity and (figures := dict(sorted(zip(row.parity.seeds, row.parity.method, strict=True)))):
        # One value for each seed; what the method is compared with ran the same seeds.
        basis = f"{row.parity.task}, {row.parity.steps} steps, seeds {', '.join(map(str, figures))}"
        kind = Kind("accuracy", "accuracy", "points" if row.parity.percent else "%", basis)
        found.add(case, kind, tuple(figures.values()), where, own_processes=True)


def comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes results of an environment incomparable with others'."""
    return flat({name: value for name, value in environment.items() if name not in NOT_IN_ID})


def _filled(found: Figures, rows: Iterable[Row], environments: Mapping[str, Any]) -> Figures:
    for key, environment in environments.items():
        if isinstance(environment, Mapping):
            found.environments[key] = comparable(environment)
    for row in rows:
        add_row(found, row)
    return found


def _row(record: Any, where: str) -> Row:
    try:
        return Row.from_json(record)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError as error:
        raise refused(f"{where} is not a row", error) from None
