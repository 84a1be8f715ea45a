"""An outcome as JSON for programs: schema "meprop-bench-gate/1", which `gate.schema.json` beside this file describes.

Numbers that do not exist are null. A change has three: head / base and its interval, or points of accuracy lost. A
field may be added within version 1; one that is renamed or means something else makes version 2.

All judgements are in it, one on a line. A million of them are 350 MB, so they are written in pieces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import resources
from typing import Any

import msgspec

from meprop_bench.gate.judgement import VERDICTS, Judgements, Outcome

__all__ = ["SCHEMA", "as_json", "json_pieces", "schema"]

SCHEMA = "meprop-bench-gate/1"
_AT_ONCE = 10_000
_KEYS = (
    *("case", "figure", "quantity", "unit", "base", "head", "change", "change_low", "change_high", "margin", "least"),
    *("pairs", "noise", "caught", "report_only", "verdict", "reason"),
)
"""Of a judgement."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the document."""
    found: dict[str, Any] = json.loads(
        (resources.files("meprop_bench.gate") / "gate.schema.json").read_text(encoding="utf-8")
    )
    return found


def as_json(outcome: Outcome) -> str:
    """Return the outcome as one JSON object."""
    return "".join(json_pieces(outcome))


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
        "counts": {key: every.counts()[key] for key in ("pass", "fail", "inconclusive", "report_only")},
        "seconds": outcome.seconds,
        "environment": outcome.environment,
        "notes": list(outcome.notes),
        "judgements": [],
    }
    yield json.dumps(head, indent=1, allow_nan=False).removesuffix("]\n}")
    for first in range(0, len(every), _AT_ONCE):
        yield ("," if first else "") + "\n  " + ",\n  ".join(_lines(every[first : first + _AT_ONCE]))
    yield "\n ]\n}\n"


def _lines(judgements: Judgements) -> list[str]:
    kinds, reasons = judgements.kinds, judgements.reasons
    lines = []
    for case, row, noise in zip(judgements.cases, judgements.rows.tolist(), judgements.noise.tolist(), strict=True):
        base, head, change, low, high, margin, least, caught, pairs, kind, reason, verdict, only = row
        values = (case, *kinds[kind], base, head, change, low, high, margin, least, pairs, noise, caught, only)
        lines.append(dict(zip(_KEYS, (*values, VERDICTS[verdict], reasons[reason]), strict=True)))
    try:
        text = msgspec.json.Encoder().encode_lines(lines)  # what is no finite number becomes null
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        text = b"\xff"
    return text.decode().splitlines() if text.isascii() else [_escaped(line) for line in lines]


def _escaped(line: dict[str, Any]) -> str:
    missing = {key: None for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(line | missing)
