import json

import pytest

from meprop_bench.gate.annotations import as_code_quality, as_workflow_commands, place_of
from tests.gate.test_outputs import MIXED, judgement, outcome


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tests").mkdir()
    code = "import x\n\n\ndef test_a():\n    pass\n\n\nclass TestB:\n    def test_c(self):\n        pass\n"
    (tmp_path / "tests" / "test_io.py").write_text(code)
    (tmp_path / "bench.py").write_text("async def parse_large(): pass\n")
    (tmp_path / "broken.py").write_text("def (")
    return tmp_path


@pytest.mark.parametrize(
    ("case", "place"),
    [
        ("tests/test_io.py::test_a[1::x]", ("tests/test_io.py", 4)),
        ("tests/test_io.py::TestB::test_c", ("tests/test_io.py", 9)),
        ("tests/test_io.py::nowhere", ("tests/test_io.py", 1)),
        ("bench.py:parse_large size=3", ("bench.py", 1)),
        ("broken.py::x", ("broken.py", 1)),
        ("gone.py::x", None),
        ("tests::x", None),
        ("linear meprop k=30", None),
        ("../bench.py::x", None),
        ("tests/../../secret.py::x", None),
        ("x" * 10_000 + ".py::x", None),
        ("bench.py\n.py::x", None),
    ],
)
def test_a_case_is_shown_where_it_is_written(case, place, project):
    assert place_of(case, project, {}) == place
    assert place_of(str(project / "bench.py") + "::parse_large", project, {}) is None


def test_a_place_is_told_from_the_checkouts_folder(project):
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        assert place_of("test_io.py::test_a", project / "tests", {name: str(project)}) == ("tests/test_io.py", 4)
    elsewhere = {"GITHUB_WORKSPACE": str(project / "tests")}
    assert place_of("bench.py::parse_large", project, elsewhere) == ("bench.py", 1)


def test_failures_are_errors_and_what_is_inconclusive_warnings(project):
    found = outcome(
        judgement(),
        judgement("inconclusive", 1.01, case="b", reason="one value"),
        judgement("fail", 1.03, case="tests/test_io.py::test_a"),
        judgement("fail", 2.0, report_only=True, case="c"),
        doubts=("busy",),
    )
    assert as_workflow_commands(found, project, {}).splitlines() == [
        "::warning title=gate%3A the machine was busy::busy",
        "::error title=gate%3A fail%3A tests/test_io.py%3A%3Atest_a/backward,file=tests/test_io.py,line=4"
        "::3.0%25 slower [2.0%25, 4.0%25]; head / base 1.030 [1.020, 1.040], margin 1%25",
        "::warning title=gate%3A inconclusive%3A b/backward"
        "::1.0%25 slower [0.0%25, 2.0%25]; head / base 1.010 [1.000, 1.020], margin 1%25; one value",
    ]
    assert as_workflow_commands(outcome(judgement())) == ""


def test_a_name_makes_no_command_of_its_own():
    names = (
        "\n::error::x",
        "\r::set-output name=a::b",
        "%0A::stop-commands::y",
        "##[set-output name=a;]b",
        "a,file=/etc",
    )
    made = [judgement("fail", 1.3, case=name, reason=name) for name in names]
    lines = as_workflow_commands(outcome(*made)).splitlines()
    assert len(lines) == len(names)
    for line in lines:
        properties = line.removeprefix("::error ").partition("::")[0]
        assert line.startswith("::error title=")
        assert properties.count("=") == properties.count("title=") + properties.count("name=a") + properties.count(
            "file="
        )
        assert "," not in properties
    assert not as_workflow_commands(outcome(*made)).count("\r")


def test_of_many_nine_are_shown_and_the_rest_is_counted():
    many = [judgement("fail", 1.0 + n / 100, case=f"case {n}") for n in range(30)]
    lines = as_workflow_commands(
        outcome(*many, *(judgement("inconclusive") for _ in range(10)), doubts=("a",))
    ).splitlines()
    errors = [line for line in lines if line.startswith("::error")]
    assert len(errors) == 10
    assert "case 29/" in errors[0]
    assert "21 more figures" in errors[-1]
    warnings = [line for line in lines if line.startswith("::warning")]
    assert len(warnings) == 10
    assert "2 more figures" in warnings[-1]
    assert len(as_workflow_commands(outcome(*many[:10])).splitlines()) == 10


def test_gitlabs_report_has_each_with_its_place_and_a_fingerprint_that_stays(project):
    made = [judgement("fail", 1.3, case="bench.py:parse_large"), judgement("inconclusive", case="linear k=8")]
    found = json.loads(as_code_quality(outcome(judgement(case="ok"), *made), project, {}))
    assert [(one["severity"], one["location"]) for one in found] == [
        ("major", {"path": "bench.py", "lines": {"begin": 1}}),
        ("minor", {"path": "pyproject.toml", "lines": {"begin": 1}}),
    ]
    again = json.loads(as_code_quality(outcome(*made, judgement("fail", 1.2, case="new")), project, {}))
    assert {one["fingerprint"] for one in found} < {one["fingerprint"] for one in again}
    assert len({one["fingerprint"] for one in again}) == 3
    assert json.loads(as_code_quality(MIXED))
    assert json.loads(as_code_quality(outcome(judgement()))) == []
