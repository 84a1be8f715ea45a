"""What the fixture `paired` gives: claims, as one writes them in a test."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest

from meprop_bench.errors import UserError
from meprop_bench.pickling import function_name
from meprop_bench.sweep.functions import Functions, Timed
from meprop_bench.tasks.build import named
from meprop_bench.testing.claim import Claim, ClaimDecision, Evidence, decide
from meprop_bench.testing.entries import another, enter
from meprop_bench.testing.functions import FunctionError, FunctionTimes, sent
from meprop_bench.testing.processes import alike
from meprop_bench.testing.settings import budget_of, rounds_of, undecided_of
from meprop_bench.testing.trainings import TrainingTimes, case_of

__all__ = ["OUTCOME", "Paired", "PairedCall", "PairedTraining", "PairedWarning", "Surroundings"]

_SEED = 0
"""Of the order of processes and pairs."""


OUTCOME = pytest.StashKey[str]()
"""Of the test, once it has run."""


class PairedWarning(pytest.PytestWarning):
    """Something of a test that makes its claim worth less than it looks."""


class EvidenceSource(Protocol):
    """What evidence comes from."""

    @property
    def changed(self) -> tuple[str, ...]:
        """The functions that changed their arguments."""

    def once(self) -> None:
        """Run both sides once, and time nothing."""

    def take(self, processes: int) -> Evidence:
        """Measure in more processes."""


class Surroundings:
    """The test that makes claims, and the pytest that runs it."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.request = request
        self.benchmark: Any = None  # the fixture of pytest-benchmark, where that is there
        if request.config.pluginmanager.hasplugin("pytest-benchmark"):
            self.benchmark = request.getfixturevalue("benchmark")
        self._labels: set[str] = set()
        self.made = self.claimed = 0

    @property
    def modules(self) -> list[types.ModuleType]:
        """The test's own module: pytest has it changed for its assertions."""
        module = getattr(self.request, "module", None)
        return [module] if isinstance(module, types.ModuleType) else []

    def leave(self) -> None:
        """Warn of a test that passed without a claim: it does so whatever is slow."""
        if self.benchmark is not None:
            self.benchmark.skipped = True  # it is not used itself, which it would warn of
        if not self.claimed and self.request.node.stash.get(OUTCOME, "") == "passed":
            what = "made a pair without a claim" if self.made else "claimed nothing"
            self.request.node.warn(PairedWarning(f"the test {what}: add .not_slower_than(...) or the like"))

    def say(self, line: str) -> None:
        """Print a line at once, past pytest's capture."""
        capture: Any = self.request.config.pluginmanager.getplugin("capturemanager")
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            print(f"\n{self.request.node.name}: {line}", end="", file=sys.stderr, flush=True)

    def settle(
        self, claim: Claim, make: Callable[[], EvidenceSource], budget: float | None, confidence: float
    ) -> ClaimDecision | None:
        """Decide a claim and end the test where it does not hold; None where nothing is judged."""
        __tracebackhide__ = True
        self.claimed += 1
        try:
            with alike():
                return self._settle(claim, make(), budget, confidence)
        except (UserError, FunctionError) as error:
            line = str(error)
        pytest.fail(line)

    def _settle(
        self, claim: Claim, source: EvidenceSource, budget: float | None, confidence: float
    ) -> ClaimDecision | None:
        __tracebackhide__ = True
        config = self.request.config
        disabled = self.benchmark is not None and self.benchmark.disabled
        if disabled or hasattr(config, "workerinput"):
            source.once()
            self._warn_of_changes(source)
            asked = disabled and config.getoption("benchmark_disable")
            reason = "--benchmark-disable" if asked else "xdist's processes disturb each other: use -n 0"
            self._record(f"not judged ({reason}): {claim.candidate}, {claim.wanted}", "not judged")
            if not asked:
                pytest.skip(f"not judged: {reason}")
            return None
        undecided = undecided_of(config)
        decision = decide(claim, source.take, budget=budget_of(self.request, budget), confidence=confidence)
        self._warn_of_changes(source)
        self._record(decision.line, decision.verdict)
        self._enter(decision)
        if decision.verdict == "pass":
            return decision
        message = "\n".join([decision.line, *(f"note: {note}" for note in decision.notes)])
        if decision.verdict == "inconclusive" and undecided == "skip":
            pytest.skip(message)
        if decision.verdict == "inconclusive" and undecided == "xfail":
            pytest.xfail(message)
        pytest.fail(message)

    def _record(self, line: str, verdict: str) -> None:
        self.request.node.user_properties += [("paired", line), ("paired_verdict", verdict)]

    def _warn_of_changes(self, source: EvidenceSource) -> None:
        for name in source.changed:
            self.request.node.warn(
                PairedWarning(
                    f"{name} changes its arguments, so that each call finds what the last one left: give it fresh ones"
                    " by .setup(...), if that is not meant"
                )
            )

    def _enter(self, decision: ClaimDecision) -> None:
        """Enter both sides into pytest-benchmark's table and files."""
        if self.benchmark is None:
            return
        found = decision.evidence.measurement
        about = {**decision.to_json(), "run_lengths": found.run_lengths, "seed": _SEED}
        for side, label, values_s in (
            ("candidate", decision.claim.candidate, found.values_s),
            ("reference", decision.claim.reference, found.baseline_values_s),
        ):
            name = self._unique(label)
            enter(another(self.benchmark, name), values_s, {"side": side, "paired": about})

    def _unique(self, label: str) -> str:
        names = (label, *(f"{label} {number}" for number in range(2, 1_000)))
        name = next(name for name in names if name not in self._labels)
        self._labels.add(name)
        return name


class Paired:
    """Claims about times, as the fixture `paired` gives them: `paired(function, *args, **kwargs)` is what is timed."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings

    def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> PairedCall:
        """Return a call that can be compared with another; nothing is run yet."""
        __tracebackhide__ = True
        if not callable(function):
            pytest.fail(f"paired(...) takes a function and what it is called with, not {function!r}")
        self._surroundings.made += 1
        return PairedCall(self._surroundings, Timed(function, args, kwargs), function_name(function))

    def speedup(self, build: str | Callable[[], Any], *, phase: str = "step", **axes: Any) -> PairedTraining:
        """Return a training that can be compared with the dense one; nothing is run yet.

        Args:
            build: the function that returns a `Training`, its name ("my_model.py:build"), or that of a task.
            phase: "step", "forward", "backward" or "update".
            axes: of the case, as fields of a preset: method, k, gradient, threads, device, ...

        """
        self._surroundings.made += 1
        return PairedTraining(self._surroundings, build, phase, axes)


@dataclass(frozen=True)
class PairedCall:
    """A call of a function that can be compared with another."""

    _surroundings: Surroundings
    _timed: Timed
    _name: str

    def named(self, name: str) -> PairedCall:
        """Return the same by another name, in messages and in pytest-benchmark's table."""
        return replace(self, _name=name)

    def setup(self, make: Callable[[], Any]) -> PairedCall:
        """Return the same with fresh arguments: `make()` runs before each call, untimed, and returns (args, kwargs).

        What a function changes it finds changed at its next call, unless `make` makes it anew. None leaves the
        arguments as they are.
        """
        __tracebackhide__ = True
        if self._timed.args or self._timed.kwargs:
            pytest.fail(f"{self._name} has arguments already: have its setup function return all of them")
        return replace(self, _timed=replace(self._timed, setup=make))

    def not_slower_than(
        self,
        other: PairedCall | Callable[..., Any],
        margin: float = 0.05,
        *,
        same_result: bool | Callable[[Any, Any], object] = False,
        budget: float | None = None,
        confidence: float = 0.95,
    ) -> ClaimDecision | None:
        """Claim that this takes at most (1 + margin) of the other's time, or the test fails.

        Args:
            other: what it is compared with; a function is called with the same arguments.
            margin: how much slower it may be, 0.05 for 5%.
            same_result: compare what both return, once: by ==, or by a function of the other's and this one's result,
                which returns whether they agree, or raises AssertionError as `numpy.testing.assert_allclose` does.
            budget: seconds for all of it.
            confidence: of the intervals, two-sided.

        Returns:
            What was found; None where nothing is judged (--benchmark-disable).

        """
        __tracebackhide__ = True
        if not 0 <= margin < float("inf"):
            pytest.fail(f"margin is a number of at least 0, 0.05 for 5%, not {margin!r}")
        return self._claim(other, 1 + margin, False, same_result, budget, confidence)

    def faster_than(
        self,
        other: PairedCall | Callable[..., Any],
        by: float = 1.0,
        *,
        same_result: bool | Callable[[Any, Any], object] = False,
        budget: float | None = None,
        confidence: float = 0.95,
    ) -> ClaimDecision | None:
        """Claim that this is at least `by` times as fast as the other, or the test fails; as `not_slower_than`."""
        __tracebackhide__ = True
        if not 0 < by < float("inf"):
            pytest.fail(f"by is a number of more than 0, 1.2 for 1.2x as fast, not {by!r}")
        return self._claim(other, 1 / by, True, same_result, budget, confidence)

    def _claim(
        self,
        other: PairedCall | Callable[..., Any],
        bound: float,
        as_speedup: bool,
        same_result: bool | Callable[[Any, Any], object],
        budget: float | None,
        confidence: float,
    ) -> ClaimDecision | None:
        __tracebackhide__ = True
        around = self._surroundings
        if not isinstance(other, PairedCall):
            other = replace(self, _timed=replace(self._timed, function=other), _name=function_name(other))
        functions = Functions(other._timed, self._timed, same_result)
        names = (other._name, self._name) if other._name != self._name else (f"the other {other._name}", self._name)

        def make() -> EvidenceSource:
            rounds = rounds_of(around.request)
            return FunctionTimes(
                names, sent(functions, around.modules), waiting=around.say, least_pairs=rounds, seed=_SEED
            )

        return around.settle(Claim(names[1], names[0], bound, as_speedup), make, budget, confidence)


@dataclass(frozen=True)
class PairedTraining:
    """A training, sparsified, that is compared with the dense one."""

    _surroundings: Surroundings
    _build: str | Callable[[], Any]
    _phase: str
    _axes: Mapping[str, Any]

    def at_least(self, times: float, *, budget: float | None = None, confidence: float = 0.95) -> ClaimDecision | None:
        """Claim that the phase is at least `times` as fast as dense, or the test fails.

        Args:
            times: 1.2 for 1.2x.
            budget: seconds for all of it.
            confidence: of the intervals, two-sided.

        Returns:
            What was found; None where nothing is judged (--benchmark-disable).

        """
        __tracebackhide__ = True
        if not 0 < times < float("inf"):
            pytest.fail(f"a speed-up is a number of more than 0, 1.2 for 1.2x, not {times!r}")
        around = self._surroundings
        name = self._build if isinstance(self._build, str) else function_name(self._build)
        axes = ", ".join(f"{key}={value}" for key, value in self._axes.items())
        phase = self._phase if self._phase in ("step", "update") else f"{self._phase} pass"
        what = f"the {phase} of {name}" + (f" ({axes})" if axes else "")

        with ExitStack() as stack:

            def make() -> EvidenceSource:
                model = stack.enter_context(named(self._build))
                return TrainingTimes(case_of(model, self._axes), self._phase, waiting=around.say, seed=_SEED)

            return around.settle(Claim(what, "dense", 1 / times, True), make, budget, confidence)
