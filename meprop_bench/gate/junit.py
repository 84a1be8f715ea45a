"""An outcome as JUnit XML, which most CI servers show: one test case for each figure.

A figure that failed is a failure; one that is inconclusive is skipped, as nothing is known of it, and an error would
say that the gate broke. What is only reported passes, and its verdict is in its output.

A CI server refuses a report of a million cases, or shows none of it (GitLab's limits are 30 MB and half a million). So
the `MOST` worst are in it, and its output says how many were left out; JSON has them all.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

import numpy as np

from meprop_bench.gate.document import change, counted, margin
from meprop_bench.gate.judgement import Judgement, Outcome
from meprop_bench.gate.names import visible

__all__ = ["MOST", "as_junit"]

MOST = 20_000
"""Test cases: 4 to 8 MB."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document may hold, escaped or not."""


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
    Xml.SubElement(suite, "system-out").text = _clean("\n".join(filter(None, (*outcome.doubts, more, *outcome.notes))))
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
