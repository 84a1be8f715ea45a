from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.stats import Interval
from meprop_bench.tuning import run
from meprop_bench.tuning.api import tune
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.journal import Job, Trained
from meprop_bench.tuning.timing import Costs, Timing


class Instant:
    processes = 2
    recipes: list[Any] = []  # noqa: RUF012

    def __init__(self, recipe: Any, store: Any, budget: Budget, **_: Any) -> None:
        self.recipes.append(recipe)

    def __enter__(self) -> Instant:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def examine(self) -> Mapping[str, Any]:
        return {"metric": "accuracy, %", "percent": True, "rows": True, "layers": [], "notes": []}

    def costs(self) -> Costs:
        return Costs(0.0, 0.0, 100, 1000, (Layer("linear0", 100), Layer("linear1", 10, converted=False)))

    def measure(self, arms: Sequence[Arm], budget: Budget) -> Mapping[Arm, Timing]:
        return {arm: Timing(Interval(1.5, 1.45, 1.55), 0.01) for arm in arms}

    def train(self, jobs: Iterator[Job], budget: Budget) -> Iterator[tuple[Job, Trained]]:
        for job in jobs:
            yield job, Trained(90 + math.log2(job.steps) + job.seed % 3 / 100, 0.01, 0.01)


@pytest.fixture(autouse=True)
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Processes", Instant)


def test_in_python(tmp_path: Path) -> None:
    said: list[str] = []
    found = tune("digits", k=0.25, method="unified", gradient="dense", budget="10m", out=tmp_path, progress=said.append)
    assert found.decided
    assert found.arm == Arm("unified", 0.25)
    assert str(found) == found.sentence
    assert found.sentence.startswith(
        "Take unified, k = 0.25, on 1 of 2 layers: a step is 1.50x [1.45, 1.55], accuracy "
    )
    assert found.code is not None
    assert "nn.convert(model, k=0.25" in found.code
    assert found.to_json()["verdict"] == "take"
    assert found._repr_markdown_().startswith(found.sentence)
    assert found.folder.parent == tmp_path
    assert said
    assert Instant.recipes[-1].schedule == "cosine"
    again = tune("digits", k=0.25, method="unified", gradient="dense", budget=600, out=tmp_path, resume=True)
    assert again.folder == found.folder
    assert again.sentence == found.sentence


def test_a_model_of_ones_own_has_its_own_optimizer_and_schedule(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def build(): ...\n")
    found = tune(f"{path}:build", k=[0.25], budgets=["1s", 10], out=tmp_path)
    assert (Instant.recipes[-1].optimizer, Instant.recipes[-1].schedule) == ("own", "constant")
    assert found.arm is None
    assert found.sentence.startswith("From 1 s on unified, k = 0.25")


def test_what_cannot_be_used_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file nowhere\.py"):
        tune("nowhere.py:build", out=tmp_path)
    with pytest.raises(UserError, match="did you mean 'digits'"):
        tune("digit", out=tmp_path)
    with pytest.raises(UserError, match="is no time"):
        tune("digits", budget="soon", out=tmp_path)
