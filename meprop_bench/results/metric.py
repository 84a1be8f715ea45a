"""Which figure a comparison of quality compares, as data; a row has it as text (`schema.Parity.metric`).

    QualityMetric("accuracy", "test")         accuracy on the test set, at the best development score
    QualityMetric("accuracy", "development")  accuracy on the development set, at the end
    QualityMetric("minus the loss", "own")    minus the loss, at the end: what a user's `evaluate` gives
    QualityMetric("accuracy", "sweep")        accuracy_percent: as "development", of a sweep's cases

The text is made here, and taken apart here where rows are read, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Of", "QualityMetric"]

Of = Literal["test", "development", "own", "sweep", "unknown"]

_ENDINGS: Mapping[Of, str] = {
    "test": " on the test set, at the best development score",
    "development": " on the development set, at the end",
    "own": ", at the end",
}
_SWEEP = "accuracy_percent"


@dataclass(frozen=True)
class QualityMetric:
    """A figure's name, and of which model on which data it is; "unknown" where a row does not say that."""

    name: str
    of: Of

    @classmethod
    def read(cls, text: str) -> QualityMetric:
        """Take a row's text apart; rows of before have the sign of a percentage in it."""
        if text == _SWEEP:
            return cls("accuracy", "sweep")
        of: Of = next((each for each, ending in _ENDINGS.items() if text.endswith(ending)), "unknown")
        return cls(text.removesuffix(_ENDINGS.get(of, "")).removesuffix("%").rstrip(" ,"), of)

    @property
    def text(self) -> str:
        """What a row has."""
        return _SWEEP if self.of == "sweep" else self.name + _ENDINGS.get(self.of, "")
