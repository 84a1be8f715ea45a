"""Every example runs, at a small size: programs print what they promise, models are measured as anybody's are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meprop_bench.optional import unavailable_reason
from meprop_bench.sweep.plan import load_preset, plan_preset
from meprop_bench.tasks import load_task
from meprop_bench.tasks.mistakes import examine
from meprop_bench.tasks.own import Own
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run
from meprop_bench.workloads import Case, setup

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

PROGRAMS = {
    "perceptron.py": (["--hidden", "32", "--epochs", "3"], r"^k = 0.25  accuracy [3-9]\d\.\d%"),
    "row_adam.py": (["--width", "256", "--steps", "100"], r"^unified, RowAdam +accuracy [2-9]\d\.\d%"),
    "simplify.py": (["--steps", "400"], r"^[1-9]\d?% of the operations are left, accuracy [5-9]\d"),
}
"""Example -> arguments that make it quick, and what it then prints."""

LAUNCHED = {
    "data_parallel.py": (
        ["--width", "128", "--steps", "150", "--exchange", "agreed"],
        r"^agreed, 2 processes  accuracy [4-9]\d\.\d%, [1-9]\d?% of the bytes",
    ),
}
"""The same of those that torchrun starts."""

MODELS = {
    "bert": ("transformers", "unified", 0.6, 9),
    "gpt": ("torch", "unified", 0.7, 6.7),
    "own_model": ("torch", "meprop", 0.9, None),
    "perceptron": ("sklearn", "unified", 0.8, 0),
    "resnet": ("torchvision", "meprop", 0.5, 0),
    "vit": ("torchvision", "unified", 0.6, 0),
}
"""Example -> what it needs, its method, the least share of the backward pass that it sparsifies, and what a model that
has learnt nothing scores, about, or is above.
"""


def test_each_is_tried_and_listed():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {*PROGRAMS, *LAUNCHED, *(f"{name}.py" for name in MODELS)}
    assert names == set(re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    arguments, expected = PROGRAMS[name]
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.MULTILINE), done.stdout
    assert list(tmp_path.iterdir()) == []


def _model(name: str) -> str:
    """Return the name of an example's model of a small size, or skip."""
    if (reason := unavailable_reason(MODELS[name][0])) is not None:
        pytest.skip(f"{MODELS[name][0]} {reason}")
    return f"{EXAMPLES / name}.py:tiny"


@pytest.mark.parametrize("name", LAUNCHED)
def test_it_runs_under_torchrun(name: str, tmp_path: Path) -> None:
    arguments, expected = LAUNCHED[name]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("one_thread")
def test_its_model_can_be_measured(name: str) -> None:
    case = Case(workload="model", model=_model(name), method=MODELS[name][1], k=0.25, optimizer="own", threads=1)
    prepared = setup(case)
    assert prepared.check() == "passed"
    assert prepared.converted is not None
    assert prepared.converted >= MODELS[name][2]
    for call in prepared.steady["step"]:
        call()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("one_thread")
def test_its_model_learns(name: str) -> None:
    model, worst = _model(name), MODELS[name][3]
    task = load_task(model)
    assert isinstance(task, Own)
    known, _ = examine(task)
    assert known["evaluates"] == (worst is not None)
    if worst is None:
        return
    recipe = Recipe(model, method=MODELS[name][1], k=0.25, optimizer="own", steps=20)
    for each in (recipe.dense(), recipe):
        result = run(task, each)
        assert result.steps == 20
        assert result.final_dev > -worst


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_its_preset_measures_the_models_at_their_own_size(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = plan_preset(load_preset(str(file)))
    for case in plan.cases:
        assert case.model is not None
        path, _, function = case.model.partition(":")
        assert function == "build"
        assert Path(path).stem in MODELS
    assert len(plan.cases) * plan.budget < 450


@pytest.mark.usefixtures("one_thread")
def test_the_perceptron_is_an_estimator_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := unavailable_reason("sklearn")) is not None:
        pytest.skip(f"scikit-learn {reason}")
    from sklearn.utils.estimator_checks import check_estimator

    monkeypatch.syspath_prepend(EXAMPLES)
    from perceptron import SparsePerceptron  # type: ignore[import-not-found]

    check_estimator(SparsePerceptron(hidden=64, batch=16, epochs=20), on_skip=None)
