"""Translation: batches, the measure, parts that alternate, and that it learns, dense and sparsified."""

import itertools
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from meprop_bench import cli
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.nn import MePropLSTM
from meprop_bench.tasks import TASKS
from meprop_bench.tasks.pos import POS
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run
from meprop_bench.tasks.translation import BOS, EOS, PAD, ToyTranslation, Translation

pytest.importorskip("sentencepiece")
sacrebleu = pytest.importorskip("sacrebleu")

_NOUNS = {"Hund": "dog", "Katze": "cat", "Maus": "mouse", "Frau": "woman", "Mann": "man", "Kind": "child"}
_VERBS = {"ruft": "calls", "schläft": "sleeps", "lacht": "laughs"}
_ADVERBS = {"": "", "nie": "never", "gern": "gladly", "laut": "aloud", "hier": "here", "heute": "today"}


def _pairs():
    """Return all sentences of a small language, and what they are in English."""
    for words in itertools.product(_NOUNS.items(), _VERBS.items(), _ADVERBS.items()):
        source, target = (" ".join(word for word in (*side, ".") if word) for side in zip(*words, strict=True))
        yield source, target


@pytest.fixture(scope="module")
def parallel_files(tmp_path_factory):
    """Write six files and return them as the option `files` takes them."""
    folder, pairs = tmp_path_factory.mktemp("parallel"), list(_pairs())
    random.Random(0).shuffle(pairs)
    paths = []
    for part, some in (("train", pairs[:-20]), ("dev", pairs[-20:-10]), ("test", pairs[-10:])):
        for side, texts in zip(("de", "en"), zip(*some, strict=True), strict=True):
            paths.append(folder / f"{part}.{side}")
            paths[-1].write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return ",".join(map(str, paths))


@pytest.fixture
def options(parallel_files):
    return {"batch": 8, "hidden": 32, "embedding": 16, "layers": 1, "vocabulary": 60, "files": parallel_files}


@pytest.fixture
def task(options):
    return Translation(**options)


def test_batches_hold_every_pair_once(task):
    batches = list(task.epoch(1, 0))
    assert len(batches) == task.steps_per_epoch == 11
    assert sum(task.size(batch) for batch in batches) == task.examples == 88
    seen = []
    for source, lengths, target in batches:
        for row, length, words in zip(source, lengths.tolist(), target, strict=True):
            assert (row[:length] != PAD).all()
            assert (row[length:] == PAD).all()
            end = words.tolist().index(EOS)
            assert words[0] == BOS
            assert (words[end + 1 :] == PAD).all()
            seen.append((task.source.decode(row[:length].tolist()), task.target.decode(words[1:end].tolist())))
    assert set(seen) <= set(_pairs())
    assert len(set(seen)) == 88


def test_batches_follow_from_seed_and_epoch(task):
    def first(seed, epoch):
        return next(iter(task.epoch(seed, epoch)))[0].tolist()

    assert first(1, 0) == first(1, 0)
    assert first(1, 0) != first(1, 1)
    assert first(1, 0) != first(2, 0)


def test_padding_changes_no_loss(task):
    model = task.build(1).double()
    source, lengths, target = next(batch for batch in task.epoch(1, 0) if len({*(batch[2] == PAD).sum(1).tolist()}) > 1)
    words = (target[:, 1:] != PAD).sum(1)
    together = task.loss(model, (source, lengths, target)) * words.sum()
    alone = sum(
        task.loss(model, (source[i : i + 1, :n], lengths[i : i + 1], target[i : i + 1, : words[i] + 1])) * words[i]
        for i, n in enumerate(lengths.tolist())
    )
    torch.testing.assert_close(together, alone)


def test_every_lstm_is_sparsified_and_nothing_else(task):
    model = task.build(1)
    kinds = {name: type(layer) for name, layer in model.named_modules()}
    task.sparsify(model, Recipe("toy-translation", method="meprop", k=0.25))
    changed = {name for name, layer in model.named_modules() if type(layer) is not kinds[name]}
    assert changed == {"encoder.lstm", "decoder.lstm"}
    assert isinstance(model.encoder.lstm, MePropLSTM)
    assert type(model.decoder.output) is nn.Linear


def test_bleu_is_sacrebleus_of_plain_text(task, monkeypatch):
    model = task.build(1)
    pairs = dict(_pairs())
    monkeypatch.setattr(task, "translate", lambda model, sentences: [pairs[sentence] for sentence in sentences])
    assert task.evaluate(model, "dev") == pytest.approx(100)
    monkeypatch.setattr(
        task, "translate", lambda model, sentences: [pairs[sentence].replace("dog", "Dog") for sentence in sentences]
    )
    files = task.options["files"].split(",")
    sources, references = (Path(path).read_text(encoding="utf-8").splitlines() for path in files[4:])
    expected = sacrebleu.corpus_bleu([pairs[source].replace("dog", "Dog") for source in sources], [references]).score
    assert task.evaluate(model, "test") == pytest.approx(expected)
    assert expected < 100


def test_beam_and_length_penalty_reach_the_search(options, monkeypatch):
    task = Translation(**options, beam=3, length_penalty=0.5)
    model, seen = task.build(1), {}
    search = model.translate
    monkeypatch.setattr(model, "translate", lambda *given, **how: seen.update(how) or search(*given, **how))
    task.translate(model, ["Hund ruft ."])
    assert seen == {"beam": 3, "length_penalty": 0.5, "max_length": 2 * len(task.source.encode("Hund ruft .")) + 10}


def _trained(files, **recipe):
    """Return the task and what 16 epochs at a rate for models of this size make of it."""
    task = Translation(batch=8, hidden=32, embedding=16, layers=1, vocabulary=60, beam=3, files=files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "translation", replace(TASKS["translation"], rates={"adam": 0.05}))
        return task, run(task, Recipe("translation", epochs=16, **recipe))


@pytest.fixture(scope="module")
def dense(parallel_files):
    return _trained(parallel_files)


def test_it_learns(dense):
    assert dense[1].test_at_best > 50


def test_it_learns_sparsified_by_turns(parallel_files):
    _, result = _trained(parallel_files, method="meprop", k=0.25, algorithm="alternating")
    assert result.test_at_best > 50


def test_translations_are_in_the_order_of_their_sentences(dense):
    task, model = dense[0], dense[1].model
    pairs = list(_pairs())[::-5]
    sentences = [source for source, _ in pairs]
    together = task.translate(model, sentences)
    assert together == [task.translate(model, [sentence])[0] for sentence in sentences]
    assert sum(found == target for found, (_, target) in zip(together, pairs, strict=True)) > len(pairs) / 2


def test_parts_take_turns_and_a_resumed_training_keeps_them(task, tmp_path):
    settings = Recipe("toy-translation", method="meprop", k=0.25, algorithm="alternating", epochs=3, evaluations=2)
    whole = run(task, settings)
    alternated = [(found.figures["k encoder.lstm"], found.figures["k decoder.lstm"]) for found in whole.history]
    assert alternated == [(0.25, 1), (0.25, 1), (1, 0.25), (1, 0.25), (0.25, 1), (0.25, 1)]

    def stop(step):
        if step == task.steps_per_epoch + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task, settings, checkpoint=tmp_path / "c.pt", after_step=stop)
    resumed = run(task, settings, checkpoint=tmp_path / "c.pt")
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_who_cannot_take_turns(task, treebank_files):
    with pytest.raises(UserError, match="alternating does not fit: no layer of Encoder has a k"):
        run(task, Recipe("toy-translation", algorithm="alternating", epochs=1))
    tagging = POS(batch=4, hidden=4, files=treebank_files)
    with pytest.raises(UserError, match="the task pos has no parts that could alternate"):
        run(tagging, Recipe("toy-translation", method="meprop", k=2, algorithm="alternating", epochs=1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch must be an integer of at least 1"),
        ({"beam": 0}, "beam must be"),
        ({"vocabulary": 2.5}, "vocabulary must be"),
        ({"vocabulary": 9}, "a vocabulary of 9 for the source sentences is smaller than its characters"),
        ({"hidden": 31}, "hidden must be even"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"length_penalty": -1.0}, "length-penalty must be"),
        ({"length_penalty": float("nan")}, "length-penalty must be"),
        ({"files": "a.de,a.en"}, "files must be 6 paths with commas between them"),
        ({"examples": 89}, "examples 89 are more than the 88 training pairs"),
        ({"device": "cuda:99"}, "the device cuda:99 is not there"),
    ],
)
def test_options(options, wrong, message):
    with pytest.raises(UserError, match=message):
        Translation(**(options | wrong))


def test_fewer_examples(options):
    task = Translation(**options, examples=20)
    assert (task.examples, task.steps_per_epoch, task.options["examples"]) == (20, 3, 20)


def test_made_up_sentences(options):
    task = ToyTranslation(hidden=8, layers=1)
    assert (task.examples, task.options["embedding"], task.name) == (400, 8, "toy-translation")
    assert 0 <= task.evaluate(task.build(1), "dev") < 20
    assert ToyTranslation(**options).examples == 88


def _train(options, *more):
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return cli.run(["train", "--task", "translation", *words, "--epochs", "1", "--threads", "1", *more])


def test_the_command_trains_on_files_of_ones_own(options, tmp_path, capsys):
    chosen = ("--k", "0.25", "--algorithm", "alternating", "--length-penalty", "1", "--out", str(tmp_path / "t"))
    assert _train(options, *chosen) == ExitCode.OK
    assert "BLEU: test" in capsys.readouterr().out
    assert (tmp_path / "t" / "history.jsonl").exists()


def test_a_malformed_line_is_one_line_of_error(options, tmp_path, capsys):
    bad = tmp_path / "bad.en"
    bad.write_text("one\n\n")
    files = options["files"].split(",")
    files[1] = str(bad)
    assert _train(options | {"files": ",".join(files)}, "--out", str(tmp_path / "t")) == ExitCode.USAGE
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "bad.en, line 2: it is empty" in error[0]


@pytest.mark.parametrize("missing", ["sentencepiece", "sacrebleu"])
def test_without_an_optional_library(options, missing, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert _train(options, "--out", str(tmp_path / "t")) == ExitCode.USAGE
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert f"translation needs {missing}, which is not installed: pip install" in error[0]


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="needs MEPROP_BENCH_DATA")
def test_real_corpus():
    task = Translation(examples=2000, vocabulary=1000, hidden=8, embedding=4, layers=1)
    assert (task.steps_per_epoch, len(task.source), len(task.target)) == (32, 1000, 1000)
    assert task.target.decode(task.target.encode("A man in an orange hat.")) == "A man in an orange hat."
