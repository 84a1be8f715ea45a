"""An outcome for programs: JSON, and JUnit XML, which most CI servers show.

JSON is of the schema "meprop-bench-gate/1", which `gate.schema.json` beside this file describes. Numbers that do not
exist are null. A change has three: head / base and its interval, or points of accuracy lost. A field may be added
within version 1; one that is renamed or means something else makes version 2. All judgements are in it, one on a line.
A million of them are 350 MB, so they are written in pieces. One that was measured in pairs of processes has what each
of them said (`pairs`), and one that was judged by a history its last runs (`past`), so that `gate explain` can draw it.

JUnit XML has one test case for each figure. One that failed is a failure; one that is inconclusive is skipped, as
nothing is known of it, and an error would say that the gate broke. What is only reported passes, and its verdict is in
its output. A CI server refuses a report of a million cases, or shows none of it (GitLab's limits are 30 MB and half a
million). So the `MOST` worst are in it, and its output says how many were left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as Xml

import msgspec
import numpy as np

from meprop_bench.gate.document import change, counted, margin
from meprop_bench.gate.judgement import VERDICTS, Judgement, Outcome
from meprop_bench.gate.names import visible
from meprop_bench.gate.pairs import process_pairs

__all__ = ["MOST", "SCHEMA", "as_junit", "json_pieces"]

SCHEMA = "meprop-bench-gate/1"
_AT_ONCE = 10_000
_KEYS = (
    *("case", "figure", "quantity", "unit", "base", "head", "change", "change_low", "change_high", "margin", "least"),
    *("pairs", "noise", "caught", "report_only", "verdict", "reason"),
)
"""Of a judgement."""

MOST = 20_000
"""Test cases: 4 to 8 MB."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document may hold, escaped or not."""


def json_pieces(outcome: Outcome) -> Iterator[str]:
    """Yield the JSON object, which is ASCII, in pieces."""
    every = outcome.judgements
    head = {
        "schema": SCHEMA,
        "doubts": list(outcome.doubts),
        "caught": every.caught,
        "command": outcome.command,
        "base": outcome.base,
        "head": outcome.head,
        "exit_code": int(outcome.exit_code),
        "allow_inconclusive": outcome.allowed,
        "incomparable": list(outcome.incomparable),
        "findings": list(outcome.findings),
        "counts": {key: every.counts()[key] for key in ("pass", "fail", "inconclusive", "report_only")},
        "seconds": outcome.seconds,
        "environment": outcome.environment,
        "machine": outcome.machine,
        "repeat": list(outcome.repeat),
        "notes": list(outcome.notes),
        "history": None if outcome.past is None else msgspec.to_builtins(outcome.past.runs),
        "judgements": [],
    }
    yield json.dumps(head, indent=1, allow_nan=False).removesuffix("]\n}")
    for first in range(0, len(every), _AT_ONCE):
        yield ("," if first else "") + "\n  " + ",\n  ".join(_lines(outcome, first))
    yield "\n ]\n}\n"


def _lines(outcome: Outcome, first: int) -> list[str]:
    judgements, runs, past = outcome.judgements[first : first + _AT_ONCE], outcome.runs, outcome.past
    kinds, reasons = judgements.kinds, judgements.reasons
    lines: list[dict[str, Any]] = []
    for case, row, noise in zip(judgements.cases, judgements.rows.tolist(), judgements.noise.tolist(), strict=True):
        base, head, change, low, high, margin, least, caught, pairs, kind, reason, verdict, only = row
        values = (case, *kinds[kind], base, head, change, low, high, margin, least, pairs, noise, caught, only)
        lines.append(dict(zip(_KEYS, (*values, VERDICTS[verdict], reasons[reason]), strict=True)))
        if (taken := runs.get((case, kinds[kind][0]))) is not None:
            lines[-1]["processes"] = process_pairs(taken)
        if past is not None:
            lines[-1] |= past.of(first + len(lines) - 1)
    try:
        text = msgspec.json.Encoder().encode_lines(lines)  # what is no finite number becomes null
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        text = b"\xff"
    return text.decode().splitlines() if text.isascii() else [_escaped(line) for line in lines]


def _escaped(line: dict[str, Any]) -> str:
    missing = {key: None for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(line | missing, default=msgspec.to_builtins)


def as_junit(outcome: Outcome) -> str:
    """Return the outcome as XML, in the order in which it was judged."""
    every = outcome.judgements
    shown, rest = np.sort(every.worst_first[:MOST]), every.worst_first[MOST:]
    counts = every.counts(shown)
    totals = {
        "name": "meprop-bench gate",
        "tests": str(len(shown)),
        "failures": str(counts["fail"]),
        "errors": "0",
        "time": f"{outcome.seconds:.3f}",
    }
    suites = Xml.Element("testsuites", totals)
    suite = Xml.SubElement(suites, "testsuite", {**totals, "skipped": str(counts["inconclusive"])})
    properties = Xml.SubElement(suite, "properties")
    for name, value in (("base", outcome.base), ("head", outcome.head), ("command", outcome.command)):
        Xml.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for place in shown.tolist():
        _add(suite, every[place])
    more = f"{len(rest)} more are not in this file: {counted(every.counts(rest))}" if len(rest) else ""
    said = filter(None, (*outcome.doubts, *outcome.findings, more, *outcome.notes))
    Xml.SubElement(suite, "system-out").text = _clean("\n".join(said))
    Xml.indent(suites, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(suites, encoding="unicode") + "\n"


def _add(suite: Xml.Element, one: Judgement) -> None:
    case = Xml.SubElement(suite, "testcase", {"classname": visible(one.case), "name": visible(one.figure), "time": "0"})
    said = ", ".join(filter(None, (f"head / base {change(one)}", f"margin {margin(one)}", one.reason)))
    if one.quantity == "accuracy":
        said = said.replace("head / base", "lost", 1)
    said = _clean(said)
    if not one.report_only and one.verdict == "fail":
        failure = Xml.SubElement(case, "failure", {"message": said, "type": "regression"})
        failure.text = f"{case.get('classname')}/{case.get('name')}"
    elif not one.report_only and one.verdict == "inconclusive":
        Xml.SubElement(case, "skipped", {"message": f"inconclusive: {said}"})
    else:
        Xml.SubElement(case, "system-out").text = f"{one.verdict}: {said}"


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
