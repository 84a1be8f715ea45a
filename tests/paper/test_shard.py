"""A table in shards: what is split, and that it comes to what one run comes to."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from datetime import UTC, datetime

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.paper.experiment import experiment
from meprop_bench.paper.folder import best_results, read
from meprop_bench.paper.published import table
from meprop_bench.paper.records import TRAININGS, Decoding, Decodings, Trainings
from meprop_bench.paper.runner import plan_of, slug, take, train_all
from meprop_bench.paper.shard import ALL, shard_of_table
from meprop_bench.paper.subjects import Subject
from meprop_bench.report.markdown import as_readme
from meprop_bench.results.shards import Shard
from meprop_bench.results.store import MEASUREMENTS, Store
from tests.paper.test_runner import Worker
from tests.results.test_merge import row

NOW = datetime(2026, 3, 4, tzinfo=UTC)


@pytest.fixture
def found(monkeypatch):
    absent = "the data are not here"
    monkeypatch.setattr(Subject, "reason_not_trained", lambda self, scale: None if self.name == "mnist" else absent)
    return experiment(table("icml:3"), "smoke", seeds=3)


def made(root, found, own=ALL, part=None):
    """Train what is an experiment's own, and time its cases."""
    plan = {**found.to_json(), "device": "cpu"}
    command = "meprop-bench paper run icml:3" + ("" if part is None else f" --shard {part.shard}")
    with Store.create(root, slug(found), "box", command, plan, shard=part, now=NOW) as store:
        trainings = Trainings(store.folder, write=True)
        train_all(found, store, trainings, processes=1, start=lambda: Worker([], {}), own=own)
        sweep = plan_of(found, own)
        for case in () if sweep is None else sweep.cases:
            store.write_environment({"e0": {"cpu": "x"}})
            store.append([row(case.case_id)])
    return store.folder


def shards_of(found, root, count):
    folders = []
    for index in range(1, count + 1):
        own, part = shard_of_table(found, {**found.to_json(), "device": "cpu"}, Shard(index, count))
        folders.append(made(root, found, own, part))
    return folders


def test_a_table_in_shards_is_one_run(found, tmp_path):
    one = made(tmp_path / "one", found)
    shards = shards_of(found, tmp_path / "shards", 3)
    out = tmp_path / "merged" / one.name
    with redirect_stdout(io.StringIO()):
        assert run(["merge", *map(str, shards), "--out", str(out)]) == ExitCode.OK
    for name in (MEASUREMENTS, TRAININGS):
        assert (out / name).read_bytes() == (one / name).read_bytes()
    first, second = (read(Store.open(folder)) for folder in (one, out))
    assert first.claims == second.claims
    assert as_readme(first, [], "") == as_readme(second, [], "")


def test_each_shard_trains_and_times_its_own(found, tmp_path):
    shards = shards_of(found, tmp_path, 3)
    trained = [{(one.arm_id, one.seed) for one in Trainings(folder).all()} for folder in shards]
    timed = [{each.case_id for each in Store.open(folder).rows()} for folder in shards]
    assert sum(map(len, trained)) == len(set.union(*trained)) == 6
    assert sum(map(len, timed)) == len(set.union(*timed)) == len(found.distinct_cases)
    sizes = [len(one) + len(other) for one, other in zip(trained, timed, strict=True)]
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_reuses_what_is_its_own_alone(found, tmp_path):
    whole = Store.open(made(tmp_path / "whole", found))
    own, part = shard_of_table(found, found.to_json(), Shard(1, 3))
    with Store.create(tmp_path / "shards", slug(found), "box", "c", found.to_json(), shard=part) as store:
        trainings = Trainings(store.folder, write=True)
        (trained, of_trainings), (timed, of_cases) = take(found, store, trainings, whole, own)
    assert (trained, timed) == (of_trainings, of_cases)
    assert trained + timed == len(own.keys or ())
    assert len(Trainings(store.folder).all()) == trained


def test_a_shard_is_no_result_of_a_table(found, tmp_path):
    folders = shards_of(found, tmp_path, 3)
    assert best_results(tmp_path) == {}
    assert "shard 1/3 of a run" in " ".join(read(Store.open(folders[0])).notes)


def test_what_is_missing_or_another_shards_is_said(found, tmp_path, capsys):
    shards = shards_of(found, tmp_path / "shards", 3)
    words = ["merge", *map(str, shards[1:]), "--out", str(tmp_path / "all")]
    assert run(words) == ExitCode.NOT_COMPARABLE
    assert "shard 1/3 is missing, with" in capsys.readouterr().err
    Trainings(shards[1], write=True).append(Trainings(shards[0]).all()[0])
    assert run(words) == ExitCode.NOT_COMPARABLE
    assert "holds trainings that are not its shard's" in capsys.readouterr().err


def test_the_seeds_of_what_is_simplified_stay_together_for_their_decoding(on_mnist, tmp_path, capsys):
    run_ = on_mnist("tkde:10")
    arms = [arm for arm in run_.distinct_arms if arm.setting.method == "mesimp"]
    assert arms
    plan = run_.to_json()
    for index in range(1, 4):
        own, _ = shard_of_table(run_, plan, Shard(index, 3))
        for arm in arms:
            assert len({own.trains(arm, seed) for seed in run_.seeds} | {own.decodes(arm)}) == 1
    _, part = shard_of_table(run_, plan, Shard(1, 1))
    with Store.create(tmp_path, slug(run_), "box", "c", plan, shard=part) as store:
        Decodings(store.folder).add(Decoding("unknown", {"a": 1}, (2, 1), (((1.0, 0.5),),), "e"))
    assert run(["merge", str(store.folder), "--out", str(tmp_path / "all")]) == ExitCode.NOT_COMPARABLE
    assert "holds trainings that are not its shard's" in capsys.readouterr().err
