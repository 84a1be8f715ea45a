from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.results.store import Store

NOW = datetime(2026, 3, 4, tzinfo=UTC)
KEYS = [f"case {number}" for number in range(24)]


@pytest.mark.parametrize("of", [1, 2, 4, 5, 24, 30])
def test_each_unit_is_in_one_shard_and_shards_differ_by_one_at_most(of: int) -> None:
    parts = [Shard(index, of).part(KEYS) for index in range(1, of + 1)]
    assert sorted(key for part in parts for key in part) == sorted(KEYS)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_split_depends_on_the_units_alone_and_stays_what_it_is() -> None:
    shuffled = random.Random(1).sample(KEYS, len(KEYS))
    assert [Shard(i, 4).part(shuffled) for i in (1, 2, 3, 4)] == [Shard(i, 4).part(KEYS) for i in (1, 2, 3, 4)]
    # What one machine measured, another must not: the split of one version is that of the next.
    assert sorted(Shard(1, 4).part(KEYS)) == ["case 14", "case 19", "case 21", "case 23", "case 6", "case 8"]
    neighbours = [next(i for i in range(1, 5) if key in Shard(i, 4).part(KEYS)) for key in KEYS]
    assert len(set(neighbours[:8])) > 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0/4", "shard 0/4: the first number goes from 1 to 4; an array job counts from 1"),
        ("5/4", "shard 5/4: the first number goes from 1 to 4"),
        ("1/0", "there are from 1 to 10,000 shards, not 0"),
        ("a/b", "a shard is written I/N, as 2/4 for the second of four, not 'a/b'"),
        ("2", "a shard is written I/N"),
        ("-1/4", "a shard is written I/N"),
        ("1/4/2", "a shard is written I/N"),
        ("٣/٤", "a shard is written I/N"),
        ("1/99999", "there are from 1 to 10,000 shards"),
    ],
)
def test_what_is_no_shard_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError) as found:
        Shard.read(text)
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_a_shard_without_units_says_so() -> None:
    units = tuple((key, key) for key in KEYS[:3])
    empty = [index for index in range(1, 5) if not ShardOf(Shard(index, 4), {}, units).own]
    assert len(empty) == 1
    with pytest.raises(UserError, match="has nothing to do: the run has 3 cases") as found:
        ShardOf(Shard(empty[0], 4), {}, units).checked_own()
    assert found.value.exit_code == ExitCode.NOTHING_MEASURED


def test_a_folder_carries_its_shard_and_no_other_one_resumes_it(tmp_path: Path) -> None:
    plan = {"cases": [{"k": 8}]}
    units = tuple((key, key) for key in KEYS)
    shards = [ShardOf(Shard(index, of), plan, units) for index, of in ((1, 2), (2, 2), (1, 4))]
    folders = []
    for shard in [*shards, None]:
        with Store.create(tmp_path, "quick", "box", "c", plan, shard=shard, now=NOW) as store:
            folders.append(store.folder)
    assert [folder.name for folder in folders] == [
        "2026-03-04_box_quick-shard-1-of-2",
        "2026-03-04_box_quick-shard-2-of-2",
        "2026-03-04_box_quick-shard-1-of-4",
        "2026-03-04_box_quick",
    ]
    for shard, folder in zip([*shards, None], folders, strict=True):
        found = Store.find_resumable(tmp_path, "quick", "box", plan, shard=shard)
        assert found is not None
        with found:
            assert found.folder == folder
    other = ShardOf(Shard(1, 2), {"cases": [{"k": 9}]}, units)  # its own cases are the same, and the run is another
    assert Store.find_resumable(tmp_path, "quick", "box", plan, shard=other) is None


def test_a_shard_is_read_as_it_was_written() -> None:
    one = ShardOf(Shard(2, 3), {"name": "x"}, (("a", "the case a"), ("b", "the case b")))
    assert ShardOf.from_json(one.to_json()) == one
    for wrong in ({}, {**one.to_json(), "of": 0}, {**one.to_json(), "index": 4}, {**one.to_json(), "units": [["a"]]}):
        with pytest.raises((UserError, ValueError)):
            ShardOf.from_json(wrong)
    with pytest.raises(ValueError, match="twice"):
        ShardOf.from_json({**one.to_json(), "units": [["a", "x"], ["a", "y"]]})
