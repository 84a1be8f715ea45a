"""What `Estimate` gives, of many estimates at once: a report of 100,000 rows needs it of every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meprop_bench.stats import student
from meprop_bench.stats.estimates import Estimate

if TYPE_CHECKING:
    import numpy as np

__all__ = ["p_values", "ratios"]


def p_values(estimates: Sequence[Estimate]) -> np.ndarray:
    """Return the two-sided p-values of "it is 0" (`Estimate.p_value`); NaN without an error."""
    import numpy as np

    if not estimates:
        return np.empty(0)
    values, errors, degrees = _columns(estimates)
    certain = np.where(values == 0, 0.0, math.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(errors > 0, np.abs(values) / errors, certain)
        found: np.ndarray = np.minimum(1.0, 2 * student.below(degrees, -t))
    found[np.isnan(errors)] = math.nan
    return found


def ratios(estimates: Sequence[Estimate], confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return exp of each with its bounds (`Estimate.ratio`), estimates, lower and upper bounds."""
    import numpy as np

    values, errors, degrees = _columns(estimates)
    kinds, of = np.unique(degrees, return_inverse=True)
    half = student.quantile(np.maximum(kinds, 1), (1 + confidence) / 2)[of] * errors
    with np.errstate(over="ignore"):
        return np.exp(values), np.exp(values - half), np.exp(values + half)


def _columns(estimates: Sequence[Estimate]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    value, error, degrees = (np.array([getattr(one, name) for one in estimates], np.float64) for name in _FIELDS)
    return value, error, degrees


_FIELDS = ("value", "error", "degrees")
