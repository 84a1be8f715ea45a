import json

import pytest

from meprop_bench.errors import UserError
from meprop_bench.paper.records import TRAININGS, ArmEvaluation, TrainedArm, Trainings


def trained(arm_id, seed, test, **more):
    evaluations = (ArmEvaluation(1.0, 0.5, 97.0), ArmEvaluation(2.0, 0.4, 98.0))
    return TrainedArm(arm_id=arm_id, seed=seed, evaluations=evaluations, best_epoch=2.0, test=test, **more)


def test_a_training_survives_the_file(tmp_path):
    one = trained("a", 1, 98.0, sizes={"size": 12.5}, updates=(0.1, 0.2))
    Trainings(tmp_path, write=True).append(one)
    found = Trainings(tmp_path)
    assert found.get("a", 1) == one
    assert found.done("a", 1)
    assert not found.done("a", 2)


def test_one_that_failed_is_kept_and_tried_again(tmp_path):
    store = Trainings(tmp_path, write=True)
    store.append(TrainedArm(arm_id="a", seed=1, error="killed"))
    assert not store.done("a", 1)
    store.append(trained("a", 1, 98.0))
    assert Trainings(tmp_path).of("a", [1, 2]) == [trained("a", 1, 98.0)]


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
    store = Trainings(tmp_path, write=True)
    store.append(trained("a", 1, 98.0))
    whole = (tmp_path / TRAININGS).read_bytes()
    (tmp_path / TRAININGS).write_bytes(whole + whole[: len(whole) // 2])
    assert Trainings(tmp_path).notes
    again = Trainings(tmp_path, write=True)
    assert again.done("a", 1)
    again.append(trained("a", 2, 98.0))
    assert [json.loads(line)["seed"] for line in (tmp_path / TRAININGS).read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("epochs", "best", "words"),
    [((1.0, 2.0, 2.0), 99.0, "one after the other"), ((1.0, 3.0, 2.0), 99.0, "one after the other"),
     ((1.0, 2.0, 3.0), 97.5, "epoch 2 is better than the best, 97.5")],
)  # fmt: skip
def test_a_training_whose_course_contradicts_it_is_none(tmp_path, epochs, best, words):
    course = [{"epoch": epoch, "loss": 0.1, "dev": dev} for epoch, dev in zip(epochs, (97.5, 98.0, 97.0), strict=True)]
    record = {"arm_id": "a", "seed": 1, "evaluations": course, "best_epoch": 1.0, "best_dev": best, "test": 97.0}
    (tmp_path / TRAININGS).write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=f"{TRAININGS} line 1 is no training: .*{words}"):
        Trainings(tmp_path)


@pytest.mark.parametrize("line", ["{}", "[]", "no json", '{"arm_id": "a", "seed": 1, "evaluations": [{"no": 1}]}'])
def test_a_line_that_is_no_training_is_a_clear_error(tmp_path, line):
    (tmp_path / TRAININGS).write_text(line + "\n")
    with pytest.raises(UserError, match=f"{TRAININGS} line 1 is no training"):
        Trainings(tmp_path)


def test_what_another_folder_has_is_taken_over_with_the_folder_it_was_trained_for(tmp_path):
    """What failed there, what was not asked for, and what is here already, is not taken."""
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    first, second, third = (Trainings(folder, write=True) for folder in folders)
    for one in (trained("a", 1, 98.0), trained("b", 1, 97.0), TrainedArm(arm_id="a", seed=2, error="killed")):
        first.append(one)
    second.append(trained("c", 1, 96.0))
    wanted = [(("a",), 1), (("a",), 2), (("c",), 1)]
    assert second.take(first, wanted) == [trained("a", 1, 98.0, origin="first")]
    assert second.take(first, wanted) == []
    third.take(second, wanted)
    third.take(first, [(("d", "e", "b"), 1)])  # the second and third are trained like the first
    assert Trainings(folders[2]).all() == [
        trained("a", 1, 98.0, origin="first"),
        trained("c", 1, 96.0, origin="second"),
        trained("d", 1, 97.0, origin="first"),
    ]


def test_reading_alone_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="not open for writing"):
        Trainings(tmp_path).append(trained("a", 1, 98.0))
