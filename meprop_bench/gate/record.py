"""An outcome as JSON for programs: schema "meprop-bench-gate/1", which `gate.schema.json` beside this file describes.

Numbers that do not exist are null. A change has three: head / base and its interval, or points of accuracy lost. A
field may be added within version 1; one that is renamed or means something else makes version 2.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

from meprop_bench.gate.judgement import Judgement, Outcome
from meprop_bench.stats import Interval

__all__ = ["SCHEMA", "as_json", "schema", "to_json"]

SCHEMA = "meprop-bench-gate/1"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the document."""
    found: dict[str, Any] = json.loads(
        (resources.files("meprop_bench.gate") / "gate.schema.json").read_text(encoding="utf-8")
    )
    return found


def as_json(outcome: Outcome) -> str:
    """Return the outcome as one JSON object."""
    return json.dumps(to_json(outcome), indent=1, allow_nan=False) + "\n"


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the JSON object."""
    verdicts = [one.verdict for one in outcome.judgements if not one.report_only]
    return {
        "schema": SCHEMA,
        "command": outcome.command,
        "base": outcome.base,
        "head": outcome.head,
        "exit_code": int(outcome.exit_code),
        "counts": {
            **{verdict: verdicts.count(verdict) for verdict in ("pass", "fail", "inconclusive")},
            "report_only": len(outcome.judgements) - len(verdicts),
        },
        "seconds": outcome.seconds,
        "environment": outcome.environment,
        "notes": list(outcome.notes),
        "judgements": [_judgement(one) for one in outcome.judgements],
    }


def _judgement(one: Judgement) -> dict[str, Any]:
    change = one.change or Interval(math.nan, math.nan, math.nan)
    return {
        "case": one.case,
        "figure": one.figure,
        "quantity": one.quantity,
        "unit": one.unit,
        "base": one.base,
        "head": one.head,
        "change": _number(change.estimate),
        "change_low": _number(change.low),
        "change_high": _number(change.high),
        "margin": one.margin,
        "least": one.least,
        "pairs": one.pairs,
        "noise": _number(one.noise),
        "report_only": one.report_only,
        "verdict": one.verdict,
        "reason": one.reason,
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
