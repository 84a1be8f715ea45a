"""Figures that were judged, with what their verdict was made of: from the gate's JSON, or from two files.

The JSON has what each pair of processes said (`pairs`), or each of the last runs (`past`). Of what it measured last in
a folder, or judged by a history, the gate keeps it in the user's cache, so that `gate explain` needs no file. What was
compared in files is read from them anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from meprop_bench.cache import writable
from meprop_bench.errors import UserError, nearest
from meprop_bench.gate.decide import judge
from meprop_bench.gate.files import Compared
from meprop_bench.gate.judgement import Judgement, Outcome, Quantity
from meprop_bench.gate.machine_readable import SCHEMA, json_pieces
from meprop_bench.gate.names import quoted, shown
from meprop_bench.gate.pairs import Positive, ProcessPair
from meprop_bench.gate.past import PastRun, PastRuns, seen
from meprop_bench.gate.series import Side
from meprop_bench.gate.settings import Settings, matches
from meprop_bench.results.incoming import checked, parsed, refused
from meprop_bench.results.store import replace_file
from meprop_bench.stats import Interval, Verdict

__all__ = ["Explained", "keep", "kept", "of_files", "of_outcome"]


@dataclass(frozen=True)
class Explained:
    """A figure with its evidence: what each pair of processes said, the values of both sides, or its last runs."""

    judgement: Judgement
    pairs: Sequence[ProcessPair] = ()
    base: Side = ()
    head: Side = ()
    of_history: bool = False  # judged by the runs before it
    past: Sequence[PastRun] = ()


_Lost: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e30)]


class _Judged(msgspec.Struct, gc=False):
    case: str
    figure: str
    quantity: Quantity
    unit: str
    base: float | None
    head: float | None
    change: float | None
    change_low: float | None
    change_high: float | None
    margin: _Lost
    least: _Lost
    pairs: int
    report_only: bool
    verdict: Verdict
    reason: str
    caught: float | None = None
    processes: list[ProcessPair] = []
    past: list[Positive | None] = []
    second: Positive | None = None
    third: Positive | None = None


class _OutcomeFile(msgspec.Struct):
    schema: str
    judgements: list[_Judged]
    findings: list[str] = []
    history: PastRuns | None = None


def kept(folder: Path) -> Path | None:
    """Return where the outcome of the gate that measured last in a folder is, or would be; None where nothing is."""
    cache = writable("verdicts")
    key = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return None if cache is None else cache / f"{key}.json"


def keep(outcome: Outcome, folder: Path) -> None:
    """Keep an outcome that was measured here, or judged by a history, in place of the one before.

    Raises `UserError` where that cannot be written.
    """
    if (outcome.runs or outcome.past is not None) and (path := kept(folder)) is not None:
        replace_file(path, json_pieces(outcome))


def of_outcome(path: Path, glob: str) -> list[Explained]:
    """Return the figures of the gate's JSON that a name or a glob is about; `UserError`: none, or no such JSON."""
    name = shown(path.name, 120)
    try:
        found = _decoded(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or type(error).__name__}") from None
    except ValueError as error:
        raise refused(f"{name} is not what `gate --output gate.json` writes", error, "name a file that is") from None
    if found.schema != SCHEMA:
        raise UserError(f"{name} has the schema {shown(found.schema, 40)!r}, and this reads {SCHEMA!r}")
    every = found.judgements
    places = _chosen(((one.case, one.figure) for one in every), glob)
    of_history = bool(found.findings) or found.history is not None
    return [
        Explained(
            _judgement(one := every[place]),
            one.processes,
            of_history=of_history,
            past=()
            if found.history is None
            else seen(found.history, one.base, one.past, one.head, one.second, one.third),
        )
        for place in places
    ]


def of_files(compared: Compared, settings: Settings, glob: str) -> list[Explained]:
    """Return those of two files; all figures are judged at once, as the gate does."""
    every = judge(compared.rest, settings, blocks=compared.blocks)
    places = _chosen(every.names, glob)
    wanted = {(every[place].case, every[place].figure) for place in places}
    sides = {name: (one.base, one.head) for one in compared if (name := (one.case, one.figure)) in wanted}
    found = [every[place] for place in places]
    return [Explained(one, (), *sides.get((one.case, one.figure), ((), ()))) for one in found]


def _decoded(data: bytes) -> _OutcomeFile:
    try:
        return msgspec.json.decode(data, type=_OutcomeFile)  # which does not know half of a surrogate pair
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return checked(parsed(data), _OutcomeFile)


def _chosen(names: Iterable[tuple[str, str]], glob: str) -> list[int]:
    """Return the places of the figures that a name or a glob is about."""
    figures = list(names)
    exact = [place for place, (case, figure) in enumerate(figures) if f"{case}/{figure}" == glob]
    found = exact or [place for place, name in enumerate(figures) if matches(glob, *name)]
    if not found:
        whole = [f"{case}/{figure}" for case, figure in figures[:10_000]]
        close = next((name for name in whole if glob in name), None) or nearest(glob, whole)
        hint = f"did you mean {quoted(close)}?" if close else "see the gate's table for their names"
        raise UserError(f"no figure {quoted(glob)} was judged: {hint}")
    return found


def _judgement(one: _Judged) -> Judgement:
    found = None if one.change is None else Interval.of(one.change, one.change_low, one.change_high)
    return Judgement(
        *(one.case, one.figure, one.quantity, one.unit, one.base, one.head, found, one.margin, one.least, one.pairs),
        *(one.report_only, one.verdict, one.reason, one.caught),
    )
