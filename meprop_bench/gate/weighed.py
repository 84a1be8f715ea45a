"""A block's figures against their bounds: what `decide` does with one series, for all of them at once.

The rules are those of `decide`, and the tests hold the two against each other. There is less to do here: the values of
a block are positive and finite, and were looked at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from meprop_bench.gate.block import Block, Flags, Floats, Sides
from meprop_bench.gate.evidence import Evidence, Moments, ratios
from meprop_bench.gate.judgement import ROW, VERDICTS, Judgements
from meprop_bench.gate.settings import Settings

__all__ = ["BEYOND_ALONE", "ROUNDING", "Weighed", "evidence_of", "without_interval"]

BEYOND_ALONE = "beyond the margin alone, not among all that are judged (Holm)"
_ONE_VALUE = "one value on a side: no interval"
_NO_SPREAD = "a file does not tell how well it knows its median: no interval"

ROUNDING = 1e-12
"""A loss that is the margin exactly is within it, whatever the logarithm's last digit."""
_MEMORY_NOISE = 0.005
"""Standard deviation that a single size is taken to have, relative: what a few pages or an arena more amount to."""
_LARGEST = 700.0
"""e^700 is near the largest number there is: such an interval says nothing."""


def evidence_of(
    base: Sides, head: Sides, *, processes: bool, memory: Flags | bool, settings: Settings
) -> tuple[Evidence, Moments, Moments]:
    """Return what sides that were not taken together say of their ratios, with what is known of base and head.

    Args:
        base: of each figure.
        head: of each figure.
        processes: whether each value is of a process of its own.
        memory: which figures are sizes.
        settings: the noise between processes.

    """
    of, noise = (Moments.of_processes, 0.0) if processes else (Moments.of_medians, settings.process_noise)
    first, second = of(base), of(head)
    found = ratios(first, second, noise)
    # Sizes do not differ from process to process as times do, and a file has but one of each.
    single = memory & np.isnan(found.error)
    error, degrees = np.where(single, _MEMORY_NOISE, found.error), np.where(single, np.inf, found.degrees)
    return Evidence(found.estimate, error, degrees), first, second


def without_interval(size: float) -> str:
    """Return why there is no interval, by how many values there are on the side that has fewer."""
    return _ONE_VALUE if size == 1 else _NO_SPREAD


@dataclass(frozen=True)
class Weighed:
    """A block, each of its figures against its bound alone.

    Attributes:
        block: of which.
        evidence: of each figure's change.
        base: what is known of each base.
        head: of each head.
        margin: how much each may lose.
        least: the least difference that counts.
        bound: how far each estimate may go, on the log scale.
        p_values: of "it is at most the bound".
        report_only: which do not decide.

    """

    block: Block
    evidence: Evidence
    base: Moments
    head: Moments
    margin: Floats
    least: float
    bound: Floats
    p_values: Floats
    report_only: Flags

    @classmethod
    def of(cls, block: Block, settings: Settings) -> Weighed:
        """Weigh a block."""
        evidence, base, head = evidence_of(
            block.base,
            block.head,
            processes=block.own_processes,
            memory=block.quantity == "memory",
            settings=settings,
        )
        margin = np.full(len(block), settings.usual_margin(block.quantity))
        for glob, value in settings.margins.items():
            margin[settings.matched((glob,), block.cases, block.figure)] = value
        least = settings.least_of(block.quantity)
        bound = np.log1p(np.maximum(margin, least / base.middle)) + ROUNDING
        return cls(
            block=block,
            evidence=evidence,
            base=base,
            head=head,
            margin=margin,
            least=least,
            bound=bound,
            p_values=np.minimum(evidence.above(bound), 1.0),
            report_only=np.array(settings.matched(settings.report_only, block.cases, block.figure), np.bool_),
        )

    def judgements(self, adjusted: Floats, alpha: float) -> Judgements:
        """Return the verdicts; `adjusted` are the p-values, those that decide corrected for all that are judged."""
        found = self.evidence
        half = found.half_width(alpha)
        low, high = found.estimate - half, found.estimate + half
        with np.errstate(invalid="ignore"):
            fails = adjusted <= alpha
            passes = ~fails & ((high < self.bound) | ((found.error == 0) & (found.estimate <= self.bound)))
            alone = ~(fails | passes) & (low > self.bound)
        rows = np.zeros(len(self.block), ROW)
        for name, values in (("base", self.base.middle), ("head", self.head.middle)):
            rows[name] = np.where(np.isfinite(values), values, np.nan)
        for name, values in (("estimate", found.estimate), ("low", low), ("high", high)):
            rows[name] = np.exp(np.minimum(values, _LARGEST))
        rows["caught"] = math.nan  # a million of them would take longer to reckon than all the rest
        rows["margin"], rows["least"], rows["report_only"] = self.margin, self.least, self.report_only
        rows["pairs"] = np.minimum(self.base.size, self.head.size)
        verdict = np.where(fails, VERDICTS.index("fail"), VERDICTS.index("inconclusive"))
        rows["verdict"] = np.where(passes, VERDICTS.index("pass"), verdict)
        unknown = np.where(rows["pairs"] == 1, 2, 3)
        rows["reason"] = np.where(alone, 1, np.where(~(fails | passes) & np.isnan(low), unknown, 0))
        kind = (self.block.figure, self.block.quantity, self.block.unit)
        return Judgements(self.block.cases, rows, (kind,), ("", BEYOND_ALONE, _ONE_VALUE, _NO_SPREAD))
