from __future__ import annotations

import math
from pathlib import Path

import pytest

from meprop_bench.errors import UserError
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.journal import Job, Journal, Trained

ARM = Arm("unified", 0.125, left=("a",))
LINE = '"seed": 1, "steps": 1, "figure": 1, "seconds": 1, "steps_s": 1'


def filled(folder: Path) -> Journal:
    journal = Journal(folder)
    for seed, (dense, sparse) in enumerate([(90.0, 89.5), (91.0, 91.5)], 1):
        journal.add(Job(None, seed, 100), Trained(dense, 1.0, 0.9))
        journal.add(Job(ARM, seed, 100), Trained(sparse, 1.0, 0.9))
    journal.settle(plan={"steps": 100})
    return journal


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    first, again = filled(tmp_path), Journal(tmp_path)
    assert again.trainings == first.trainings
    assert again.settled == {"plan": {"steps": 100}}
    assert again.differences(ARM, 100, (1, 2, 3)) == [-0.5, 0.5]
    assert again.differences(ARM, 100, (1, 2, 3), dense_steps=80) == []


def test_a_line_that_a_kill_cut_off_is_trained_again(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "trainings.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    again = Journal(tmp_path)
    assert len(again.trainings) == 3
    again.add(Job(ARM, 2, 100), Trained(91.5, 1.0, 0.9))
    assert Journal(tmp_path).trainings == again.trainings
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trainings.jsonl", '{"seed": 1}\n'),
        ("trainings.jsonl", "what\n"),
        ("trainings.jsonl", f'{{{LINE}, "arm": {{"x": 1}}}}\n'),
        ("trainings.jsonl", f'{{{LINE}, "arm": {{"method": "no", "k": 1}}}}\n'),
        ("tune.json", "{}"),
        ("tune.json", "[1"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*search again"):
        Journal(tmp_path)


def test_a_figure_that_is_none_is_a_failure(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(Job(ARM, 1, 100), Trained(math.inf, 1.0, 0.9))
    assert journal.figure(ARM, 1, 100) is None
    assert journal.failure(ARM) == Journal(tmp_path).failure(ARM) == "its metric became inf"
