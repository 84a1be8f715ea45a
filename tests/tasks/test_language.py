"""The language model: its windows, its measure, that it learns and resumes, and what does not fit it."""

import itertools
import json
import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from meprop_bench import cli
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.nn import MePropLinear
from meprop_bench.sweep.accuracy import trained
from meprop_bench.tasks import load_task
from meprop_bench.tasks.language import Language, ToyLanguage
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run

_SMALL = {"batch": 8, "hidden": 16, "heads": 2, "layers": 1, "length": 16}


@pytest.fixture(scope="module")
def task():
    return ToyLanguage(**_SMALL)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{part}.txt" for part in ("train", "dev", "test")]
    for path, text in zip(paths, ("abcab" * 40, "abcaq" * 9, "ab"), strict=True):
        path.write_text(text)
    return ",".join(map(str, paths))


def _read(task, ids):
    return "".join(task.characters.words[number] or "?" for number in ids.tolist())


def test_a_window_is_followed_by_the_next_one(files):
    task = Language(**{**_SMALL, "length": 7, "batch": 4}, files=files)
    text = "abcab" * 40 + "\n"
    assert task.characters.words == (None, "a", "b", "c")  # a line's end that occurs once is unknown
    seen = {}
    for x, y in task.epoch(1, 0):
        assert x.shape == y.shape == (4, 7)
        for row, after in zip(x, y, strict=True):
            assert torch.equal(row[1:], after[:-1])
            seen[_read(task, row) + _read(task, after[-1:])] = True
    assert set(seen) <= {text[i : i + 8] for i in range(0, len(text) - 7, 7)}
    assert task.examples == 28
    assert task.steps_per_epoch == 7


def test_batches_follow_from_seed_and_epoch_and_hold_every_window(task):
    def all_of(seed, epoch):
        return [x for x, _ in task.epoch(seed, epoch)]

    first = all_of(1, 0)
    assert len(first) == task.steps_per_epoch == task.examples // 8
    rows = torch.cat(first)
    assert len(torch.unique(rows, dim=0)) > 0.9 * len(rows)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, all_of(1, 0), strict=True))
    assert not torch.equal(first[0], all_of(1, 1)[0])
    assert not torch.equal(first[0], all_of(2, 0)[0])


def test_the_metric_is_minus_the_bits_of_every_character_but_the_first(files):
    task = Language(**{**_SMALL, "length": 7}, files=files)
    model = task.build(3).eval()
    ids = task._parts["dev"]
    nats = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 7):
            window = ids[start : start + 8]
            logits = model(window[None, :-1])[0]
            nats += F.cross_entropy(logits, window[1:], reduction="none").tolist()
    assert len(nats) == 45  # 9 x 5 characters and a line's end, but the first
    assert task.evaluate(model, "dev") == pytest.approx(-sum(nats) / 45 / math.log(2), rel=1e-6)
    assert task.evaluate(model, "test") < 0  # shorter than a window
    assert task.evaluate(task.build(3).train(), "dev") == task.evaluate(model, "dev")


def test_it_learns_dense_and_sparsified(task):
    dense = run(task, Recipe("toy-language", steps=150))
    assert task.evaluate(task.build(1), "dev") < -4.7
    assert dense.final_dev > -3.6  # how often each character occurs gives -4.2
    recipe = Recipe("toy-language", method="unified", k=0.5, steps=150)
    sparse = run(task, recipe)
    assert -4.2 < sparse.final_dev < dense.final_dev
    layers = [module for module in sparse.model.modules() if isinstance(module, MePropLinear)]
    assert len(layers) == 4
    assert type(sparse.model.head) is torch.nn.Linear


def test_a_training_that_is_killed_goes_on_to_the_same_end(task, tmp_path):
    recipe = Recipe("toy-language", method="meprop", k=4, steps=20)
    dropping = ToyLanguage(**_SMALL, dropout=0.2)
    whole = run(dropping, recipe, 3)

    def kill(step):
        if step == 13:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(dropping, recipe, 3, checkpoint=path, after_step=kill)
    resumed = run(dropping, recipe, 3, checkpoint=path)
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [each.dev for each in resumed.history] == [each.dev for each in whole.history]


def test_figures_are_no_percentages(task):
    assert (task.metric, task.percent) == ("-bits/character", False)
    found = trained(Recipe("toy-language", _SMALL, steps=3), [1])
    assert (found.metric, found.percent) == ("-bits/character", False)
    assert -8 < found.of[1] < 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "mesimp", "k": 4}, "meSimp does not fit: cannot follow the forward of GPT"),
        ({"method": "meact", "details": {"pretrain": 1}}, "the task toy-language does not number its examples"),
    ],
)
def test_what_does_not_fit_is_refused(task, recipe, message):
    with pytest.raises(UserError, match=message):
        run(task, Recipe("toy-language", **recipe))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 30, "heads": 4}, "hidden must be a multiple of the 4 heads, not 30"),
        ({"length": 20_000}, "made-up has [0-9]+ characters to train on: take a smaller --length"),
        ({"examples": 10**6}, "examples 1000000 are more than the [0-9]+ training windows of made-up"),
        ({"heads": 0}, "heads must be an integer of at least 1, not 0"),
        ({"data": "ud-ewt"}, "the task toy-language has no data"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        load_task("toy-language", **options)


def test_what_no_memory_holds_is_one_line_and_no_end_of_the_process(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**20))
    load_task("toy-language", batch=1, hidden=8, length=8)
    with pytest.raises(UserError, match=r"windows of 1,000 characters, [0-9]+ at a time, needs at least [0-9,]+ GiB"):
        load_task("toy-language", length=1000)


def test_data_and_files_exclude_each_other(files):
    with pytest.raises(UserError, match="not of both: leave one out"):
        Language(data="ud-ewt", files=files)


def test_train_and_parity_show_it_in_its_own_digits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = list(itertools.chain(*((f"--{name}", str(size)) for name, size in _SMALL.items())))
    monkeypatch.setattr(sys, "argv", ["meprop-bench"])
    assert cli.run(["train", "--task", "toy-language", *small, "--steps", "5", "--threads", "1"]) == ExitCode.OK
    said = capsys.readouterr()
    assert said.out.startswith("-bits/character: test -")
    assert "%" not in said.out
    figure = said.out.split()[2]
    assert len(figure.partition(".")[2]) == 3
    svg = next((tmp_path / "training").glob("*/curve.svg")).read_text()
    assert "-bits/character" in svg.replace("\N{MINUS SIGN}", "-")
    arguments = ["parity", "--task", "toy-language", *small, "--method", "unified", "--k", "0.5", "--epochs", "1"]
    code = cli.run([*arguments, "--seeds", "2", "--format", "json", "--out", "p"])
    said = capsys.readouterr()
    (row,) = json.loads(said.out)["rows"]
    assert (row["parity"]["percent"], row["workload"]) == (False, "toy-language")
    assert row["parity"]["margin"] == pytest.approx(-0.005 * sum(row["parity"]["baseline"]) / 2)
    assert code in (ExitCode.OK, ExitCode.REGRESSION, ExitCode.INCONCLUSIVE)
    assert "seed 1: dense -" in said.err


@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="MEPROP_BENCH_DATA is not set")
def test_real_text():
    task = Language(**_SMALL)
    assert task.data_published is True
    assert 60 < len(task.characters) < 120
    assert task.examples > 100_000
    assert run(task, Recipe("language", steps=2)).final_dev < -4
    assert Language(**_SMALL, data="ud-ewt", examples=50).examples == 50
