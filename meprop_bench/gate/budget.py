"""How long a comparison may take: so many seconds a case, for all cases together.

    round      a pair of fresh processes for all cases that can share one, then each case for its own time
    budget     seconds a case, times the cases

Cases differ in how noisy they are: one is decided after eight pairs of processes, the next one after forty. What the
one does not need is there for the other, so that all of them take as long as was said, and no case is given up while
there is time. A round is begun for as many of the open cases as it has time for, by what a round usually took them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from meprop_bench.stats import median

__all__ = ["CaseBudget"]

Case = TypeVar("Case", bound=Hashable)


@dataclass
class CaseBudget(Generic[Case]):
    """Seconds that there are, and what was spent of them."""

    total_s: float
    process_of: Callable[[Case], Hashable]
    """Case -> what its processes are started with: cases that have it in common share them."""
    starts_s: list[float] = field(default_factory=list)  # of each pair of processes
    own_s: dict[Case, list[float]] = field(default_factory=dict)  # of each case's rounds, without these

    @property
    def left_s(self) -> float:
        """What is left; less than nothing where the first round took longer than all that there was."""
        return self.total_s - sum(self.starts_s) - sum(map(sum, self.own_s.values()))

    def started(self, seconds: float) -> None:
        """A pair of processes was started."""
        self.starts_s.append(seconds)

    def took(self, case: Case, seconds: float) -> None:
        """A case had a round."""
        self.own_s.setdefault(case, []).append(seconds)

    def affords(self, cases: Iterable[Case]) -> list[Case]:
        """Return those cases that one more round has time for, the first ones first; each has had one."""
        left_s, found, begun = self.left_s, [], set()
        for case in cases:
            process = self.process_of(case)
            cost_s = self._usual_s(case) + (0.0 if process in begun else median(self.starts_s))
            if cost_s <= left_s:
                found.append(case)
                begun.add(process)
                left_s -= cost_s
        return found

    def most_rounds(self, case: Case) -> int:
        """Return how many rounds a case could have had in all, were what is left its own."""
        if not (own := self.own_s.get(case)):
            return 0
        cost_s = self._usual_s(case) + median(self.starts_s)
        return len(own) + (int(max(self.left_s, 0.0) / cost_s) if cost_s > 0 else 0)

    def _usual_s(self, case: Case) -> float:
        """Return what a round takes the case; the first one has trainings and all that is done once."""
        own = self.own_s[case]
        return median(own[1:] or own)
