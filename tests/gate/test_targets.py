"""What a project names in its pyproject.toml, as cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.settings import Settings, load_settings
from meprop_bench.gate.targets import Targets, names_of, targets
from meprop_bench.sweep.function_case import FunctionCase
from meprop_bench.workloads.case import Case


def _targets(folder: Path, text: str, **options: object) -> Targets:
    (folder / "pyproject.toml").write_text(f"[tool.meprop-bench.gate]\n{text}\n")
    return targets(load_settings(folder, **options))


def test_a_model_is_a_case_that_is_trained_as_it_is(tmp_path: Path) -> None:
    (case,) = _targets(tmp_path, 'models = ["my_model.py:build"]').cases
    assert isinstance(case, Case)
    assert (case.workload, case.model, case.method, case.optimizer) == ("model", "my_model.py:build", "dense", "own")
    assert case.label.startswith("model my_model.py:build dense cpu:")
    assert Case.from_json(json.loads(json.dumps(case.changed()))) == case


def test_a_model_with_axes(tmp_path: Path) -> None:
    text = 'models = [{model = "m.py:build", method = "unified", k = [0.1, 0.2], threads = 1}]'
    cases = _targets(tmp_path, text).cases
    assert [(case.method, case.k, case.threads) for case in cases if isinstance(case, Case)] == [
        ("unified", 0.1, 1),
        ("unified", 0.2, 1),
    ]


def test_a_function_is_a_case_for_each_size(tmp_path: Path) -> None:
    text = """
        functions = [
          "bench.py:plain",
          {function = "bench.py:parse", setup = "bench.py:text", sizes = [10, "large"], each-call = true, threads = 1},
          {function = "bench.py:parse", args = ["a", 1.5], kwargs = {strict = true}, name = "strict"},
        ]
    """
    cases = _targets(tmp_path, text, budget=7.0, pairs=3).cases
    assert [case.label for case in cases] == [
        "bench.py:plain",
        "bench.py:parse size=10",
        "bench.py:parse size=large",
        "strict",
    ]
    for case in cases:
        assert isinstance(case, FunctionCase)
        assert FunctionCase.from_json(json.loads(json.dumps(case.changed()))) == case
    assert isinstance(cases[1], FunctionCase)
    assert (cases[1].setup, cases[1].sizes, cases[1].each_call, cases[1].threads) == ("bench.py:text", (10,), True, 1)


def test_budget_pairs_and_trainings_are_the_settings(tmp_path: Path) -> None:
    text = 'functions = ["a.py:f"]\nbudget = 9\npairs = 3\naccuracy-seeds = 2\naccuracy-steps = 7'
    found = _targets(tmp_path, text)
    assert (found.budget, found.processes, found.accuracy_seeds, found.accuracy_steps) == (9.0, 3, 2, 7)


def test_only_what_may_be_judged_is_measured(tmp_path: Path) -> None:
    text = 'functions = ["a.py:f", "a.py:g"]'
    assert [case.label for case in _targets(tmp_path, text, cases=("*:g/call",)).cases] == ["a.py:g"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = [1]", "must be a list of names"),
        ('models = ["digits"]', "names a function, as"),
        ('models = [{method = "unified"}]', "names a function, as"),
        ('models = [{model = "m.py:build", metod = "unified"}]', "did you mean 'method'?"),
        ('models = [{model = "m.py:build", method = "unified", baseline = "best"}]', "leave compile and baseline best"),
        ('functions = [{setup = "a.py:f"}]', "missing required field function"),
        ('functions = [{function = "a.py:f", size = 3}]', "unknown field size"),
        ('functions = [{function = "a.py:f", sizes = 3}]', "a.py:f cannot be used"),
        ('functions = [{function = "a.py:f", args = [2026-01-01]}]', "make it in a setup function"),
        ('functions = [{function = "a.py:f", sizes = [nan]}]', "make it in a setup function"),
        ('functions = [{function = "a.py:f", each-call = true}]', "has no setup"),
        ('functions = [{function = "a.py:f", threads = 0}]', "at least 1"),
        ('functions = ["a.py:f", "a.py:f"]', "names a.py:f twice"),
        ('functions = ["a.py:f"]\ncases = ["zzz"]', "none of models and functions matches zzz: there are a.py:f"),
        ('functions = ["a.py:f"]\npreset = "gate"', "preset"),
        ('functions = ["a.py:f"]\naccuracy-seeds = 1', "accuracy-seeds"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _targets(tmp_path, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_the_names_of_another_revision(tmp_path: Path) -> None:
    assert names_of(tmp_path) == ()
    (tmp_path / "pyproject.toml").write_text('[tool.meprop-bench.gate]\nfunctions = ["a.py:f"]\n')
    assert names_of(tmp_path) == ("a.py:f",)
    (tmp_path / "pyproject.toml").write_text("[tool.meprop-bench.gate]\nkey-of-tomorrow = 3\n")
    assert names_of(tmp_path) == ()


def test_a_project_of_its_own_is_one_that_names_something() -> None:
    assert not Settings().own
    assert Settings(models=("a.py:build",)).own
