import shlex

import pytest

from meprop_bench.gate.repeat import commands, words
from tests.gate.test_outputs import judgement

BASE, HEAD = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    "typed",
    [
        "gate --base main --margin 0.1 --output x.md",
        "gate --base=main --output=x.md --margin 0.1 --head topic",
        "gate --margin 0.1 --base main --suite 'a b' --format json --output a.md --output b.json",
    ],
)
def test_revisions_are_named_by_their_commits(typed):
    assert words(shlex.split(typed), BASE, HEAD) == ("gate", "--margin", "0.1", "--base", BASE, "--head", HEAD)
    assert words(shlex.split(typed), BASE) == ("gate", "--margin", "0.1", "--base", BASE)


def test_files_are_compared_as_they_were():
    typed = ["gate", "--baseline", "a b.json", "--candidate", "c.json", "--output", "gate.md"]
    assert commands(words(typed), [judgement("fail", case="x y")]) == [
        "meprop-bench gate --baseline 'a b.json' --candidate c.json '--cases=x y'"
    ]


def test_the_cases_that_failed_take_the_place_of_those_that_were_chosen():
    repeat = words(["gate", "--base", "main", "--cases", "lin*", "--cases=mlp*"], BASE, HEAD)
    found = commands(repeat, [judgement("fail"), judgement("fail", figure="step"), judgement("fail", case="-o '$(x)'")])
    assert shlex.split(found[1]) == [
        *("meprop-bench", "gate", "--base", BASE, "--head", HEAD),
        *("--cases=linear k=8", "--cases=-o '$(x)'"),
    ]


@pytest.mark.parametrize("case", ["two\nlines", "x" * 301, "/home/me/secret/data.py::test"])
def test_a_case_that_is_not_shown_as_it_stands_is_not_named(case):
    found = commands(("gate", "--base", BASE), [judgement("fail", case=case)])
    assert found == [f"git fetch origin {BASE}", f"meprop-bench gate --base {BASE}"]


def test_of_many_cases_all_are_measured():
    found = commands(("gate", "--base", BASE), [judgement("fail", case=f"case {number}") for number in range(6)])
    assert found[1] == f"meprop-bench gate --base {BASE}"


def test_nobody_knows_how():
    assert commands((), [judgement("fail")]) == []
