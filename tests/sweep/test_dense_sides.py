"""The dense side is chosen once for a dense work, and all processes of all its cases get that one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.measure.notes import Note
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerOverdue, WorkerRefused
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.sweep import dense_sides
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
        chosen, untried = found.of(Case(threads=1, **axes), environment, pool, starts.append)
        return chosen, tuple(untried), len(starts)

    return of, worker


def test_it_is_chosen_once_for_each_dense_work(store: Store) -> None:
    of, worker = _of(store, _answer(_COMPILED, "a note"), _answer(DenseSide()), _answer(_COMPILED))
    assert of(k=3) == (None, (), 0)  # as the method's side
    for changes in ({"k": 3}, {"k": 8, "method": "unified"}, {"compile": "on"}, {"gradient": "rows"}):
        assert of(baseline="best", **changes) == (_COMPILED, (Note("a note"),), 1)
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


class _Compiling(_Asked):
    """One that never gets done with compiling."""

    def request(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        if any(each["compiled"] for each in message.get("among", ())):
            self.asked.append({**message, "timeout": timeout})
            raise WorkerOverdue(f"no answer within {timeout:.3g} s, so it was killed")
        return super().request(message, timeout)


_FUSED = DenseSide(optimizer="fused")


def _limited(store: Store, worker: Any, limit_s: float) -> tuple[Any, list[str]]:
    stages: list[str] = []
    workers = [worker, _Asked({})]
    pool = Pool({0: lambda: workers.pop(0)})
    found = DenseSides(store, 0.5, random.Random(1))
    found.compile_s = lambda: limit_s
    case = Case(workload="model", model="digits", threads=1, baseline="best")

    def of() -> tuple[DenseSide | None, Any]:
        return found.of(case, "e1", pool, stages.append)

    return of, stages


def test_compiling_has_a_limit_of_its_own_and_what_needs_no_compiler_is_known_then(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded: list[int] = []
    monkeypatch.setattr(dense_sides, "discard_unfinished", lambda: discarded.append(1))
    worker = _Compiling(_answer(_FUSED))
    of, stages = _limited(store, worker, 48.0)
    note = Note.of("uncompiled", seconds=48.0)
    assert of() == (_FUSED, [note])
    assert of() == (_FUSED, [note])  # known by now
    assert stages == ["choosing the dense side", "compiling the dense side"]
    assert discarded == [1]
    eager, compiling = worker.asked
    assert not any(each["compiled"] for each in eager["among"])
    assert compiling["timeout"] == 48.0
    best, *others = compiling["among"]
    assert DenseSide.from_json(best) == _FUSED
    assert others
    assert all(each["compiled"] for each in others)
    assert note.text == "compiled dense was left out: there were only 48 s for compiling it"


def test_compiled_within_the_limit_it_may_be_the_fastest(store: Store) -> None:
    of, stages = _limited(store, _Asked(_answer(_FUSED), _answer(_COMPILED, "a note")), 48.0)
    assert of() == (_COMPILED, [Note("a note")])
    assert len(stages) == 2


def test_where_there_is_no_time_to_compile_it_is_not_tried(store: Store) -> None:
    of, stages = _limited(store, worker := _Asked(_answer(_FUSED)), 5.0)
    assert of() == (_FUSED, [Note.of("uncompiled", seconds=5.0)])
    assert stages == ["choosing the dense side"]
    assert len(worker.asked) == 1


def test_a_resumed_run_knows_that_there_was_no_time_to_compile(store: Store) -> None:
    note = Note.of("uncompiled", seconds=48.0)
    axes: dict[str, Any] = Case(threads=1, k=3, baseline="best").to_json()
    kernel = axes.pop("kernel")
    row = Row(**axes, case_id="a", kernel_requested=kernel, kernel=None, phase="backward", environment_id="e1",
              check="wrong", baseline_chosen="eager", notes=(note, Note("another")))  # fmt: skip
    store.append([row])
    of, _ = _of(store)
    assert of(baseline="best", k=9) == (DenseSide(), (note,), 0)
