"""Tagging: features, batches, the measure, and that it learns, dense and sparsified."""

import os

import pytest
import torch
from torch import nn

from meprop_bench.errors import UserError
from meprop_bench.nn import MePropLSTM
from meprop_bench.tasks.pos import POS, ToyPOS, features, shape
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run


@pytest.fixture(scope="module")
def task():
    return ToyPOS(batch=4, hidden=16, examples=60)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("dog", "x"), ("Dog", "Xx"), ("DNA", "X"), ("I", "Xx"), ("a-b", "x-"), ("-", "-"), ("42", "-0"), ("B-52", "X0-")],
)
def test_shape(word, expected):
    assert shape(word) == expected


def test_seven_features():
    assert features("Houses") == ("s", "es", "ses", "uses", "ho", "hou", "Xx")
    assert features("I") == ("i", "i", "i", "i", "i", "i", "Xx")


def test_batches_hold_every_sentence_and_pad(task):
    ids, lengths, tags = next(iter(task.epoch(1, 0)))
    assert ids.shape[2] == 8
    assert ids.min() >= 0
    for row, length in enumerate(lengths):
        assert (tags[row, :length] > 0).all()
        assert (tags[row, length:] == -100).all()
    batches = list(task.epoch(1, 0))
    assert len(batches) == task.steps_per_epoch == 15
    assert sum(task.size(batch) for batch in batches) == task.examples == 60


def test_the_lstm_is_sparsified_and_the_output_is_not(task):
    model = task.build(1)
    task.sparsify(model, Recipe("toy-pos", method="meprop", k=4))
    assert isinstance(model.lstm, MePropLSTM)
    assert type(model.output) is nn.Linear


def test_padding_changes_no_loss(task):
    model = task.build(1).double()
    ids, lengths, tags = next(batch for batch in task.epoch(1, 0) if len(set(batch[1].tolist())) > 1)
    together = task.loss(model, (ids, lengths, tags)) * lengths.sum()
    alone = sum(
        task.loss(model, (ids[i : i + 1, :n], lengths[i : i + 1], tags[i : i + 1, :n])) * n
        for i, n in enumerate(lengths.tolist())
    )
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(("method", "k"), [("dense", None), ("meprop", 4), ("unified", 4)])
def test_it_learns(method, k):
    result = run(ToyPOS(batch=8, hidden=32), Recipe("toy-pos", method=method, k=k, epochs=2))
    assert result.test_at_best > 85


def test_dropout_is_of_training_alone():
    task = ToyPOS(batch=4, hidden=4, dropout=0.5, examples=8)
    assert task.options["dropout"] == 0.5
    model, batch = task.build(1), next(iter(task.epoch(1, 0)))
    assert task.loss(model, batch) != task.loss(model, batch)
    assert task.evaluate(model, "dev") == task.evaluate(model, "dev")


def test_tags_of_the_language(treebank_files):
    task = POS(batch=4, hidden=4, tags="language", files=treebank_files)
    assert set(task.labels.words[1:]) == {"DE", "NO", "VE", "PU"}


@pytest.mark.parametrize("tags", ["universal", "language"])
def test_a_treebank_without_tags_is_no_task_to_be_good_at(tmp_path, tags):
    path = tmp_path / "no-tags.conllu"
    path.write_text("1\tYes\t_\t_\t_\t_\t0\troot\t_\t_\n\n")
    with pytest.raises(UserError, match=f"have no {tags} tags, only '_'"):
        POS(files=",".join([str(path)] * 3), tags=tags)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tags": "penn"}, "tags must be"),
        ({"batch": 0}, "batch must be an integer of at least 1"),
        ({"hidden": 1.5}, "hidden must be"),
        ({"dropout": 1}, "dropout must lie in"),
        ({"files": "one.conllu"}, "files must be 3 paths"),
        ({"files": "a,,c"}, "files must be 3 paths"),
        ({"examples": 61}, "examples 61 are more than the 60"),
        ({"device": "cuda:99"}, "the device cuda:99 is not there"),
        ({"device": "gpu"}, "the device gpu cannot be used"),
    ],
)
def test_options(treebank_files, wrong, message):
    with pytest.raises(UserError, match=message):
        POS(**({"files": treebank_files} | wrong))


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="needs MEPROP_BENCH_DATA")
def test_real_treebank():
    task = POS(examples=100)
    assert len(task.build(0).features) == 7
    assert task.build(0).lstm.input_size == 190
    assert task.steps_per_epoch == 100
