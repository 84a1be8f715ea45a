"""What each pair of processes says of one figure, in six numbers: few enough to be stored with a verdict and drawn.

A pair of processes took its values (base, head) next to each other, some hundreds of them. Its median ratio is the one
value that the verdict is made of (`evidence`); between the quartiles lie half of its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta

from meprop_bench.stats import Runs

__all__ = ["ProcessPair", "process_pairs", "spread"]

Positive: TypeAlias = Annotated[float, Meta(ge=1e-30, le=1e30)]
"""What may be read back."""


@dataclass(frozen=True, slots=True)
class ProcessPair:
    """One pair of processes; base and head in the figure's unit."""

    base: Positive  # median
    head: Positive
    ratio: Positive  # median head / base of what was taken next to each other
    low: Positive  # its quartiles
    high: Positive
    values: int  # how many that are


def process_pairs(runs: Runs) -> list[ProcessPair]:
    """Return what each pair of processes says, in the order in which they ran; one that has no ratio is left out."""
    found = []
    for run in runs:
        base, head = np.array(run, np.float64).reshape(-1, 2).T
        if run and min(base.min(), head.min()) > 0:
            ratio, low, high = np.exp(np.quantile(np.log(head) - np.log(base), (0.5, 0.25, 0.75))).tolist()
            found.append(ProcessPair(float(np.median(base)), float(np.median(head)), ratio, low, high, len(run)))
    return found


def spread(pairs: Sequence[ProcessPair]) -> float | None:
    """Return the standard deviation of the pairs' log ratios; None for fewer than two."""
    return float(np.std([math.log(pair.ratio) for pair in pairs], ddof=1)) if len(pairs) > 1 else None
