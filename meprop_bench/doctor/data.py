"""Which data sets are here, and whether they are the published ones.

A set that is not here is a note: the digits of scikit-learn stand in for it. One that is damaged is a problem, since a
sweep over it is refused (`sweep.feasible`), and better now than then.
"""

from __future__ import annotations

from pathlib import Path

from meprop_bench.data.content import State, inspect
from meprop_bench.data.location import data_folder
from meprop_bench.data.sources import SOURCES, Source
from meprop_bench.doctor.finding import Finding
from meprop_bench.errors import UserError

__all__ = ["data_sets"]


def data_sets(*, thorough: bool) -> list[Finding]:
    """Look at every data set.

    Args:
        thorough: read and hash every file (half a second for MNIST); otherwise sizes alone are compared.

    """
    try:
        folder = data_folder()
    except UserError as error:
        return [Finding("data", "folder", "problem", str(error))]
    return [_judge(folder, source, thorough) for source in SOURCES.values()]


def _judge(folder: Path, source: Source, thorough: bool) -> Finding:
    found = [(file.stored_name, *inspect(folder, source, file, thorough=thorough)) for file in source.files]
    missing = [name for name, state, _ in found if state is State.MISSING]
    damaged = [f"{name} is {state}: {detail}" for name, state, detail in found if state in _DAMAGED]
    fetch = f"meprop-bench data fetch {source.name}"
    if damaged:
        return Finding("data", source.name, "problem", "; ".join(damaged), fetch)
    if len(missing) == len(found):
        return Finding("data", source.name, "note", f"not here ({folder})", fetch)
    if missing:
        return Finding("data", source.name, "warning", f"without {', '.join(missing)}, so it is not used", fetch)
    how = "verified by SHA-256" if thorough else "of the published size"
    return Finding("data", source.name, "ok", f"{how}, {source.size / 1e6:.1f} MB in {folder / source.name}")


_DAMAGED = (State.WRONG_SIZE, State.CORRUPT)
