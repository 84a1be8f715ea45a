"""The fixture `paired` in another project's tests: what they say, and how they end. Most run made-up processes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.special
import torch

from meprop_bench.testing import fixture, functions

pytest_plugins = ("pytester",)

_CACHES = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
"""The user's, with compiled kernels; pytester has a home of its own."""

_LOADED = (scipy.special, torch)
"""What cannot be loaded twice, as it would be if pytester had to forget it after each run."""

_TEST = "def new(): pass\ndef old(): pass\n"


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest('pytest_plugins = ["meprop_bench.testing"]')
    pytester.makeini("[pytest]\naddopts = -p no:hypothesispytest")  # a second for each run
    return pytester


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Processes]:
    """Have every process be a made-up one: the candidate takes a share of the reference's time, and some noise."""

    def go(share: float, noise: float = 0.0, **answers: Any) -> Processes:
        made = Processes(share, noise, answers)
        monkeypatch.setattr(fixture, "FunctionTimes", made.times)
        return made

    return go


class Processes:
    """Starts processes that answer as those of functions do; one is off by as much as the next, the other way."""

    def __init__(self, share: float, noise: float, answers: dict[str, Any]) -> None:
        self._share, self._noise, self._answers = share, noise, answers
        self.started = 0
        self.log: list[dict[str, Any]] = []

    def times(self, *arguments: Any, **options: Any) -> Any:
        return functions.FunctionTimes(*arguments, **options, start=self._start)

    def _start(self) -> _Process:
        self.started += 1
        return _Process(self.log, self._share * (1 + self._noise * (-1) ** self.started), self._answers)


class _Process:
    def __init__(self, log: list[dict[str, Any]], share: float, answers: dict[str, Any]) -> None:
        self._log, self._share, self._answers = log, share, answers

    def request(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        self._log.append(message)
        activity = {"wall_s": 1.0, "cores": 2, "others_s": 0.0, "stolen_s": 0.0, "throttled_s": None}
        return {
            "load_functions": {},
            "try_functions": {"differ": None, "changed": [False, False], "device": "cpu", "loops": [1, 1]}
            | self._answers,
            "time_functions": {
                "pairs": {"call": [[1e-3, 1e-3 * self._share]] * 2},
                "disturbed": [False, False],
                "activity": {**activity, "overheated": None, "swapped_in": 0},
            },
        }[message["do"]]

    def close(self) -> None:
        pass


def test_a_claim_that_holds_passes_and_says_so_when_asked(
    project: pytest.Pytester, processes: Callable[..., Processes]
) -> None:
    processes(0.5)
    project.makepyfile(
        _TEST + "def test_new(paired):\n    found = paired(new).not_slower_than(old)\n    print(found)\n"
    )
    found = project.runpytest_inprocess("-rP")
    found.assert_outcomes(passed=1)
    line = (
        "fast enough: new takes 0.500x [[]0.500, 0.500[]] the time of old, at most 1.05x was claimed; 12 pairs in 3 *"
    )
    found.stdout.fnmatch_lines([line])
    found.stdout.no_fnmatch_line("*paired comparisons*")
    found = project.runpytest_inprocess("-v", "--junit-xml=found.xml")
    found.stdout.fnmatch_lines(["*paired comparisons*", f"*::test_new: {line}"])
    assert '<property name="paired" value="fast enough: new takes' in Path("found.xml").read_text()


def test_one_that_does_not_fails_where_it_is_made_with_the_verdict_first(
    project: pytest.Pytester, processes: Callable[..., Processes]
) -> None:
    processes(1 / 1.08, 0.0)
    project.makepyfile(_TEST + "def test_new(paired):\n    paired(new).faster_than(old, by=1.2)\n")
    found = project.runpytest_inprocess()
    found.assert_outcomes(failed=1)
    verdict = (
        "too slow: new is 1.080x [[]1.080, 1.080[]] as fast as old, at least 1.2x was claimed; 12 pairs in 3 proc*"
    )
    found.stdout.fnmatch_lines([">*paired(new).faster_than(old, by=1.2)", f"E * Failed: {verdict}"])
    found.stdout.no_fnmatch_line("*meprop_bench*fixture.py*")


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        ([], "failed"),
        (["--paired-undecided=skip"], "skipped"),
        (["--paired-undecided=xfail"], "xfailed"),
        (["-o", "paired_undecided=skip"], "skipped"),
    ],
)
def test_what_is_undecided_never_passes(
    project: pytest.Pytester, processes: Callable[..., Processes], arguments: list[str], outcome: str
) -> None:
    made = processes(1.05, 0.05)
    project.makepyfile(_TEST + "def test_new(paired):\n    paired(new).not_slower_than(old)\n")
    found = project.runpytest_inprocess("-rsxf", "--paired-budget=20", *arguments)
    found.assert_outcomes(**{outcome: 1})
    found.stdout.fnmatch_lines(["*paired comparisons*", "*::test_new: undecided: new takes 1.0*"])
    assert made.started == 8  # 20 s


@pytest.mark.parametrize(
    ("before", "claim", "arguments", "count"),
    [
        ("", "", [], 12),
        ("", "budget=15", ["--benchmark-max-time=20"], 6),
        ("", "budget=15", ["--paired-budget=20"], 8),
        ("@pytest.mark.benchmark(max_time=20)\n", "", ["--benchmark-max-time=40"], 8),
        ("", "", ["--benchmark-max-time=20", "-o", "paired_budget=40"], 8),
        ("", "", ["-o", "paired_budget=20"], 8),
    ],
)
def test_which_budget_counts(
    project: pytest.Pytester,
    processes: Callable[..., Processes],
    before: str,
    claim: str,
    arguments: list[str],
    count: int,
) -> None:
    made = processes(1.05, 0.05)
    body = f"{before}def test_new(paired):\n    paired(new).not_slower_than(old, {claim})\n"
    project.makepyfile(f"import pytest\n{_TEST}{body}")
    project.runpytest_inprocess(*arguments).assert_outcomes(failed=1)
    assert made.started == count


def test_min_rounds_are_the_least_pairs_of_a_process(
    project: pytest.Pytester, processes: Callable[..., Processes]
) -> None:
    made = processes(0.5)
    project.makepyfile(_TEST + "def test_new(paired):\n    paired(new).not_slower_than(old)\n")
    project.runpytest_inprocess("--benchmark-min-rounds=40").assert_outcomes(passed=1)
    assert {message["least_pairs"] for message in made.log if message["do"] == "time_functions"} == {20}


_WRONG = {
    "paired(new).not_slower_than(old, margin=-1)": "margin is a number of at least 0, 0.05 for 5%, not -1",
    "paired(new).faster_than(old, by=0)": "by is a number of more than 0, 1.2 for 1.2x as fast, not 0",
    "paired(3)": "paired(...) takes a function and what it is called with, not 3",
    "paired(new, 1).setup(dict)": "new has arguments already: have its setup function return all of them",
    "paired(new).not_slower_than(old, budget=-1)": "--paired-budget is a number of seconds, more than 0, not -1",
    "paired(new).not_slower_than(old, confidence=95)": "confidence must be a number from 0.5 to below 1",
    "paired(new, (x for x in 'a')).not_slower_than(old)": "argument 1 of new, of type generator, cannot be sent",
    "paired.speedup('nowhere.py:build').at_least(1.2)": "there is no file nowhere.py",
    "paired.speedup('mnist', methd='meprop').at_least(1.2)": "unknown axis 'methd': did you mean 'method'?",
    "paired.speedup('mnist', method='mprop').at_least(1.2)": "unknown method 'mprop': did you mean 'meprop'?",
    "paired.speedup(lambda: LOCK).at_least(1.2)": "the variable 'LOCK' of <lambda>, of type lock, cannot be sent",
    "paired.speedup(3).at_least(1.2)": "a model is given by a function, or its name, not by something of type int",
    "paired.speedup('mnist').at_least(0)": "a speed-up is a number of more than 0, 1.2 for 1.2x, not 0",
}


def test_what_is_wrong_is_one_line(project: pytest.Pytester, processes: Callable[..., Processes]) -> None:
    processes(0.5)
    tests = [f"def test_{number}(paired):\n    {body}\n" for number, body in enumerate(_WRONG)]
    project.makepyfile("import threading\nLOCK = threading.Lock()\n" + _TEST + "".join(tests))
    found = project.runpytest_inprocess()
    found.assert_outcomes(failed=len(_WRONG))
    for line in _WRONG.values():
        assert re.search(f"^E +Failed: {re.escape(line)}", found.stdout.str(), re.MULTILINE), line


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--paired-budget=soon", "--paired-budget is a number of seconds, more than 0, not 'soon'"),
        ("--paired-undecided=pass", "unknown --paired-undecided 'pass'"),
    ],
)
def test_so_is_a_wrong_option(
    project: pytest.Pytester, processes: Callable[..., Processes], argument: str, line: str
) -> None:
    processes(0.5)
    project.makepyfile(_TEST + "def test_new(paired):\n    paired(new).not_slower_than(old)\n")
    project.runpytest_inprocess(argument).stdout.fnmatch_lines([f"E *Failed: {line}*"])


def test_with_benchmarks_disabled_nothing_is_judged_and_that_is_said(
    project: pytest.Pytester, processes: Callable[..., Processes]
) -> None:
    made = processes(9.0)
    project.makepyfile(_TEST + "def test_new(paired):\n    assert paired(new).not_slower_than(old) is None\n")
    found = project.runpytest_inprocess("--benchmark-disable")
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["*::test_new: not judged (--benchmark-disable): new, at most 1.05x was claimed"])
    assert [message["do"] for message in made.log] == ["load_functions", "try_functions"]
    processes(9.0, differ="3, not 4")
    found = project.runpytest_inprocess("--benchmark-disable")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["E *Failed: different results of new and old: 3, not 4"])


def test_in_a_process_of_xdist_it_is_run_and_then_skipped_with_the_reason(project: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    project.makepyfile(_TEST + "def test_new(paired):\n    paired(new).not_slower_than(old)\n")
    found = project.runpytest_subprocess("-n", "1", "-rs")
    found.assert_outcomes(skipped=1)
    found.stdout.fnmatch_lines(
        ["*not judged (xdist's processes disturb each other: use -n 0): new, *", "SKIPPED * not judged: xdist's *"]
    )


def test_pytest_benchmark_s_selection_takes_them_for_its_own(
    project: pytest.Pytester, processes: Callable[..., Processes]
) -> None:
    processes(0.5)
    project.makepyfile(
        _TEST + "def test_new(paired):\n    paired(new).not_slower_than(old)\ndef test_other():\n    pass\n"
    )
    project.runpytest_inprocess("--benchmark-skip").assert_outcomes(passed=1, skipped=1)
    found = project.runpytest_inprocess("--benchmark-only", "-W", "error")
    found.assert_outcomes(passed=1, skipped=1)
    found.stdout.fnmatch_lines(["*benchmark 'test_new': 2 tests*", "test_new[[]new] *", "test_new[[]old] *"])
    project.runpytest_inprocess("-p", "no:benchmark", "-W", "error").assert_outcomes(passed=2)


def test_its_json_has_both_sides_and_the_verdict(project: pytest.Pytester, processes: Callable[..., Processes]) -> None:
    processes(2.0)
    project.makepyfile(
        "import pytest\n" + _TEST + "@pytest.mark.parametrize('n', [7])\ndef test_new(paired, n):\n"
        "    paired(new).named('new code').faster_than(new, by=0.1)\n    paired(new).not_slower_than(old)\n"
    )
    found = project.runpytest_inprocess("--benchmark-json=found.json", "--benchmark-group-by=fullfunc")
    found.assert_outcomes(failed=1)
    written = json.loads(Path("found.json").read_text())["benchmarks"]
    assert [each["name"] for each in written] == [
        "test_new[7][new code]",
        "test_new[7][new]",
        "test_new[7][new 2]",
        "test_new[7][old]",
    ]
    last = written[2]
    assert last["fullname"].endswith("::test_new[7][new 2]")
    assert last["params"] == {"n": 7}
    assert last["group"] == "test_new[7]"
    assert last["stats"]["data"] == pytest.approx([2e-3] * 12)
    extra = last["extra_info"]
    assert extra["side"] == "candidate"
    assert extra["paired"]["verdict"] == "fail"
    assert extra["paired"]["bound"] == 1.05
    assert extra["paired"]["run_lengths"] == [4, 4, 4]
    assert extra["paired"]["seed"] == 0
    assert extra["paired"] == written[3]["extra_info"]["paired"]
    assert written[3]["stats"]["median"] == pytest.approx(1e-3)
    assert written[0]["extra_info"]["paired"]["verdict"] == "pass"


def test_saved_runs_are_compared(project: pytest.Pytester, processes: Callable[..., Processes]) -> None:
    processes(0.5)
    project.makepyfile(_TEST + "def test_new(paired):\n    paired(new).not_slower_than(old)\n")
    project.runpytest_inprocess("--benchmark-save=first").assert_outcomes(passed=1)
    found = project.runpytest_inprocess(
        "--benchmark-compare", "--benchmark-compare-fail=median:5%", "--benchmark-cprofile=tottime"
    )
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["test_new[[]new] (0001_first) *", "test_new[[]new] (NOW) *"])


def test_a_test_that_passes_and_claims_nothing_is_warned_of(project: pytest.Pytester) -> None:
    project.makepyfile(
        "def test_new(paired):\n    paired(int)\ndef test_no(paired):\n    pass\n"
        "def test_failed(paired):\n    assert False\ndef test_skipped(paired):\n    __import__('pytest').skip()\n"
    )
    found = project.runpytest_inprocess()
    found.assert_outcomes(passed=2, failed=1, skipped=1, warnings=2)
    found.stdout.fnmatch_lines(["*PairedWarning: the test made a pair without a claim: add .not_slower_than*"])


def test_a_function_that_changes_its_arguments_is_warned_of(
    project: pytest.Pytester, processes: Callable[..., Processes]
) -> None:
    processes(0.5, changed=[False, True])
    project.makepyfile(_TEST + "def test_new(paired):\n    paired(new, []).not_slower_than(old)\n")
    found = project.runpytest_inprocess()
    found.assert_outcomes(passed=1, warnings=1)
    found.stdout.fnmatch_lines(["*PairedWarning: new changes its arguments*by .setup(...)*"])


def test_functions_from_end_to_end_in_every_way_of_importing_tests(project: pytest.Pytester) -> None:
    """Really measured: 2 ms against 4 ms of sleep, closures, a helper beside the test, a raise. No figure is held."""
    project.makeconftest('pytest_plugins = ["meprop_bench.testing"]\nPAUSE = 0.002\ndef half(x):\n    return x / 2\n')
    project.mkpydir("package")
    (project.path / "package" / "beside.py").write_text("from time import sleep\n")
    project.makepyfile(**{"package/test_it": """
        from package.beside import sleep

        def quick(seconds):
            sleep(seconds / 2)
            return [seconds]

        def slow(seconds):
            sleep(seconds)
            return [seconds]

        def test_quick(paired):
            paired(quick, 0.004).not_slower_than(slow, same_result=True, budget=5)

        def test_slow(paired):
            factor = 2
            paired(lambda x: slow(factor * x), 0.002).named("slow").not_slower_than(paired(quick, 0.004), budget=5)

        def test_raises(paired):
            def broken(seconds):
                raise ValueError(f"{seconds} s are too many")

            paired(broken, 9).not_slower_than(slow)
        """})  # fmt: skip
    found = project.runpytest_subprocess("-v", "--import-mode=importlib", "-o", "pythonpath=.")
    found.assert_outcomes(passed=1, failed=2)
    raised = [
        "E *Failed: broken raised ValueError: 9 s are too many",
        "E * File *test_it.py*, in broken",
        'E *raise ValueError(f"{seconds} s are too many")',
    ]
    found.stdout.fnmatch_lines(
        [
            "E *Failed: too slow: slow takes * the time of quick, at most 1.05x was claimed; *",
            *raised,
            "*::test_quick: fast enough: quick takes * the time of slow, *",
        ]
    )
    found = project.runpytest_subprocess("--import-mode=prepend", "--benchmark-disable")
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines([*raised, "*::test_slow: not judged (--benchmark-disable): slow, *"])


def test_a_training_from_end_to_end(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really measured, with a claim that no machine refutes."""
    monkeypatch.setenv("XDG_CACHE_HOME", _CACHES)
    project.makepyfile("""
        import torch
        from torch import nn
        from meprop_bench.training import Training

        WIDTH = 8

        def build():
            return Training(
                model=nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 4)),
                loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
                batches=[(torch.randn(5, WIDTH), torch.arange(5) % 4)],
            )

        def test_step(paired):
            paired.speedup(build, method="unified", k=2, threads=1, baseline="same").at_least(1e-3, budget=5)
        """)
    before = {*Path(_CACHES).glob("**/build@*.pickle")}
    found = project.runpytest_subprocess("-v", "-p", "no:benchmark", "--import-mode=importlib")
    found.assert_outcomes(passed=1)
    line = "*::test_step: fast enough: the step of build (method=unified, k=2, *) is * as fast as dense, *"
    found.stdout.fnmatch_lines([line])
    assert {*Path(_CACHES).glob("**/build@*.pickle")} <= before
