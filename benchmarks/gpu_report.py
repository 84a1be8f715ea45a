"""The report of a GPU within minutes: `make gpu-report`, or `python -m benchmarks.gpu_report` in the project's folder.

A GPU is often lent for minutes, and what has not been brought back by then is lost. So three parts share the time, each
a process of its own, and the folder is complete after each of them:

    tests     `pytest -m cuda`, then the Triton kernels against the oracle, compiled      at most a quarter
    sweep     `meprop-bench speedup --preset gpu --deadline ...`: most important cases first    two thirds
    tables    `meprop-bench paper run TABLE --reuse <the sweep> --deadline ...`                    the rest

The project runs in place, by this very interpreter: it needs a torch with CUDA and what `pyproject.toml` lists, but no
installation and no network. A part that is late by ten seconds is interrupted as by Ctrl-C, upon which a command
writes its report with what it has.

Exit codes: 0 done, 1 a test or a case's check failed, 2 wrong usage, 5 nothing was measured (no such device, for one),
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.environment import machine_slug
from meprop_bench.results.redact import without_paths
from meprop_bench.results.store import replace_file
from meprop_bench.sweep.deadline import Deadline

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[1]
_TABLES = ("icml:7", "icml:8", "tkde:7a", "tkde:7b")
_TESTED = ("tests/ops", "tests/nn", "tests/optim", "tests/measure", "tests/workloads")
"""Where tests are that need a GPU; the others would be collected in vain."""
_KERNEL_TESTS = ("tests/ops/test_triton.py", "tests/ops/test_triton_kept.py")
"""What is interpreted where there is no GPU, and compiled here."""

_PAGE_S = 15.0
"""Seconds that a command takes after its deadline: the last case, the plots and the pages."""
_LATE_S, _GOODBYE_S = 10.0, 20.0
"""Seconds after its time at which a part is interrupted, and that it then has to end by itself."""


def main(arguments: Sequence[str]) -> int:
    """Make the report and return the exit code."""
    parser = argparse.ArgumentParser(prog="make gpu-report", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=450.0, help="for all of it [default: 450]")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu: no tests, of the preset targets")
    parser.add_argument("--preset", help="of the sweep [default: gpu]")
    parser.add_argument("--out", type=Path, help="a new folder [default: reports/<date>_<machine>_gpu]")
    parser.add_argument(
        "--archive", type=Path, help="the folder once more as one .tar.gz, written anew after each part"
    )
    options = parser.parse_args(arguments)
    try:
        return _report(options)
    except UserError as error:
        _say(str(error))
        return int(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        return int(ExitCode.INTERRUPTED)


def _report(options: argparse.Namespace) -> int:
    from meprop_bench.sweep.plan import load_preset, plan_preset

    deadline, on_cpu = Deadline(options.seconds), options.device == "cpu"
    preset = options.preset or ("targets" if on_cpu else "gpu")
    plan_preset(load_preset(preset), {"device": [options.device]})  # a misspelt word is found now, not in its part
    _check_device(options.device)
    folder = _new_folder(options.out, options.device)
    lines = [f"# {folder.name}", f"`make gpu-report` at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {options.seconds:g} s"]
    lines += ["| part | exit code | last line |", "| --- | ---: | --- |"]
    codes: dict[str, int] = {}

    def run(name: str, command: Sequence[str], share: float) -> None:
        seconds = deadline.left_s * share
        if seconds <= _PAGE_S:
            lines.append(f"| {name} | | not begun: no time was left |")
        else:
            command = [word.replace("SECONDS", f"{seconds - _PAGE_S:.0f}") for word in command]
            codes[name] = _run(command, folder / f"{name}.log", seconds + _LATE_S)
            text = (folder / f"{name}.log").read_text(encoding="utf-8").strip().splitlines()
            lines.append(f"| [{name}]({name}.log) | {codes[name]} | {text[-1].strip('= ') if text else ''} |")
        replace_file(folder / "README.md", "\n\n".join((*lines[:2], "\n".join(lines[2:]))) + "\n")
        if options.archive is not None:
            _pack(folder, options.archive)

    package = [sys.executable, "-m", "meprop_bench"]
    common = ["--out", str(folder), "--device", options.device, "--deadline", "SECONDS"]
    pytest = [sys.executable, "-m", "pytest", "-q", "--color", "no", "-p", "no:cacheprovider", "-m"]
    if not on_cpu:
        run("tests", [*pytest, "cuda", *_TESTED], 0.15)
        run("kernel-tests", [*pytest, "not cuda", *_KERNEL_TESTS], 0.15)
    run("sweep", [*package, "speedup", "--preset", preset, *common], 1.0 if on_cpu else 0.85)
    results = sorted(path.parent for path in folder.glob("*/measurements.jsonl"))
    if not on_cpu:
        for place, table in enumerate(_TABLES):
            reuse = [word for path in results for word in ("--reuse", str(path))]
            command = [*package, "paper", "run", table, "--scale", "short", *reuse, *common]
            run(table.replace(":", "-"), command, 1 / (len(_TABLES) - place))
    _say(f"report: {folder / 'README.md'}")
    if not any(path.stat().st_size for path in folder.glob("*/measurements.jsonl")):
        raise UserError(f"nothing was measured: {folder / 'sweep.log'} says why", ExitCode.NOTHING_MEASURED)
    return int(ExitCode.REGRESSION if 1 in codes.values() else ExitCode.OK)


def _check_device(device: str) -> None:
    from meprop_bench.sweep.feasible import check_feasible
    from meprop_bench.workloads.case import Case

    try:
        check_feasible([Case(device=device)])
    except UserError as error:
        reason = str(error).replace("use --device cpu", "take a PYTHON whose torch finds it, or DEVICE=cpu")
        raise UserError(reason, ExitCode.NOTHING_MEASURED) from None


def _new_folder(wanted: Path | None, device: str) -> Path:
    stem = f"{datetime.now(UTC):%Y-%m-%d}_{machine_slug(device)}_gpu"
    folder = wanted or _ROOT / "reports" / stem
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} exists: a report is never written over another; choose another OUT") from None
    return folder.resolve()


def _run(command: Sequence[str], log: Path, limit_s: float) -> int:
    """Run a command from the project's folder; its output goes to the log without paths, as that may be committed."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0"}
    _say(without_paths(" ".join(command)))
    with log.open("w+", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit_s)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GOODBYE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(reason, KeyboardInterrupt):
                raise
            return process.wait()
        finally:
            file.flush()
            replace_file(log, without_paths(log.read_text(encoding="utf-8", errors="replace")))


def _pack(folder: Path, archive: Path) -> None:
    """Write the folder as one file, whole or not at all; the last one stays until then."""
    temporary = archive.with_name(f".{archive.name}.tmp")
    with tarfile.open(temporary, "w:gz") as packed:
        packed.add(folder, folder.name)
    os.replace(temporary, archive)


def _say(message: str) -> None:
    print(f"gpu-report: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the part that runs, too
    sys.exit(main(sys.argv[1:]))
