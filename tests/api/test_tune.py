from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.api.tuned import tune
from meprop_bench.errors import UserError
from meprop_bench.report.markdown import escaped
from meprop_bench.tuning import run
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import Budget
from tests.tuning.instant import Instant


class Recorded(Instant):
    recipes: list[Any] = []  # noqa: RUF012

    def __init__(self, recipe: Any, store: Any, budget: Budget, **_: Any) -> None:
        super().__init__(recipe, store, budget)
        self.recipes.append(recipe)

    def examine(self) -> Mapping[str, Any]:
        return {"metric": "accuracy", "percent": True, "rows": True, "layers": [], "notes": []}


@pytest.fixture(autouse=True)
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Processes", Recorded)


def test_in_python(tmp_path: Path) -> None:
    said: list[str] = []
    found = tune("digits", k=0.25, method="unified", gradient="dense", budget="10m", out=tmp_path, progress=said.append)
    assert found.decided
    assert found.arm == Arm("unified", 0.25)
    assert str(found).endswith(found.sentence)
    assert str(found) == repr(found) == "\n\n".join(filter(None, (found.doubt, found.sentence)))
    assert found.sentence.startswith(
        "Take unified, k = 0.25, on 1 of 2 layers: a step is 1.50x [1.45, 1.55], accuracy "
    )
    assert found.code is not None
    assert "nn.convert(model, k=0.25" in found.code
    assert found.to_json()["verdict"] == "take"
    assert escaped(found.sentence) in found._repr_markdown_()
    assert found.folder.parent == tmp_path
    assert said
    assert Recorded.recipes[-1].schedule == "cosine"
    again = tune("digits", k=0.25, method="unified", gradient="dense", budget=600, out=tmp_path, resume=True)
    assert again.folder == found.folder
    assert again.sentence == found.sentence


def test_it_shows_where_it_is_unless_told_not_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {"k": 0.25, "method": "unified", "gradient": "dense", "budget": "10m"}
    tune("digits", **asked, out=tmp_path)
    shown = capsys.readouterr()
    assert "dense, 1000 steps, seed " in shown.err
    assert not shown.out
    tune("digits", **asked, out=tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")


def test_layers_are_left_and_have_their_k_as_on_the_command_line(tmp_path: Path) -> None:
    own: dict[str, Any] = {"k": [0.25, 0.5], "method": "unified", "gradient": "dense", "budget": "10m"}
    found = tune("digits", **own, k_by_layer={"linear0": 0.5}, out=tmp_path, progress=False)
    assert {arm["ks"][0] for arm in (each["arm"] for each in found.to_json()["arms"])} == {("linear0", 0.5)}
    found = tune("digits", **own, k_by_layer={"linear*": 0.5}, out=tmp_path, progress=False)
    assert "0.5 in linear*" in found.sentence
    assert "linear*" not in found._repr_markdown_().replace('"linear*"', "").replace("'linear*=", "")  # but in code
    found = tune("digits", **own, leave="linear1;x*", out=tmp_path, progress=False)
    assert all(each["arm"]["left"] == ["linear1", "x*"] for each in found.to_json()["arms"])
    with pytest.raises(UserError, match="k by layer is written as"):
        tune("digits", **own, k_by_layer="0.5", out=tmp_path, progress=False)


def test_a_model_of_ones_own_has_its_own_optimizer_and_schedule(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def build(): ...\n")
    found = tune(f"{path}:build", k=[0.25], budgets=["1s", 10], out=tmp_path)
    assert (Recorded.recipes[-1].optimizer, Recorded.recipes[-1].schedule) == ("own", "constant")
    assert found.arm is None
    assert found.sentence.startswith("From 1 s on unified, k = 0.25")


def test_what_cannot_be_used_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file nowhere\.py"):
        tune("nowhere.py:build", out=tmp_path)
    with pytest.raises(UserError, match="did you mean 'digits'"):
        tune("digit", out=tmp_path)
    with pytest.raises(UserError, match="is no time"):
        tune("digits", budget="soon", out=tmp_path)
