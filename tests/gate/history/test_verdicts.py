import numpy as np
import pytest

from meprop_bench.gate.history.noise import benchmarks_of, expected
from meprop_bench.gate.history.verdicts import REASONS, Candidate, judge
from meprop_bench.gate.judgement import VERDICTS

CASES = [f"m.time_{i}({j})" for i in range(100) for j in range(3)]
BENCHMARKS = benchmarks_of(CASES)
BOUND = np.log1p(np.full(len(CASES), 0.05))
EVERY = np.ones(len(CASES), np.bool_)


def history(runs=20, *, seed=0):
    return np.random.default_rng(seed).normal(0, 0.01, (runs, len(CASES)))


def run(*changes, seed=99, width=0.0):
    """A run, with (figure, change) for some figures."""
    logs = np.random.default_rng(seed).normal(0, 0.01, len(CASES))
    for figure, change in changes:
        logs[figure] += change
    return Candidate(logs, np.full(len(CASES), width))


def judged(first, past, *, decides=EVERY, **more):
    return judge(first, expected(past, BENCHMARKS, 20), BOUND, decides, BENCHMARKS, 0.025, 20, **more)


def verdict(found, figure=0):
    return VERDICTS[found.verdict[figure]], REASONS[found.reason[figure]]


def test_what_does_not_change_passes():
    found = judged(run(), history())
    assert (found.verdict == VERDICTS.index("pass")).all()


def test_a_slowdown_beyond_margin_and_spread_fails_alone():
    found = judged(run((0, 0.25)), history())
    assert verdict(found) == ("fail", "")
    assert (found.verdict == VERDICTS.index("fail")).sum() == 1


def test_what_gets_faster_passes():
    assert verdict(judged(run((0, -1.0)), history())) == ("pass", "")


def test_a_rare_second_mode_that_was_met_before_is_not_news():
    past = history()
    past[4, 0] += 0.3
    assert verdict(judged(run((0, 0.3)), past))[0] == "pass"
    assert verdict(judged(run((0, 0.28)), past))[0] == "pass"  # within a tenth of the way
    assert verdict(judged(run((0, 0.6)), past))[0] == "fail"  # farther than it ever was
    past[9, 0] += 0.35
    assert verdict(judged(run((0, 0.25)), past))[0] != "fail"  # two are a tail


def test_what_the_last_run_was_already_is_not_the_candidates_doing():
    past = history()
    past[-1, 0] += 0.3
    assert verdict(judged(run((0, 0.3)), past))[0] == "pass"


def test_what_was_won_by_a_step_may_not_be_lost_again():
    past = history()
    past[-5:, 0] -= 0.4
    assert verdict(judged(run(), past)) == ("fail", "")


DISAGREES = ("inconclusive", "slower, but its own values disagree")


def test_a_run_whose_own_values_disagree_decides_nothing():
    assert verdict(judged(run((0, 0.3), width=0.2), history())) == DISAGREES
    calm = judged(run((0, 0.3), width=0.2), history(), confirm=True, second=run(seed=7))
    assert verdict(calm) == ("pass", "stood out in the first run, not in the second")


def test_values_that_always_disagree_do_not_hide_a_change():
    usual = np.full((20, len(CASES)), 0.2)
    found = expected(history(), BENCHMARKS, 20, usual)
    assert found.usual == pytest.approx(np.full(len(CASES), 0.2))
    slow = judge(run((0, 0.3), width=0.2), found, BOUND, EVERY, BENCHMARKS, 0.025, 20)
    assert verdict(slow) == ("fail", "")
    more = judge(run((0, 0.3), width=0.4), found, BOUND, EVERY, BENCHMARKS, 0.025, 20)
    assert verdict(more) == DISAGREES


def test_a_disturbed_run_does_not_count_beside_one_that_stands_out_by_itself():
    disturbed = run((0, 0.3), width=0.1)
    assert verdict(judged(disturbed, history(), confirm=True, second=run((0, 0.3), seed=7))) == ("fail", "")
    assert verdict(judged(run((0, 0.3)), history(), confirm=True, second=disturbed)) == ("fail", "")
    assert verdict(judged(disturbed, history(), confirm=True, second=disturbed)) == DISAGREES


def test_two_runs_that_are_not_slower_by_the_same_decide_nothing():
    first, second = run((0, 0.2)), run((0, 0.5), seed=7)
    found = judged(first, history(), confirm=True, second=second)
    assert verdict(found) == ("inconclusive", "slower in both runs, but not by the same")
    assert not found.firm.any()
    assert verdict(judged(second, history(), confirm=True, second=run((0, 0.45), seed=8))) == ("fail", "")


def test_a_second_run_is_asked_for_and_decides():
    asked = judged(run((0, 0.25)), history(), confirm=True)
    assert verdict(asked) == ("inconclusive", "stands out in this run: a second one has to confirm it")
    assert asked.firm.sum() == 1
    again = judged(run((0, 0.25)), history(), confirm=True, second=run((0, 0.25), seed=7))
    assert verdict(again) == ("fail", "")
    once = judged(run((0, 0.25)), history(), confirm=True, second=run(seed=7))
    assert verdict(once) == ("pass", "stood out in the first run, not in the second")
    assert not once.firm.any()


def test_a_second_run_that_lacks_the_figure_confirms_nothing():
    second = run(seed=7)
    second.logs[0] = np.nan
    found = judged(run((0, 0.25)), history(), confirm=True, second=second)
    assert verdict(found)[1].startswith("stands out")


def test_two_runs_see_less_than_one_would():
    one, two = judged(run(), history()), judged(run(), history(), confirm=True)
    assert np.median(two.reach) < np.median(one.reach)


def test_many_benchmarks_that_move_at_once_are_not_a_change_each():
    moved = [(3 * i, 0.3) for i in range(25)]
    found = judged(run(*moved), history())
    assert verdict(found) == ("inconclusive", "many figures moved together")
    assert (found.verdict != VERDICTS.index("fail")).all()
    assert found.moved == 25
    one = judged(run(*((i, 0.3) for i in range(3))), history())  # all figures of one benchmark
    assert (one.verdict == VERDICTS.index("fail")).sum() == 3


def test_what_all_share_is_taken_off():
    found = judged(run(*((i, 0.1) for i in range(len(CASES)))), history())
    assert found.shift == pytest.approx(0.1, abs=0.01)
    assert (found.verdict == VERDICTS.index("pass")).all()


def test_a_noisy_run_is_judged_by_its_own_noise():
    noisy = Candidate(np.random.default_rng(3).normal(0, 0.04, len(CASES)), np.zeros(len(CASES)))
    found = judged(noisy, history())
    assert found.unrest > 3
    assert (found.verdict != VERDICTS.index("fail")).all()


def test_a_spread_that_hides_twice_the_figure_does_not_decide_but_ten_times_fails():
    past = history()
    past[:, 0] = np.random.default_rng(5).normal(0, 0.25, 20)
    found = judged(run(), past)
    assert verdict(found)[1] == "its own spread would hide even twice the figure"
    assert found.idle[0]
    assert found.noisy.sum() == 1
    assert verdict(judged(run((0, 5.0)), past))[0] == "fail"


def test_what_is_new_or_young_does_not_decide():
    past = history()
    past[:, 0] = np.nan
    past[:15, 1] = np.nan
    found = judged(run((0, 1.0), (1, 1.0)), past)
    assert verdict(found, 0) == ("inconclusive", "new: no run has it")
    assert verdict(found, 1) == ("inconclusive", "too few runs have it as yet")
    assert found.idle[:2].all()


def test_what_is_only_reported_makes_the_others_no_weaker():
    some = EVERY.copy()
    some[100:] = False
    assert judged(run(), history(), decides=some).reach[0] < judged(run(), history()).reach[0]


def test_a_second_run_of_little_but_what_stood_out_confirms_it():
    cases = [f"m.time_{i}" for i in range(200)]
    every, benchmarks = np.ones(200, np.bool_), benchmarks_of(cases)
    past = np.random.default_rng(0).normal(0, 0.01, (20, 200))
    first, second = np.random.default_rng(1).normal(0, 0.01, (2, 200)) + np.where(np.arange(200) < 15, 0.3, 0.0)
    second[15:] = np.nan
    runs = [Candidate(one, np.zeros(200)) for one in (first, second)]
    known, bound = expected(past, benchmarks, 20), np.log1p(np.full(200, 0.05))
    found = judge(runs[0], known, bound, every, benchmarks, 0.025, 20, confirm=True, second=runs[1])
    assert (found.verdict[:15] == VERDICTS.index("fail")).all()
    assert found.second_shift is None


def test_a_run_that_is_slower_as_a_whole_is_not_if_the_second_is_not():
    slower = run(*((i, 0.1) for i in range(len(CASES))))
    calm, again = run(seed=7), run(*((i, 0.08) for i in range(len(CASES))), seed=7)
    assert judged(slower, history(), confirm=True).common_shift == pytest.approx(0.1, abs=0.01)
    assert judged(slower, history(), confirm=True, second=again).common_shift == pytest.approx(0.08, abs=0.01)
    assert judged(slower, history(), confirm=True, second=calm).common_shift == pytest.approx(0.0, abs=0.01)


def test_a_third_run_takes_back_what_does_not_last():
    first, second = run((0, 0.25), (3, 0.25)), run((0, 0.25), (3, 0.2), seed=7)
    third = run((0, 0.2), (3, 0.08), seed=8)
    found = judged(first, history(), confirm=True, second=second, third=third)
    assert verdict(found, 0) == ("fail", "")
    assert verdict(found, 3) == ("pass", "stood out in two runs, not in the third")
    assert verdict(judged(first, history(), confirm=True, second=second), 3) == ("fail", "")


def test_a_third_run_that_lacks_the_figure_decides_nothing():
    third = run(seed=8)
    third.logs[0] = np.nan
    found = judged(run((0, 0.25)), history(), confirm=True, second=run((0, 0.25), seed=7), third=third)
    assert verdict(found) == ("inconclusive", "stood out in two runs: a third one has to confirm it")
    assert found.firm.sum() == 1
    # What the second run contradicts needs no third.
    found = judged(run((0, 0.25)), history(), confirm=True, second=run(seed=7), third=third)
    assert verdict(found) == ("pass", "stood out in the first run, not in the second")


def test_one_of_three_runs_may_be_disturbed():
    first, slow = run((0, 0.3)), run((0, 0.3), seed=8)
    disturbed = Candidate(run((0, 0.5), seed=7).logs, np.full(len(CASES), 0.2))
    assert verdict(judged(first, history(), confirm=True, second=disturbed))[0] == "inconclusive"
    assert verdict(judged(first, history(), confirm=True, second=disturbed, third=slow)) == ("fail", "")
    calm = judged(first, history(), confirm=True, second=disturbed, third=run(seed=9))
    assert verdict(calm) == ("pass", "stood out in two runs, not in the third")
    # A second run that is at the level is no confirmation, whatever the third says.
    found = judged(first, history(), confirm=True, second=run(seed=7), third=slow)
    assert verdict(found) == ("pass", "stood out in the first run, not in the second")
