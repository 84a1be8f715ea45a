"""What a copy of the package makes of an axis `ballast` that is one line of its table; `test_axes` runs it there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from meprop_bench.api import measure
from meprop_bench.cli import run
from meprop_bench.errors import UserError
from meprop_bench.gate import targets
from meprop_bench.report import parquet
from meprop_bench.report.asv import export
from meprop_bench.report.best import chosen
from meprop_bench.report.compare import compare
from meprop_bench.report.document import Document
from meprop_bench.report.formats import pieces
from meprop_bench.report.page.grid import columns_of
from meprop_bench.report.plots import grouping
from meprop_bench.report.reliability import with_disagreements
from meprop_bench.report.sections import sections
from meprop_bench.results.axes import AXES, case_name
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.plan import given_axes, load_preset, plan_axes, plan_preset
from meprop_bench.sweep.rows import failed_row
from meprop_bench.sweep.suite import Grid
from meprop_bench.testing.trainings import case_of
from meprop_bench.workloads.case import Case

ROOT = Path.cwd()
STORED = [axis.stored for axis in AXES.values()]
CASES = [Case(threads=2, allocator="kept", ballast=ballast) for ballast in (1, 3)]


def measured(case: Case, **changes: Any) -> Row:
    found = {
        "phase": "backward", "kernel": "native", "check": PASSED, "error": None, "loops": 1, "speedup": 4.0,
        "median_s": 1.0, "values_s": (1.0, 1.1, 1.0, 0.9), "baseline_median_s": 4.0,
        "baseline_values_s": (4.0, 4.4, 4.0, 3.6), "run_lengths": (2, 2),
    }  # fmt: skip
    stored = {name: getattr(failed_row(case, "", "e"), name) for name in ("case_id", "environment_id", *STORED)}
    return Row.of(**{**stored, **found, **changes})


ROWS = [measured(case) for case in CASES]
DOCUMENT = Document("one", "a command", "2026", ROWS, {"e": {}})


def refusal(action: Any) -> str:
    try:
        action()
    except (UserError, ValueError) as error:
        return str(error)
    return ""


def module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def help_of(verb: str) -> str:
    target = StringIO()
    with redirect_stdout(target):
        run([verb, "--help"])
    return " ".join(target.getvalue().split())


def preset(line: str) -> Any:
    head = 'name = "mine"\nanalysis = "why"\nchecks = ["gradients"]\n[[sweep]]\nmethod = "meprop"\nk = 3\n'
    (ROOT / "mine.toml").write_text(head + line)
    return plan_preset(load_preset(str(ROOT / "mine.toml")))


def row_without_it() -> int:
    record = ROWS[1].to_json()
    del record["ballast"]
    return Row.from_json(record).ballast  # type: ignore[attr-defined]


def exported() -> list[Any]:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *command], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    with Store.create(ROOT / "results", "sweep", "box", "a command", {"name": "sweep"}) as store:
        store.append(ROWS)
        store.write_environment(
            {"e": {"git_revision": commit, "device": "cpu", "cpu_model": "Box", "cpu_usable_cores": 2}}
        )
    export([store.folder], ROOT / "asv", repository=ROOT)
    benchmarks = json.loads((ROOT / "asv" / "benchmarks.json").read_text())
    return benchmarks["stored.linear.backward.track_ratio"]["params"][-1]


table = sections(ROWS)[0]
compared = compare(DOCUMENT, Document("two", "a command", "2026", ROWS, {"e": {}}))
slow = [1000.0 * value for value in (4.0, 4.4, 4.0, 3.6)]
apart = measured(CASES[1], baseline_values_s=tuple(slow), baseline_median_s=4000.0, speedup=4000.0)
print(
    json.dumps(
        {
            "option of speedup": "--ballast LIST Made up, for a test." in help_of("speedup"),
            "option of profile": "--ballast VALUE Made up, for a test." in help_of("profile"),
            "given": given_axes({**dict.fromkeys(name.replace("-", "_") for name in AXES), "ballast": ("1,3",)}),
            "typed": [case.ballast for case in plan_axes({"ballast": [1, 3], "k": [8], "method": ["meprop"]}).cases],
            "preset": [case.ballast for case in preset("ballast = [1, 3]").cases],
            "preset, misspelt": refusal(lambda: preset("balast = 3")),
            "preset, wrong": refusal(lambda: preset("ballast = 0")),
            "case": CASES[1].to_json()["ballast"],
            "case, wrong": refusal(lambda: Case(ballast=0)),
            "ids": [case.case_id for case in CASES],
            "row": Row.from_json(ROWS[1].to_json()).to_json()["ballast"],
            "row of before": row_without_it(),
            "row, wrong": refusal(lambda: Row.from_json({**ROWS[1].to_json(), "ballast": 0})),
            "names": [case.label for case in CASES],
            "names of rows": [case_name(row) for row in ROWS],
            "column": [line[table.columns.index("ballast")].text for line in table.groups[0]],
            "above a table": sections(ROWS[1:])[0].constants,
            "not above a table": sections(ROWS[:1])[0].constants,
            "line of a plot": grouping.line_of(ROWS[1]),
            "csv": "ballast" in next(iter(pieces("csv", DOCUMENT))).partition("\n")[0].split(","),
            "dense times that may differ": with_disagreements([ROWS[0], apart])[0].baseline_disagreement,
            "export asv": exported(),
            "page": [column.texts for column in columns_of(ROWS, frozenset())[0] if column.head == "ballast"],
            "parquet": parquet._kinds()["ballast"].__name__,
            "keyword": measure._axes(measure.compare, "m.py:build", {"ballast": [1, 3]}, ExitStack())["ballast"],
            "rows of results": chosen(ROWS, {"ballast": 3}) == ROWS[1:],
            "claim of a test": case_of("m.py:build", {"ballast": 3}).ballast,
            "model of a gate": [case.ballast for case in targets._models({"model": "m.py:build", "ballast": [1, 3]})],
            "compare": [row["ballast"] for row in compared.to_json()["rows"]],
            "compare, csv": "ballast" in next(iter(pieces("csv", compared))).partition("\n")[0].split(","),
            "compare, column": "ballast" in compared.sections[0].columns,
            "suites' grid": Grid.of(CASES).names[-1],
            "extra_info": "ballast" in module("benchmarks/pytest_suite/conftest.py")._EXTRA,
            "docs": "| `ballast` | `ballast` | Made up, for a test. | all |" in module("docs/conf.py").axes(),
        },
        default=str,
    ),
    file=sys.stderr,
)
