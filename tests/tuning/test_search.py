from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.stats import mean_interval
from meprop_bench.tuning.arms import Arm, Layer, arms_of
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.journal import Job, Journal
from meprop_bench.tuning.search import Answer, Search
from meprop_bench.tuning.session import Question, Session

KS = (1 / 8, 1 / 4, 1 / 2, 1 / 32)


def tune(
    machine: Any, *, budget: float = 600.0, journal: Journal | None = None, said: list[str] | None = None, **asked: Any
) -> Answer:
    asked = {"arms": tuple(arms_of(("unified",), KS)), "margin": 0.5, "schedules": False, "variants": False} | asked
    lines: list[str] = [] if said is None else said
    session = Session(machine, journal or Journal(), Budget(budget, machine.now), lines.append)
    return Search(session, Question(**asked)).run()


def standing(answer: Answer) -> dict[float, str]:
    return {found.arm.k: found.standing for found in answer.findings}


def faster(arm: Arm) -> float:
    """Return a speed-up that grows as k falls, and is next to nothing at one half."""
    return 1 + 0.12 * math.log2(1 / arm.k) ** 1.2 - 0.1


def test_fast_and_good_is_taken_and_fast_and_bad_is_not(fake: Any, learns: Any) -> None:
    machine = fake(faster, learns(lambda arm: 0.05 if arm.k >= 1 / 8 else 3.0, slope=2))
    answer = tune(machine)
    assert answer.decision.kind == "take"
    assert answer.decision.code == ExitCode.OK
    assert answer.decision.arm == Arm("unified", 1 / 8)
    assert standing(answer)[1 / 32] == "hopeless"
    assert answer.decision.sentence.startswith("Take unified, k = 0.125: a step is 1.35x [1.32, 1.38], accuracy ")
    assert "passes at 0.5." in answer.decision.sentence
    assert "At equal time, against dense with " in answer.decision.sentence
    assert "it is ahead" in answer.decision.sentence


def test_nothing_gained_is_decided_without_a_training(fake: Any, learns: Any) -> None:
    machine = fake(lambda arm: 1.0, learns(lambda arm: 0.0))
    answer = tune(machine)
    assert answer.decision.kind == "dense"
    assert answer.decision.code == ExitCode.OK
    assert answer.decision.sentence.startswith("Stay dense: nothing within a margin of 0.5 is faster than 1.02x.")
    assert not machine.trained
    # The smallest k alone was timed: where that gains nothing, no k does.
    assert set(machine.stored) == {Arm("unified", 1 / 32)} or len(machine.stored) == len(KS)


def test_even_the_smallest_k_gains_nothing_so_no_other_is_timed(fake: Any, learns: Any) -> None:
    machine = fake(lambda arm: 0.8 if arm.method == "meprop" else 1.4, learns(lambda arm: 0.0, slope=2))
    answer = tune(machine, arms=tuple(arms_of(("unified", "meprop"), KS)))
    timed = [arm for arm in machine.stored if arm.method == "meprop"]
    assert timed == [Arm("meprop", 1 / 32)]
    assert {found.standing for found in answer.findings if found.arm.method == "meprop"} == {"slow"}
    assert answer.decision.kind == "take"


def test_what_gained_nothing_gains_nothing_when_little_time_is_left(fake: Any, learns: Any, tmp_path: Path) -> None:
    machine = fake(lambda arm: 0.9, learns(lambda arm: 0.0))
    answer = tune(machine, journal=Journal(tmp_path))
    assert answer.decision.kind == "dense"
    assert tune(machine, budget=20, journal=Journal(tmp_path)) == answer
    assert set(machine.stored) == {Arm("unified", 1 / 32)}


def test_fast_and_bad_alone_leaves_dense(fake: Any, learns: Any) -> None:
    answer = tune(fake(lambda arm: 2.0, learns(lambda arm: 5.0)))
    assert answer.decision.kind == "dense"
    assert set(standing(answer).values()) <= {"hopeless", "worse", "behind"}


def test_dense_with_the_same_seconds_wins(fake: Any, learns: Any) -> None:
    """Every arm passes at equal steps, and yet half as many dense steps are better than all of them."""
    answer = tune(fake(lambda arm: 2.0, learns(lambda arm: 0.4, slope=0.05), noise=0.02))
    assert answer.decision.kind == "dense"
    assert "behind" in standing(answer).values()
    assert "(passes at 0.5), but dense with the same seconds is better. At equal time, against dense with " in (
        answer.decision.sentence
    )


def test_saturated_training_is_said_to_save_nothing_over_fewer_steps(fake: Any, learns: Any) -> None:
    answer = tune(fake(lambda arm: 1.5, learns(lambda arm: 0.0, slope=0.0)))
    assert answer.decision.kind == "take"
    assert "no difference is seen" in answer.decision.sentence
    assert answer.decision.sentence.endswith("fewer dense steps may save as much.")


def test_noise_that_decides_nothing_is_undecided(fake: Any, learns: Any) -> None:
    answer = tune(fake(lambda arm: 1.5, learns(lambda arm: 0.4, slope=2), noise=3.0))
    assert answer.decision.kind == "undecided"
    assert answer.decision.code == ExitCode.INCONCLUSIVE
    assert answer.decision.sentence.startswith("Undecided: with unified, k = ")


def test_inferior_yet_ahead_at_equal_time_is_said(fake: Any, learns: Any) -> None:
    answer = tune(fake(lambda arm: 2.0, learns(lambda arm: 0.8, slope=5), noise=0.02), steps=200)
    assert answer.decision.kind == "dense"
    if "worse" in standing(answer).values():
        assert "pays where the seconds are fixed and not the steps" in answer.decision.sentence


def test_a_check_that_fails_costs_its_arm_alone(fake: Any, learns: Any) -> None:
    machine = fake(lambda arm: -1 if arm.k == 1 / 32 else faster(arm), learns(lambda arm: 0.0, slope=2))
    answer = tune(machine)
    assert standing(answer)[1 / 32] == "failed"
    assert next(found.reason for found in answer.findings if found.standing == "failed") == "check failed: dW differs"
    assert answer.decision.kind == "take"


def test_where_no_arm_can_be_timed_nothing_was_measured(fake: Any, learns: Any) -> None:
    with pytest.raises(UserError, match="no arm could be timed: check failed: dW differs") as error:
        tune(fake(lambda arm: -1, learns(lambda arm: 0.0)))
    assert error.value.exit_code == ExitCode.NOTHING_MEASURED


def test_a_training_that_diverges_costs_its_arm_alone(fake: Any, learns: Any) -> None:
    def quality(arm: Arm | None, steps: int) -> float:
        return math.nan if arm is not None and arm.k < 1 / 8 else learns(lambda arm: 0.0, slope=2)(arm, steps)

    answer = tune(fake(faster, quality))
    assert standing(answer)[1 / 32] == "failed"
    assert answer.decision.arm == Arm("unified", 1 / 8)


def test_dense_that_diverges_is_an_error_of_one_line(fake: Any) -> None:
    with pytest.raises(UserError, match=r"dense training failed: its metric became nan"):
        tune(fake(faster, lambda arm, steps: math.nan))


def test_a_dense_training_that_failed_is_tried_again(fake: Any, learns: Any, tmp_path: Path) -> None:
    machine = fake(faster, lambda arm, steps: math.nan)
    with pytest.raises(UserError):
        tune(machine, journal=Journal(tmp_path))
    machine.quality = learns(lambda arm: 0.0, slope=2)
    assert tune(machine, journal=Journal(tmp_path)).decision.kind == "take"


def test_the_final_seeds_are_none_that_an_arm_was_chosen_by(fake: Any, learns: Any) -> None:
    machine = fake(faster, learns(lambda arm: 0.0, slope=2))
    answer = tune(machine)
    assert answer.plan is not None
    assert answer.plan.rungs
    screened = {seed for rung in answer.plan.rungs for seed in rung.seeds}
    assert not screened & set(answer.plan.seeds)
    best = next(found for found in answer.findings if found.standing == "pass")
    assert best.seeds == len(answer.plan.seeds)


def test_dense_is_trained_once_for_all_arms(fake: Any, learns: Any) -> None:
    machine = fake(faster, learns(lambda arm: 0.0, slope=2))
    tune(machine)
    assert len(machine.trained) == len(set(machine.trained))


def test_the_opponent_has_the_seconds_that_the_arm_takes_batches_included(fake: Any, learns: Any) -> None:
    good = learns(lambda arm: 0.0, slope=2)
    machine = fake(lambda arm: 2.0, good, batch_s=0.01, noise=0.02)  # a batch takes as long as a dense step
    answer = tune(machine, steps=200, seeds=3)
    found = next(each for each in answer.findings if each.standing == "pass")
    assert found.dense_steps == 150  # 200 x (5 + 10) / (10 + 10) ms
    assert found.gain is not None
    assert found.gain.estimate == pytest.approx(20 / 15)
    assert "a step is 2.00x [1.96, 2.04] (1.33x [1.32, 1.34] with batches and evaluations)" in answer.decision.sentence


def test_a_variant_that_leaves_small_layers_dense_takes_the_place_of_its_arm(fake: Any, learns: Any) -> None:
    layers = (Layer("small", 10), Layer("large", 1000), Layer("other", 1000), Layer("head", 5, converted=False))
    machine = fake(lambda arm: 1.5 if arm.left == ("small",) else 1.4, learns(lambda arm: 0.0, slope=2), layers=layers)
    answer = tune(machine, variants=True)
    assert answer.decision.arm is not None
    assert answer.decision.arm.left == ("small",)
    assert ", on 2 of 4 layers: a step is 1.50x" in answer.decision.sentence
    assert "replaced" in {found.standing for found in answer.findings}


def test_a_compiled_step_takes_the_place_of_an_eager_one_where_dense_is_compiled(fake: Any, learns: Any) -> None:
    machine = fake(lambda arm: 1.6 if arm.compiled else 1.4, learns(lambda arm: 0.0, slope=2))
    assert not any(arm.compiled for arm in machine.stored)
    tune(machine, variants=True)
    assert not any(arm.compiled for arm in machine.stored)
    machine = fake(lambda arm: 1.6 if arm.compiled else 1.4, learns(lambda arm: 0.0, slope=2))
    machine.compiled = True
    answer = tune(machine, variants=True)
    assert answer.decision.arm is not None
    assert answer.decision.arm.compiled
    assert ", compiled: a step is 1.60x" in answer.decision.sentence


LAYERS = tuple(Layer(str(number), 100) for number in range(4))


def sensitive(arm: Arm) -> float:
    """Return what an arm loses: the last layer bears no k below 1/8, the others any."""
    k = arm.k_of(LAYERS[-1])
    assert k is not None
    return 0.0 if k >= 1 / 8 else 3.0


def mean_speed(arm: Arm) -> float:
    return sum(faster(Arm("unified", arm.k_of(layer) or 1)) for layer in LAYERS) / len(LAYERS)


def test_k_by_layer_is_searched_and_taken_where_one_layer_bears_no_small_k(fake: Any, learns: Any) -> None:
    said: list[str] = []
    machine = fake(mean_speed, learns(sensitive, slope=2), layers=LAYERS)
    answer = tune(machine, variants=True, budget=2000, steps=200, said=said)
    arm = answer.decision.arm
    assert arm is not None
    assert (arm.k, arm.ks) == (1 / 32, (("2", 1 / 8), ("3", 1 / 8)))
    assert answer.decision.sentence.startswith("Take unified, k = 0.0312 (0.125 in 2, 3), on 4 of 4 layers: a step is ")
    # It was timed, and trained on the rungs, like any other arm; and beside it the mirror image, which lost.
    assert arm in machine.stored
    assert {job.seed for job in machine.trained if job.arm == arm} > {1, 2, 3}
    assert any(found.arm.ks == (("0", 1 / 8), ("1", 1 / 8)) for found in answer.findings)
    assert sum(bool(found.arm.ks) for found in answer.findings) <= 3


def test_k_by_layer_that_is_no_faster_than_the_same_k_everywhere_is_not_trained(fake: Any, learns: Any) -> None:
    machine = fake(lambda arm: 1.1 if arm.ks else faster(arm), learns(sensitive, slope=2), layers=LAYERS)
    answer = tune(machine, variants=True, budget=2000, steps=200)
    assert not [job for job in machine.trained if job.arm is not None and job.arm.ks]
    assert {found.standing for found in answer.findings if found.arm.ks} == {"replaced"}
    assert answer.decision.arm == Arm("unified", 1 / 8)


@pytest.mark.parametrize("asked", [{"variants": False}, {"arms": (Arm("unified", 1 / 8), Arm("meprop", 1 / 8))}])
def test_k_by_layer_is_not_tried_where_it_cannot_be(fake: Any, learns: Any, asked: dict[str, Any]) -> None:
    machine = fake(mean_speed, learns(sensitive, slope=2), layers=LAYERS)
    answer = tune(machine, **{"variants": True, "budget": 2000, "steps": 200} | asked)
    assert answer.plan is not None
    assert answer.plan.joining == 0
    assert not any(arm.ks for arm in machine.stored)


def test_a_search_of_before_goes_on_without_k_by_layer(fake: Any, learns: Any, tmp_path: Path) -> None:
    machine = fake(mean_speed, learns(sensitive, slope=2), layers=LAYERS)
    tune(machine, variants=True, budget=2000, steps=200, journal=Journal(tmp_path))
    journal = Journal(tmp_path)
    for each in journal.settled["passes"]:  # as it was stored then
        del each["by_layer"], each["plan"]["joining"]
        each["looks"] = [look for look in each["looks"] if "ks" not in look["arm"]]
    journal.settled["costs"].pop("step_s")
    for layer in journal.settled["costs"]["layers"]:
        del layer["k"]
    journal.save()
    again = tune(machine, variants=True, budget=2000, steps=200, journal=Journal(tmp_path))
    assert again.decision.kind in ("take", "undecided")
    assert not any(found.arm.ks for found in again.findings)


def test_a_budget_for_few_steps_is_said_before_it_is_spent(fake: Any, learns: Any) -> None:
    said: list[str] = []
    machine = fake(lambda arm: 1.5, learns(lambda arm: 0.0, slope=2), whole=20_000)
    machine._costs = replace(machine._costs, step_s=0.01)
    tune(machine, budget=30, said=said)
    assert said[0].startswith("this budget allows trainings of about ")
    assert sum(line.startswith("this budget") for line in said) == 1
    said = []
    tune(fake(faster, learns(lambda arm: 0.0, slope=2)), budget=3000, said=said)
    assert not any("this budget" in line for line in said)
    # What a search of before knows of the pace, it knows when its first trainings are done.
    said = []
    tune(fake(lambda arm: 1.5, learns(lambda arm: 0.0, slope=2), whole=20_000, measure_s=0.5), budget=15, said=said)
    assert sum(line.startswith("this budget") for line in said) == 1


def test_what_is_undecided_says_what_would_decide(fake: Any, learns: Any) -> None:
    close = learns(lambda arm: 0.0, slope=2)
    answer = tune(fake(lambda arm: 1.5, close, noise=0.5), arms=(Arm("unified", 1 / 8),), steps=100, budget=25)
    assert answer.decision.kind == "undecided"
    assert " seeds decide: --resume with a --budget of about " in answer.decision.sentence
    answer = tune(fake(lambda arm: 1.5, close, noise=3.0), arms=(Arm("unified", 1 / 8),), steps=100, budget=40)
    assert "not even 63 of them would decide" in answer.decision.sentence
    answer = tune(fake(faster, learns(lambda arm: 0.0, slope=2)), steps=2000, budget=60)
    assert answer.decision.kind == "undecided"
    assert "Trainings of 2,000 steps need a --budget of about " in answer.decision.sentence


def test_a_final_that_the_budget_ended_before_its_first_pair_is_judged_when_it_is_resumed(
    fake: Any, learns: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = fake(lambda arm: 1.5, learns(lambda arm: 0.0, slope=2))
    asked: dict[str, Any] = {"arms": (Arm("unified", 1 / 8),), "steps": 100, "seeds": 4}
    with monkeypatch.context() as ended:
        ended.setattr(machine, "train", lambda jobs, budget: iter(()))
        assert tune(machine, **asked, journal=Journal(tmp_path)).decision.kind == "undecided"
    assert tune(machine, **asked, journal=Journal(tmp_path)).decision.kind == "take"


def test_a_moving_k_has_the_mean_time_of_its_schedule(fake: Any, learns: Any) -> None:
    loss = {1 / 2: 0.0}
    machine = fake(faster, learns(lambda arm: 0.0 if arm.end else 3.0 * (1 - arm.k) + loss.get(arm.k, 0), slope=2))
    answer = tune(machine, schedules=True)
    moving = [found for found in answer.findings if not found.arm.constant]
    assert moving
    for found in moving:
        assert found.timing is not None
        ends = sorted((faster(Arm("unified", found.arm.k)), faster(Arm("unified", found.arm.end or 1))))
        assert ends[0] < found.timing.speedup.estimate < ends[1]
    assert answer.decision.arm is not None
    assert not answer.decision.arm.constant


@pytest.mark.parametrize("budget", [20, 30, 45, 60, 90, 150, 300, 3600])
def test_the_budget_is_kept(fake: Any, learns: Any, budget: float) -> None:
    machine = fake(faster, learns(lambda arm: 0.05 if arm.k >= 1 / 8 else 3.0, slope=2))
    answer = tune(machine, budget=budget)
    assert machine.time <= budget
    if budget >= 90:
        assert answer.decision.kind == "take"


def test_a_training_too_long_for_the_budget_is_left_out_and_named(fake: Any, learns: Any) -> None:
    machine = fake(faster, learns(lambda arm: 0.0, slope=2), whole=100_000)
    answer = tune(machine, budget=120, steps=100_000)
    assert machine.time <= 120
    assert answer.decision.kind == "undecided"
    assert any("100000 steps" in each for each in answer.left_out)


def test_a_budget_without_a_single_step_measured_is_an_error(fake: Any, learns: Any) -> None:
    with pytest.raises(UserError, match="before a step was timed") as error:
        tune(fake(faster, learns(lambda arm: 0.0)), budget=2)
    assert error.value.exit_code == ExitCode.NOTHING_MEASURED


def test_times_that_say_nothing_are_taken_again_while_there_is_time(fake: Any, learns: Any) -> None:
    """As on a busy machine: at first every interval is too wide."""
    machine = fake(faster, learns(lambda arm: 0.05 if arm.k >= 1 / 8 else 3.0, slope=2))
    machine.busy_s = 60.0
    answer = tune(machine)
    assert machine.time > 60
    assert answer.decision.kind == "take"
    assert set(standing(answer)) == set(KS)
    assert not any(found.untimed for found in answer.findings)


def test_where_no_time_says_anything_that_is_said_and_not_that_there_was_no_time(fake: Any, learns: Any) -> None:
    machine = fake(faster, learns(lambda arm: 0.0))
    machine.busy_s = math.inf
    with pytest.raises(
        UserError, match=r"well enough: too uncertain \(±120%\), by the same command and --resume"
    ) as error:
        tune(machine)
    assert error.value.exit_code == ExitCode.NOTHING_MEASURED


def test_a_later_run_takes_such_times_again(fake: Any, learns: Any, tmp_path: Path) -> None:
    machine = fake(faster, learns(lambda arm: 0.05 if arm.k >= 1 / 8 else 3.0, slope=2))
    machine.busy_s = math.inf
    with pytest.raises(UserError):
        tune(machine, journal=Journal(tmp_path))
    machine.busy_s = 0.0
    assert tune(machine, journal=Journal(tmp_path)).decision.kind == "take"


def test_a_budget_that_ends_before_a_step_is_timed_says_what_it_was_spent_on(fake: Any, learns: Any) -> None:
    machine = fake(faster, learns(lambda arm: 0.0))
    machine.stages = {"examining the model": 20.0, "starting": 12.0, "compiling": 18.0}
    told = r"timed \(20 s examining the model, 12 s starting, 18 s compiling\): give --budget 4m or more"
    with pytest.raises(UserError, match=told):  # 20 + 2 x 30 / 30%
        tune(machine, budget=2)


def test_an_arm_that_does_not_fit_takes_no_time_from_those_that_do(fake: Any, learns: Any) -> None:
    """As convolutions, which have no unified selection, of which the first arm is."""
    arms = (Arm("unified", 1 / 8), Arm("meprop", 1 / 8))
    machine = fake(lambda arm: -1 if arm.method == "unified" else 1.5, learns(lambda arm: 0.0, slope=2), measure_s=40)
    assert tune(machine, arms=arms, budget=180, steps=50).plan is not None
    machine = fake(lambda arm: -1 if arm.method == "unified" else 1.5, learns(lambda arm: 0.0, slope=2), measure_s=40)
    with pytest.raises(UserError, match="the budget ended before a step was timed"):
        tune(machine, arms=arms, budget=60, steps=50)


def test_dense_that_there_was_no_time_to_compile_is_told_of(fake: Any, learns: Any) -> None:
    machine = fake(faster, learns(lambda arm: 0.05 if arm.k >= 1 / 8 else 3.0, slope=2))
    assert "ompil" not in tune(machine).decision.sentence
    machine = fake(faster, learns(lambda arm: 0.05 if arm.k >= 1 / 8 else 3.0, slope=2))
    machine.uncompiled_s = 48.0
    assert tune(machine).decision.sentence.endswith(
        " Compiled dense was left out: there were only 48 s for compiling it."
    )


def _between(arm: Arm | None, steps: int) -> float:
    """Return a quality of which arms lose nearly the margin early on, and nothing later."""
    return 90 + math.log2(steps) - (0.0 if arm is None or steps > 400 else 0.45)


def test_a_search_whose_first_pass_decided_nothing_goes_on_with_a_second(fake: Any, tmp_path: Path) -> None:
    """All arms nearly lose too much early on, and the first budget ends there; the second pass is interrupted once."""
    arms = tuple(arms_of(("unified",), (1 / 8, 1 / 2)))

    def begun(folder: str) -> tuple[Any, Path]:
        machine = fake(lambda arm: 1.5, _between, noise=0.1, whole=20000)
        (tmp_path / folder).mkdir()
        first = tune(machine, arms=arms, budget=30, journal=Journal(tmp_path / folder))
        assert first.decision.kind == "undecided"
        assert len(Journal(tmp_path / folder).settled["passes"]) == 1
        return machine, tmp_path / folder

    whole, folder = begun("whole")
    expected = tune(whole, arms=arms, journal=Journal(folder))
    assert expected.decision.kind == "take"
    machine, folder = begun("interrupted")
    (before,) = Journal(folder).settled["passes"]
    machine.stop_at = whole.events - 5
    with pytest.raises(KeyboardInterrupt):
        tune(machine, arms=arms, journal=Journal(folder))
    assert len(Journal(folder).settled["passes"]) == 2
    answer = tune(machine, arms=arms, journal=Journal(folder))
    assert answer == expected
    first, second = Journal(folder).settled["passes"]
    assert first["plan"] == before["plan"]
    assert second["plan"]["steps"] >= 2 * first["plan"]["steps"]
    assert not {*second["plan"]["seeds"]} & {*first["plan"]["seeds"]}
    assert len(machine.trained) == len(set(machine.trained)) == len(whole.trained)  # nothing is done twice
    again = tune(machine, arms=arms, journal=Journal(folder))
    assert again == answer
    assert len(machine.trained) == len(whole.trained)


def _machine(fake: Any, learns: Callable[..., Any]) -> Any:
    layers = (Layer("small", 10), Layer("large", 1000))
    return fake(faster, learns(lambda arm: 0.05 if arm.k >= 1 / 8 else 3.0, slope=2), layers=layers)


def test_arms_that_lose_just_the_margin_are_seldom_taken_however_often_it_looks(fake: Any, learns: Any) -> None:
    """The chance of error is that of the whole search: 2.5% of one side, of all looks together."""
    taken = 0
    for number in range(60):
        machine = fake(lambda arm: 1.5, learns(lambda arm: 0.5, slope=4), noise=0.3)
        machine.salt = str(number)
        taken += tune(machine, budget=(200, 400, 1500)[number % 3]).decision.kind == "take"
    assert taken <= 4


def test_interrupted_at_any_point_it_goes_on_to_the_same_answer(fake: Any, learns: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"steps": 200, "seeds": 4, "variants": True, "schedules": True}
    whole = _machine(fake, learns)
    expected = tune(whole, **asked)
    for stop_at in range(1, whole.events + 1, 3):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        machine = _machine(fake, learns)
        machine.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            tune(machine, journal=Journal(folder), **asked)
        done = len(machine.trained)
        journal = Journal(folder)
        assert len(journal.trainings) == done  # nothing that was done is lost
        answer = tune(machine, budget=600 - machine.time, journal=journal, **asked)
        assert answer.decision == expected.decision
        assert answer.findings == expected.findings
        assert len(machine.trained) == len(set(machine.trained)) == len(whole.trained)  # and nothing done twice


def test_more_seeds_are_taken_while_they_do_not_decide_and_each_look_costs(fake: Any, learns: Any) -> None:
    machine = fake(lambda arm: 1.5, learns(lambda arm: 0.0, slope=2), noise=1.5)
    answer = tune(machine, arms=(Arm("unified", 1 / 8),), steps=100, budget=3000)
    (found,) = answer.findings
    assert found.seeds == 32  # 8, 16, 32: the third look, at 1 - 5% / 8
    pairs = [machine.figure(Job(found.arm, seed, 100)) - machine.figure(Job(None, seed, 100)) for seed in range(4, 36)]
    assert found.equal_steps == mean_interval(pairs, 1 - 0.05 / 8)
    fixed = tune(fake(lambda arm: 1.5, learns(lambda arm: 0.0, slope=2), noise=0.6), steps=100, seeds=8, budget=3000)
    assert max(found.seeds for found in fixed.findings) == 8  # as asked


def test_what_is_behind_after_few_steps_is_trained_longer_while_there_is_time(fake: Any) -> None:
    """As on MNIST: an arm that loses points early on catches up; a first, short pass must not be the last word."""

    def quality(arm: Arm | None, steps: int) -> float:
        return 90 + math.log2(steps) - (0.0 if arm is None else max(0.0, 4 - 2 * math.log2(steps / 100)))

    machine = fake(lambda arm: 1.5, quality, noise=0.05, whole=2000)
    answer = tune(machine, arms=(Arm("unified", 1 / 8), Arm("unified", 1 / 4)), budget=4000, seeds=3)
    assert answer.decision.kind == "take"
    assert answer.plan is not None
    assert answer.plan.steps >= 800


def _late(arm: Arm | None, steps: int) -> float:
    """Return a quality of which all arms lose too much early on."""
    return 90 + math.log2(steps) - (0.0 if arm is None or steps > 600 else 3 - arm.k)


def test_where_time_is_short_those_that_lost_least_are_trained_longer(fake: Any, tmp_path: Path) -> None:
    """All arms lose too much early on, and what is left is not enough to train them all for twice the steps."""
    arms = tuple(arms_of(("unified",), (1 / 8, 1 / 4, 3 / 8, 1 / 2)))
    machine = fake(lambda arm: 1.5, _late, noise=0.05, whole=20000)
    answer = tune(machine, arms=arms, budget=200, journal=Journal(tmp_path))
    longest = {arm.k: max(job.steps for job in machine.trained if job.arm == arm) for arm in arms}
    assert standing(answer) == {1 / 8: "hopeless", 1 / 4: "hopeless", 3 / 8: "pass", 1 / 2: "pass"}
    assert longest[1 / 2] >= 2 * longest[1 / 8]
    assert longest[1 / 4] == longest[1 / 8]  # as two of the four are trained again
    # They were chosen by the seeds of the first judgement, too, so that those of the second are others.
    first, *_, last = (each["plan"]["seeds"] for each in Journal(tmp_path).settled["passes"])
    assert not {*first} & {*last}
    # A later run finds the same from what is stored.
    again = tune(machine, arms=arms, budget=200 - machine.time, journal=Journal(tmp_path))
    assert again.findings == answer.findings


def test_what_failed_is_not_trained_again(fake: Any, tmp_path: Path) -> None:
    arms = tuple(arms_of(("unified",), (1 / 8, 1 / 4, 3 / 8, 1 / 2)))

    def quality(arm: Arm | None, steps: int) -> float:
        return math.nan if arm == arms[3] else _late(arm, steps)

    machine = fake(lambda arm: 1.5, quality, noise=0.05, whole=20000)
    tune(machine, arms=arms, budget=80, journal=Journal(tmp_path))
    answer = tune(machine, arms=arms, budget=1000, journal=Journal(tmp_path))
    assert answer.decision.kind == "take"
    assert standing(answer)[1 / 2] == "failed"
    first, *_, last = (each["plan"]["steps"] for each in Journal(tmp_path).settled["passes"])
    assert last >= 2 * first
    assert max(job.steps for job in machine.trained if job.arm == arms[3]) <= first


def test_k_by_layer_that_is_no_faster_is_not_trained_in_a_later_pass_either(fake: Any, tmp_path: Path) -> None:
    def quality(arm: Arm | None, steps: int) -> float:
        return 90 + math.log2(steps) - (0.0 if arm is None or steps > 600 else 0.55)

    machine = fake(lambda arm: 1.1 if arm.ks else faster(arm), quality, layers=LAYERS, noise=0.3, whole=20000)
    tune(machine, variants=True, budget=150, seeds=3, journal=Journal(tmp_path))
    answer = tune(machine, variants=True, budget=2000, seeds=3, journal=Journal(tmp_path))
    assert len(Journal(tmp_path).settled["passes"]) > 1
    assert {found.standing for found in answer.findings if found.arm.ks} == {"replaced"}
    assert not [job for job in machine.trained if job.arm is not None and job.arm.ks]


def test_arms_that_could_not_be_timed_in_time_are_timed_later(fake: Any, learns: Any) -> None:
    """The machine is slow to time, and only what is timed last is good."""
    good = learns(lambda arm: 0.05 if arm.k == 1 / 2 else 9.0, slope=2)
    machine = fake(lambda arm: 1.3, good, noise=0.02, measure_s=40.0)
    answer = tune(machine, arms=tuple(arms_of(("unified",), (1 / 8, 1 / 4, 1 / 2))), budget=600, steps=100, seeds=3)
    assert len(machine.stored) == 3
    assert answer.decision.arm == Arm("unified", 1 / 2)


def test_arms_that_were_not_timed_come_before_more_seeds_of_those_that_were(fake: Any, learns: Any) -> None:
    """As on a busy machine: the share of the budget for times was over when one of two arms was timed."""
    close = learns(lambda arm: 0.0 if arm.k == 1 / 2 else 0.45, slope=2)
    machine = fake(lambda arm: 1.3, close, noise=0.4, measure_s=40.0)
    answer = tune(machine, arms=tuple(arms_of(("unified",), (1 / 8, 1 / 2))), budget=240, steps=300)
    assert len(machine.stored) == 2
    assert answer.decision.arm == Arm("unified", 1 / 2)


def test_a_pass_that_times_nothing_more_is_the_last(fake: Any, learns: Any, tmp_path: Path) -> None:
    """Each look has half of the chance of error of the one before: at the same seeds again it only weakens them."""
    machine = fake(lambda arm: 1.3, learns(lambda arm: 0.45, slope=2), noise=0.4, measure_s=40.0)
    arms = tuple(arms_of(("unified",), (1 / 8, 1 / 2)))
    answer = tune(machine, arms=arms, budget=180, steps=300, journal=Journal(tmp_path))
    assert len(machine.stored) == 1
    looks = [[look["seeds"] for look in each["looks"]] for each in Journal(tmp_path).settled["passes"]]
    assert len(looks) == 2
    assert standing(answer)[1 / 2] == "left out"


def test_the_margin_of_a_metric_that_is_no_percentage_is_relative(fake: Any) -> None:
    """Bits per character, negative, of which an arm loses 0.3% or 2%: half a percent may be lost."""

    def quality(arm: Arm | None, steps: int) -> float:
        return (-3.0 if arm is None else -3.009 if arm.k >= 1 / 8 else -3.06) + 0.1 * math.log2(steps / 1000)

    machine = fake(faster, quality, noise=0.001)
    machine.figure = lambda job: quality(job.arm, job.steps) + 0.0001 * (job.seed % 3)
    answer = tune(machine, margin=None, percent=False, metric="-bits/char", steps=1000)
    assert answer.metric.margin == pytest.approx(0.015, rel=1e-3)
    assert answer.decision.arm == Arm("unified", 1 / 8)
    assert standing(answer)[1 / 32] in ("hopeless", "worse", "behind")
    assert "-bits/char -0.009 [" in answer.decision.sentence


def test_a_larger_budget_goes_on_with_what_was_left_out(fake: Any, learns: Any, tmp_path: Path) -> None:
    machine = _machine(fake, learns)
    first = tune(machine, budget=40, steps=1000, journal=Journal(tmp_path))
    assert first.decision.kind == "undecided"
    journal = Journal(tmp_path)
    assert journal.spent_s == pytest.approx(machine.time, abs=0.01)
    second = tune(machine, budget=2000 - journal.spent_s, steps=1000, journal=journal)
    assert second.decision.kind == "take"
    assert len(machine.trained) == len(set(machine.trained))


def test_what_it_does_is_said_as_it_goes(fake: Any, learns: Any) -> None:
    said: list[str] = []
    tune(_machine(fake, learns), said=said)
    assert any(line.startswith("dense, ") and line.endswith(" min left)") for line in said)
    assert any("hopeless, loses more than 0.5" in line for line in said)


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"margin": -1}, "margin"), ({"margin": math.nan}, "margin"), ({"steps": 0}, "steps"), ({"seeds": 1}, "seeds")],
)
def test_a_question_that_is_none_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Question(**{"arms": tuple(arms_of()), "margin": 0.5} | asked)
