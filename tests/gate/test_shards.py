"""Shards of one gate: what each measures, what is handed on, and that all of it is judged as one run would be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meprop_bench.cli import run
from meprop_bench.cli.gate_revisions import outcome_of
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.decide import judge, undecided
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.revisions import Measured, measure
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.shards import FIGURES_OF_A_CASE, GateShard, Revision, merged, read, save
from meprop_bench.results.shards import Shard
from meprop_bench.workloads.case import Case
from tests.gate.test_revisions import _BASE, _HEAD, _Fakes, _plan, _when

_SETTINGS = Settings(margin=0.05, pairs=8, report_only=("*/forward", "*/operators*"))
_LOOKS = Looks.within(_SETTINGS.pairs)
_PLAN = _plan(k=(2, 3, 4, 5, 6), processes=3)
_LABELS = tuple(case.label for case in _PLAN.cases)
_MACHINE = {"cpu_model": "Box", "cpu_usable_cores": 2}


def _measured(plan: Any, besides: int = 0, shared: bool = False, **fakes: Any) -> Measured:
    own = _Fakes(**fakes)

    def waiting(series: Sequence[Series]) -> frozenset[str]:
        return undecided(series, _SETTINGS, _LOOKS, besides)

    hooks: Any = {"start": own.start, "lock": own.lock, "now": own.now}
    return replace(measure(plan, _BASE, _HEAD, undecided=waiting, shared=shared, **hooks), environment=_MACHINE)


def _handed_on(folder: Path, found: Mapping[int, Measured], of: int, **changes: Any) -> list[Path]:
    """Save what shards found, and return the files."""
    files = []
    for index, each in found.items():
        settings = json.loads(json.dumps(_SETTINGS.to_json()))
        one = GateShard(
            Shard(index, of), _LABELS, Revision(_BASE.name, _BASE.commit), Revision(_HEAD.name, _HEAD.commit, "f00"),
            settings, False, each, (), ("gate", "--base", "1" * 40), 10.0,
        )  # fmt: skip
        save(replace(one, **changes), folder / f"shard-{index}.json")
        files.append(folder / f"shard-{index}.json")
    return files


def _split(found: Measured, of: int) -> dict[int, Measured]:
    """Return what one run found, as shards would have found it."""
    parts = {}
    for index in range(1, of + 1):
        own = Shard(index, of).part(_LABELS)
        series = tuple(one for one in found.series if one.case in own)
        remarks = tuple(remark for remark in found.remarks if remark[0] in own)
        lacking = {label: why for label, why in found.lacking.items() if label in own}
        parts[index] = replace(found, series=series, remarks=remarks, lacking=lacking, cases=len(own))
    return parts


def _same(one: Any, other: Any) -> bool:
    return bool(
        list(one.cases) == list(other.cases)
        and np.array_equal(one.rows["verdict"], other.rows["verdict"])
        and all(
            np.array_equal(one.rows[name], other.rows[name], equal_nan=True) for name in ("estimate", "low", "high")
        )
        and [each.reason for each in one] == [each.reason for each in other]
    )


@pytest.mark.parametrize("head_times", [1.0, 1.2])
def test_the_verdict_is_that_of_one_run(tmp_path: Path, head_times: float) -> None:
    whole = _measured(_PLAN, head_times=head_times, wrong=_when("head", "check", {"check": "off"}, k=4))
    files = _handed_on(tmp_path, _split(whole, 3), 3)
    found = merged([read(path) for path in files[::-1]])
    assert found.found.series == whole.series
    assert found.found.notes == whole.notes
    assert found.found.environment == whole.environment
    assert found.settings == _SETTINGS
    first, second = judge(whole.series, _SETTINGS, _LOOKS), judge(found.found.series, found.settings, _LOOKS)
    assert _same(first, second)
    outcome = outcome_of(found.found, found.settings, (found.base, found.head), found.doubts, "", found.repeat)
    assert outcome.exit_code == ExitCode.REGRESSION
    assert (outcome.base, outcome.head) == (_BASE.name, _HEAD.name)
    assert found.seconds == 30.0


def test_each_shard_measures_its_own_cases_alone(tmp_path: Path) -> None:
    found = {}
    for index in (1, 2):
        own = Shard(index, 2).part(_LABELS)
        plan = replace(_PLAN, cases=tuple(case for case in _PLAN.cases if case.label in own))
        besides = FIGURES_OF_A_CASE * (len(_LABELS) - len(own))
        found[index] = _measured(plan, besides, shared=True)
        assert {one.case for one in found[index].series} == own
    whole = merged([read(path) for path in _handed_on(tmp_path, found, 2)])
    assert list(dict.fromkeys(one.case for one in whole.found.series)) == list(_LABELS)
    verdicts = {one.verdict for one in judge(whole.found.series, _SETTINGS, _LOOKS) if not one.report_only}
    assert verdicts == {"pass"}


def _timed(case: str, logs: Sequence[float]) -> Series:
    runs = tuple(((1.0, float(np.exp(log))),) for log in logs)
    return Series(case=case, figure="backward", quantity="time", unit="s", pairs=runs)


def test_what_a_shard_calls_certain_is_so_among_all() -> None:
    """However the others come out: Holm's steps are never higher than those of figures that say nothing."""
    rng = np.random.default_rng(7)
    settings = Settings(margin=0.05, pairs=16)
    looks = Looks.within(16)
    stopped = more = 0
    for _ in range(150):
        slow = rng.uniform(0.0, 0.12)
        own = _timed("own", rng.normal(slow, 0.02, 8).tolist())
        others = [_timed(f"c{n}", rng.normal(rng.uniform(0, 0.1), 0.02, 8).tolist()) for n in range(6)]
        waits = undecided([own], settings, looks, besides=len(others))
        together = {one.case: one for one in judge([own, *others], settings, looks)}["own"]
        if not waits:
            stopped += 1
            assert together.verdict != "inconclusive"
        more += bool(waits) and not undecided([own], settings, looks)
    assert stopped > 50
    assert more > 0  # alone it would have stopped too early


def test_a_missing_shard_is_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _handed_on(tmp_path, _split(_measured(_PLAN), 3), 3)
    for path in files:
        left = [str(one) for one in files if one != path]
        assert run(["gate", "merge", *left]) == ExitCode.NOT_COMPARABLE
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert f"no verdict without shard {path.stem[-1]}/3 (" in said.err


def test_a_case_that_a_shard_has_lost_is_no_verdict(tmp_path: Path) -> None:
    parts = _split(_measured(_PLAN), 2)
    lost = parts[1].series[0].case
    parts[1] = replace(parts[1], series=tuple(one for one in parts[1].series if one.case != lost))
    with pytest.raises(UserError) as found:
        merged([read(path) for path in _handed_on(tmp_path, parts, 2)])
    assert f"no verdict: shard-1.json has nothing of its case {lost}" in str(found.value)
    assert found.value.exit_code == ExitCode.NOT_COMPARABLE


def test_a_case_of_another_shard_is_refused(tmp_path: Path) -> None:
    parts = _split(_measured(_PLAN), 2)
    parts[1] = replace(parts[1], series=(*parts[1].series, parts[2].series[0]))
    with pytest.raises(UserError, match="is shard 1/2 and holds another's case"):
        merged([read(path) for path in _handed_on(tmp_path, parts, 2)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": Revision("main", "2" * 40)}, "measured different revisions: the base is main"),
        ({"head": Revision("the work tree", None, "f01")}, "measured different revisions: the head is"),
        ({"settings": {"margin": 0.5}}, "have different settings"),
        ({"cases": (*_LABELS, "another")}, "have different cases"),
        ({"shard": Shard(2, 3)}, "are of different splits, 1/2 and 2/3"),
        ({"shard": Shard(1, 2)}, "are both shard 1/2"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    parts = _split(_measured(_PLAN), 2)
    (tmp_path / "other").mkdir()
    files = _handed_on(tmp_path, {1: parts[1]}, 2) + _handed_on(tmp_path / "other", {2: parts[2]}, 2, **changes)
    with pytest.raises(UserError) as found:
        merged([read(path) for path in files])
    assert words in str(found.value)
    assert found.value.exit_code == ExitCode.NOT_COMPARABLE


def test_what_the_base_cannot_do_is_said_of_all_shards_together(tmp_path: Path) -> None:
    unknown = {"error": "unknown field of a case 'share'", "kind": "user"}

    def wrong(side: str, do: str, worker: int, case: Case) -> Any:
        return unknown if side == "base" and do == "setup" and (case.k in new) else None

    new: set[int | float] = {case.k for case in _PLAN.cases if case.label in Shard(1, 2).part(_LABELS)}
    found = {}
    for index in (1, 2):
        own = tuple(case for case in _PLAN.cases if case.label in Shard(index, 2).part(_LABELS))
        found[index] = _measured(replace(_PLAN, cases=own), 0, shared=True, wrong=wrong)
    whole = merged([read(path) for path in _handed_on(tmp_path, found, 2)])
    assert whole.found.incomparable == ()  # they are new
    new |= {case.k for case in _PLAN.cases}
    for index in (1, 2):
        own = tuple(case for case in _PLAN.cases if case.label in Shard(index, 2).part(_LABELS))
        found[index] = _measured(replace(_PLAN, cases=own), 0, shared=True, wrong=wrong)
    with pytest.raises(UserError, match="can do none of the cases") as error:
        merged([read(path) for path in _handed_on(tmp_path, found, 2)])
    assert error.value.exit_code == ExitCode.NOT_COMPARABLE


def test_runners_may_differ_and_that_is_noted(tmp_path: Path) -> None:
    parts = _split(_measured(_PLAN), 2)
    parts[2] = replace(parts[2], environment={**_MACHINE, "cpu_model": "Other"})
    whole = merged([read(path) for path in _handed_on(tmp_path, parts, 2, doubts=("it was busy.",))])
    assert whole.machine == "2 environments"
    assert {name: one["cpu_model"] for name, one in whole.found.environment.items()} == {"1/2": "Box", "2/2": "Other"}
    assert whole.found.notes[-1] == "its cases were measured by 2 shards, on 2 kinds of machines"
    assert whole.doubts == ("shard 1/2: it was busy.", "shard 2/2: it was busy.")


def test_an_installation_that_failed_somewhere_fails_all(tmp_path: Path) -> None:
    parts = _split(_measured(_PLAN), 2)
    failed = Series(case="installation", figure="environment", quantity="count", unit="1", failure="no pip")
    parts[2] = Measured((failed,), (), {}, 0, {}, 1)
    whole = merged([read(path) for path in _handed_on(tmp_path, parts, 2, own=True)])
    outcome = outcome_of(whole.found, whole.settings, ("a", "b"), (), "", ())
    assert outcome.exit_code == ExitCode.REGRESSION


def test_what_is_gone_is_said_once(tmp_path: Path) -> None:
    parts = _split(_measured(_PLAN), 2)
    why = "gone: the head's settings name it not"
    gone = Series(case="old", figure="times", quantity="time", unit="s", unjudged=why)
    parts = {index: replace(each, series=(*each.series, gone)) for index, each in parts.items()}
    whole = merged([read(path) for path in _handed_on(tmp_path, parts, 2, own=True)])
    assert [one.case for one in whole.found.series].count("old") == 1


@pytest.fixture
def one_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "x.json").write_text(text)
        return tmp_path / "x.json"

    return write


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": "meprop-bench-gate/1"}', "\x00"])
def test_a_file_that_is_none_is_one_line(one_file: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gate", "merge", str(one_file(text))]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "x.json is not what `gate --shard I/N --save` writes" in said
    assert said.count("\n") == 1


def test_values_that_are_no_finite_numbers_are_handed_on(tmp_path: Path) -> None:
    parts = _split(_measured(_PLAN), 1)
    case = _LABELS[0]
    odd = Series(
        case=case, figure="accuracy", quantity="accuracy", unit="points", base=(91.0, 92.0),
        head=(float("nan"), float("inf")), own_processes=True,
    )  # fmt: skip
    parts[1] = replace(parts[1], series=(*parts[1].series, odd))
    (path,) = _handed_on(tmp_path, parts, 1)
    (again,) = [one for one in read(path).found.series if one.figure == "accuracy"]
    assert np.array_equal(again.head, odd.head, equal_nan=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--base", "main", "--shard", "1/2"], 2, "--shard and --save go together"),
        (["--base", "main", "--save", "x.json"], 2, "--shard and --save go together"),
        (["--base", "main", "--shard", "0/2", "--save", "x.json"], 2, "the first number goes from 1 to 2"),
        (["--baseline", "a", "--candidate", "b", "--shard", "1/2", "--save", "x.json"], 2, "it goes with --base"),
        (["--base", "main", "--shard", "1/2", "--save", "no/x.json"], 2, "its folder does not exist"),
        (["--base", "main", "--shard", "1/2", "--save", "x.json", "--output", "gate.md"], 2, "a shard has no verdict"),
        (["--base", "main", "--shard", "1/2", "--save", "x.json", "--format", "md"], 2, "a shard has no verdict"),
        (
            ["--base", "main", "--preset", "own.toml", "--shard", "9/9", "--save", "x.json"],
            5,
            "shard 9/9 has nothing to do: the gate has 1 case;",
        ),
        (["merge"], 2, "Missing argument 'FILE...'"),
        (["merge", "nowhere"], 5, "nowhere does not exist: no shard was handed on in it"),
        (["merge", "."], 5, "no shard was handed on: . has no JSON file"),
        (["--shard", "1/2", "merge", "x"], 2, "--shard is not for gate merge"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    sweep = "[[sweep]]\nk = 3\nmethod = 'meprop'\nthreads = 1\n"
    (tmp_path / "own.toml").write_text(f"name = 'own'\nanalysis = 'a'\nchecks = []\n{sweep}")
    assert run(["gate", *words]) == code
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1


def test_no_verdict_takes_the_place_of_an_older_one_in_the_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _handed_on(tmp_path, _split(_measured(_PLAN), 2), 2)
    assert run(["gate", "merge", str(files[0]), "--output", str(tmp_path / "gate.md")]) == ExitCode.NOT_COMPARABLE
    assert "no verdict without shard 2/2" in (tmp_path / "gate.md").read_text()
    assert run(["gate", "merge", str(tmp_path), "--output", str(tmp_path / "gate.md")]) == ExitCode.OK
    assert "Passed" in (tmp_path / "gate.md").read_text()
    assert run(["gate", "merge", str(files[0]), str(files[0])]) == ExitCode.USAGE
    assert "shard-1.json is named twice" in capsys.readouterr().err


def test_a_work_tree_is_known_by_its_files_but_not_by_what_shards_saved_there(tmp_path: Path) -> None:
    (folder := tmp_path / "head").mkdir()
    (folder / "bench.py").write_text("def work(): pass\n")
    checkout = replace(_HEAD, folder=folder, changed=True)
    first = Revision.of(checkout)
    assert first.files is not None
    assert Revision.of(replace(checkout, changed=False)).files is None
    _handed_on(folder, _split(_measured(_PLAN), 2), 2)
    assert Revision.of(checkout) == first
    (folder / "bench.py").write_text("def work(): return\n")
    assert Revision.of(checkout) != first
