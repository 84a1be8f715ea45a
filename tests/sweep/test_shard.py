"""A run in shards comes to what one run comes to, to the byte; measured by workers that answer at once."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.measure.peaks import Peaks, PeaksCache
from meprop_bench.report.document import Document
from meprop_bench.report.formats import write_report
from meprop_bench.report.terminal import write_as
from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store
from meprop_bench.sweep.parity import ParityPlan, compare
from meprop_bench.sweep.plan import Plan, plan_axes
from meprop_bench.sweep.runner import Runner
from meprop_bench.sweep.shard import shard_of_parity, shard_of_plan
from meprop_bench.tasks.recipe import Recipe
from tests.cli.test_parity import Answering
from tests.sweep.test_runner import _Clock, _Worker, _Workers

NOW = datetime(2026, 3, 4, tzinfo=UTC)
COMMAND = "meprop-bench speedup --preset quick"


class _Still(_Clock):
    """Time that stands still: how long a case took is no figure of it."""

    seconds = property(lambda _: 0.0, lambda _, __: None)  # type: ignore[assignment]


class _OwnFigures(_Worker):
    """Figures of the case alone, not of what was measured before."""

    def _hello(self, message: Mapping[str, Any]) -> dict[str, Any]:
        environment = {"device": "cpu", "torch_threads": message["threads"], "cpu_model": "Box", "git_revision": "abc"}
        return {"environment": environment, "environment_id": f"e{message['threads']}"}

    def _measure(self, message: Mapping[str, Any]) -> dict[str, Any]:
        answer = super()._measure(message)
        assert self._case is not None
        factor = 1 + self._case.k / 1000
        pairs = {
            phase: [[dense, sparse * factor] for dense, sparse in found] for phase, found in answer["pairs"].items()
        }
        return {**answer, "pairs": pairs}


class _Machine(_Workers):
    def __init__(self, faults: Mapping[Any, Any] | None = None) -> None:
        super().__init__(0.0, faults)
        self.clock = _Still()

    def __call__(self, case: Any) -> _OwnFigures:
        self.started.append(case.allocator)
        return _OwnFigures(self, (len(self.started) - 1) % 3, self._noise, self._faults)


@pytest.fixture
def cache(tmp_path: Path) -> PeaksCache:
    found = PeaksCache(tmp_path / "peaks")
    for threads in (1, 2):
        for _ in range(3):
            key = f"cpu float32, {threads} thread" + "s" * (threads > 1)
            found.add(f"e{threads}", key, Peaks({"float32": 1e11}, ((1 << 20, 1e10),)))
    return found


def _measure(root: Path, plan: Plan, cache: PeaksCache, part: ShardOf | None = None) -> Path:
    shard = "" if part is None else f" --shard {part.shard}"
    # The case with k = 7 cannot be measured.
    machine = _Machine(faults={("setup", 7): {"error": "no such kernel", "kind": "user"}})
    with Store.create(root, plan.name, "box", COMMAND + shard, plan.to_json(), shard=part, now=NOW) as store:
        Runner(
            plan, store, start=machine, lock=machine.lock, now=machine.clock, cache=cache,
            state=lambda threads: {"cpu_usable_cores": 2, "load_average": 0.1},
        ).run()  # fmt: skip
    return store.folder


def _plan(**settings: Any) -> Plan:
    axes = {"k": list(range(2, 14)), "threads": [1, 2], "method": ["unified"]}
    return plan_axes(axes, name="quick", budget=100.0, processes=3, checks=("gradients",), **settings)


def _merged(root: Path, plan: Plan, cache: PeaksCache, shards: int, out: Path) -> Path:
    folders = []
    for index in range(1, shards + 1):
        own, part = shard_of_plan(plan, Shard(index, shards))
        folders.append(_measure(root, own, cache, part))
    with redirect_stdout(io.StringIO()):
        assert run(["merge", *map(str, folders[::-1]), "--out", str(out)]) == ExitCode.OK
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds."""
    monkeypatch.setattr("meprop_bench.report.formats.draw", lambda _: ([], "", {}))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.usefixtures("undrawn")
def test_24_cases_in_four_shards_are_one_run(tmp_path: Path, cache: PeaksCache, keep: bool) -> None:
    plan = _plan(keep_processes=keep)
    assert len(plan.cases) == 24
    one = _measure(tmp_path / "one", plan, cache)
    # Of the same name, as the name is the title of a report.
    merged = _merged(tmp_path / "shards", plan, cache, 4, tmp_path / "merged" / one.name)
    assert (merged / MEASUREMENTS).read_bytes() == (one / MEASUREMENTS).read_bytes()
    first, second = (Store.open(folder) for folder in (one, merged))
    write_report(one)
    pages = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in merged.iterdir()) == pages
    assert "README.md" in pages
    for name in set(pages) - {ENVIRONMENT}:
        assert (merged / name).read_bytes() == (one / name).read_bytes(), name
    for form in ("table", "json", "md", "csv"):
        printed = []
        for store in (first, second):
            target = io.StringIO()
            write_as(form, Document.of(store), target)
            printed.append(target.getvalue())
        assert printed[0] == printed[1]
    same = ("command", "started", "plan", "peaks", "hardware", "schema")
    assert {name: first.header[name] for name in same} == {name: second.header[name] for name in same}
    assert list(first.header["environments"].items()) == list(second.header["environments"].items())
    assert [each["shard"] for each in second.header["merged"]] == ["1/4", "2/4", "3/4", "4/4"]


def test_a_shard_is_reported_as_what_it_is(tmp_path: Path, cache: PeaksCache) -> None:
    own, part = shard_of_plan(_plan(), Shard(2, 4))
    document = Document.load(_measure(tmp_path, own, cache, part))
    assert len({row.case_id for row in document.rows}) == 6
    assert document.notes == ("shard 2/4 of a run: `meprop-bench merge` puts the shards together",)


@pytest.mark.usefixtures("undrawn")
def test_one_that_is_interrupted_is_missed_until_it_goes_on(
    tmp_path: Path, cache: PeaksCache, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _plan()
    folders = []
    for index in (1, 2):
        own, part = shard_of_plan(plan, Shard(index, 3))
        some = replace(own, cases=own.cases[:5]) if index == 2 else own
        folders.append(str(_measure(tmp_path / "shards", some, cache, part)))
    assert run(["merge", *folders, "--out", str(tmp_path / "all")]) == ExitCode.NOT_COMPARABLE
    said = capsys.readouterr().err
    assert "shard 3/3 is missing, with 8 of 24 cases; shard 2/3 has not measured 3 of its 8 cases: measure them" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "all").exists()
    assert run(["merge", *folders, "--out", str(tmp_path / "all"), "--partial", "--format", "json"]) == ExitCode.OK
    printed = capsys.readouterr()
    assert len({row["case_id"] for row in json.loads(printed.out)["rows"]}) == 13
    assert printed.err.count("not measured: linear") == 11
    assert any("11 of 24 cases are not measured" in note for note in Document.load(tmp_path / "all").notes)
    with Store.open(Path(folders[1]), write=True) as store:
        machine = _Machine()
        own, _ = shard_of_plan(plan, Shard(2, 3))
        Runner(own, store, start=machine, lock=machine.lock, now=machine.clock, cache=cache, state=lambda _: {}).run()
        assert machine.count("setup") == 3 * 3  # what was there is not measured again


_RECIPE = Recipe("digits", {"batch": 50}, "meprop", 4, epochs=3)
_DENSE, _SPARSE = [96.0, 95.0, 94.5, 96.2, 95.5], [95.9, 95.1, 94.4, 96.0, 95.6]


def _train(root: Path, comparison: ParityPlan, part: ShardOf | None = None, sparse: Any = _SPARSE) -> Path:
    figures = {"dense": _DENSE, "sparse": sparse}
    command = "meprop-bench parity --task digits" + ("" if part is None else f" --shard {part.shard}")
    plan = comparison.to_json()
    with Store.create(root, "parity", "box", command, plan, shard=part, now=NOW) as store:
        found = compare(comparison, store, processes=1, start=lambda: Answering(figures, []))
    assert list(found.seeds) == list(comparison.numbers)
    return store.folder


def test_seeds_of_a_comparison_in_shards_are_judged_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from meprop_bench.cli.parity import CODES, print_parity

    comparison = ParityPlan(_RECIPE, 5)
    one = Store.open(_train(tmp_path / "one", comparison))
    parts = [shard_of_parity(comparison, Shard(index, 2)) for index in (1, 2)]
    assert sorted(seed for own, _ in parts for seed in own.numbers) == [1, 2, 3, 4, 5]
    folders = []
    for own, part in parts:  # as they come from two machines, by one name
        (machine := tmp_path / str(part.shard.index)).mkdir()
        folders.append(str(_train(tmp_path / "shards", own, part).rename(machine / "run")))
    (row,) = one.rows()
    assert row.parity is not None
    for form in ("table", "md", "json"):
        out = tmp_path / form
        assert run(["merge", *folders, "--out", str(out), "--format", form]) == CODES[row.parity.verdict]
        printed = capsys.readouterr().out
        print_parity(form, one, row.parity, _RECIPE.label)
        assert printed == capsys.readouterr().out
        assert Store.open(out).rows() == [row]
    assert run(["merge", folders[0], "--out", str(tmp_path / "half")]) == ExitCode.NOT_COMPARABLE
    assert "shard 2/2 is missing, with 2 of 5 seeds" in capsys.readouterr().err


def test_a_shard_of_a_comparison_has_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from meprop_bench.cli.parity import print_parity

    own, part = shard_of_parity(ParityPlan(_RECIPE, 5), Shard(1, 2))
    store = Store.open(_train(tmp_path, own, part))
    (found,) = (row.parity for row in store.rows())
    assert found is not None
    print_parity("table", store, found, _RECIPE.label)
    printed = capsys.readouterr().out
    assert "3 of 5 seeds: `merge` judges all of them" in printed
    assert "parity" not in printed


def test_trainings_that_differ_in_more_than_their_seeds_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for index in (1, 2):
        own, part = shard_of_parity(ParityPlan(_RECIPE, 4), Shard(index, 2))
        folders.append(_train(tmp_path / "shards", own, part))
    path = folders[1] / MEASUREMENTS
    path.write_text(path.read_text().replace('"steps": 75', '"steps": 76'))
    assert run(["merge", *map(str, folders), "--out", str(tmp_path / "all")]) == ExitCode.NOT_COMPARABLE
    assert "were trained differently: steps is 75 and 76" in capsys.readouterr().err
