"""The dense side is chosen once for a dense work, and all processes of all its cases get that one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerRefused
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.dense_sides import DenseSides
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import DenseSide

_COMPILED = DenseSide(compiled=True)


class _Asked:
    """A process that answers each "baseline" with the next of these, and notes what it was asked."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]

    def request(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.asked.append(message)
        return self.answers.pop(0)

    def close(self) -> None:
        pass


def _answer(baseline: DenseSide, *notes: str) -> dict[str, Any]:
    return {"baseline": baseline.to_json(), "notes": list(notes)}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.create(tmp_path, "t", "m", "command", {}) as found:
        yield found


def _of(store: Store, *answers: dict[str, Any]) -> tuple[Any, _Asked]:
    worker, starts = _Asked(*answers), []  # type: ignore[var-annotated]
    pool = Pool({0: lambda: worker, 1: _Asked})
    found = DenseSides(store, 0.5, random.Random(1))

    def of(environment: str = "e1", **axes: Any) -> tuple[DenseSide | None, tuple[str, ...], int]:
        chosen, untried = found.of(Case(threads=1, **axes), environment, pool, lambda: starts.append(1))
        return chosen, tuple(untried), len(starts)

    return of, worker


def test_it_is_chosen_once_for_each_dense_work(store: Store) -> None:
    of, worker = _of(store, _answer(_COMPILED, "a note"), _answer(DenseSide()), _answer(_COMPILED))
    assert of(k=3) == (None, (), 0)  # as the method's side
    for changes in ({"k": 3}, {"k": 8, "method": "unified"}, {"compile": "on"}, {"gradient": "rows"}):
        assert of(baseline="best", **changes) == (_COMPILED, ("a note",), 1)
    assert of(baseline="best", batch=7) == (DenseSide(), (), 2)
    assert of("e2", baseline="best") == (_COMPILED, (), 3)
    first, *_ = worker.asked
    assert first.keys() == {"do", "case", "seconds", "seed"}
    assert (first["do"], first["case"]["k"], first["seconds"]) == ("baseline", 3, 0.5)


def test_where_there_is_one_candidate_nobody_is_asked(store: Store) -> None:
    of, _ = _of(store)
    assert of(workload="lstm", baseline="best") == (DenseSide(), (), 0)


def test_a_resumed_run_goes_on_with_what_its_rows_have(store: Store) -> None:
    axes: dict[str, Any] = Case(threads=1, k=3, baseline="best").to_json()
    kernel = axes.pop("kernel")
    row = Row(**axes, case_id="a", kernel_requested=kernel, kernel=None, phase="backward", environment_id="e1",
              check="wrong", baseline_chosen="compiled")  # fmt: skip
    store.append([row])
    of, worker = _of(store, _answer(DenseSide()))
    assert of(baseline="best", k=9) == (_COMPILED, (), 0)
    assert worker.asked == []
    assert of("another machine", baseline="best") == (DenseSide(), (), 1)


def test_what_cannot_be_set_up_is_the_case_s_fault(store: Store) -> None:
    of, _ = _of(store, {"error": "no such kernel", "kind": "user"})
    with pytest.raises(WorkerRefused, match="no such kernel"):
        of(baseline="best")
