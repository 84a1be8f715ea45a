"""Steps timed and trainings trained by processes: real ones, as small as they can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.notes import Note
from meprop_bench.measure.worker import WorkerError, WorkerOverdue
from meprop_bench.results.schema import PASSED, Row, Side
from meprop_bench.results.store import Store
from meprop_bench.sweep.trainers import Trainers
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning import processes
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.journal import Job
from meprop_bench.tuning.processes import Processes, case_of

RECIPE = Recipe("digits", {"hidden": 16, "batch": 20}, schedule="cosine")
ARM = Arm("unified", 0.5)
MODEL = """
import torch
from torch import nn
import meprop_bench as mb

def build():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.linspace(-1, 1, 4 * 64).reshape(64, 4)
    y = x.sum(1, keepdim=True)
    return mb.Training(
        model=model,
        loss=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        batches=[(x[i : i + 8], y[i : i + 8]) for i in range(0, 64, 8)],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        evaluate=EVALUATE,
    )
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path, "tune", "machine", "meprop-bench tune", {"name": "tune"}) as found:
        yield found


def test_a_step_is_timed_as_speedup_times_it_and_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_CASE_S", (0.2, 0.2)), ("_MANY", 2)):
        monkeypatch.setattr(processes, name, value)
    left = Arm("unified", 0.5, left=("linear1",))
    own = Arm("unified", 0.25, ks=(("linear1", 0.5),))
    wrong = Arm("meprop", 10**6, kernel="none")
    with Processes(RECIPE, store, Budget(600), threads=1, processes=1) as machine:
        found = machine.measure([ARM, left, own, wrong], Budget(600))
        count = len(store.rows())
        assert machine.measure([ARM, left], Budget(0.0)) == {arm: found[arm] for arm in (ARM, left)}
    assert len(store.rows()) == count
    for arm, ks in ((ARM, (0.5, 0.5, None)), (left, (0.5, None, None)), (own, (0.25, 0.5, None))):
        rows = [row for row in store.rows() if row.case_id == case_of(arm, RECIPE, 1, "cpu").case_id]
        assert {row.check for row in rows} == {PASSED}
        (step,) = (row for row in rows if row.phase == "step")
        assert (step.options, step.leave) == ("hidden=16;batch=20", ";".join(arm.left) or None)
        names = ("linear0", "linear1", "output")
        assert step.convertible == {name: ("Linear", k) for name, k in zip(names, ks, strict=True)}
        if not found[arm].unsure:
            assert found[arm].speedup.estimate == step.speedup
            assert found[arm].dense_s == step.dense.median_s
    assert found[wrong].failed
    assert "kernel" in found[wrong].failed


def test_trainings_are_those_of_the_recipe_and_leave_nothing_behind(store: Store) -> None:
    jobs = [
        Job(None, 1, 5),
        Job(ARM, 1, 5),
        Job(Arm("unified", 0.5, end=1 / 16), 2, 5),
        Job(Arm("unified", 0.5, left=("x",)), 1, 5),
    ]
    with Processes(RECIPE, store, Budget(600), processes=2) as machine:
        found = dict(machine.train(iter(jobs), Budget(600)))
        again = dict(machine.train(iter(jobs[:2]), Budget(600)))
    assert list((store.folder / "checkpoints").glob("*")) == [] if (store.folder / "checkpoints").exists() else True
    from meprop_bench.tasks.run import run

    for job in jobs[:3]:
        assert found[job].failed is None
        assert 0 < found[job].steps_s <= found[job].seconds
    task = RECIPE.load()
    dense = Recipe("digits", {"hidden": 16, "batch": 20}, schedule="cosine", steps=5)
    assert found[jobs[0]].figure == run(task, dense, seed=1).final_dev
    assert found[jobs[1]].figure == run(task, ARM.recipe(dense), seed=1).final_dev
    assert {job: each.figure for job, each in again.items()} == {job: found[job].figure for job in jobs[:2]}
    assert found[jobs[3]].figure is None
    assert "no sparsified layer is called 'x'" in str(found[jobs[3]].failed)


def test_by_the_real_clock_it_is_alone(store: Store) -> None:
    with Processes(RECIPE, store, Budget(600), threads=1, processes=1) as machine:
        assert machine.alone(Job(ARM, 1, 5), Budget(600)) > 0
        with pytest.raises(UserError, match="no sparsified layer is called 'x'"):
            machine.alone(Job(Arm("unified", 0.5, left=("x",)), 1, 5), Budget(600))


def test_by_the_real_clock_the_process_has_trained_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int | None, int]] = []
    share = Trainers.share

    def noted(self: Any, jobs: Iterator[Any], *others: Any) -> Iterator[Any]:
        for job, answer in share(self, jobs, *others):
            assert not isinstance(answer, WorkerError), answer
            trained.append((job.recipe.steps, answer["steps"]))
            yield job, answer

    monkeypatch.setattr(Trainers, "share", noted)
    with Processes(RECIPE, store, Budget(600), threads=1, processes=1) as machine:
        machine.alone(Job(ARM, 1, 30), Budget(600))
    assert trained == [(20, 20), (30, 30)]


def test_at_the_end_of_its_budget_it_ends_trainings_and_their_checkpoints_stay(store: Store) -> None:
    time = [0.0]
    budget = Budget(10.0, lambda: time[0])

    def pass_by() -> None:
        time[0] = 11.0

    with Processes(RECIPE, store, budget, processes=1, idle=pass_by) as machine:
        assert list(machine.train(iter([Job(None, 1, 10**6)]), Budget(600))) == []


def test_it_does_not_wait_for_the_device_beyond_its_budget(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def held(device: str, waiting: object, sleep: Callable[[float], object]) -> Iterator[None]:
        while True:
            sleep(0.0)
        yield

    monkeypatch.setattr(processes, "device_lock", held)
    monkeypatch.setattr(processes, "discard_unfinished", lambda: None)
    time = [0.0]

    def now() -> float:
        time[0] += 1.0
        return time[0]

    with Processes(RECIPE, store, Budget(50.0, now), processes=1) as machine:
        assert machine.measure([ARM], Budget(20.0, now)) == {}
        with pytest.raises(UserError, match="until the budget ended") as error:
            machine.costs()
    assert error.value.exit_code == ExitCode.NOTHING_MEASURED


def test_costs_of_a_model_of_ones_own(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MODEL.replace("EVALUATE", "lambda model: -1.5, k={'2': 0.75}"))
    recipe = Recipe(f"{path}:build", optimizer="own", epochs=3)
    with Processes(recipe, store, Budget(600), threads=1, processes=1) as machine:
        found, costs = machine.examine(), machine.costs()
    assert (found["metric"], found["percent"], found["rows"]) == ("evaluate", False, True)
    assert (costs.per_epoch, costs.whole) == (8, 24)
    assert costs.batch_s > 0
    assert costs.evaluation_s > 0
    assert costs.step_s > 0
    assert [layer.k for layer in costs.layers] == [None, 0.75, None]
    assert [(layer.name, layer.weights, layer.converted, layer.kind) for layer in costs.layers] == [
        ("0", 64, True, "Linear"), ("2", 256, True, "Linear"), ("4", 16, False, "Linear"),
    ]  # fmt: skip


def test_a_model_that_does_not_say_how_good_it_is_cannot_be_tuned(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MODEL.replace("EVALUATE", "None"))
    with (
        Processes(Recipe(f"{path}:build", optimizer="own"), store, Budget(600), processes=1) as machine,
        pytest.raises(UserError, match="add evaluate= to its Training"),
    ):
        machine.costs()


class Silent:
    """A process that never answers what is asked of it, on a clock of its own."""

    def __init__(self, time: list[float]) -> None:
        self.time = time

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        self.time[0] += timeout
        raise WorkerOverdue(f"no answer within {timeout:.3g} s, so it was killed")

    def close(self) -> None:
        pass


def test_nothing_that_hangs_outlasts_the_budget(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    time = [0.0]
    budget = Budget(100.0, lambda: time[0])
    monkeypatch.setattr(processes, "start_for", lambda case: Silent(time))
    monkeypatch.setattr(processes, "discard_unfinished", lambda: None)
    with Processes(RECIPE, store, budget, threads=1, processes=1, start=lambda: Silent(time)) as machine:
        assert machine.measure([ARM], Budget(30.0, lambda: time[0])) == {}
        assert time[0] == pytest.approx(72.0)  # for a first time those 30% of the search, and 60% of the rest
        assert "starting" in machine.stages
    assert not store.rows()
    time[0] = 0.0
    with Processes(RECIPE, store, budget, threads=1, processes=1, start=lambda: Silent(time)) as machine:
        with pytest.raises(UserError, match=r"the budget ended before a step was timed \(.* timing batches") as error:
            machine.costs()
        assert time[0] == 100.0
        time[0] = 0.0
        assert list(machine.train(iter([Job(None, 1, 5)]), budget)) == []
        time[0] = 0.0
        with pytest.raises(UserError, match="the budget ended in training unified"):
            machine.alone(Job(ARM, 1, 5), budget)
    assert error.value.exit_code == ExitCode.NOTHING_MEASURED


def test_a_model_that_hangs_when_it_is_examined_is_given_up_with_the_budget(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import time\ndef build(): time.sleep(600)")
    recipe = Recipe(f"{path}:build", optimizer="own")
    with (
        Processes(recipe, store, Budget(4.0), threads=1, processes=1) as machine,
        pytest.raises(UserError, match=r"timed \(.* s examining the model\): give --budget \d\ds or more"),
    ):
        machine.costs()


def test_times_that_say_nothing_are_taken_again_and_the_new_ones_count(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_CASE_S", (0.2, 0.2)), ("_MANY", 2)):
        monkeypatch.setattr(processes, name, value)
    monkeypatch.setattr(processes, "too_wide", lambda width: True)
    with Processes(RECIPE, store, Budget(600), threads=1, processes=1) as machine:
        (first,) = machine.measure([ARM], Budget(600)).values()
        assert first.unsure
        assert "is too uncertain (±" in str(first.failed)
        (before,) = (row for row in store.rows() if row.phase == "step")
        monkeypatch.setattr(processes, "too_wide", lambda width: False)
        (second,) = machine.measure([ARM], Budget(0.0)).values()  # of what is stored
        assert not second.unsure
        monkeypatch.setattr(processes, "too_wide", lambda width: True)
        machine.measure([ARM], Budget(600))
    (after,) = (row for row in store.rows() if row.phase == "step")
    assert after.measurement != before.measurement


def test_compiling_has_half_of_the_time_for_timings(store: Store) -> None:
    time = [0.0]
    with Processes(RECIPE, store, Budget(100.0, lambda: time[0]), processes=1) as machine:
        sides = machine._dense_sides
        machine._timing = Budget(60.0, lambda: time[0])
        time[0] = 20.0
        assert sides.compile_s() == 20.0
        machine._timing = Budget(math.inf, lambda: time[0])
        assert sides.compile_s() == math.inf


def test_what_a_row_says_of_its_dense_side_is_kept_as_data() -> None:
    case = case_of(ARM, RECIPE, 1, "cpu")
    axes: dict[str, Any] = case.to_json()
    kernel = axes.pop("kernel")
    note = Note.of("uncompiled", seconds=48.0)
    row = Row(**axes, case_id=case.case_id, kernel_requested=kernel, kernel="auto", phase="step", environment_id="e1",
              check=PASSED, speedup=1.5, speedup_low=1.4, speedup_high=1.6, dense=Side(median_s=3e-3),
              baseline_chosen="compiled, fused optimizer", notes=(note,))  # fmt: skip
    found = processes._timing(case, [row])
    assert (found.compiled, found.baseline, found.uncompiled_s) == (True, "compiled, fused optimizer", 48.0)
    eager = processes._timing(case, [replace(row, baseline_chosen="eager, this package's optimizer", notes=())])
    assert (eager.compiled, eager.uncompiled_s) == (False, None)
    failed = replace(row, phase=None, speedup=None, speedup_low=None, speedup_high=None, error="it no longer runs")
    assert processes._timing(case, [row, failed]).failed == "it no longer runs"
