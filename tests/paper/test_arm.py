import pytest

from meprop_bench.errors import UserError
from meprop_bench.paper.arm import PaperArm, train_arm
from meprop_bench.paper.experiment import experiment
from meprop_bench.paper.published import PublishedSetting, table
from meprop_bench.tasks.algorithm import Alternation, MinimalActivation, Simplification

SMALL = {"hidden": 16, "layers": 2, "batch": 50, "optimizer": "adam"}


def arm(epochs=1, watched=False, **setting):
    return PaperArm("digits", "digits", PublishedSetting(**{**SMALL, **setting}), epochs, examples=200, watched=watched)


def test_a_setting_becomes_a_recipe():
    task = arm(method="dense", dropout=0.1).recipe().load()
    assert (task.batch, task.options["hidden"], task.options["dropout"]) == (50, 16, 0.1)
    found = arm(method="unified", k=4, epochs=3).recipe()
    assert (found.method, found.k, found.epochs, found.optimizer) == ("unified", 4, 3, "adam")
    simp = arm(method="mesimp", k=4, rate=0.1, epochs=10).recipe()
    assert (simp.along, simp.best_after) == (Simplification(rate=0.1, simplify=5, normal=5), 5)
    act = arm(method="meact", share=0.004, masked_after=2, epochs=3).recipe()
    assert (act.along, act.best_after, act.k) == (MinimalActivation(0.004, 2), 2, None)


def test_an_arm_keeps_the_id_that_stored_trainings_have():
    """That of an arm of icml:3 in a committed results folder."""
    setting = {"method": "meprop", "k": 20, "hidden": 500, "layers": 2, "batch": 10, "dropout": 0.0}
    setting |= {"activation": "sigmoid", "optimizer": "adam", "learning_rate": 0.001}
    record = {"task": "mnist", "data": "mnist", "setting": setting, "epochs": 8, "watched": False}
    assert PaperArm.from_json(record).to_json() == record
    assert PaperArm.from_json(record).arm_id == "9801edfa0b56"


@pytest.mark.parametrize(
    "setting",
    [
        {"method": "dense"},
        {"method": "random", "k": 4},
        {"method": "mesimp", "k": 4, "rate": 0.1},
        {"method": "meact", "share": 0.004, "masked_after": 1},
    ],
    ids=lambda setting: setting["method"],
)
def test_an_arm_is_trained_the_same_for_the_same_seed(setting):
    watched = setting["method"] != "mesimp"  # whose parameters change their number
    one, again = (train_arm(arm(epochs=2, watched=watched, **setting), 1) for _ in range(2))
    assert (one.test, one.best_dev, one.evaluations, one.updates) == (
        again.test,
        again.best_dev,
        again.evaluations,
        again.updates,
    )
    assert len(one.updates) == 2 * watched
    assert all(update > 0 for update in one.updates)
    assert ("size" in one.sizes) == (setting["method"] in ("mesimp", "meact"))


@pytest.mark.parametrize("task", ["toy-pos", "toy-parsing"])
def test_tagger_and_parser_are_simplified(task):
    setting = PublishedSetting(method="mesimp", k=4, rate=0.5, hidden=16, batch=32, optimizer="adam")
    found = train_arm(PaperArm(task, "text", setting, 2, examples=100), 1)
    assert found.sizes["size"] < 16
    assert found.test is not None


def test_watching_changes_nothing():
    plain, watched = (train_arm(arm(watched=watched, method="dense"), 1) for watched in (False, True))
    assert plain.evaluations == watched.evaluations
    assert plain.arm_id != watched.arm_id


def test_parameters_that_mesimp_removes_cannot_be_watched():
    with pytest.raises(UserError, match="cannot be watched"):
        arm(method="mesimp", k=4, rate=0.1, watched=True).recipe()


def test_a_translator_is_sparsified_alternately_and_the_others_are_not():
    def algorithm(task, method, k=None):
        return PaperArm(task, "text", PublishedSetting(method=method, k=k, batch=64), 3).recipe().along

    assert algorithm("translation", "meprop", 0.0625) == algorithm("toy-translation", "meprop", 0.0625) == Alternation()
    assert algorithm("translation", "dense") is None
    assert algorithm("pos", "meprop", 20) is None


def test_the_table_of_translation_at_the_smoke_scale(monkeypatch, tmp_path):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    found = experiment(table("tkde:9"), "smoke")
    assert not found.skipped
    # Both of the paper's data sets have one stand-in, so that the parts share their arms.
    dense, sparse = found.distinct_arms
    assert (dense.setting.method, sparse.setting.k) == ("dense", 0.0625)
    said = " ".join(words for _, words in found.changes)
    assert "layers = 1 in place of 3" in said
    assert "hidden = 32; the paper does not say how many it has" in said
    pytest.importorskip("sentencepiece")
    pytest.importorskip("sacrebleu")
    assert sparse.recipe().load().options.items() >= {"hidden": 32, "layers": 1, "batch": 8}.items()


def test_translation_without_data_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    found = experiment(table("tkde:9"), "short")
    assert not found.runnable
    assert "meprop-bench data fetch multi30k" in found.skipped[0][1]
