"""Mistakes themselves are tested where they are found, in tests/tasks/test_own.py; here, how they reach the user."""

import re

import pytest

from meprop_bench.errors import UserError
from meprop_bench.sweep import models, waiting
from meprop_bench.sweep.models import check_models, check_recipes, examine
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.workloads.case import Case


def check(name, **more):
    recipe = Recipe(name, method="unified", k=4, optimizer="own")
    check_recipes([recipe], threads=1, allocator="default", **more)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("def build(): os._exit(7)", "my_model.py:build cannot be examined: its process exited with status 7"),
        ("def build(): os.kill(os.getpid(), 9)", "cannot be examined: its process killed by signal 9"),
        ("def build(): torch.empty(1 << 45)", "cannot be examined: out of memory: .*can't allocate memory"),
        ("def build(): return training(loss=lambda m, b: m(b[0]).new_empty(1 << 45))", "examined: out of memory: "),
        ("def build(): input()", r"my_model.py:build cannot be called \(my_model.py, line \d+\): EOFError"),
        ("import sys\nprint('{}')\nsys.exit('bye')", r"ends the program when it is imported \(exit bye\)"),
    ],
)
def test_a_process_that_ends_is_one_line(own_model, lines, message):
    with pytest.raises(UserError) as caught:
        check(own_model(lines))
    assert re.search(message, str(caught.value)), caught.value
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_printed_disturbs_nothing_and_a_model_is_examined_once(own_model, monkeypatch):
    name = own_model("""
        print('{"error": "printed"}')

        def build():
            print('{"error": "printed"}')
            os.write(1, b'{"error": "written"}\\n' * 3000)
            os.write(2, b'noise\\n' * 3000)
            return training()
    """)
    check(name)
    with pytest.raises(UserError, match="does not say how good a model is: add evaluate= to its Training"):
        check(name, evaluates=True)
    monkeypatch.setattr(models, "start_worker", None)
    check(name)  # known by now
    with pytest.raises(TypeError):
        check(own_model("# edited\ndef build(): return training()"))


def test_a_model_that_hangs_is_given_up(own_model, monkeypatch):
    monkeypatch.setattr(models, "_LONGEST_S", 4.0)
    with pytest.raises(UserError, match="cannot be examined: its process gave no answer within 4 s, so it was killed"):
        check(own_model("import time\ndef build(): time.sleep(600)"))


def test_what_takes_long_is_said(own_model, capsys, monkeypatch):
    line, said = f"examining {(name := own_model())}, which is built twice and takes a step in each way: ", []
    monkeypatch.setattr(waiting, "_SILENT_S", 0.01)
    check(name)
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith(line)
    check(own_model("# edited"), say=said.append)
    assert said[0].startswith(line)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(waiting, "_SILENT_S", 600.0)
    check(own_model("# edited again"))
    assert capsys.readouterr().err == ""


def test_each_way_of_a_models_cases_is_examined_and_tasks_are_not(own_model, monkeypatch):
    asked = []
    monkeypatch.setattr(models, "check_recipes", lambda recipes, **more: asked.append((recipes, more)))
    name = own_model()
    case = {"workload": "model", "model": name, "optimizer": "own", "allocator": "default", "threads": 1}
    cases = [
        Case(method=method, k=k, gradient=gradient, seed=seed, **case)
        for method in ("meprop", "unified")
        for k in (2, 4)
        for gradient in ("dense", "rows")
        for seed in (0, 1)
    ]
    check_models([*cases, Case(workload="model", model="digits"), Case()], evaluates=True)
    ((recipes, more),) = asked
    assert {(recipe.method, recipe.gradient) for recipe in recipes} == {
        (method, gradient) for method in ("meprop", "unified") for gradient in ("dense", "rows")
    }
    assert len(recipes) == 4
    assert more == {"threads": 1, "allocator": "default", "evaluates": True, "differs": True, "say": None}


def test_a_build_that_takes_long_is_called_twice(own_model):
    name = own_model("""
        import pathlib

        def build():
            with pathlib.Path(__file__).with_name("calls").open("a") as file:
                file.write(".")
            return training(evaluate=accuracy)
    """)
    found = examine(None, [Recipe(name, method="meprop", k=4, optimizer="own").to_json()], 1)
    assert found == {"evaluates": True, "metric": "evaluate", "differs": None}
    from pathlib import Path

    assert Path(name.partition(":")[0]).with_name("calls").read_text() == ".."


_FIXED = "torch.manual_seed(0); m = perceptron({}); return training(model=m, evaluate=accuracy, batches={})"


@pytest.mark.parametrize(
    ("between", "batches", "differs"),
    [
        ("", "batches()", False),
        ("nn.Dropout()", "batches()", True),
        ("", "torch.utils.data.DataLoader(list(zip(X, Y)), batch_size=6, shuffle=True)", True),
        ("", "torch.utils.data.DataLoader(list(zip(X, Y)), batch_size=6)", False),
    ],
)
def test_a_training_that_is_the_same_from_every_seed_is_not_compared_over_seeds(own_model, between, batches, differs):
    """Five seeds of it would be five times the same pair, with an interval of no width: certain of anything."""
    name = own_model(f"def build(): {_FIXED.format(between, batches)}")
    recipe = Recipe(name, method="meprop", k=4, optimizer="own").to_json()
    assert examine(None, [recipe], 1, differs=True)["differs"] == differs
    usual = own_model("def build(): return training(evaluate=accuracy)", "usual.py")
    assert examine(None, [{**recipe, "task": usual}], 1, differs=True)["differs"]


def test_the_same_from_every_seed_is_a_mistake_only_where_seeds_are_compared(own_model):
    name = own_model(f"def build(): {_FIXED.format('', 'batches()')}")
    check(name, evaluates=True)
    with pytest.raises(
        UserError, match=r"my_model.py:build is the same training from every seed, .*: leave torch\.man"
    ):
        check(name, evaluates=True, differs=True)
