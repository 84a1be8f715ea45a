"""A profile as an object: printed as the command prints it, and shown as HTML in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meprop_bench.report.profile import as_html, as_text
from meprop_bench.report.why import answers
from meprop_bench.results.profile import Profile

if TYPE_CHECKING:
    from meprop_bench.report.why import ProfileAnswer
    from meprop_bench.results.schema import Row

__all__ = ["Profiled"]


@dataclass(frozen=True, repr=False)
class Profiled:
    """Where the time of one step goes, and why it is not less."""

    profile: Profile  # stages, operators, overhead, break-even
    environments: Mapping[str, Any]  # what each environment id stands for

    @property
    def rows(self) -> Sequence[Row]:
        """A row for each phase."""
        return self.profile.rows

    @property
    def answers(self) -> Sequence[ProfileAnswer]:
        """Why it is not less: questions, with their answers in words and how each was found."""
        return answers(self.profile)

    def __str__(self) -> str:
        return as_text(self.profile, terminal=sys.stdout is not None and sys.stdout.isatty())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(self.profile)
