"""Stored results as results of asv, so that `asv publish`, `asv show` and `asv compare` show paired measurements, too.

A benchmark is one cost (`results.costs`) of one phase of one workload, `stored.linear.backward.track_ratio`. Its
parameters are always the same five, so that exports of different sweeps, of different days, lie in the same graphs:

    method   k   shape (784→500 B=50)   device (cpu:2, cuda:0)   variant (what is not as usual; "usual" if all is)

The variant holds every axis (`results.axes`) that the other four do not, so that an axis that is added gives its cases
points of their own. A figure of an earlier run of the same commit in the same environment is replaced, and that is
said.

A ratio is 1 / the row's speed-up, a time the row's median; both with their intervals at 99% over the processes. asv
would take all samples as independent, and weight a result in its step detection with a confidence that it has not.

Results of different environments never share a line: what the five parameters do not say of an environment (versions,
processor, kernel, ...) makes a name, which asv keeps apart. A result belongs to a commit, so one that was measured
outside a checkout is refused, and one of a tree with changes unless that is requested.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.environment import NOT_IN_ID, environment_id, machine_of
from meprop_bench.report.asv_files import USUAL, Benchmarks, ResultFile, joined, write_benchmarks
from meprop_bench.results.axes import AXES, device_name
from meprop_bench.results.costs import COSTS, judged_pairs
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.stats import Interval, iqr, median, paired_ratio

__all__ = ["Exported", "export"]

_IN_PARAMETERS = ("device", "allocator", "torch_threads", "preloaded_allocators")
"""Fields of an environment that the parameters say; so do the variables that set threads and allocator."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    files: tuple[Path, ...]  # result files, in order
    rows: int  # how many are in them
    left_out: int  # cases that have no figures, since they failed
    replaced: tuple[str, ...] = ()  # figures of another run that these took the place of, in words


def export(folders: Sequence[Path], results: Path, *, repository: Path, dirty: bool = False) -> Exported:
    """Write the rows of results folders as results of asv; what is there of other cases, commits and machines stays.

    Args:
        folders: results folders of this package.
        results: asv's `results_dir`; made if it is not there.
        repository: a checkout that has the commits (else `UserError`).
        dirty: take results of a tree with changes, too, as those of the commit it was made from.

    """
    files: dict[tuple[str, str, str], ResultFile] = {}
    rows = left_out = 0
    replaced: list[str] = []
    commits = _Commits(repository)
    stores = [Store.open(folder) for folder in dict.fromkeys(folders)]
    for store in sorted(stores, key=lambda found: datetime.fromisoformat(found.header["started"]).timestamp()):
        folder = store.folder
        for row in store.rows():
            if not row.passed or row.measurement is None or row.phase is None:
                left_out += 1
                continue
            environment = store.header["environments"].get(row.environment_id)
            if environment is None:
                raise UserError(
                    f"{folder.name} does not say what environment {row.environment_id} is: restore its environment.json"
                )
            commit = commits.of(row.git_revision or environment.get("git_revision"), folder.name, dirty)
            key = (commit, machine_of(environment), _apart(environment))
            if key not in files:
                started_ms = round(1000 * datetime.fromisoformat(store.header["started"]).timestamp())
                files[key] = ResultFile(commit, commits.date_ms(commit), key[1], key[2], environment, started_ms)
            files[key].found = joined(files[key].found, _benchmarks(row), replaced)
            rows += 1
    if not rows:
        raise UserError("no case has been measured there: nothing to export", ExitCode.NOTHING_MEASURED)
    write_benchmarks(results, [file.found for file in files.values()])  # first: what it finds broken stops the rest
    written = tuple(file.write(results, replaced) for file in files.values())
    return Exported(written, rows, left_out, tuple(replaced))


class _Commits:
    """The commits of a repository."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._known: dict[str, str] = {}

    def of(self, revision: str | None, where: str, dirty: bool) -> str:
        """Return the whole hash of a row's `git_revision`."""
        if revision is None:
            raise UserError(f"{where} was not measured in a checkout, so asv has no commit to show it at: leave it out")
        if revision.endswith("-dirty") and not dirty:
            raise UserError(
                f"{where} was measured with uncommitted changes on top of {revision.removesuffix('-dirty')}: leave it"
                " out, or add --dirty to export it as that commit's"
            )
        revision = revision.removesuffix("-dirty")
        if revision not in self._known:
            found = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
            if found is None:
                raise UserError(
                    f"{where} was measured at commit {revision}, which {self._repository} does not have: fetch it, or"
                    " name a checkout that does with --repo"
                )
            self._known[revision] = found
        return self._known[revision]

    def date_ms(self, commit: str) -> int:
        return 1000 * int(self._git("show", "--no-patch", "--format=%ct", commit) or 0)

    def _git(self, *arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(self._repository), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            raise UserError("git does not answer: it is needed to find the commits of the results") from None
        return done.stdout.strip() if done.returncode == 0 else None


def _apart(environment: Mapping[str, Any]) -> str:
    """Return a name of what the parameters do not say of an environment."""
    rest = {name: value for name, value in environment.items() if name not in (*_IN_PARAMETERS, *NOT_IN_ID)}
    variables = environment.get("variables") or {}
    rest["variables"] = {
        name: value for name, value in variables.items() if not re.search(r"^MALLOC_|_NUM_THREADS$", name)
    }
    return environment_id(rest)


def _benchmarks(row: Row) -> Benchmarks:
    """Return the costs of a row, each at its point of a benchmark."""
    found: Benchmarks = {}
    for name, cost in COSTS.items():
        value = cost.of(row)
        if isinstance(value, list):
            values = _statistics(value, _interval(name, row))
        elif math.isfinite(value):
            values = {"result": value}
        else:
            continue
        found[f"stored.{row.workload}.{row.phase}.track_{name}"] = {_point(row): values}
    return found


def _interval(name: str, row: Row) -> Interval:
    """Return a time or a ratio with its interval at 99% over the processes; of one process it is infinite, as asv's."""
    pairs = judged_pairs(row)
    if name == "time":
        pairs = [[(1.0, method_s) for _, method_s in run] for run in pairs]
    found = paired_ratio(pairs, 0.99)
    estimate = 1 / found.estimate if name == "ratio" else row.sparse.median_s or math.nan
    return Interval(estimate, *((1 / found.high, 1 / found.low) if found.bounded else (-math.inf, math.inf)))


def _statistics(samples: list[float], interval: Interval) -> dict[str, Any]:
    middle, half = median(samples), iqr(samples) / 2
    lower, upper = middle - half, middle + half
    if len(samples) > 1:
        lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "result": interval.estimate,
        "stats_ci_99_a": interval.low,
        "stats_ci_99_b": interval.high,
        "stats_q_25": lower,
        "stats_q_75": upper,
        "stats_number": 1,
        "stats_repeat": len(samples),
        "samples": samples,
    }


def _point(row: Row) -> tuple[str, ...]:
    """Return a value for each parameter, by `repr` as asv has them."""
    shape, said = _shape(row)
    return tuple(map(repr, (row.method, row.k, shape, device_name(row), _variant(row, said))))


def _shape(row: Row) -> tuple[str, set[str]]:
    """Return the shape in words, and the axes that it says."""
    if row.model is not None:
        return row.model, {"model", "in_features", "out_features", "batch"}
    if row.data is not None:
        return f"{row.data} h={row.out_features}", {"data", "in_features", "out_features"}
    shape = f"h={row.out_features}" if row.in_features is None else f"{row.in_features}→{row.out_features}"
    extras = {"size": f"{row.size}x{row.size}", "filter": f"filter {row.filter}", "length": f"T={row.length}"}
    words = [text for name, text in extras.items() if getattr(row, name) is not None]
    return " ".join([shape, *words, f"B={row.batch}"]), {"data", "in_features", "out_features", "batch", *extras}


def _variant(row: Row, said: Container[str]) -> str:
    """Return what is not as usual of the axes that no other parameter says; those with words of their own first."""
    others = [axis for axis in AXES.values() if axis.field not in ("workload", "method", "k", "device", "threads")]
    values = [(axis, getattr(row, axis.stored)) for axis in others if axis.field not in said]
    values = [
        (axis, value) for axis, value in values if not axis.needs_no_word(value, row.workload, (None, axis.usual))
    ]
    words = [(axis.variant, value) for axis, value in values if axis.variant and value is not None]
    if row.device != "cpu" and row.threads is not None:
        words.append((AXES["threads"].variant, row.threads))
    words += [
        (f"{axis.field.replace('_', '-')} {{}}", value)
        for axis, value in values
        if not axis.variant and value is not None
    ]
    return ", ".join(template.format(value) for template, value in words) or USUAL
