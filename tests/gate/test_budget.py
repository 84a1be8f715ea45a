from meprop_bench.gate.budget import CaseBudget


def budget(total, starts=(2.0,), **rounds):
    """A budget of which cases have had rounds; those that begin alike share their processes."""
    made = CaseBudget(total, lambda case: case[0])
    for seconds in starts:
        made.started(seconds)
    for case, took in rounds.items():
        for seconds in took:
            made.took(case, seconds)
    return made


def test_what_one_case_does_not_need_is_there_for_the_others():
    made = budget(40.0, starts=[2.0] * 4, quiet=[1.0], query=[3.0] * 4)
    assert made.left_s == 40.0 - 8.0 - 1.0 - 12.0
    assert made.most_rounds("query") == 4 + int(19.0 / 5.0)
    assert made.affords(["query"]) == ["query"]


def test_a_round_is_begun_for_as_many_cases_as_it_has_time_for():
    made = budget(20.0, q1=[3.0], q2=[6.0], q3=[1.0], other=[1.0])  # 7 s are left
    assert made.affords(["q1", "q2", "q3"]) == ["q1", "q3"]
    assert made.affords(["q1", "other"]) == ["q1"]  # which needs processes of its own
    assert made.affords([]) == []


def test_the_first_round_has_what_is_done_once_and_says_little_of_the_next():
    made = budget(60.0, training=[30.0, 2.0])
    assert made.affords(["training"]) == ["training"]
    assert made.most_rounds("training") == 2 + int(26.0 / 4.0)


def test_nothing_is_left_of_what_was_overrun():
    made = budget(1.0, case=[5.0])
    assert made.left_s < 0
    assert made.affords(["case"]) == []
    assert made.most_rounds("case") == 1
    assert made.most_rounds("none yet") == 0
