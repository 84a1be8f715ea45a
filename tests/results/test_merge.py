"""Shards put together, and every way in which they do not fit; rows as they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.paired import Measurement
from meprop_bench.results.merge import Shards, new_folder
from meprop_bench.results.schema import Row
from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.results.store import ENVIRONMENT, Store

UNITS = tuple((f"{number:012x}", f"case {number}") for number in range(6))
PLAN = {"name": "quick", "cases": [{"k": number} for number in range(6)], "target": 0.02}
ENV = {"device": "cpu", "allocator": "kept", "torch_threads": 2, "cpu_model": "Box", "torch": "2.13", "load_average": 1}
PEAKS = {"flops_per_s": {"float32": 2e11}, "bandwidth": [[65536, 4e10]]}


def row(case_id: str, *, seconds: float = 1.0, **changes: Any) -> Row:
    own = {"workload": "linear", "method": "unified", "kernel": "gather", "kernel_requested": "auto", "k": 8}
    own |= {"batch": 10, "in_features": 784, "out_features": 500, "device": "cpu", "threads": 2, "dtype": "float32"}
    own |= {"gradient": "rows", "allocator": "kept", "environment_id": "e0", "check": "passed", "phase": "backward"}
    found = Measurement("backward", (((4 * seconds, seconds), (4 * seconds, seconds)),) * 2, 1)
    own |= {"values_s": [seconds] * 4, "baseline_values_s": [4 * seconds] * 4, "run_lengths": [2, 2], "loops": 1}
    own |= {"median_s": found.median_s, "baseline_median_s": found.baseline_median_s}
    own |= {"speedup": found.speedup.estimate, "speedup_low": found.speedup.low, "speedup_high": found.speedup.high}
    return Row.of(case_id=case_id, **{**own, **changes})


Made = Callable[..., Store]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Make a shard's folder; by default its own cases, measured."""
    minutes = (datetime(2026, 3, 4, 5, minute, tzinfo=UTC) for minute in range(60))

    def make(
        index: int,
        of: int = 3,
        *,
        cases: Sequence[str] | None = None,
        plan: Mapping[str, Any] = PLAN,
        units: Sequence[tuple[str, str]] = UNITS,
        env: Mapping[str, Any] = ENV,
        peaks: Mapping[str, Any] = PEAKS,
        **changes: Any,
    ) -> Store:
        part = ShardOf(Shard(index, of), plan, tuple(units))
        command = f"meprop-bench speedup --preset quick --shard {index}/{of} --out x"
        now = next(minutes)
        with Store.create(tmp_path / "shards", "quick", "box", command, plan, shard=part, now=now) as store:
            store.write_environment({changes.get("environment_id", "e0"): env}, {"cpu float32, 2 threads": peaks})
            store.write_state({"of": index}, now=now)
            own = [key for key, _ in units if key in part.own]
            store.append([row(key, **changes) for key in (own if cases is None else cases)])
        return Store.open(store.folder)

    return make


def refusal(stores: Sequence[Store], code: ExitCode) -> str:
    with pytest.raises(UserError) as found:
        Shards.of(stores).measured()
    assert found.value.exit_code == code
    assert "\n" not in str(found.value)
    return str(found.value)


def test_the_header_is_that_of_one_run(made: Made) -> None:
    better = {**PEAKS, "bandwidth": [[65536, 5e10]]}
    stores = [made(2), made(1, peaks=better), made(3)]
    shards = Shards.of(stores)
    rows = shards.measured()
    assert [each.case_id for each in rows] == [key for key, _ in UNITS]
    header = shards.header(rows)
    assert header["command"] == "meprop-bench speedup --preset quick --out x"
    assert header["plan"] == PLAN
    assert header["environments"] == {"e0": ENV}
    assert header["peaks"] == {"cpu float32, 2 threads": better}
    assert [state["of"] for state in header["states"]] == [2, 1, 3]  # in the order of time
    assert header["started"] == stores[0].header["started"]
    assert header["hardware"] == stores[0].header["hardware"]
    assert [each["shard"] for each in header["merged"]] == ["1/3", "2/3", "3/3"]
    assert shards.missing({each.case_id for each in rows}, "case") == ([], "")


def test_what_is_missing_is_named(made: Made) -> None:
    own = [key for key, _ in UNITS if key in Shard(2, 3).part(key for key, _ in UNITS)]
    shards = Shards.of([made(2, cases=own[:1])])
    labels, said = shards.missing({each.case_id for each in shards.measured()}, "case")
    assert len(labels) == 5
    assert dict(UNITS)[own[1]] in labels
    assert said == "shards 1/3, 3/3 are missing, with 4 of 6 cases; shard 2/3 has not measured 1 of its 2 cases"
    two = Shards.of([made(1), made(3)])
    assert two.missing({each.case_id for each in two.measured()}, "case")[1] == (
        "shard 2/3 is missing, with 2 of 6 cases"
    )


def test_a_shard_without_units_is_not_missed(made: Made) -> None:
    shards = Shards.of([made(index, 4, units=UNITS[:3]) for index in (1, 2, 3)])
    assert shards.missing({each.case_id for each in shards.measured()}, "case") == ([], "")


def test_a_whole_run_is_no_shard(made: Made, tmp_path: Path) -> None:
    with Store.create(tmp_path, "quick", "box", "c", PLAN) as whole:
        pass
    assert "is no shard: it was measured without --shard" in refusal([made(1), whole], ExitCode.USAGE)


def test_a_folder_comes_once(made: Made) -> None:
    one = made(1)
    assert "is named twice" in refusal([one, made(2), Store.open(one.folder)], ExitCode.USAGE)


def test_two_folders_of_one_shard_are_one_too_many_and_may_contradict_each_other(made: Made) -> None:
    assert "are both shard 1/3: name the one that counts" in refusal([made(1), made(1)], ExitCode.USAGE)
    said = refusal([made(1), made(1, seconds=2.0)], ExitCode.NOT_COMPARABLE)
    assert "are both shard 1/3, with other figures of case " in said


def test_shards_of_other_runs_and_splits_are_refused_with_what_differs(made: Made) -> None:
    other = {**PLAN, "cases": [*PLAN["cases"][:5], {"k": 7}]}  # type: ignore[index]
    said = refusal([made(1), made(2, plan=other)], ExitCode.NOT_COMPARABLE)
    assert "are of different runs: cases[5].k is 5 and 7; measure all shards by one command" in said
    longer = {**PLAN, "cases": [*PLAN["cases"], {"k": 9}]}  # type: ignore[misc]
    assert "cases has 6 and 7 entries" in refusal([made(1), made(2, plan=longer)], ExitCode.NOT_COMPARABLE)
    assert "different splits, 1/3 and 2/4" in refusal([made(1), made(2, 4)], ExitCode.NOT_COMPARABLE)
    assert "split the same plan differently" in refusal([made(1), made(2, units=UNITS[::-1])], ExitCode.NOT_COMPARABLE)


def test_a_case_of_another_shard_is_refused(made: Made) -> None:
    strays = [key for key, _ in UNITS if key in Shard(2, 3).part(key for key, _ in UNITS)]
    said = refusal([made(1, cases=strays), made(2)], ExitCode.NOT_COMPARABLE)
    assert f"is shard 1/3 and holds {dict(UNITS)[strays[0]]}, which is no case of that" in said


def test_times_of_different_machines_and_software_differ(made: Made) -> None:
    def differing(**changes: Any) -> str:
        env = {**ENV, **changes.pop("env", {})}
        shards = Shards.of([made(1), made(2, env=env, **changes), made(3)])
        return shards.differing(shards.measured())

    assert differing() == ""
    assert differing(env={"load_average": 9}) == ""
    assert differing(environment_id="e1", env={"torch": "2.14"}) == "torch is 2.13 and 2.14"
    assert differing(environment_id="e1", env={"cpu_model": None}) == "cpu_model is Box and not said"
    assert differing(environment_id="e1", env={"variables": {"MKL_DYNAMIC": "1"}}) == (
        "variables is not said and {'MKL_DYNAMIC': '1'}"
    )
    # Cases of one run have other threads and allocators.
    assert differing(environment_id="e1", env={"torch_threads": 1, "variables": {"OMP_NUM_THREADS": "1"}}) == ""
    assert differing(environment_id="e1", env={"torch_threads": 1, "torch": "2.14"}) == "torch is 2.13 and 2.14"


def test_a_row_keeps_the_revision_that_its_folder_says_for_it(made: Made) -> None:
    shards = Shards.of(
        [
            made(1, env={**ENV, "git_revision": "one"}),
            made(2, env={**ENV, "git_revision": "two"}),
            made(3, env={**ENV, "git_revision": "two"}, git_revision="three"),
        ]
    )
    revisions = {each.case_id: each.git_revision for each in shards.measured()}
    part = {index: Shard(index, 3).part(revisions) for index in (1, 2, 3)}
    assert {revisions[key] for key in part[1]} == {None}
    assert {revisions[key] for key in part[2]} == {"two"}
    assert {revisions[key] for key in part[3]} == {"three"}
    assert shards.header(shards.measured())["environments"]["e0"]["git_revision"] == "one"


def test_peaks_of_different_machines_are_nobodys(made: Made) -> None:
    shards = Shards.of([made(1), made(2), made(3)])
    assert shards.header(shards.measured(), mixed=True)["peaks"] == {}


@pytest.mark.parametrize("record", ["no", {"index": 1}, {"index": 5, "of": 3, "plan": {}, "units": []}])
def test_a_damaged_shard_is_one_line(made: Made, record: Any) -> None:
    store = made(1)
    header = json.loads((store.folder / ENVIRONMENT).read_text())
    (store.folder / ENVIRONMENT).write_text(json.dumps({**header, "shard": record}))
    with pytest.raises(UserError) as found:
        Shards.of([Store.open(store.folder)])
    assert "\n" not in str(found.value)


def test_a_new_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "some" / "where"

    def fails() -> None:
        with new_folder(out) as folder:
            (folder / "half").touch()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert list(tmp_path.rglob("*")) == [tmp_path / "some"]
    with new_folder(out) as folder:
        (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["where"]
    with pytest.raises(UserError, match="is there already, and nothing is overwritten"), new_folder(out):
        raise AssertionError
