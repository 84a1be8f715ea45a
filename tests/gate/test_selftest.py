"""The self-test: what it says of a quiet machine and of a noisy one, on a fake clock, with noise that is known."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.decide import judge, undecided
from meprop_bench.gate.judgement import Outcome
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.revisions import measure
from meprop_bench.gate.selftest import SLOWDOWNS, Promise, as_text, check
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.worktree import Checkout
from meprop_bench.sweep.plan import plan_axes
from meprop_bench.sweep.worker import PROTOCOL
from meprop_bench.workloads.case import Case

_FIRST = Checkout("base", "HEAD (1)", "1", Path("/somewhere/base"))
_SECOND = Checkout("head", "HEAD (1)", "1", Path("/somewhere/head"))
_START_S = 2.5
"""Seconds that a pair of processes takes to start; once before the budget begins."""


def _alone(device: str, waiting: object) -> AbstractContextManager[None]:
    return nullcontext()


class _Machine:
    """Workers whose backward pass differs from process to process by `spread`, and on a clock of their own."""

    def __init__(self, spread: float, check: str = "passed", slower: float = 0.0, seed: int = 1) -> None:
        self.spread, self.found, self.slower = spread, check, slower  # by how much the head is slower
        self.rng = random.Random(seed)
        self.time = 0.0
        self.lock = Lock()

    def now(self) -> float:
        return self.time

    @property
    def ways(self) -> dict[str, Any]:
        """Return how it is started, locked and timed."""
        return {"start": self.start, "lock": _alone, "now": self.now}

    def start(self, checkout: Checkout, case: Case) -> _Worker:
        return _Worker(self, checkout)


class _Worker:
    def __init__(self, machine: _Machine, checkout: Checkout) -> None:
        self._machine = machine
        self._own = machine.rng.lognormvariate(0, machine.spread) * (1 + machine.slower * (checkout.side == "head"))
        self._rng = random.Random(machine.rng.random())
        self._package = str(checkout.folder / "meprop_bench")

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        machine = self._machine
        if message["do"] == "hello":
            machine.time += _START_S / 2  # one after the other, on this clock
        if message["do"] == "turns":
            mine = [(which, slowdown) for who, which, slowdown in message["plan"] if who == message["me"]]
            with machine.lock:  # both sides are asked at once
                machine.time += 0.05 * len(mine)
            return {"blocks": [self._block(*one) for one in mine], "stopped": False}
        answers: dict[str, dict[str, Any]] = {
            "hello": {"environment": {}, "protocol": PROTOCOL, "package": self._package},
            "setup": {"phases": ["backward"], "costs": {}},
            "check": {"check": machine.found, "loops": 1, "side_loops": [1, 1]},
            "again": {},
            "meet": {"port": 4711},
            "count": {"operators": {}},
            "memory": {"weights": {}},
        }
        return answers[message["do"]]

    def _block(self, which: str, slowdown: float) -> dict[str, Any]:
        own = self._own if which == "method" else 1.0  # or the dense side would show it
        value = 1e-3 * own * (1 + slowdown) * self._rng.lognormvariate(0, 1e-4)
        return {"values": {"backward": value}, "disturbed": False}

    def close(self) -> None:
        pass


def _promise(spread: float, tries: int = 20) -> Promise:
    machine = _Machine(spread)
    plan = plan_axes({"method": ("unified",), "k": (2,), "hidden": (8,), "batch": (4, 5)}, budget=60.0)
    return check(plan, _FIRST, _SECOND, Settings(), seconds=600.0, tries=tries, **machine.ways)


def test_a_quiet_machine_can_promise_everything() -> None:
    promise = _promise(0.002)
    assert promise.met
    assert promise.exit_code == ExitCode.OK
    assert promise.total(0.0) == (40, 0, 0)
    assert SLOWDOWNS == (0.03, 0.05)  # less than the margin, which may pass, and more
    assert promise.total(0.05) == (40, 40, 0)
    assert promise.total(0.03)[1] < 20
    assert promise.least_margin == 0.01
    for case in promise.cases:
        assert case.pairs >= case.affordable >= 4
        assert 0.001 < case.spread < 0.006
        assert 0.03 < case.detectable < 0.05
        assert case.seen[0.05] == pytest.approx(0.05, abs=0.005)
    text = as_text(promise)
    assert "0 of 40 false alarms (0.0%; target at most 1 in 200)" in text
    assert "20 of 20 runs passed in all cases (100.0%; target at least 95%)" in text
    assert "+5%: 40 of 40 caught (100.0%; target at least 95%)" in text
    assert "The least margin at which all times of identical code pass in 95% of the runs here: 1.0%" in text
    assert "The targets are met on this machine." in text


def test_a_noisy_machine_cannot_and_says_so_instead_of_crying_wolf() -> None:
    promise = _promise(0.08)
    assert promise.total(0.0)[1] <= 2
    assert promise.total(0.0)[2] > 0  # inconclusive
    assert not promise.met
    assert promise.exit_code == ExitCode.INCONCLUSIVE
    assert all(case.detectable > 0.05 for case in promise.cases)
    assert promise.least_margin is None or promise.least_margin > 0.05
    assert "not met on this machine: raise the margin" in as_text(promise)


def _gate(machine: _Machine, **settings: Any) -> tuple[ExitCode, float]:
    """Return what the gate ends with on a machine, and the seconds that it takes for its one case."""
    settings_ = Settings(**settings)
    looks = Looks.within(settings_.pairs)
    plan = plan_axes({"method": ("unified",), "k": (2,), "hidden": (8,), "batch": (4,)}, budget=settings_.budget)
    found = measure(plan, _FIRST, _SECOND, undecided=lambda series: undecided(series, settings_, looks), **machine.ways)
    judgements = judge(found.series, settings_, looks)
    return Outcome("", "", judgements, ()).exit_code, machine.time


def test_identical_code_passes_ten_times_of_ten_and_five_percent_fails_by_default_within_a_minute() -> None:
    """Pairs of processes that spread by 2%, as a perceptron's do, and take 2.5 s to start."""
    for seed in range(10):
        same, seconds = _gate(_Machine(0.02 / math.sqrt(2), seed=seed))
        assert (same, seconds <= 60.0 + _START_S) == (ExitCode.OK, True)
        slower, seconds = _gate(_Machine(0.02 / math.sqrt(2), slower=0.05, seed=seed))
        assert (slower, seconds <= 60.0 + _START_S) == (ExitCode.REGRESSION, True)


def test_three_percent_is_caught_within_two_minutes_at_that_margin() -> None:
    spread, ways = 0.02 / math.sqrt(2), {"margin": 0.03, "budget": 120.0}
    codes = [_gate(_Machine(spread, slower=0.03, seed=seed), **ways)[0] for seed in range(40)]
    assert codes.count(ExitCode.REGRESSION) >= 38
    codes = [_gate(_Machine(spread, seed=seed), **ways)[0] for seed in range(40)]
    assert codes.count(ExitCode.OK) >= 39
    assert ExitCode.REGRESSION not in codes


def test_it_measures_for_the_time_that_it_is_given() -> None:
    machine = _Machine(0.01)
    plan = plan_axes({"method": ("unified",), "k": (2,), "hidden": (8,), "batch": (4,)})
    promise = check(plan, _FIRST, _SECOND, Settings(), seconds=1.0, tries=1, **machine.ways)
    assert promise.cases[0].pairs == 2  # the least


def test_a_case_that_fails_against_itself_ends_it() -> None:
    machine = _Machine(0.01, check="dx is off")
    plan = plan_axes({"method": ("unified",), "k": (2,), "hidden": (8,), "batch": (4,)})
    with pytest.raises(UserError, match="cannot be measured: its gradients are wrong: dx is off") as caught:
        check(plan, _FIRST, _SECOND, Settings(), seconds=1.0, **machine.ways)
    assert caught.value.exit_code == ExitCode.NOTHING_MEASURED
