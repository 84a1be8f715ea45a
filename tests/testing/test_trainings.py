"""The evidence about a training step: batches of the runner's, put together. The runner is a made-up one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.peaks import Peaks
from meprop_bench.results.store import Store
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.rows import case_rows, failed_row
from meprop_bench.sweep.runner import SweepProgress
from meprop_bench.testing import trainings
from meprop_bench.testing.functions import FunctionError
from meprop_bench.testing.trainings import TrainingTimes, case_of

_PHASES = ("forward", "backward", "update", "step")


class _Runner:
    """Measures 2 ms against 1 ms in each process, or fails as is said."""

    plans: list[Plan]
    dense_sides: list[Any]
    error: str | None = None
    check: str | None = None

    def __init__(
        self, plan: Plan, store: Store, *, start: Any, progress: Callable[[SweepProgress], None], dense_sides: Any
    ) -> None:
        self.plans.append(plan)
        self.dense_sides.append(dense_sides)
        self._plan, self._store, self._progress = plan, store, progress

    def run(self) -> None:
        (case,) = self._plan.cases
        self._progress(SweepProgress(0, 1, case, "waiting for process 12", {}, 1.0, waits=True))
        self._progress(SweepProgress(0, 1, case, "measuring", {}, 1.0))
        if self.error or self.check:
            self._store.append([failed_row(case, self.error, "e1", check=self.check)])
            return
        runs = tuple(((2e-3, 1e-3), (4e-3, 2e-3)) for _ in range(self._plan.processes))
        marks = tuple((False, True) for _ in runs)
        found = [Measurement(phase, runs, 3, marks) for phase in _PHASES]
        setup = {"kernel": "native", "k": 2, "notes": ["2 of 3 layers are sparsified"], "costs": {}}
        others = Note.of("others", share=len(self.plans) / 10)
        rows = case_rows(
            case, setup, found, peaks=Peaks({"float32": 1e11}, ((1 << 20, 1e10),)), memory={}, utilization="off",
            parity=None, environment_id="e1", target=self._plan.target, notes=[others],
        )  # fmt: skip
        for row in rows:
            object.__setattr__(row, "elapsed_s", 7.0)
        self._store.append(rows)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> type[_Runner]:
    class Own(_Runner):
        plans: list[Plan] = []  # noqa: RUF012  each test's own
        dense_sides: list[Any] = []  # noqa: RUF012

    monkeypatch.setattr(trainings, "Runner", Own)
    monkeypatch.setattr(trainings, "check_feasible", lambda cases: None)
    return Own


def test_batches_are_runs_of_the_case_and_add_up(runner: type[_Runner]) -> None:
    case, lines = case_of("mnist", {"method": "unified", "k": 0.05, "threads": 1}), list[str]()
    times = TrainingTimes(case, "step", waiting=lines.append)
    times.take(3)
    found = times.take(2)
    assert [(plan.processes, plan.utilization, plan.checks) for plan in runner.plans] == [
        (3, False, ("gradients",)),
        (2, False, ("gradients",)),
    ]
    assert runner.plans[0].seed != runner.plans[1].seed
    assert runner.plans[0].cases == (case,)
    assert runner.dense_sides[0] is runner.dense_sides[1]  # one dense side for all
    assert found.measurement.phase == "step"
    assert found.measurement.run_lengths == [2] * 5
    assert found.measurement.disturbed == ((False, True),) * 5
    assert found.seconds == 14.0
    assert [note.text for note in found.notes] == [
        "2 of 3 layers are sparsified",
        "other processes took 20% of the cores meanwhile",
    ]
    assert lines == ["waiting for process 12"] * 2


@pytest.mark.parametrize(
    ("field", "said", "line"),
    [
        ("error", "a measuring process exited with status 3", "a measuring process exited with status 3"),
        ("check", "0: dw differs", "wrong gradients: 0: dw differs"),
    ],
)
def test_what_fails_is_a_line(runner: type[_Runner], field: str, said: str, line: str) -> None:
    setattr(runner, field, said)
    with pytest.raises(FunctionError) as raised:
        TrainingTimes(case_of("mnist", {}), "step").take(3)
    assert str(raised.value) == line


def test_a_phase_that_there_is_not_is_a_line(runner: type[_Runner]) -> None:
    with pytest.raises(UserError, match="unknown phase 'steps': did you mean 'step'"):
        TrainingTimes(case_of("mnist", {}), "steps").take(3)


class _Process:
    answers: dict[str, Any]

    def __init__(self, **answers: Any) -> None:
        self.answers = {"hello": {}, "setup": {"phases": list(_PHASES)}, "check": {"check": "passed"}, **answers}
        self.closed = False

    def request(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        found: dict[str, Any] = self.answers[message["do"]]
        return found

    def close(self) -> None:
        self.closed = True


def test_once_checks_the_gradients_alone(runner: type[_Runner]) -> None:
    process = _Process()
    TrainingTimes(case_of("mnist", {}), "step", start=lambda _: process).once()
    assert process.closed
    assert runner.plans == []
    wrong = _Process(check={"check": "0: dw differs"})
    with pytest.raises(FunctionError, match="wrong gradients: 0: dw differs"):
        TrainingTimes(case_of("mnist", {}), "step", start=lambda _: wrong).once()
    died = _Process(setup={"error": "there is no layer to sparsify", "kind": "user"})
    with pytest.raises(FunctionError, match="there is no layer to sparsify"):
        TrainingTimes(case_of("mnist", {}), "step", start=lambda _: died).once()


def test_a_case_is_against_the_best_dense_side_unless_it_is_said_otherwise() -> None:
    case = case_of("mnist", {"k": 3})
    assert (case.model, case.baseline) == ("mnist", "best")
    assert case_of("mnist", {"baseline": "same"}).baseline == "same"
    assert case_of("mnist", {"k": 3, "k_by_layer": {"*0": 0.5, "*1": 8}}).k_by_layer == "*0=0.5;*1=8"
