"""Measuring from Python: what is asked for, what comes of it, what is left behind. The measuring itself is faked."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import meprop_bench as mb
from meprop_bench.api import measure
from meprop_bench.results.axes import AXES
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.sweep.plan import Plan
from meprop_bench.workloads.case import Case

LAYER = {"workload": "linear", "threads": 1, "hidden": 64, "batch": 8}


def _row(case: Case) -> Row:
    axes = {axis.stored: getattr(case, axis.field) for axis in AXES.values()}
    return Row.of(
        **axes, case_id=case.case_id, kernel="native", phase="backward", check=PASSED, environment_id="e1", loops=1,
        speedup=4.0, median_s=1.0, values_s=(1.0, 1.1, 1.0, 0.9), baseline_median_s=4.0,
        baseline_values_s=(4.0, 4.4, 4.0, 3.6), run_lengths=(2, 2), speedup_low=4.0, speedup_high=4.0,
    )  # fmt: skip


class _Runner:
    """Takes a plan and a store as `Runner` does, and has a row for each case at once."""

    plan: Plan
    interrupt_after: int | None = None

    def __init__(self, plan: Plan, store: Any, **_: Any) -> None:
        type(self).plan = plan
        self._store = store

    def run(self) -> None:
        self._store.write_environment({"e1": {"cpu": "made up"}})
        for number, case in enumerate(self.plan.cases):
            if number == self.interrupt_after:
                raise KeyboardInterrupt
            if case.case_id not in self._store.done_case_ids():
                self._store.append([_row(case)])


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> type[_Runner]:
    own = type("Own", (_Runner,), {})
    monkeypatch.setattr(measure, "Runner", own)
    return own


def test_lists_are_multiplied_and_single_values_are_not(runner: type[_Runner]) -> None:
    found = mb.compare(**LAYER, k=[8, np.int64(16)], method=("unified", "meprop"), seed=3, progress=False)
    cases = {(case.method, case.k) for case in runner.plan.cases}
    assert cases == {("unified", 8), ("meprop", 8), ("unified", 16), ("meprop", 16)}
    assert {case.seed for case in runner.plan.cases} == {runner.plan.seed} == {3}
    assert len(found.rows) == 4
    assert runner.plan.checks == ("gradients",)


def test_settings_are_those_of_a_plan(runner: type[_Runner]) -> None:
    own = {"target": 0.1, "budget": 3.0, "processes": 2, "utilization": False}
    mb.compare(**LAYER, k=8, **own, parity=True, seeds=4, steps=20, progress=False)
    plan = runner.plan
    assert {name: getattr(plan, name) for name in own} == own
    assert (plan.checks, plan.accuracy_seeds, plan.accuracy_steps) == (("gradients", "accuracy"), 4, 20)


def test_values_may_be_those_of_numpy_and_torch(runner: type[_Runner]) -> None:
    mb.compare(**LAYER, k=np.array([0.1, 0.5]), device=torch.device("cpu"), dtype=torch.float64, progress=False)
    assert [case.k for case in runner.plan.cases if case.method == "meprop"] == [0.1, 0.5]
    assert {(case.device, case.dtype) for case in runner.plan.cases} == {("cpu", "float64")}


def test_k_by_layer_is_a_dictionary(runner: type[_Runner]) -> None:
    own: dict[str, Any] = {"data": "made-up", "method": "unified", "k": 0.1, "threads": 1, "progress": False}
    mb.compare(workload="transformer", **own, k_by_layer={"blocks.0.*": 0.5, "*.up": 8})
    assert [case.k_by_layer for case in runner.plan.cases] == ["blocks.0.*=0.5;*.up=8"]
    mb.compare(workload="transformer", **own, k_by_layer=[{"*.up": 8}, "*.up=0.5"])
    assert [case.k_by_layer for case in runner.plan.cases] == ["*.up=8", "*.up=0.5"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "there is nothing to measure: give a function that builds a model"),
        ({**LAYER, "kk": 3}, "unknown argument 'kk': did you mean 'k'"),
        ({**LAYER, "in-features": 3}, "unknown argument 'in-features': did you mean 'in_features'"),
        ({**LAYER, "budgets": 3}, "unknown argument 'budgets': did you mean 'budget'"),
        ({**LAYER, "k": []}, "k has no value: give it one"),
        ({**LAYER, "k": "8,16"}, "k must be"),
        ({**LAYER, "method": "mepropp"}, "unknown method 'mepropp': did you mean 'meprop'"),
        ({**LAYER, "optimizer": "sgd"}, "for the workload mlp"),
        ({"workload": "mlp", "gradient": "rows"}, 'add optimizer="sgd" (or adagrad), or gradient="dense"'),
        ({"build": "no_such_file.py:build"}, "there is no file no_such_file.py"),
        ({"build": "mnits"}, "unknown model 'mnits': did you mean 'mnist'"),
        ({"build": "mnist", "model": "digits"}, "the model is given twice"),
        ({"build": 3}, "not by something of type int"),
        ({"build": torch.nn.Linear(2, 2)}, "not by something of type Linear: give build itself"),
        ({**LAYER, "seeds": 3}, "add parity=True"),
        ({**LAYER, "resume": True}, "name it by out"),
        ({**LAYER, "budget": -1}, "budget must be more than 0 seconds"),
        ({**LAYER, "deadline": -1}, "deadline must be more than 0 seconds"),
        ({**LAYER, "processes": 0}, "processes must be an integer from 1"),
    ],
)
def test_what_is_wrong_is_one_line(runner: type[_Runner], arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(mb.UserError) as caught:
        mb.compare(**arguments, progress=False)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_nothing_is_left_behind(runner: type[_Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = mb.compare(**LAYER, k=8, method="unified", progress=False)
    assert found.folder is None
    assert list(tmp_path.iterdir()) == []
    assert found.rows[0].speedup == 4.0
    assert "meprop_bench.compare(workload='linear', threads=1" in str(found)


def test_what_is_saved_is_loaded_again(runner: type[_Runner], tmp_path: Path) -> None:
    found = mb.compare(**LAYER, k=8, method="unified", progress=False)
    folder = found.save(tmp_path / "kept")
    assert found.folder == folder
    again = mb.load(folder)
    assert (again.rows, again.folder) == (found.rows, folder)
    assert {"README.md", "measurements.jsonl", "environment.json"} <= {path.name for path in folder.iterdir()}
    with pytest.raises(mb.UserError, match=r"kept is not empty"):
        found.save(folder)
    with pytest.raises(mb.UserError, match="cannot write to"):
        found.save(folder / "README.md" / "below")


def test_a_folder_is_kept_and_gone_on_with(runner: type[_Runner], tmp_path: Path) -> None:
    runner.interrupt_after = 1
    wanted: dict[str, Any] = {**LAYER, "k": [8, 16], "method": "unified", "out": tmp_path, "progress": False}
    begun = mb.compare(**wanted)
    assert len(begun.rows) == 1
    runner.interrupt_after = None
    found = mb.compare(**wanted, resume=True)
    assert found.folder == begun.folder
    assert found.folder is not None
    assert len(found.rows) == 2
    assert mb.load(found.folder).rows == found.rows


def test_an_interrupt_gives_what_is_done_and_says_so(runner: type[_Runner]) -> None:
    runner.interrupt_after = 1
    found = mb.compare(**LAYER, k=[8, 16], method="unified", progress=False)
    assert len(found.rows) == 1
    assert "interrupted after 1 of 2 cases" in found.notes
    assert "interrupted after 1 of 2 cases" in str(found)
    assert "interrupted after 1 of 2 cases" in found._repr_html_()


def test_an_interrupt_before_anything_is_done_passes_through(runner: type[_Runner]) -> None:
    runner.interrupt_after = 0
    with pytest.raises(KeyboardInterrupt):
        mb.compare(**LAYER, k=8, method="unified", progress=False)


def test_progress_is_on_standard_error_alone(capsys: pytest.CaptureFixture[str], runner: type[_Runner]) -> None:
    mb.compare(**LAYER, k=8, method="unified")
    assert capsys.readouterr().out == ""


def test_without_progress_nothing_is_shown(
    capsys: pytest.CaptureFixture[str], runner: type[_Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "check_feasible", lambda cases, say, **_: say("examining it"))
    mb.compare(**LAYER, k=8, method="unified", progress=False)
    assert capsys.readouterr() == ("", "")
    mb.compare(**LAYER, k=8, method="unified")
    assert capsys.readouterr().err.startswith("examining it\n")


def test_importing_and_reading_load_no_torch(runner: type[_Runner], tmp_path: Path) -> None:
    folder = mb.compare(**LAYER, k=8, method="unified", progress=False).save(tmp_path / "kept")
    program = f"""
import sys
import meprop_bench as mb
assert "torch" not in sys.modules
assert not {{"numpy", "rich", "click", "msgspec"}} & set(sys.modules), "heavy"
found = mb.load({str(folder)!r})
print(found, found.best(), found._repr_html_())
assert mb.UserError and dir(mb)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4.00x" in done.stdout


def test_every_public_name_is_there() -> None:
    assert {name: getattr(mb, name) for name in mb.__all__}
    stub = (Path(mb.__file__).parent / "__init__.pyi").read_text(encoding="utf-8")
    assert all(f" as {name}\n" in stub for name in mb.__all__ if name != "__version__")


def test_a_table_of_pandas(runner: type[_Runner], monkeypatch: pytest.MonkeyPatch) -> None:
    found = mb.compare(**LAYER, k=[8, 16], method="unified", progress=False)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(mb.UserError, match=r"needs pandas, which .*: pip install 'meprop-bench\[notebook\]'"):
            found.to_pandas()
    pytest.importorskip("pandas", reason="needs the notebook extra")
    frame = found.to_pandas()
    assert list(frame["k"]) == [8, 16]
    assert list(frame["speedup"]) == [4.0, 4.0]


def test_a_profile_is_of_one_case() -> None:
    with pytest.raises(mb.UserError, match="a profile takes one case: give k one value, not 8, 16"):
        mb.profile(**LAYER, k=[8, 16])
    with pytest.raises(mb.UserError, match=r"name it step.json or .json.gz"):
        mb.profile(**LAYER, k=8, trace="step")


def test_a_notebook_shows_the_line_and_no_traceback() -> None:
    assert mb.UserError("name it")._render_traceback_() == ["UserError: name it"]  # what IPython looks for
