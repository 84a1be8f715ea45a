"""What a node does, in this process: no Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.measure.peaks import Peaks
from meprop_bench.measure.worker import WorkerDied
from meprop_bench.results.schema import Row
from meprop_bench.sweep import node
from meprop_bench.sweep.cluster import _differs
from meprop_bench.sweep.node import CaseResult, Failed, Measurer, WorkerActor, code, undo_threads
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.rows import failed_row
from meprop_bench.sweep.runner import Runner, SweepProgress
from meprop_bench.workloads.case import Case

_CASE = Case(k=3, threads=1)
_PLAN = Plan(name="t", cases=(_CASE,))


@pytest.mark.parametrize("own", [None, "3"])
def test_what_ray_says_of_threads_is_undone_and_what_the_node_says_is_not(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "self").mkdir()
    began_with = b"HOME=/\0" + (b"" if own is None else b"OMP_NUM_THREADS=3\0")
    (tmp_path / "self/environ").write_bytes(began_with)
    monkeypatch.setattr(node, "PROC", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", own or "64")
    undo_threads()
    assert os.environ.get("OMP_NUM_THREADS") == own


def test_a_node_has_the_code_of_the_driver_or_it_is_said_what_differs() -> None:
    own = code()
    assert own == code()
    assert _differs(own, own) is None
    assert "are not those here" in (_differs({**own, "digest": "other"}, own) or "")
    assert (_differs({**own, "version": "9", "digest": "other"}, own) or "").startswith("it has meprop-bench 9")
    assert "install it" in (_differs({"missing": "ModuleNotFoundError: x"}, own) or "")


def test_a_case_is_measured_as_at_home_and_its_rows_environments_and_peaks_are_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = failed_row(_CASE, "known", "e0")
    seen: list[list[Row]] = []

    def measure(self: Runner, case: Case) -> list[Row]:
        seen.append(self._store.rows())
        self._notify(case, "checking")
        peaks = Peaks({"float32": 1e9}, ((1024, 1e9),)).to_json()
        self._store.write_environment({"e1": {"device": "cpu"}, "e2": {"device": "cpu"}}, {"cpu": peaks})
        return [failed_row(case, "made up", "e1")]

    monkeypatch.setattr(Runner, "measure", measure)
    monkeypatch.chdir(tmp_path)
    measurer = Measurer(_PLAN, str(tmp_path))
    stage, found = measurer.measure(_CASE, [known])
    assert isinstance(stage, SweepProgress)
    assert stage.stage == "checking"
    assert isinstance(found, CaseResult)
    assert [row.error for row in found.rows] == ["made up"]
    assert list(found.environments) == ["e1"]
    assert list(found.peaks) == ["cpu"]
    assert seen == [[known]]
    assert list(tmp_path.iterdir()) == []  # a node writes nothing

    def fails(self: Runner, case: Case) -> list[Row]:
        raise KeyError("x")

    monkeypatch.setattr(Runner, "measure", fails)
    assert list(measurer.measure(_CASE, [])) == [Failed("KeyError: 'x'")]


def test_a_node_that_has_not_the_data_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case(workload="mlp", k=3, threads=1, data="mnist", in_features=784)
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = Measurer(Plan(name="t", cases=(case,)), str(tmp_path)).examine([case], {}, False)
    assert "mnist" in found["refused"]
    (tmp_path / "my_model.py").write_text("x = 1\n")
    found = Measurer(_PLAN, str(tmp_path)).examine([_CASE], {"my_model.py:build": "another"}, False)
    assert found["refused"] == "its file of the model my_model.py:build is not the one here: copy it there"


class _Worker:
    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] = []

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        self.seen.append(message)
        if message["do"] == "die":
            raise WorkerDied("was killed")
        return {"done": True}

    def close(self) -> None:
        self.seen.append({"do": "close"})


def test_a_checkpoint_is_where_the_driver_has_it_or_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker = _Worker()
    host = WorkerActor(lambda: worker, str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for path in ("checkpoints/dense-1.pt", "elsewhere/dense-1.pt"):
        assert host.request({"do": "train", "checkpoint": path}, 1.0) == {"done": True}
    shared, own = (Path(message["checkpoint"]) for message in worker.seen)
    assert shared == Path("checkpoints/dense-1.pt")
    assert (own.name, own.parent.is_dir()) == ("dense-1.pt", True)
    assert host.request({"do": "die"}, 1.0) == {"died": "was killed"}
    host.close()
    assert not own.parent.exists()
