"""Results in files, as the gate's input: of this project, of pytest-benchmark, of asv. Nothing is measured.

file, folder  ->  format, by the content  ->  Figures     one for each side
two Figures   ->  Compared                                series, notes; or why they cannot be compared

Compared is what `read(baseline, candidate)` gives. The candidate of a results folder may be left out: then it is
the newest folder under reports/ of the same preset that is newer than the baseline.
"""

from __future__ import annotations

from pathlib import Path

from meprop_bench.errors import UserError
from meprop_bench.gate.files import asv, ours, pytest_benchmark
from meprop_bench.gate.files.compared import Compared
from meprop_bench.gate.files.figures import Figures
from meprop_bench.gate.files.stream import read_object
from meprop_bench.gate.names import shown
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import SCHEMA, check_schema
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS

__all__ = ["REPORTS", "Compared", "read", "read_file"]

REPORTS = Path("reports")
"""Where results folders are written by default."""

_KINDS = "results of meprop-bench, pytest-benchmark's JSON or an asv result"


def read(
    baseline: Path, candidate: Path | None = None, *, ratios_only: bool = False, reports: Path = REPORTS
) -> Compared:
    """Return what a baseline and a candidate, files or results folders, have in common.

    The candidate is by default the newest of the results under `reports` of the baseline's preset. Ratios sparse /
    dense, `ratios_only`, may come from different environments.

    Raises:
        UserError: a file that is not there or not a result (exit code 2), without figures (5), or that cannot be
            compared with the other (3).

    """
    base = read_file(baseline)
    note = ""
    if candidate is None:
        folder = baseline if baseline.is_dir() else baseline.parent
        if not (baseline in (folder, folder / MEASUREMENTS) and (folder / ENVIRONMENT).is_file()):
            raise UserError(f"what {baseline.name} is compared with has to be named: add --candidate FILE")
        candidate = ours.newest(reports, baseline)
        note = f"the candidate is {candidate.name}, the newest result of the same preset under {reports.name}"
    compared = Compared(base, read_file(candidate), ratios_only=ratios_only)
    if note:
        compared.notes = (note, *compared.notes)
    return compared


def read_file(path: Path) -> Figures:
    """Return the figures of a file, or of a results folder; raises `UserError` if it is neither."""
    try:
        if path.is_dir():
            if not (path / MEASUREMENTS).is_file():
                raise UserError(
                    f"{path} is a folder without {MEASUREMENTS}: name that of a result, or a file of {_KINDS}"
                )
            return ours.of_folder(path)
        if not path.exists():
            raise UserError(f"{path} does not exist: name {_KINDS}")
        if not path.is_file():  # a pipe could be read once, and a reader may have to begin again
            raise UserError(f"{path} is a pipe or a device: write {_KINDS} to a file, and name that")
    except OSError as error:  # a folder on the way that may not be searched, a name that is too long
        raise UserError(f"cannot read {one_line(str(path), 120)}: {error.strerror or type(error).__name__}") from None
    name = shown(path.name, 120)
    reader = pytest_benchmark.BenchmarkReader(name)
    document, goes_on = read_object(path, pytest_benchmark.LISTED, pytest_benchmark.Benchmark, reader.take)
    if "schema" in document and ("case_id" in document or "rows" in document):
        check_schema(document)
        if "case_id" in document:
            return ours.of_lines(path)
    if goes_on:
        raise UserError(f"{name} goes on after its first object: it is none of {_KINDS}")
    if "schema" in document and "rows" in document:
        return ours.of_document(name, document)
    if isinstance(document.get(pytest_benchmark.LISTED), int) and "machine_info" in document:
        return reader.finish(document)
    if "result_columns" in document or ("results" in document and "commit_hash" in document):
        return asv.read(path, document)
    keys = one_line(", ".join(document), 80) or "none"
    raise UserError(f"{name} is none of {_KINDS} (schema {SCHEMA!r}): its keys are {keys}")
