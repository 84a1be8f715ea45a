"""A claim about two times, and the evidence that decides it, as the gate decides.

    claim     a candidate takes at most `bound` of the time of its reference: 1.05 "not slower by more than 5%",
              1 / 1.2 "at least 1.2x as fast"
    looks     planned beforehand over the processes that the budget allows, alpha shared among them (`gate.looks`)
    verdict   pass when the whole interval is within the bound, fail when it is beyond (`gate.decide`); else undecided

A claim is one figure, and judged alone: no Holm over the tests of a session. A test's outcome must not depend on which
others were chosen, or come after it; each is wrong by chance in at most (1 - confidence) / 2 of the cases at its very
bound, and far less away from it. Who makes a hundred claims gives them a higher confidence.

A budget that ends before the last look makes what is at hand the last look. Three processes are always measured, as a
claim without any would have no answer; so a budget may be overrun by what those need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.gate.decide import judge
from meprop_bench.gate.judgement import Judgement
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.stats import Interval, Verdict

__all__ = ["FEWEST", "PROCESS_S", "Claim", "ClaimDecision", "Evidence", "decide"]

PROCESS_S = 2.5
"""Seconds of a budget for each process, its start included; a gate's have 4.7."""
FEWEST = 3
"""Processes of a claim at least, which are the first look of the usual budget."""
_AT_ONCE = 4
"""Processes side by side at most: each may hold a few hundred MiB."""
_HOPELESS = 20.0
"""Times as long: a claim that would need more lies at its bound."""


@dataclass(frozen=True)
class Evidence:
    """What was measured so far: the reference as baseline, the candidate as method."""

    measurement: Measurement
    seconds: float  # all that it took, but waiting for another run to end
    notes: tuple[Note, ...] = ()  # what the machine did meanwhile


Take = Callable[[int], Evidence]
"""Measures in so many more fresh processes, and returns all that there is."""


@dataclass(frozen=True)
class Claim:
    """What is claimed: the candidate takes at most `bound` of the reference's time."""

    candidate: str  # how a reader calls it, "parse_new"
    reference: str
    bound: float
    as_speedup: bool = False  # said as "at least 1.2x as fast", not as "at most 1.05x of its time"

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise UserError(f"a claim is about a positive, finite ratio of times, not {self.bound!r}")

    @property
    def wanted(self) -> str:
        """The claim, as in "at least 1.2x was claimed"."""
        return (f"at least {1 / self.bound:.4g}x" if self.as_speedup else f"at most {self.bound:.4g}x") + " was claimed"

    def said(self, ratio: Interval) -> str:
        """Return what was found, of the ratio candidate / reference."""
        if self.as_speedup:
            bounds = 1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low
            return f"{self.candidate} is {_figures(*bounds)} as fast as {self.reference}"
        figures = _figures(ratio.estimate, ratio.low, ratio.high)
        return f"{self.candidate} takes {figures} the time of {self.reference}"


@dataclass(frozen=True)
class ClaimDecision:
    """The verdict on a claim."""

    claim: Claim
    verdict: Verdict
    ratio: Interval  # candidate / reference, at the confidence of the look that decided
    evidence: Evidence
    budget: float  # seconds
    confidence: float

    def __str__(self) -> str:
        return self.line

    @property
    def line(self) -> str:
        """The verdict in one line, the verdict first."""
        word = {"pass": "fast enough", "fail": "too slow", "inconclusive": "undecided"}[self.verdict]
        found = self.evidence.measurement
        count = f"{sum(found.run_lengths)} pairs in {found.processes} processes, {self.evidence.seconds:.0f} s"
        line = f"{word}: {self.claim.said(self.ratio)}, {self.claim.wanted}; {count}"
        return line if self.verdict != "inconclusive" else f"{line}: {self._remedy}"

    @property
    def notes(self) -> list[str]:
        """What a reader should know, a line each."""
        return [note.text for note in (*self.evidence.measurement.notes, *self.evidence.notes)]

    def to_json(self) -> dict[str, Any]:
        """Return it for `extra_info`: ratio and bound are candidate / reference."""
        return {
            "verdict": self.verdict,
            "line": self.line,
            "candidate": self.claim.candidate,
            "reference": self.claim.reference,
            "bound": self.claim.bound,
            "ratio": self.ratio.estimate,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "confidence": self.confidence,
            "processes": self.evidence.measurement.processes,
            "loops": self.evidence.measurement.loops,
            "seconds": self.evidence.seconds,
            "budget": self.budget,
            "notes": self.notes,
        }

    @property
    def _remedy(self) -> str:
        """What would decide it: the interval narrows with the root of the processes."""
        bound, low, high = (
            math.log(max(value, 1e-300)) for value in (self.claim.bound, self.ratio.low, self.ratio.high)
        )
        middle, half = (low + high) / 2, (high - low) / 2
        times = (half / abs(bound - middle)) ** 2 if bound != middle else math.inf
        if times > _HOPELESS:
            return "too near the claim for any sensible budget: claim less"
        spent = max(self.evidence.seconds, PROCESS_S * self.evidence.measurement.processes)  # what plans as many
        seconds = math.ceil(max(times * spent, self.budget + PROCESS_S) / 5) * 5
        return f"about {seconds} s would decide it, if the figure stays (--paired-budget={seconds})"


def decide(claim: Claim, take: Take, *, budget: float, confidence: float = 0.95) -> ClaimDecision:
    """Take evidence, look by look, until the claim is decided or the budget spent.

    Args:
        claim: what is to be decided.
        take: measures in more processes.
        budget: seconds for all of it; with it grows the number of processes over which the looks are planned.
        confidence: of the intervals, two-sided: a verdict is wrong by chance in half of what is left.

    Raises:
        UserError: a budget or confidence out of its range.

    """
    most = max(FEWEST, int(budget / PROCESS_S)) if 0 < budget < math.inf else FEWEST
    settings = Settings(margin=0.0, budget=budget, pairs=most, confidence=confidence)
    looks = Looks.within(most)
    evidence, done = take(FEWEST), FEWEST
    while True:
        found = _judged(claim, evidence, settings, looks, last=False)
        following = next((count for count in looks.counts if count > done), done)
        more = min(following - done, _AT_ONCE)
        ended = not more or evidence.seconds * (done + more) / done > budget
        if found.verdict != "inconclusive" or ended:
            break
        evidence, done = take(more), done + more
    if found.verdict == "inconclusive":  # the budget may have ended before the last look
        found = _judged(claim, evidence, settings, looks, last=True)
    return _decision(claim, found, evidence, settings)


def _judged(claim: Claim, evidence: Evidence, settings: Settings, looks: Looks, *, last: bool) -> Judgement:
    """Judge it as a figure of the gate whose base is the reference's time times the bound: nothing more may be lost."""
    pairs = _scaled(evidence.measurement.judged_runs, claim.bound)
    (found,) = judge([Series(case=claim.candidate, figure="time", quantity="time", unit="s", pairs=pairs)], settings,
                     looks, last=last)  # fmt: skip
    return found


def _scaled(runs: Sequence[Sequence[tuple[float, float]]], bound: float) -> list[list[tuple[float, float]]]:
    return [[(reference_s * bound, candidate_s) for reference_s, candidate_s in run] for run in runs]


def _decision(claim: Claim, found: Judgement, evidence: Evidence, settings: Settings) -> ClaimDecision:
    assert found.change is not None  # times of a measurement are positive and finite
    bound = claim.bound
    ratio = Interval(found.change.estimate * bound, found.change.low * bound, found.change.high * bound)
    return ClaimDecision(claim, found.verdict, ratio, evidence, settings.budget, settings.confidence)


def _figures(estimate: float, low: float, high: float) -> str:
    digits = 2 if max(abs(high - estimate), abs(estimate - low)) >= 0.01 else 3
    return f"{estimate:.{digits}f}x [{low:.{digits}f}, {high:.{digits}f}]"
