"""The report of a GPU within minutes: `make gpu-report`, or `python -m benchmarks.gpu_report` in the project's folder.

    --out FOLDER       where everything goes [default: reports/<date>_<machine>_gpu]; it must be new, or empty
    --seconds N        for all of it [default: 450]; what does not fit is left out, and named. A last part that has
                       to be interrupted ends half a minute later: 450 fit into eight minutes
    --archive FILE     the folder once more as one .tar.gz, written anew after each part
    --device D         cuda, cuda:N, or cpu: the same report of a processor, of the preset "targets"
    --preset P, --tables T,T, --scale S    of the sweep and of the papers' tables

Everything is run in place, by this very interpreter: it needs a torch with CUDA and what `pyproject.toml` lists, but no
installation and no network. What else is missing (Triton, pytest, matplotlib, ...) costs what it is for, and the page
says so.

Exit codes: 0 done, 1 a test on the GPU or a case's check failed, 2 wrong usage or something is not installed, 5 nothing
was measured (there is no such device, for one), 130 interrupted. Whatever the code, the folder holds what was done.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_report.parts import (
    KERNELS,
    ROOT,
    SWEEP,
    TABLES,
    TESTS,
    Outcome,
    Run,
    parts_of,
    run_all,
    run_process,
)

_SECONDS = 450.0
_NEEDED = ("torch", "numpy", "scipy", "psutil", "rich", "click")
_WANTED = {
    "triton": "the kernels triton, triton_gather and triton_atomic cannot run",
    "pynvml": "no utilisation, power or energy (nvidia-ml-py)",
    "pytest": "the tests cannot run",
    "matplotlib": "no plots",
    "jinja2": "no HTML pages",
}


def main(arguments: Sequence[str], *, run: Run = run_process) -> int:
    """Make the report and return the exit code."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        _say(f"{sys.executable} has no {', '.join(missing)}: take another PYTHON, or see reports/METHODOLOGY.md, "
             '"The report of a GPU"')  # fmt: skip
        return 2
    from meprop_bench.errors import UserError

    try:
        return _report(_parsed(arguments), run)
    except UserError as error:
        _say(str(error))
        return int(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu-report", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=_SECONDS)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--scale", default="short")
    return parser.parse_args(list(arguments))


def _report(wish: argparse.Namespace, run: Run) -> int:
    from benchmarks.gpu_report.page import any_measured, results_of, write_page
    from meprop_bench.errors import ExitCode, UserError
    from meprop_bench.paper.published import table
    from meprop_bench.paper.scale import SCALES
    from meprop_bench.sweep.deadline import Deadline
    from meprop_bench.sweep.plan import load_preset, plan_preset
    from meprop_bench.workloads.case import one_of

    deadline = Deadline(wish.seconds)
    preset = wish.preset or ("targets" if wish.device == "cpu" else "gpu")
    # A misspelt word is found now, not when its part has its turn.
    plan_preset(load_preset(preset), {"device": [wish.device]})
    tables = [table(name).table_id for name in wish.tables.split(",") if name]
    one_of("scale", wish.scale, SCALES)
    facts = {"device": _found(wish.device), "begun": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    folder = _folder(wish.out, wish.device)
    facts |= {"time given": f"{wish.seconds:g} s", "preset": preset, "command": _command(wish)}
    _say(f"{wish.seconds:g} s for the report in {folder}")
    begun = time.monotonic()

    def latest(root: Path) -> Path | None:
        return next((path for path in results_of(root) if "paper-" not in path.name), None)

    def told(outcomes: Sequence[Outcome]) -> None:
        facts["time taken"] = f"{time.monotonic() - begun:.0f} s"
        write_page(folder, facts, outcomes, _missing())
        if wish.archive is not None:
            _pack(folder, wish.archive)

    parts = parts_of(folder, wish.device, preset=preset, tables=tables, scale=wish.scale, latest=latest)
    outcomes = run_all(parts, folder, deadline, run=run, told=told)
    for outcome in outcomes:
        _say(f"{outcome.part.name}: {outcome.took_s:.0f} s" if outcome.code is not None else outcome.why)
    _say(f"report: {folder / 'README.md'}")
    codes = {outcome.part.name: outcome.code for outcome in outcomes}
    if ExitCode.INTERRUPTED in [outcome.code for outcome in outcomes if not outcome.why]:
        return ExitCode.INTERRUPTED
    if not any_measured(folder):
        raise UserError(f"nothing was measured: {folder / SWEEP}.log says why", ExitCode.NOTHING_MEASURED)
    return ExitCode.REGRESSION if 1 in (codes.get(name) for name in (TESTS, KERNELS, SWEEP)) else ExitCode.OK


def _found(device: str) -> str:
    """Return the device's name with its software; UserError where it is not there."""
    import torch

    from meprop_bench.errors import ExitCode, UserError
    from meprop_bench.measure.environment import cpu_model
    from meprop_bench.sweep.feasible import check_feasible
    from meprop_bench.workloads.case import Case

    software, case = f"torch {torch.__version__}, Python {sys.version.split()[0]}", Case(device=device)
    try:
        check_feasible([case])
    except UserError as error:
        advice = "take a PYTHON whose torch finds it, or DEVICE=cpu"
        reason = str(error).replace("use --device cpu", f"{advice} (here: {software})")
        raise UserError(reason, ExitCode.NOTHING_MEASURED) from None
    return f"{cpu_model() if device == 'cpu' else torch.cuda.get_device_name(device)}, {software}"


def _folder(wanted: Path | None, device: str) -> Path:
    """Return an empty folder."""
    from meprop_bench.errors import UserError
    from meprop_bench.measure.environment import machine_slug

    if wanted is not None:
        if wanted.is_dir() and any(wanted.iterdir()):
            raise UserError(f"{wanted} is not empty: a report is never written over another; choose another OUT")
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted.resolve()  # the parts run in the project's folder
    stem = f"{datetime.now(UTC):%Y-%m-%d}_{machine_slug(device)}_gpu"
    count = 1
    while True:
        folder = ROOT / "reports" / (stem if count == 1 else f"{stem}-{count}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        count += 1


def _missing() -> list[str]:
    return [f"{name}: {cost}" for name, cost in _WANTED.items() if find_spec(name) is None]


def _command(wish: argparse.Namespace) -> str:
    told = {"DEVICE": wish.device, "SECONDS": f"{wish.seconds:g}", "PRESET": wish.preset}
    usual = {"DEVICE": "cuda", "SECONDS": f"{_SECONDS:g}"}
    words = [f"{name}={value}" for name, value in told.items() if value is not None and value != usual.get(name)]
    return " ".join(["make gpu-report", *words])


def _pack(folder: Path, archive: Path) -> None:
    """Write the folder as one file, whole or not at all; the last one stays until then."""
    temporary = archive.with_name(f".{archive.name}.tmp")
    with tarfile.open(temporary, "w:gz") as packed:
        packed.add(folder, folder.resolve().name)
    os.replace(temporary, archive)


def _say(message: str) -> None:
    print(f"gpu-report: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the part that is running, too
    sys.exit(main(sys.argv[1:]))
