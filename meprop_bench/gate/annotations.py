"""An outcome as annotations of a check: GitHub's workflow commands, and GitLab's report on code quality.

    ::error title=slower%3A tests/test_io.py%3A%3Atest_read,file=tests/test_io.py,line=12::30% slower [29%25, 31%25] ...

A figure that failed is an error, one that is inconclusive a warning. Where the name of a case says in which file it is,
as those of pytest (`tests/test_io.py::test_read[1]`) and of functions (`bench.py:parse`) do, and the file is here, the
annotation is shown at that line; the others are shown on the check. GitHub shows ten of a kind for a step, so that of
more than ten nine are written, worst first, and a count of the rest.

What stands in a name must not become a command of its own: a line break or a `%` in it is escaped, as GitHub has it
(https://docs.github.com/actions/reference/workflow-commands-for-github-actions). Of the printed table the action keeps
GitHub from reading any (`stop-commands`).

GitLab compares the fingerprints of the two branches; its format has no place but in a file, so what is in none is
reported at the gate's configuration.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from meprop_bench.gate.document import change, in_words, margin
from meprop_bench.gate.judgement import VERDICTS, Judgement, Outcome
from meprop_bench.gate.names import shown
from meprop_bench.stats import Verdict

__all__ = ["as_code_quality", "as_workflow_commands", "place_of", "refusal_command"]

_MOST = 10
_MOST_QUALITY = 1000
_CONFIGURATION = "pyproject.toml"
_LOCATED = re.compile(r"(?P<path>[^:\0]+\.py)::?(?P<name>[\w.]+(?:::[\w.]+)*)")
_LARGEST_FILE = 1 << 20


def as_workflow_commands(outcome: Outcome, root: Path = Path(), environment: Mapping[str, str] = os.environ) -> str:
    """Return a line for each annotation.

    Files are looked for under `root`, the working folder, and named from the checkout's, as the environment has it.
    """
    doubts = outcome.doubts[: _MOST // 2]
    lines = [_command("warning", "the machine was busy", doubt, None) for doubt in doubts]
    levels: tuple[tuple[str, Verdict], ...] = (("error", "fail"), ("warning", "inconclusive"))
    for level, verdict in levels:
        count = outcome.judgements.counts()[verdict]
        most = _MOST - (len(doubts) if level == "warning" else 0)
        first = _worst(outcome, verdict, most if count <= most else most - 1)
        lines += [
            _command(level, f"{verdict}: {shown(one.name)}", _said(one), place_of(one.case, root, environment))
            for one in first
        ]
        if rest := count - len(first):
            lines.append(_command(level, f"{verdict}: {rest} more figures", "The job's summary has them.", None))
    return "".join(f"{line}\n" for line in lines)


def refusal_command(reason: str) -> str:
    """Return the annotation of a gate that came to no verdict."""
    return _command("error", "no verdict", shown(reason, 2000), None) + "\n"


def as_code_quality(outcome: Outcome, root: Path = Path(), environment: Mapping[str, str] = os.environ) -> str:
    """Return GitLab's report, JSON: what failed is `major`, what is inconclusive `minor`."""
    found = []
    severities: tuple[tuple[str, Verdict], ...] = (("major", "fail"), ("minor", "inconclusive"))
    for severity, verdict in severities:
        for one in _worst(outcome, verdict, _MOST_QUALITY):
            path, line = place_of(one.case, root, environment) or (_CONFIGURATION, 1)
            key = f"{outcome.suite}\0{one.case}\0{one.figure}\0{verdict}".encode("utf-8", "surrogatepass")
            found.append(
                {
                    "description": f"{shown(one.name)}: {_said(one)}",
                    "check_name": f"meprop-bench gate {verdict}",
                    "fingerprint": hashlib.sha256(key).hexdigest(),
                    "severity": severity,
                    "location": {"path": path, "lines": {"begin": line}},
                }
            )
    return json.dumps(found, indent=1) + "\n"


def place_of(case: str, root: Path = Path(), environment: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Return the file, from the checkout's folder, and the line that a case's name tells; None for no such file."""
    if (found := _LOCATED.match(case)) is None:
        return None
    path = Path(found["path"])
    if path.is_absolute() or ".." in path.parts or not found["path"].isprintable():
        return None
    with suppress(OSError):
        if (file := root / path).is_file():
            name = _from_checkout(file, environment) or path.as_posix()
            return name, _line(file, re.split(r"::|\.", found["name"]))
    return None


def _from_checkout(file: Path, environment: Mapping[str, str]) -> str | None:
    folder = environment.get("GITHUB_WORKSPACE") or environment.get("CI_PROJECT_DIR")
    whole = file.resolve()
    inside = folder and whole.is_relative_to(top := Path(folder).resolve())
    return whole.relative_to(top).as_posix() if inside else None


def _line(file: Path, names: Iterable[str]) -> int:
    """Return the line of a definition, class by class; 1 where there is none of that name."""
    if file.stat().st_size > _LARGEST_FILE:
        return 1
    try:
        tree: ast.AST = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 1
    line = 1
    for name in names:
        for inner in ast.iter_child_nodes(tree):
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and inner.name == name:
                tree, line = inner, inner.lineno
                break
        else:
            return 1
    return line


def _worst(outcome: Outcome, verdict: Verdict, most: int) -> list[Judgement]:
    """Return at most so many figures that decide and have a verdict, the worst first."""
    every = outcome.judgements
    rows = every.rows[every.worst_first]
    wanted = (rows["verdict"] == VERDICTS.index(verdict)) & ~rows["report_only"]
    return [every[place] for place in every.worst_first[wanted][:most].tolist()]


def _said(one: Judgement) -> str:
    """Return what is said of a figure beside its name."""
    ratio = f"head / base {change(one)}, margin {margin(one)}" if one.change is not None else ""
    return "; ".join(dict.fromkeys(filter(None, (in_words(one), ratio, shown(one.reason)))))


def _command(level: str, title: str, message: str, place: tuple[str, int] | None) -> str:
    properties = {"title": f"gate: {title}"} | ({} if place is None else {"file": place[0], "line": str(place[1])})
    text = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
    return f"::{level} {text}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    return "".join(f"%{ord(c):02X}" if c in f"%\r\n{more}" else c for c in text)
