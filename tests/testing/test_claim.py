"""Claims, decided on made-up evidence: no process, no clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure.paired import Measurement
from meprop_bench.testing.claim import FEWEST, Claim, ClaimDecision, Evidence, decide

_NOT_SLOWER = Claim("new", "old", 1.05)
_FASTER = Claim("new", "old", 1 / 1.2, as_speedup=True)


class _Source:
    """Processes in which the candidate takes `ratio` of the reference's second, each off by some of its own: by random
    shares, or evenly by as much above as below.
    """

    def __init__(
        self, ratio: float, noise: float = 0.0, process_s: float = 1.0, seed: int = 0, even: bool = False
    ) -> None:
        self._ratio, self._noise, self._process_s, self._even = ratio, noise, process_s, even
        self._rng = random.Random(seed)
        self._runs: list[tuple[tuple[float, float], ...]] = []
        self.asked: list[int] = []

    def take(self, processes: int) -> Evidence:
        self.asked.append(processes)
        for _ in range(processes):
            sign = -1 if len(self._runs) % 2 else 1
            off = sign * self._noise if self._even else self._rng.gauss(0, self._noise)
            own = self._ratio * math.exp(off)
            self._runs.append(((1.0, own), (1.0, own)))
        return Evidence(Measurement("call", tuple(self._runs), 1), self._process_s * len(self._runs))


def _decided(claim: Claim, source: _Source, budget: float = 30.0, confidence: float = 0.95) -> ClaimDecision:
    return decide(claim, source.take, budget=budget, confidence=confidence)


@pytest.mark.parametrize(
    ("claim", "ratio", "verdict", "line"),
    [
        (_NOT_SLOWER, 1.0, "pass", "fast enough: new takes 1.000x [1.000, 1.000] the time of old, at most 1.05x was"),
        (_NOT_SLOWER, 1.1, "fail", "too slow: new takes 1.100x [1.100, 1.100] the time of old, at most 1.05x was clai"),
        (_NOT_SLOWER, 1.05, "pass", "fast enough: "),  # the margin itself is within it
        (_FASTER, 0.5, "pass", "fast enough: new is 2.000x [2.000, 2.000] as fast as old, at least 1.2x was claimed;"),
        (_FASTER, 0.9, "fail", "too slow: new is 1.111x [1.111, 1.111] as fast as old, at least 1.2x was claimed; 6 p"),
    ],
)
def test_what_is_clear_is_decided_at_the_first_look(claim: Claim, ratio: float, verdict: str, line: str) -> None:
    source = _Source(ratio)
    found = _decided(claim, source)
    assert found.verdict == verdict
    assert source.asked == [FEWEST]
    assert found.line.startswith(line)
    assert "3 processes, 3 s" in str(found)


def test_more_processes_are_taken_at_the_planned_looks_until_the_last() -> None:
    source = _Source(1.05, noise=0.03)
    found = _decided(_NOT_SLOWER, source)
    assert found.verdict == "inconclusive"
    assert source.asked == [
        3,
        3,
        4,
        2,
    ]  # looks at a quarter, a half and all of 30 s / 2.5 s, no more than four side by side
    assert found.line.startswith("undecided: new takes 1.0")
    assert "at most 1.05x was claimed; 24 pairs in 12 processes, 12 s: " in found.line


def test_a_budget_grows_the_plan_and_is_not_overrun_but_by_the_first_look() -> None:
    source = _Source(1.05, noise=0.03, even=True)
    assert _decided(_NOT_SLOWER, source, budget=60.0).verdict == "inconclusive"
    assert source.asked == [3, 3, 4, 2, 4, 4, 4]  # looks at 3, 6, 12 and 24, no more than four processes side by side
    slow = _Source(1.05, noise=0.03, process_s=4.0)
    assert _decided(_NOT_SLOWER, slow, budget=30.0).verdict == "inconclusive"
    assert slow.asked == [3, 3]  # nine would take 36 s
    slower = _Source(1.0, noise=0.001, process_s=100.0)
    assert _decided(_NOT_SLOWER, slower, budget=30.0).verdict == "pass"
    assert slower.asked == [3]


def test_a_budget_that_ends_early_leaves_all_of_alpha_to_the_look_at_hand() -> None:
    noisy = _Source(1.0, noise=0.01, process_s=9.9, seed=3)
    early = _decided(_NOT_SLOWER, noisy)
    assert noisy.asked == [3]
    assert early.verdict == "pass"  # at the 5% of alpha that the first of four looks has, it would not be


def test_what_is_undecided_says_how_much_longer() -> None:
    found = _decided(_NOT_SLOWER, _Source(1.03, noise=0.04, even=True))
    assert found.verdict == "inconclusive"
    assert "s would decide it, if the figure stays (--paired-budget=" in found.line
    seconds = float(found.line.rpartition("--paired-budget=")[2].rstrip(")"))
    assert 30 < seconds < 600
    assert _decided(_NOT_SLOWER, _Source(1.03, noise=0.04, even=True), budget=1.2 * seconds).verdict == "pass"
    at_the_bound = _decided(_NOT_SLOWER, _Source(1.0501, noise=0.03, even=True))
    assert at_the_bound.line.endswith("too near the claim for any sensible budget: claim less")


@pytest.mark.parametrize("claim", [_NOT_SLOWER, _FASTER])
def test_at_its_very_bound_a_claim_passes_or_fails_by_chance_as_seldom_as_it_says(claim: Claim) -> None:
    """At a level of 5% on a side, so that few runs tell; looking four times must not make it more."""
    verdicts = [
        _decided(claim, _Source(claim.bound, noise=0.03, seed=seed), confidence=0.9).verdict for seed in range(600)
    ]
    for wrong in ("pass", "fail"):
        assert verdicts.count(wrong) <= 600 * 0.05 + 3 * (600 * 0.05 * 0.95) ** 0.5, wrong


def test_what_identical_code_and_a_slowdown_get() -> None:
    same = [_decided(_NOT_SLOWER, _Source(1.0, noise=0.02, seed=seed)).verdict for seed in range(100)]
    slower = [_decided(_NOT_SLOWER, _Source(1.12, noise=0.02, seed=seed)).verdict for seed in range(100)]
    assert same.count("fail") == 0
    assert same.count("pass") >= 95
    assert slower.count("pass") == 0
    assert slower.count("fail") >= 95


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"budget": 0.0}, "budget must be more than 0 seconds"), ({"budget": 30.0, "confidence": 95}, "0.95 for 95%")],
)
def test_what_cannot_be_is_one_line(arguments: dict[str, float], words: str) -> None:
    take: Callable[[int], Evidence] = _Source(1.0).take
    with pytest.raises(UserError, match=words):
        decide(_NOT_SLOWER, take, **arguments)
    with pytest.raises(UserError, match="a positive, finite ratio of times"):
        Claim("new", "old", 0.0)


def test_what_is_stored_has_both_bounds_and_the_verdict() -> None:
    stored = _decided(_FASTER, _Source(0.9)).to_json()
    assert stored["verdict"] == "fail"
    assert stored["bound"] == pytest.approx(1 / 1.2)
    assert stored["ratio"] == stored["ratio_low"] == stored["ratio_high"] == pytest.approx(0.9)
    assert stored["line"].startswith("too slow: ")
