"""Parsing: the examples, the measure, and that it learns, dense and sparsified."""

import numpy as np
import pytest
from torch import nn

from meprop_bench.errors import UserError
from meprop_bench.models.transitions import NONE
from meprop_bench.nn import MePropLinear
from meprop_bench.tasks.parsing import Parsing, Scores, ToyParsing
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run

CROSSED = (
    "1\ta\t_\tX\tX\t_\t3\tdep\t_\t_\n2\tb\t_\tX\tX\t_\t4\tdep\t_\t_\n"
    "3\tc\t_\tX\tX\t_\t0\troot\t_\t_\n4\td\t_\tX\tX\t_\t3\tdep\t_\t_\n\n"
)


@pytest.fixture(scope="module")
def task():
    return ToyParsing(batch=64, hidden=32, examples=60)


def test_two_transitions_for_each_word_and_all_in_an_epoch(treebank_files):
    task = Parsing(batch=64, hidden=4, files=treebank_files)
    train = treebank_files.split(",")[0]
    with open(train) as file:
        words = sum(line[0].isdigit() for line in file if line.strip())
    assert task.examples == 2 * words
    batches = list(task.epoch(1, 0))
    assert len(batches) == task.steps_per_epoch
    assert sorted(n for batch in batches for n in task.numbers(batch).tolist()) == list(range(task.examples))
    assert batches[0][0].shape == (64, 48)


def test_a_tree_that_is_not_projective_is_left_out_of_training_and_kept_for_the_measure(tmp_path, treebank_files):
    paths = treebank_files.split(",")
    plain = Parsing(batch=64, hidden=4, files=treebank_files)
    for path in paths:
        with open(path, "a") as file:
            file.write(CROSSED)
    crossed = Parsing(batch=64, hidden=4, files=treebank_files)
    assert crossed.examples == plain.examples
    assert crossed.notes == ("1 of 61 training trees are not projective: left out",)
    assert crossed.scores(crossed.build(1), "dev").uas_with_punctuation < 100


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (CROSSED, None, "no projective training tree"),
        (None, "1\t.\t.\tPUNCT\t.\t_\t0\troot\t_\t_\n\n", "but punctuation"),
    ],
)
def test_a_treebank_that_there_is_nothing_to_learn_or_count_in(tmp_path, treebank_files, train, test, message):
    for path, text in zip(treebank_files.split(",")[::2], (train, test), strict=True):
        if text is not None:
            with open(path, "w") as file:
                file.write(text)
    with pytest.raises(UserError, match=message):
        Parsing(batch=64, hidden=4, files=treebank_files)


def test_the_hidden_layer_is_sparsified_and_the_output_is_not(task):
    model = task.build(1)
    task.sparsify(model, Recipe("toy-parsing", method="meprop", k=4))
    assert isinstance(model.hidden, MePropLinear)
    assert type(model.output) is nn.Linear


@pytest.mark.parametrize(("method", "k"), [("dense", None), ("meprop", 8), ("unified", 8)])
def test_it_learns(method, k):
    task = ToyParsing(batch=64, hidden=32)
    result = run(task, Recipe("toy-parsing", method=method, k=k, epochs=2))
    assert result.test_at_best > 90
    scores = task.scores(result.model, "test")
    assert isinstance(scores, Scores)
    assert scores.las <= scores.uas


def test_dropout_is_of_training_alone():
    task = ToyParsing(batch=64, hidden=4, dropout=0.5, examples=8)
    assert task.options["dropout"] == 0.5
    model, batch = task.build(1), next(iter(task.epoch(1, 0)))
    nn.init.normal_(model.hidden.bias)  # at first the cubes are next to nothing
    assert task.loss(model, batch) != task.loss(model, batch)
    assert task.evaluate(model, "dev") == task.evaluate(model, "dev")


def test_another_activation():
    task = ToyParsing(batch=64, hidden=4, activation="sigmoid", examples=8)
    assert task.options["activation"] == "sigmoid"
    assert isinstance(task.build(1).activation, nn.Sigmoid)


def test_the_measure_leaves_punctuation_out(task, monkeypatch):
    model = task.build(1)
    part = task._dev
    wrong = np.where((part.heads != NONE) & ~part.counted, 1, part.heads).astype(np.int32)  # of a full stop: the verb
    monkeypatch.setattr(model, "parse", lambda *_: (wrong, part.labels))
    stops, words = (part.heads != wrong).sum(), (part.heads != NONE).sum()
    assert 0 < stops <= len(part.lengths)
    assert task.scores(model, "dev") == (100, pytest.approx(100 * (1 - stops / words)), 100)
    monkeypatch.setattr(model, "parse", lambda *_: (part.heads, np.where(part.labels == 1, 2, part.labels)))
    assert task.evaluate(model, "dev") == 100
    assert task.scores(model, "dev").las < 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dropout": -0.1}, "dropout must lie"),
        ({"batch": True}, "batch must be"),
        ({"activation": "cubed"}, "activation must be one of relu, sigmoid, tanh, cube"),
        ({"files": "a,b"}, "files must be 3"),
        ({"examples": 0}, "examples must be"),
    ],
)
def test_options(treebank_files, wrong, message):
    with pytest.raises(UserError, match=message):
        Parsing(**({"files": treebank_files} | wrong))
