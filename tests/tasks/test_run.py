"""The one loop: what it trains, that it can be killed anywhere, and that what goes along with it is right."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from meprop_bench.data import ImagePart, numbered_batches
from meprop_bench.errors import UserError
from meprop_bench.models.mlp import MLP
from meprop_bench.optimizers import OPTIMIZERS
from meprop_bench.tasks.algorithm import MinimalActivation, ScheduledK, Simplification
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import Evaluation, describe, read_checkpoint, run
from meprop_bench.tasks.task import Task
from meprop_bench.training import evaluate

FEATURES, CLASSES = 12, 4
_CENTRES = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(9))


def part(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return ImagePart(_CENTRES[labels] + 0.7 * torch.randn(n, FEATURES, generator=generator), labels)


class Clusters(Task):
    """Noisy clusters; it remembers what it was asked for."""

    name: ClassVar[str] = "clusters"
    metric: ClassVar[str] = "accuracy"

    def __init__(self, *, batch=10, hidden=32, dropout=0.1, examples=205):
        self.batch, self.hidden, self.dropout, self.examples = batch, hidden, dropout, examples
        self.parts = {"train": part(examples, 1), "dev": part(60, 2), "test": part(60, 3)}
        self.seen: list[list[int]] = []
        self.evaluated: list[str] = []
        self.devs: list[float] | None = None

    @property
    def options(self):
        return {"batch": self.batch, "hidden": self.hidden, "dropout": self.dropout, "examples": self.examples}

    @property
    def steps_per_epoch(self):
        return self.examples // self.batch

    def build(self, seed):
        return MLP(FEATURES, self.hidden, CLASSES, dropout=self.dropout, seed=seed)

    def epoch(self, seed, epoch):
        steps = self.steps_per_epoch
        return numbered_batches(self.parts["train"], self.batch, seed=seed, steps=steps, start=epoch * steps)

    def loss(self, model, batch):
        assert model.training
        self.seen.append(batch[2].tolist())
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, split):
        self.evaluated.append(split)
        if split == "dev" and self.devs is not None:
            return self.devs.pop(0)
        return evaluate(model, self.parts[split].images, self.parts[split].labels)

    def numbers(self, batch):
        return batch[2]


def parameters(result):
    return [p.detach().clone() for p in result.model.parameters()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_it_is_plain_training():
    """Parameters to the bit, against the loop that anybody would write."""
    task = Clusters()
    found = run(task, Recipe("clusters", steps=30), seed=3)
    torch.manual_seed(3)
    model = task.build(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for images, labels, _ in itertools.chain(task.epoch(3, 0), itertools.islice(task.epoch(3, 1), 10)):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same(parameters(found), list(model.parameters()))
    assert found.steps == 30
    assert found.steps_per_epoch == 20


def test_the_seed_decides_and_the_random_state_is_left_alone():
    recipe = Recipe("clusters", epochs=2, method="random", k=4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(Clusters(), recipe, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert run(Clusters(), recipe, 5).history[-1].loss == first.history[-1].loss
    assert run(Clusters(), recipe, 6).history != first.history


def test_both_sides_see_the_same_batches():
    dense, sparse = Clusters(), Clusters()
    run(dense, Recipe("clusters", epochs=2))
    run(sparse, Recipe("clusters", epochs=2, method="meprop", k=4))
    assert dense.seen == sparse.seen
    assert len(set(itertools.chain(*dense.seen[:20]))) == 200


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(optimizer):
    result = run(Clusters(), Recipe("clusters", epochs=15, optimizer=optimizer, method="meprop", k=8))
    assert result.final_dev > 80


def test_the_first_of_the_best_evaluations_is_tested_and_counts():
    task = Clusters()
    task.devs = [50.0, 70.0, 60.0, 70.0, 65.0]
    result = run(task, Recipe("clusters", epochs=5))
    assert task.evaluated == ["dev", "test", "dev", "test", "dev", "dev", "dev"]
    assert (result.best_step, result.iterations, result.best_dev, result.final_dev) == (40, 2.0, 70.0, 65.0)
    assert result.history[1].test == result.test_at_best
    assert [found.test is None for found in result.history] == [False, False, True, True, True]


def test_the_best_may_have_to_wait():
    task = Clusters()
    task.devs = [90.0, 70.0, 60.0, 75.0]
    assert run(task, Recipe("clusters", epochs=4, best_after=1)).best_dev == 75.0
    task.devs = [40.0]
    assert run(task, Recipe("clusters", steps=3, best_after=1)).best_dev == 40.0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 2}, [20, 40]),
        ({"epochs": 1, "evaluations": 3}, [7, 13, 20]),
        ({"steps": 7}, [7]),
        ({"steps": 25}, [20, 25]),
        ({"epochs": 1, "evaluations": 50}, list(range(1, 21))),
    ],
)
def test_when_it_evaluates(settings, steps):
    result = run(Clusters(), Recipe("clusters", **settings))
    assert [found.step for found in result.history] == steps
    assert [found.epoch for found in result.history] == [step / 20 for step in steps]


def test_evaluations_do_not_change_training():
    few = run(Clusters(), Recipe("clusters", epochs=2))
    many = run(Clusters(), Recipe("clusters", epochs=2, evaluations=7))
    assert same(parameters(few), parameters(many))
    assert few.history[-1].loss != many.history[-1].loss  # since the evaluation before


RECIPES = {
    "dense": {},
    "meprop": {"method": "meprop", "k": 4},
    "random": {"method": "random-unified", "k": 4},
    "mesimp": {"method": "mesimp", "k": 6, "details": {"rate": 0.2, "prunes": 2, "simplify": 1, "normal": 1}},
    "meact": {"method": "meact", "details": {"share": 0.03, "pretrain": 1}},
    "schedule": {"method": "meprop", "k": 16, "algorithm": "schedule", "details": {"end": 2, "shape": "cosine"}},
}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_resumed_after_any_step_it_ends_the_same(tmp_path, name, optimizer):
    settings = Recipe("clusters", epochs=4, evaluations=2, optimizer=optimizer, **RECIPES[name])
    whole = run(Clusters(), settings, checkpoint=tmp_path / "whole.pt")
    path = tmp_path / "checkpoint.pt"
    stops = [1, 9, 10, 11, 20, 21, 33, 40, 41, 55, 79, 80]
    for stop in stops:

        def after(step, stop=stop):
            if step == stop:
                raise Killed

        with pytest.raises(Killed):
            run(Clusters(), settings, checkpoint=path, after_step=after)
        assert read_checkpoint(path)["step"] == stop
    resumed = run(Clusters(), settings, checkpoint=path)
    assert same(parameters(resumed), parameters(whole))
    without = [Evaluation(**{**vars(found), "seconds": 0.0}) for found in resumed.history]
    assert without == [Evaluation(**{**vars(found), "seconds": 0.0}) for found in whole.history]
    ends = [read_checkpoint(tmp_path / file) for file in ("whole.pt", "checkpoint.pt")]
    for key in ("model", "best_model"):
        assert same(list(ends[0][key].values()), list(ends[1][key].values()))


def test_simplification_removes_neurons_and_tells_sizes():
    details = {"rate": 0.2, "prunes": 2, "simplify": 2, "normal": 1}
    result = run(Clusters(), Recipe("clusters", epochs=3, method="mesimp", k=6, details=details, best_after=2))
    sizes = [found.figures["size"] for found in result.history]
    assert 32 > sizes[0] > sizes[1] == sizes[2]
    assert result.model.linear0.out_features == result.figures["size linear0"]
    assert result.figures["nonzeros linear0"] > 0
    assert result.best_step == 60


def test_activation_masks_after_its_epochs():
    result = run(Clusters(), Recipe("clusters", epochs=3, algorithm="meact", details={"share": 0.03, "pretrain": 2}))
    assert [found.figures for found in result.history[:2]] == [{}, {}]
    assert 0 < result.history[2].figures["size"] < 32


def test_a_schedule_ends_where_it_should():
    schedule = {"algorithm": "schedule", "details": {"end": 0.25}}
    result = run(Clusters(), Recipe("clusters", epochs=2, method="meprop", k=0.5, **schedule))
    assert result.history[-1].figures["k linear1"] == pytest.approx(0.25, abs=0.01)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    run(Clusters(), Recipe("clusters", epochs=1), checkpoint=path)
    for task, changes, seed, word in (
        (Clusters(), {}, 2, "seed is 1 and not 2"),
        (Clusters(hidden=16), {}, 1, "hidden is 32 and not 16"),
        (Clusters(), {"method": "meprop", "k": 4}, 1, "method is 'dense'"),
        (Clusters(), {"epochs": 2, "algorithm": "meact", "details": {"pretrain": 1}}, 1, "epochs is 1 and not 2"),
    ):
        with pytest.raises(UserError, match=word):
            run(task, Recipe("clusters", **{"epochs": 1, **changes}), seed, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a file of torch", b"\x80\x02}q\x00."])
def test_a_damaged_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        run(Clusters(), Recipe("clusters", epochs=1), checkpoint=path)


def test_a_truncated_checkpoint_is_one_line(tmp_path):
    path = tmp_path / "c.pt"
    run(Clusters(), Recipe("clusters", steps=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="is damaged"):
        run(Clusters(), Recipe("clusters", steps=1), checkpoint=path)


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        run(Clusters(), Recipe("clusters", steps=1), checkpoint=tmp_path / "missing" / "c.pt")


def test_progress_and_checkpoints_follow_the_clock(tmp_path):
    ticks = itertools.count()
    said = []
    saved = []
    path = tmp_path / "c.pt"

    def after(step):
        if path.is_file() and (not saved or read_checkpoint(path)["step"] != saved[-1]):
            saved.append(read_checkpoint(path)["step"])

    run(
        Clusters(),
        Recipe("clusters", epochs=2),
        checkpoint=path,
        save_s=15,
        progress=said.append,
        after_step=after,
        clock=lambda: float(next(ticks)),
    )
    assert [progress.step for progress in said if progress.step in (20, 40)]
    assert all(earlier.step <= later.step for earlier, later in itertools.pairwise(said))
    assert said[-1].left_s == 0
    assert len(said[-1].history) == 2
    assert saved[-1] == 40
    assert 2 <= len(saved) < 20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recipe("clusters", optimizer="adm"), "unknown optimizer 'adm': did you mean 'adam'"),
        (lambda: Recipe("clusters", epochs=0), "epochs must be an integer of at least 1, not 0"),
        (lambda: Recipe("clusters", steps=0), "steps must be"),
        (lambda: run(Clusters(), Recipe("clusters"), -1), "seed must be"),
        (lambda: Recipe("clusters", evaluations=True), "evaluations must be"),
        (lambda: Recipe("clusters", epochs=3, best_after=3), "best-after 3 leaves no evaluation"),
        (lambda: Recipe("clusters", method="top", k=3), "unknown method 'top'"),
        (lambda: Recipe("clusters", method="meprop"), "needs k"),
        (lambda: Recipe("clusters", method="meprop", k=0), "not 0"),
        (lambda: Recipe("clusters", method="meprop", k=True), "not True"),
        (lambda: Recipe("clusters", method="meprop", k=1.5), "not 1.5"),
        (lambda: Recipe("clusters", method="dense", k=3), "dense has no k"),
        (lambda: Recipe("clusters", method="meprop", k=3, gradient="sparse"), "gradient must be"),
        (lambda: Simplification(rate=0), "rate must lie"),
        (lambda: Simplification(prunes=0), "prunes must be"),
        (lambda: MinimalActivation(share=1.0), "share must lie"),
        (lambda: MinimalActivation(pretrain=0), "pretrain must be"),
        (lambda: MinimalActivation(pretrain=1.5), "pretrain must be"),
        (lambda: Simplification(spacing=0), "spacing must be"),
        (lambda: ScheduledK(3, "square"), "shape must be"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "mesimp"}, "meSimp does not fit: there is no layer to simplify"),
        ({"algorithm": "mesimp", "method": "random", "k": 3}, "activeness needs the selection"),
        ({"algorithm": "meact", "details": {"pretrain": 2}, "epochs": 2}, "leaves meAct nothing"),
        ({"algorithm": "schedule", "details": {"end": 3}}, "a schedule of k does not fit"),
        ({"algorithm": "schedule", "details": {"end": 0.5}, "method": "meprop", "k": 3}, "both be counts"),
        ({"method": "meprop", "k": 3, "gradient": "rows"}, "adam does not take row gradients"),
        ({"method": "meprop", "k": 3, "kernel": "gahter"}, "the method meprop does not fit"),
    ],
)
def test_what_does_not_fit(settings, words):
    with pytest.raises(UserError, match=words):
        run(Clusters(), Recipe("clusters", **settings))


def test_rows_train_as_dense_gradients_do():
    sides = [
        run(Clusters(), Recipe("clusters", epochs=2, optimizer="adagrad", method="unified", k=8, gradient=gradient))
        for gradient in ("dense", "rows")
    ]
    for p, q in zip(*map(parameters, sides), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-4)


def test_a_description_tells_trainings_apart():
    task = Clusters()
    recipe = Recipe("clusters", method="meprop", k=4, algorithm="mesimp", details={"rate": 0.3})
    said = describe(task, recipe, 1)
    assert said["task"] == "clusters"
    assert said["k"] == 4
    assert said["algorithm"] == "Simplification"
    assert said["rate"] == 0.3
    assert said["seed"] == 1
    # As checkpoints and settings.json have had it since they exist: those are gone on with.
    assert said.keys() - task.options.keys() == {
        "task", "optimizer", "epochs", "steps", "seed", "evaluations", "best_after", "method", "k", "gradient",
        "kernel", "algorithm", "rate", "prunes", "simplify", "normal", "count_zeros",
    }  # fmt: skip


def test_a_task_without_numbers_says_so():
    class Anonymous(Clusters):
        numbers = Task.numbers

    with pytest.raises(UserError, match="does not number its examples"):
        run(Anonymous(), Recipe("clusters", epochs=2, algorithm="meact", details={"pretrain": 1}))


def test_a_model_that_diverges_has_a_loss_of_null():
    found = Evaluation(step=1, epoch=0.1, loss=float("nan"), dev=10.0)
    assert found.to_json()["loss"] is None


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_is_refused_where_it_arises(figure):
    task = Clusters()
    task.devs = [50.0, figure]
    with pytest.raises(UserError, match=f"evaluate returned {figure} after 40 steps of seed 3: it has to return"):
        run(task, Recipe("clusters", epochs=2), 3)


def test_a_training_that_diverged_is_named(monkeypatch):
    task = Clusters()
    task.devs = [float("nan")]
    monkeypatch.setattr(Clusters, "loss", lambda self, model, batch: model(batch[0]).sum() * float("nan"))
    with pytest.raises(UserError, match="after 7 steps of seed 3: the loss is nan, the training diverged"):
        run(task, Recipe("clusters", steps=7), 3)


def test_the_metric_of_a_task_that_is_not_ours_may_be_anything():
    assert not Clusters().percent
    task = Clusters()
    task.devs = [-3.5, -1e9]
    found = run(task, Recipe("clusters", epochs=2))
    assert (found.best_dev, found.final_dev) == (-3.5, -1e9)
