import json

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.document import OutcomeDocument
from meprop_bench.gate.settings import MARGINS


def of(outcome, case):
    return next(one for one in outcome.judgements if one.case == case)


def count(outcome, verdict):
    return outcome.judgements.counts()[verdict]


def test_a_quiet_run_passes(twenty, judged):
    found = judged(twenty.run(20))
    assert found.exit_code == ExitCode.OK
    assert count(found, "pass") == 120
    assert found.base == "the last 20 of 20 runs in box"
    assert any(line.startswith("A slowdown of ") and "120 figures judged" in line for line in found.findings)


def test_a_slowdown_fails_and_shows_its_own_past(twenty, judged):
    found = judged(twenty.run(20, {"m.B.time_3": 1.3}))
    assert found.exit_code == ExitCode.REGRESSION
    one = of(found, "m.B.time_3(2)")
    assert (one.verdict, one.pairs, one.margin) == ("fail", 20, MARGINS["time"])
    assert one.base == pytest.approx(4e-3, rel=0.01)
    assert one.change.estimate == pytest.approx(1.3, rel=0.04)
    assert one.change.low > 1.05
    assert count(found, "fail") == 4


def test_only_runs_of_the_candidates_environment_and_before_it_count(twenty, judged):
    for number in range(30, 36):
        twenty.run(number, {"m.B.time_3": 3.0})  # later commits
    for number in range(8):
        twenty.run(number, {"m.B.time_3": 3.0}, name=f"{number}-other.json", python="3.12", params={"python": "3.12"})
    found = judged(twenty.run(20, {"m.B.time_3": 1.3}))
    assert found.base == "the last 20 of 20 runs in box"
    assert of(found, "m.B.time_3(1)").verdict == "fail"
    notes = " ".join(found.notes)
    assert "8 runs of box are of another environment, the newest of these: python is 3.12 and 3.11" in notes
    assert "7 runs of box are the candidate, or were not made before it" in notes


def test_a_copy_of_a_run_in_the_history_is_not_judged_by_itself(twenty, judged, tmp_path):
    path = twenty.run(20, {"m.B.time_3": 1.3})
    (copy := tmp_path / "candidate.json").write_bytes(path.read_bytes())
    assert of(judged(copy), "m.B.time_3(1)").pairs == 20


def test_without_dates_a_run_is_not_judged_by_itself_either(twenty, judged, tmp_path):
    for number in range(20):
        twenty.run(number, date=None)
    slow = {"m.B.time_3": 1.3}
    first, second = (twenty.run(20, slow, date=None, name=name) for name in ("first.json", "second one.json"))
    (copy := tmp_path / "candidate.json").write_bytes(first.read_bytes())
    confirmed = judged(first, second)
    assert (confirmed.exit_code, of(confirmed, "m.B.time_3(1)").pairs) == (ExitCode.REGRESSION, 20)
    second.unlink()
    for candidate in (first, copy):
        assert of(judged(candidate), "m.B.time_3(1)").verdict == "fail"
    assert "1 runs of box are the candidate" in " ".join(judged(first).notes)


def test_the_machine_is_named(twenty, judged):
    assert judged(twenty.run(20)).machine == "AMD EPYC, 2 cores, Linux, Python 3.11"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"python": "3.13", "params": {"python": "3.13"}}, "another environment"), ({"date": 10}, "not made before it")],
)
def test_too_few_runs_are_not_comparable(twenty, judged, changes, words):
    with pytest.raises(UserError, match=r"box holds 0 runs .* 8 are needed") as caught:
        judged(twenty.run(20, **changes))
    assert words in str(caught.value)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


def test_a_second_run_is_asked_for_then_decides(twenty, judged, tmp_path):
    slow = {"m.B.time_3": 1.3}
    path = twenty.run(20, slow)
    asked = judged(path, confirm=True)
    assert asked.exit_code == ExitCode.INCONCLUSIVE  # although 1% may be inconclusive: these await something
    assert asked.firm == count(asked, "inconclusive") == 4
    assert asked.findings[0].startswith("Figures that await a second run: 4 (m.B.time_3). Measure")
    again = twenty.run(20, slow, name="second.json")
    assert judged(path, again).exit_code == ExitCode.REGRESSION
    calm = twenty.run(20, name="second.json")
    assert judged(path, calm).exit_code == ExitCode.OK
    assert of(judged(path, calm), "m.B.time_3(1)").reason == "stood out in the first run, not in the second"


def test_a_second_run_may_hold_what_stood_out_alone(twenty, judged):
    path = twenty.run(20, {"m.B.time_3": 1.3})
    second = twenty.run(20, {"m.B.time_3": 1.3}, name="second.json")
    record = json.loads(second.read_text())
    record["results"] = {"m.B.time_3": record["results"]["m.B.time_3"]}
    second.write_text(json.dumps(record))
    assert judged(path, second).exit_code == ExitCode.REGRESSION


def test_a_third_run_decides_what_failed_in_two(twenty, judged):
    slow = {"m.B.time_3": 1.3}
    path, second = twenty.run(20, slow), twenty.run(20, slow, name="second.json")
    calm = judged(path, second, twenty.run(20, name="third.json"))
    assert calm.exit_code == ExitCode.OK
    assert of(calm, "m.B.time_3(1)").reason == "stood out in two runs, not in the third"
    third = twenty.run(20, slow, name="third.json")
    assert judged(path, second, third).exit_code == ExitCode.REGRESSION
    record = json.loads(third.read_text())
    del record["results"]["m.B.time_3"]
    third.write_text(json.dumps(record))
    lacking = judged(path, second, third)
    assert (lacking.exit_code, lacking.firm) == (ExitCode.INCONCLUSIVE, 4)
    assert lacking.findings[0].startswith("Figures that await another run: 4 (m.B.time_3). Measure")
    assert lacking.findings[0].endswith("in place of the run that lacks them.")
    swapped = judged(path, third, second)  # whichever of the two lacks it
    assert (swapped.exit_code, swapped.firm, swapped.findings[0]) == (lacking.exit_code, 4, lacking.findings[0])
    quiet = judged(path, third, twenty.run(20, name="quiet.json"))
    assert quiet.exit_code == ExitCode.OK
    with pytest.raises(UserError, match=r"third\.json is the second run itself"):
        judged(path, third, third)
    with pytest.raises(UserError, match="--confirm takes two runs at most"):
        judged(path, second, third, twenty.run(20, name="fourth.json"))


def test_a_second_run_has_to_be_another_one_of_the_same_environment(twenty, judged):
    path = twenty.run(20)
    with pytest.raises(UserError, match="is the candidate itself"):
        judged(path, path)
    other = twenty.run(20, name="second.json", python="3.13", params={"python": "3.13"})
    with pytest.raises(UserError, match="the second run is of another environment: python") as caught:
        judged(path, other)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


def test_what_moves_together_is_said_and_fails_nothing(twenty, judged):
    found = judged(twenty.run(20, {f"m.B.time_{i}": 1.4 for i in range(8)}))
    assert count(found, "fail") == 0
    assert found.exit_code == ExitCode.INCONCLUSIVE
    assert found.findings[0].startswith("8 benchmarks stand out at once, too many for a change of the code alone")


def test_a_run_that_is_slower_as_a_whole_says_so_and_passes_nothing(twenty, judged):
    found = judged(twenty.run(20, everything=1.2))
    assert found.exit_code == ExitCode.INCONCLUSIVE
    one = of(found, "the whole run")
    assert one.change.estimate == pytest.approx(1.2, rel=0.01)
    assert "all figures moved together" in one.reason
    assert any(line.startswith("The run as a whole is ") for line in found.findings)
    assert count(found, "pass") == 120
    assert judged(twenty.run(20, everything=1.03)).exit_code == ExitCode.OK  # within the margin of times


def test_a_second_run_tells_whether_the_first_was_slower_by_the_machine(twenty, judged):
    path = twenty.run(20, everything=1.2)
    calm = judged(path, twenty.run(20, name="second.json"))
    assert calm.exit_code == ExitCode.OK
    assert any(line.endswith("The second run is not.") for line in calm.findings)
    third = judged(path, twenty.run(20, everything=1.2, name="second.json"), twenty.run(20, name="third.json"))
    assert any(line.endswith("The third run is not.") for line in third.findings)
    again = judged(path, twenty.run(20, everything=1.2, name="second.json"))
    assert again.exit_code == ExitCode.INCONCLUSIVE
    assert of(again, "the whole run").change.estimate == pytest.approx(1.2, rel=0.01)


def test_how_much_may_be_inconclusive_is_stated(twenty, judged):
    path = twenty.run(20, {"m.B.time_3": 1.3}, width={"m.B.time_3": 0.25})
    strict = judged(path, allow_inconclusive=0)
    assert (strict.exit_code, count(strict, "inconclusive")) == (ExitCode.INCONCLUSIVE, 4)
    loose = judged(path, allow_inconclusive="5%")
    assert loose.exit_code == ExitCode.OK
    assert (
        "4 of 120 figures are not decided, none failed, and 5% of all (6) may be" in OutcomeDocument(loose).summary[0]
    )
    tight = judged(path, allow_inconclusive="3%")
    assert tight.exit_code == ExitCode.INCONCLUSIVE
    assert (
        "4 of 120 figures are not decided, none failed, and 3% of all (3) may be" in OutcomeDocument(tight).summary[0]
    )


def test_a_benchmark_that_now_fails_is_a_failure_unless_it_often_did(twenty, judged):
    failed = judged(twenty.run(20, failed=("m.B.time_3",)))
    assert {one.margin for one in failed.judgements} == {MARGINS["time"]}
    assert failed.exit_code == ExitCode.REGRESSION
    assert of(failed, "m.B.time_3(1)").reason == "asv has it as failed"
    asked = judged(twenty.run(20, failed=("m.B.time_3",)), confirm=True)
    assert (asked.exit_code, asked.firm) == (ExitCode.INCONCLUSIVE, 4)
    path, second = twenty.run(20, failed=("m.B.time_3",)), twenty.run(20, name="second.json")
    assert judged(path, second).exit_code == ExitCode.OK
    assert judged(path, twenty.run(20, failed=("m.B.time_3",), name="s.json")).exit_code == ExitCode.REGRESSION
    again = twenty.run(20, failed=("m.B.time_3",), name="s.json")
    found = judged(path, again, second)
    assert (found.exit_code, of(found, "m.B.time_3(1)").reason) == (
        ExitCode.OK,
        "asv has it as failed in the first run, not in the third",
    )
    twenty.run(7, failed=("m.B.time_3",))
    flaky = of(judged(twenty.run(20, failed=("m.B.time_3",))), "m.B.time_3(1)")
    assert (flaky.verdict, flaky.reason) == ("inconclusive", "asv has it as failed, as in 1 of its last 20 runs")


def test_a_benchmark_that_always_failed_is_counted(twenty, judged):
    for number in range(20):
        twenty.run(number, failed=("m.B.time_3",))
    found = judged(twenty.run(20, failed=("m.B.time_3",)))
    assert found.exit_code == ExitCode.OK
    assert any(note.startswith("4 cases fail in") for note in found.notes)


def test_a_benchmark_that_failed_before_it_had_parameters_is_a_failure_of_each(twenty, judged):
    path = twenty.run(20)
    record = json.loads(path.read_text())
    record["results"]["m.B.time_3"] = None
    path.write_text(json.dumps(record))
    found = judged(path)
    assert (found.exit_code, count(found, "fail")) == (ExitCode.REGRESSION, 4)


def test_runs_of_one_commit_are_a_history_of_it(tmp_path, twenty, judged):
    for number in range(20):
        twenty.run(number, commit="same")
    assert judged(twenty.run(20, commit="same")).base == "the last 20 of 20 runs in box"


def test_what_is_new_does_not_decide_and_what_is_gone_is_named(twenty, judged):
    twenty.names.append("m.B.time_new")
    path = twenty.run(20)
    record = json.loads(path.read_text())
    del record["results"]["m.B.time_3"]
    path.write_text(json.dumps(record))
    found = judged(path)
    assert found.exit_code == ExitCode.OK
    assert of(found, "m.B.time_new(1)").report_only
    assert "4 figures are in too few runs as yet: they are shown, and do not decide" in found.notes
    assert any(
        note.startswith("4 cases of the last run are not in 00000014-env.json: m.B.time_3(1)") for note in found.notes
    )


def test_another_version_of_a_benchmark_is_new(twenty, judged):
    path = twenty.run(20, {"m.B.time_3": 2.0})
    record = json.loads(path.read_text())
    record["results"]["m.B.time_3"][2] = "another"
    path.write_text(json.dumps(record))
    found = judged(path)
    assert found.exit_code == ExitCode.OK
    assert of(found, "m.B.time_3(1)").reason == "new: no run has it"


@pytest.mark.parametrize(
    ("past", "now", "verdict", "reason"),
    [
        ((0.0,), 0.0, "pass", "no more than in one of its last runs"),
        ((0.0,), 2.0, "fail", "up from 0"),
        ((0.0, 3.0), 2.0, "pass", "no more than in one of its last runs"),
        ((0.0, 3.0), 4.0, "inconclusive", "some values are 0 and others are not"),
        ((3.0,), 0.0, "pass", "no more than in one of its last runs"),
        ((3.0,), 3.02, "pass", ""),
        ((3.0,), 3.2, "fail", ""),
    ],
)
def test_numbers_that_may_be_zero(twenty, judged, past, now, verdict, reason):
    def write(number, value):
        path = twenty.run(number)
        record = json.loads(path.read_text())
        record["results"]["m.B.track_it"] = [[value], [], "v"]
        path.write_text(json.dumps(record))
        return path

    for number in range(20):
        write(number, past[number % len(past)])
    one = of(judged(write(20, now)), "m.B.track_it")
    assert (one.verdict, one.reason) == (verdict, reason)


def test_settings_hold_as_elsewhere(twenty, judged):
    path = twenty.run(20, {"m.B.time_3": 1.3})
    assert judged(path, margin=0.5).exit_code == ExitCode.OK
    assert judged(path, report_only=("m.B.time_3*",)).exit_code == ExitCode.OK
    assert judged(path, margins={"m.B.time_3*": 0.5}).exit_code == ExitCode.OK
    assert judged(path, least_time=10.0).exit_code == ExitCode.OK
    assert len(judged(path, cases=("m.B.time_3*",)).judgements) == 4
    assert judged(path, window=8).base == "the last 8 of 20 runs in box"
    assert judged(path, cases=("nothing",)).exit_code == ExitCode.NOTHING_MEASURED
