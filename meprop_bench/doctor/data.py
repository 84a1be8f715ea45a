"""Which data sets are here, and whether they are the published ones.

A set that is not here is a note: the digits of scikit-learn stand in for it. One that is damaged is a problem, since a
sweep over it is refused (`sweep.feasible`), and better now than then.
"""

from __future__ import annotations

from pathlib import Path

from meprop_bench.data.content import condition
from meprop_bench.data.sources import SOURCES, Source, data_folder
from meprop_bench.doctor.finding import Finding, State
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
    state, lines = condition(folder, source, thorough=thorough)
    if state == "present":
        how = "verified by SHA-256" if thorough else "of the published size"
        return Finding("data", source.name, "ok", f"{how}, {source.size / 1e6:.1f} MB in {folder / source.name}")
    found: dict[str, tuple[State, str]] = {
        "damaged": ("problem", "; ".join(lines)),
        "incomplete": ("warning", f"{'; '.join(lines)}; so it is not used"),
        "missing": ("note", f"not here ({folder})"),
    }
    return Finding("data", source.name, *found[state], f"meprop-bench data fetch {source.name}")
