"""The verb as a user runs it, and its trainings with workers that answer at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from meprop_bench import cli
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.worker import WorkerDied
from meprop_bench.results.store import Store
from meprop_bench.sweep.parity import ParityPlan, case_id, compare
from meprop_bench.tasks import editions
from meprop_bench.tasks.recipe import Recipe

_RECIPE = Recipe("digits", {"batch": 50}, "meprop", 4, epochs=3)


class Answering:
    """A worker with figures for each side and seed."""

    def __init__(self, figures, log):
        self.figures, self.log, self.closed = figures, log, False

    def request(self, message, timeout):
        if message["do"] == "hello":
            return {"environment": {"allocator": "kept"}, "environment_id": "e" * 12}
        side = "dense" if message["recipe"]["method"] == "dense" else "sparse"
        self.log.append((message["seed"], side))
        figure = self.figures[side][message["seed"] - 1]
        if isinstance(figure, BaseException):
            raise figure
        if isinstance(figure, str):
            return {"error": figure, "kind": "error"}
        options = {"batch": 50, "device": "cpu", "hidden": 500, "layers": 2}
        metric, percent = ("accuracy", True) if message["recipe"]["task"] == "digits" else ("minus the loss", False)
        return {"figure": figure, "metric": metric, "percent": percent, "steps": 75, "options": options,
                "notes": ["all of it"], "data_published": False}  # fmt: skip

    def close(self):
        self.closed = True


@pytest.fixture
def judge(tmp_path):
    """Compare figures; give the parity, what was trained, and the store's root."""

    def run(dense, sparse, *, recipe=_RECIPE, seeds=None, margin=0.5, processes=2, store=None, progress=lambda _: None):
        log, workers = [], []

        def start():
            workers.append(Answering({"dense": dense, "sparse": sparse}, log))
            return workers[-1]

        comparison = ParityPlan(recipe, seeds or len(dense), margin)
        opened = store or Store.create(tmp_path, "parity", "m", "c", comparison.to_json())
        with opened:
            try:
                found = compare(comparison, opened, processes=processes, progress=progress, start=start)
            finally:
                assert all(worker.closed for worker in workers)
        return found, sorted(log), opened.folder

    return run


def test_a_metric_of_the_users_own_is_judged_in_its_unit_and_against_its_scale(judge):
    recipe = replace(_RECIPE, task="my_model.py:build", optimizer="own")
    dense, sparse = [-2.0, -2.1, -2.05], [-2.003, -2.103, -2.054]
    found, _, _ = judge(dense, sparse, recipe=recipe, margin=None)
    assert (found.verdict, found.percent, found.margin) == ("pass", False, pytest.approx(0.005 * 2.05))
    assert found.metric == "minus the loss, at the end"
    assert judge(dense, sparse, recipe=recipe, margin=0.001)[0].verdict == "fail"
    short, _, _ = judge([96.0, 95.0], [96.0, 95.1], recipe=replace(_RECIPE, steps=75))
    assert short.metric == "accuracy on the development set, at the end"
    from meprop_bench.cli.parity import _verdict

    assert _verdict(found) == (
        "parity holds: minus the loss holds within 0.01025 (-0.003 [-0.005, -0.002]); 3 seeds of 75 steps"
    )
    nothing_learnt, _, _ = judge([10.0, 12.0], [10.0, 12.0], recipe=recipe)
    assert "all seeds differ alike, as those of models that learnt nothing yet" in _verdict(nothing_learnt)


@pytest.mark.parametrize(
    ("sparse", "verdict"),
    [
        ([96.1, 95.9, 96.0], "pass"),
        ([94.1, 93.9, 94.0], "fail"),
        ([97.1, 93.9, 95.0], "inconclusive"),
    ],
)
def test_the_verdict_is_of_the_paired_difference(judge, sparse, verdict):
    found, log, folder = judge([96.0, 96.0, 96.0], sparse)
    assert found.verdict == verdict
    assert found.seeds == (1, 2, 3)
    assert found.method == tuple(sparse)
    assert log == [(seed, side) for seed in (1, 2, 3) for side in ("dense", "sparse")]
    (row,) = Store.open(folder).rows()
    assert row.parity == found
    assert row.environment_id == "e" * 12
    assert found.metric == "accuracy on the test set, at the best development score"
    assert (row.notes[-1].text, row.data_published) == ("all of it", False)
    assert (row.batch, row.out_features, row.k) == (50, 500, 4)
    assert not (folder / "checkpoints").exists()


def test_one_seed_decides_nothing(judge):
    found, _, _ = judge([96.0], [96.0])
    assert found.verdict == "inconclusive"
    assert found.low is None


def test_a_rate_of_1_is_stored_though_no_sweep_has_it(judge):
    recipe = replace(_RECIPE, algorithm="mesimp", details={"rate": 1.0})
    _, _, folder = judge([96.0], [96.0], recipe=recipe)
    assert [row.rate for row in Store.open(folder).rows()] == [1.0]


def test_pairs_that_are_stored_are_not_trained_again(judge, tmp_path):
    with pytest.raises(UserError, match="training sparse from seed 2 failed: out of luck"):
        judge([90.0, 90.0, 90.0], [90.0, "out of luck", 90.0], processes=1)
    (root,) = tmp_path.iterdir()
    with Store.open(root) as before:
        assert before.rows()[0].parity.seeds == (1,)
    found, log, _ = judge([0.0, 90.0, 90.0], [0.0, 90.0, 90.0], store=Store.open(root, write=True))
    assert found.baseline == (90.0, 90.0, 90.0)
    assert {seed for seed, _ in log} == {2, 3}
    again, log, _ = judge([0.0] * 3, [0.0] * 3, store=Store.open(root, write=True))
    assert (again, log) == (found, [])


def test_a_worker_that_dies_is_one_line(judge):
    with pytest.raises(UserError, match=r"training dense from seed 1 failed: its process killed by signal 9"):
        judge([WorkerDied("killed by signal 9"), 1.0], [1.0, 1.0], processes=1)


def test_progress_tells_pairs_and_what_is_left(judge):
    said = []
    judge([96.0, 95.0], [95.0, 95.5], progress=said.append, processes=1)
    assert [(found.seed, found.pair) for found in said if found.seed] == [(1, (96.0, 95.0)), (2, (95.0, 95.5))]
    assert said[-1].share == 1.0
    assert said[-1].left_s == 0.0


def test_a_comparison_is_of_something():
    for recipe, settings, words in (
        (_RECIPE.dense(), {}, "nothing to compare"),
        (_RECIPE, {"seeds": 0}, "seeds must be at least 1"),
        (_RECIPE, {"margin": -1.0}, "margin must be"),
        (_RECIPE, {"margin": float("nan")}, "margin must be"),
    ):
        with pytest.raises(UserError, match=words):
            ParityPlan(recipe, **settings)
    assert case_id(ParityPlan(_RECIPE, 3)) == case_id(ParityPlan(_RECIPE, 9))
    assert case_id(ParityPlan(_RECIPE)) != case_id(ParityPlan(_RECIPE, margin=1.0))


def test_pairs_of_data_that_were_split_otherwise_are_not_gone_on_with(tmp_path, capsys, monkeypatch):
    """A folder from before the digits were split anew: its seeds would be judged together with others'."""
    from meprop_bench.sweep import parity

    figures = {"dense": [96.0, 96.0], "sparse": [96.0, 96.1]}
    defaults = {**parity.compare.__kwdefaults__, "start": lambda: Answering(figures, [])}
    monkeypatch.setattr(parity.compare, "__kwdefaults__", defaults)
    wanted = ["parity", "--task", "digits", "--k", "4", "--seeds", "2", "--out", str(tmp_path), "--processes", "1"]
    cli.run(wanted)
    (folder,) = tmp_path.iterdir()
    head = json.loads((folder / "environment.json").read_text())
    assert head["plan"].pop("editions") == {"digits": 2}
    (folder / "environment.json").write_text(json.dumps(head))
    capsys.readouterr()
    cli.run([*wanted, "--resume"])
    assert "no earlier run of this comparison on this machine: starting anew" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2
    assert editions("mnist", "my_model.py:build", None) == {}


def test_names_are_escaped_in_markdown(tmp_path, capsys, monkeypatch):
    from meprop_bench.sweep import parity

    monkeypatch.setattr(Recipe, "label", "unified | <b>k=4</b>")
    figures = {"dense": [96.0, 96.0], "sparse": [96.0, 96.1]}
    defaults = {**parity.compare.__kwdefaults__, "start": lambda: Answering(figures, [])}
    monkeypatch.setattr(parity.compare, "__kwdefaults__", defaults)
    wanted = ["parity", "--task", "digits", "--k", "4", "--seeds", "2", "--out", str(tmp_path), "--processes", "1"]
    cli.run([*wanted, "--format", "md"])
    printed = capsys.readouterr().out
    assert "unified \\| \\<b\\>k=4\\</b\\>" in printed
    assert "<b>" not in printed


def test_a_comparison_for_several_processes_is_a_row_of_theirs(judge):
    recipe = replace(_RECIPE, method="unified", options={"batch": 25}, world_size=2)
    _, _, folder = judge([96.0, 95.0], [96.0, 95.1], recipe=recipe)
    *_, row = Store.open(folder).rows()
    assert (row.world_size, row.exchange, row.batch) == (2, "gathered", 25)
    assert [note.text for note in row.notes][:2] == [
        "digits unified k=4 P=2 gathered: trained for 3 epochs",
        "its accuracy is that of one process, which computes what the ranks would",
    ]


def test_for_real(tmp_path):
    """k of all neurons is dense training: no difference at all, in real processes, stored, reported and resumed."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    arguments = [
        *("parity", "--task", "digits", "--hidden", "16", "--batch", "50", "--k", "16", "--epochs", "1"),
        *("--seeds", "2", "--out", str(tmp_path), "--processes", "1"),
    ]
    command = [sys.executable, "-m", "meprop_bench", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert found.returncode == ExitCode.OK, found.stderr
    assert (
        "parity holds: accuracy holds within 0.5 points (+0.00 [+0.00, +0.00]), but all seeds differ alike"
        in found.stdout
    )
    assert "seed 2: dense" in found.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("parity-digits-meprop-k-16")
    assert cli.run(["report", str(folder)]) == ExitCode.OK


def test_formats_and_codes(tmp_path, capsys, monkeypatch):
    from meprop_bench.sweep import parity

    figures = {"dense": [96.0, 96.0], "sparse": [90.0, 90.1]}
    defaults = {**parity.compare.__kwdefaults__, "start": lambda: Answering(figures, [])}
    monkeypatch.setattr(parity.compare, "__kwdefaults__", defaults)
    wanted = ["parity", "--task", "digits", "--k", "4", "--seeds", "2", "--out", str(tmp_path), "--processes", "1"]
    assert cli.run([*wanted, "--format", "md"]) == ExitCode.REGRESSION
    assert "| 2 | 96.00 | 90.10 | -5.90 |" in capsys.readouterr().out
    assert cli.run([*wanted, "--resume", "--format", "json"]) == ExitCode.REGRESSION
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"][0]["parity"]["verdict"] == "fail"
    assert len(list(tmp_path.iterdir())) == 1
    heavy = {"others_cores": 1.5, "cpu_usable_cores": 2, "threads": 1, "load_average": [3.1, 1, 1]}
    monkeypatch.setattr("meprop_bench.measure.machine.state", lambda threads: heavy)
    figures["sparse"] = [97.0, 90.0]
    assert cli.run([*wanted]) == ExitCode.INCONCLUSIVE
    out = capsys.readouterr().out
    assert "inconclusive: whether accuracy holds within 0.5 points is undecided (cannot tell): about" in out
    assert out.startswith("This machine was busy (load 3.1 on 2 cores; other processes took 1.50 of 2 cores")
    assert "the accuracies below do not depend on it" in " ".join(out.split())


def test_its_folder_has_the_page_that_an_index_links_to(tmp_path, capsys, monkeypatch):
    from meprop_bench.sweep import parity

    figures = {"dense": [96.0, 96.2], "sparse": [90.0, 90.1]}
    defaults = {**parity.compare.__kwdefaults__, "start": lambda: Answering(figures, [])}
    monkeypatch.setattr(parity.compare, "__kwdefaults__", defaults)
    wanted = ["parity", "--task", "digits", "--k", "4", "--seeds", "2", "--out", str(tmp_path), "--processes", "1"]
    assert cli.run([*wanted, "--format", "json"]) == ExitCode.REGRESSION
    out, err = capsys.readouterr()
    json.loads(out)
    (folder,) = tmp_path.iterdir()
    assert f"report: {folder / 'README.md'}" in err
    page = (folder / "README.md").read_text()
    assert "accuracy is lost" in page
    assert cli.run(["report", "--index", str(tmp_path)]) == ExitCode.OK
    assert f"({folder.name}/README.md)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to compare"),
        (["--k", "3", "--seeds", "0"], "seeds must be"),
        (["--k", "3", "--margin", "-1"], "margin must be"),
        (["--k", "3", "--optimizer", "adm"], "unknown optimizer"),
        (["--k", "3", "--threads", "0"], "threads must be"),
        (["--k", "3", "--device", "cuda:99"], "the device cuda:99 is not there"),
        (["--k", "3", "--exchange", "gathered"], "exchange 'gathered' is for several processes: add --world-size 2"),
        (["--k", "3", "--world-size", "0"], "world-size must be an integer of at least 1"),
        (["--k", "3", "--world-size", "2", "--exchange", "agreed"], "agree on one selection"),
        (["--k", "3", "--world-size", "2", "--exchange", "agree"], "did you mean 'agreed'"),
        (["--method", "mesimp", "--k", "3", "--world-size", "2"], "does not go with an algorithm"),
        (["--k", "3", "--world-size", "2", "--budgets", "1m"], "leave --world-size or --budgets out"),
    ],
)
def test_wrong_wishes_are_one_line(tmp_path, capsys, arguments, words):
    assert cli.run(["parity", "--task", "digits", "--out", str(tmp_path), *arguments]) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
