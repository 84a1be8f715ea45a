from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from meprop_bench.measure.notes import Note
from meprop_bench.measure.peaks import Peaks, PeaksCache
from meprop_bench.measure.worker import WorkerDied
from meprop_bench.results.consistency import WATCHED
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.runner import Runner, SweepProgress
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import DenseSide

_CASES = (Case(k=3, threads=1), Case(k=4, threads=1))


def _kinds(row: Row) -> set[str]:
    return {note.kind for note in row.notes}


def _watts(row: Row) -> float | None:
    return None if row.sparse.utilization is None else row.sparse.utilization.power_w


class _Clock:
    """Time that passes when a worker works."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class _Worker:
    """Answers as a worker would: 4 ms against 1 ms, with some noise."""

    def __init__(self, owner: _Workers, number: int, noise: float, faults: Mapping[Any, Any]) -> None:
        self._owner, self._clock, self._log, self._faults = owner, owner.clock, owner.log, faults
        self.number = number
        self._bias = 1 + noise * random.Random(number).gauss(0, 1)
        self._case: Case | None = None

    def close(self) -> None:
        self._owner.closed += 1

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        do = message["do"]
        self._log.append((do, message))
        if do == "setup":
            self._case = Case.from_json(message["case"])
        fault = self._faults.get((do, self._case.k if self._case else None))
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            return dict(fault)
        self._clock.seconds += 1.0
        return dict(getattr(self, "_" + do)(message))

    def _hello(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"environment": {"device": message["device"]}, "environment_id": "e1"}

    def _peaks(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"peaks": Peaks({message["dtype"]: 1e11}, ((1 << 20, 1e10),)).to_json()}

    def _setup(self, message: Mapping[str, Any]) -> dict[str, Any]:
        phases = ["forward", "backward"] if message["case"]["workload"] == "linear" else ["backward", "step"]
        costs = {"backward": [[400, 40], [100, 20]]}
        about: dict[str, Any] = {"notes": [], "data_published": False}
        about |= {"baseline": "compiled" if message.get("baseline") else None}
        return {"kernel": "gather", "k": message["case"]["k"], **about, "phases": phases, "costs": costs}

    def _baseline(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"baseline": DenseSide(compiled=True).to_json(), "notes": ["nothing else could be tried"]}

    def _check(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"check": "passed", "loops": 3}

    def _measure(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._case is not None
        names = ["forward", "backward"] if self._case.workload == "linear" else ["backward", "step"]
        activity = {"wall_s": 1.0, "cores": 2, "others_s": 0.5, "stolen_s": 0.0}
        activity |= {"throttled_s": None, "overheated": None, "swapped_in": 0}
        # The third pair is spoilt, and says so.
        pairs = [*[[4e-3 * self._bias, 1e-3]] * 2, [9.0, 1e-3]]
        disturbed = None if self._case.device == "cuda:0" else [False, False, True]
        return {"pairs": dict.fromkeys(names, pairs), "disturbed": disturbed, "activity": activity}

    def _memory(self, _: Mapping[str, Any]) -> dict[str, Any]:
        dense = {"tensor_bytes": 200, "process_bytes": 9000, "growth_bytes": 300, "exact": True}
        return {"weights": {"backward": [dense, {**dense, "tensor_bytes": 100}]}}

    def _utilization(self, message: Mapping[str, Any]) -> dict[str, Any]:
        side = {"seconds": message["seconds"], "cpu_utilization": 190.0, "power_w": 50.0, "energy_per_step_j": 0.5}
        side["unavailable"] = {"gpu_utilization": "the device is the CPU"}
        baseline, method = ({**side, "iterations": count} for count in (200, 800))
        return {"phase": "backward", "sides": [baseline, {**method, "energy_per_step_j": 0.125}]}

    def _accuracy(self, message: Mapping[str, Any]) -> dict[str, Any]:
        found = [[seed, 95.0 + seed / 10 + 0.1 * message["sparsified"]] for seed in message["seeds"]]
        return {"accuracies": found, "metric": "accuracy", "percent": True}


class _Workers:
    """Starts such workers, three for a case if nothing else is said, and remembers them."""

    def __init__(self, noise: float = 1e-4, faults: Mapping[Any, Any] | None = None) -> None:
        self.clock = _Clock()
        self.log: list[tuple[str, Any]] = []
        self.started: list[str] = []
        self.closed = 0
        self.other: int | None = None
        self._noise, self._faults = noise, faults or {}

    def __call__(self, case: Case) -> _Worker:
        self.started.append(case.allocator)
        return _Worker(self, (len(self.started) - 1) % 3, self._noise, self._faults)

    @contextmanager
    def lock(self, device: str, waiting: Callable[[int | None], object]) -> Iterator[None]:
        if self.other is not None:
            waiting(self.other)
        self.log.append(("lock", device))
        try:
            yield
        finally:
            self.log.append(("give back", device))

    def count(self, do: str) -> int:
        return sum(name == do for name, _ in self.log)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> PeaksCache:
    return PeaksCache(tmp_path_factory.mktemp("peaks"))


@pytest.fixture
def run(tmp_path: Path, cache: PeaksCache) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def go(
        workers: _Workers,
        cases: Sequence[Case] = _CASES,
        again: Store | None = None,
        deadline: float | None = None,
        **settings: Any,
    ) -> Store:
        plan = Plan(name="t", cases=tuple(cases), **{"budget": 100.0, "processes": 3, **settings})
        if again is None:
            stores.append(Store.create(tmp_path, "t", "m", "command", plan.to_json()))
        store = again or stores[-1]
        seen: list[SweepProgress] = []
        store.progress = seen  # type: ignore[attr-defined]
        runner = Runner(
            plan, store, start=workers, lock=workers.lock, now=workers.clock, progress=seen.append, cache=cache,
            state=lambda threads: {"threads": threads}, deadline=Deadline(deadline, workers.clock),
        )  # fmt: skip
        runner.run()
        store.left_out = runner.left_out  # type: ignore[attr-defined]
        return store

    yield go
    for store in stores:
        store.close()


def test_each_case_gets_its_own_processes_and_a_row_for_each_phase(run: Callable[..., Store]) -> None:
    workers = _Workers()
    store = run(workers)
    assert workers.started == ["kept"] * 6
    assert workers.closed == 6
    rows = store.rows()
    assert [(row.k, row.phase) for row in rows] == [(3, "forward"), (3, "backward"), (4, "forward"), (4, "backward")]
    row = rows[1]
    assert row.speedup == pytest.approx(4, rel=1e-3)
    assert row.converged
    found = row.measurement
    assert found is not None
    assert (found.processes, found.loops, row.check, row.kernel, row.kernel_requested) == (
        3,
        3,
        "passed",
        "gather",
        "auto",
    )
    assert row.sparse.floor_s == pytest.approx(max(100 / 1e11, 20 / 1e10))
    assert row.sparse.efficiency == pytest.approx(row.sparse.floor_s / 1e-3)
    assert (row.dense.peak_memory_bytes, row.sparse.peak_memory_bytes) == (200, 100)
    assert (rows[0].sparse.floor_s, rows[0].sparse.peak_memory_bytes) == (None, None)
    assert list(store.header["environments"]) == ["e1"]


def test_a_case_locks_its_device_and_waiting_for_it_is_shown(run: Callable[..., Store]) -> None:
    workers = _Workers()
    workers.other = 4711
    store = run(workers)
    names = [name for name, _ in workers.log if name in ("lock", "give back", "hello", "utilization")]
    case = ["lock", *["hello"] * 3, "utilization", "give back"]
    assert names == 2 * case
    assert [p.stage for p in store.progress if p.waits] == ["waiting for process 4711"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("pin", [True, False])
def test_each_process_is_told_whether_to_bind_itself_to_cores(run: Callable[..., Store], pin: bool) -> None:
    workers = _Workers()
    run(workers, _CASES[:1], pin=pin)
    assert [message["pin"] for do, message in workers.log if do == "hello"] == [pin] * 3


class _Slow(_Worker):
    """A worker that takes its time to import and to set up, and notes when it has answered."""

    answered: ClassVar[list[tuple[str, int]]] = []

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        number = self.number
        if number == 0 and message["do"] in ("hello", "setup"):
            time.sleep(0.05)  # the others would overtake it
        answer = super().request(message, timeout)
        self.answered.append((message["do"], number))
        return answer


def test_one_process_compiles_and_the_others_find_it(
    run: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run's first imports, and of each workload's first set-up, one process goes first; later they go together."""
    monkeypatch.setattr(sys.modules[__name__], "_Worker", _Slow)
    _Slow.answered.clear()
    run(_Workers())
    for do in ("hello", "setup"):
        numbers = [number for name, number in _Slow.answered if name == do]
        assert numbers[0] == 0  # the first case
        assert numbers[-1] == 0  # the second one: all at once, and the slowest is last


def test_it_stops_once_the_interval_is_narrow(run: Callable[..., Store]) -> None:
    quiet, noisy = _Workers(noise=1e-4), _Workers(noise=0.2)
    assert run(quiet, _CASES[:1]).rows()[0].converged
    assert quiet.count("measure") == 2 * 3
    row = run(noisy, _CASES[:1]).rows()[0]
    assert not row.converged
    assert noisy.count("measure") > quiet.count("measure")
    assert "budget" in _kinds(row)
    assert row.data_published is False


def test_the_budget_is_not_overrun_by_more_than_a_round(run: Callable[..., Store]) -> None:
    workers = _Workers(noise=0.2)
    run(workers, _CASES[:1], budget=20.0)
    assert workers.count("measure") == 18  # a second each: a seventh round of three would end after 20


def test_one_process_gives_no_interval(run: Callable[..., Store]) -> None:
    row = run(_Workers(), _CASES[:1], processes=1, budget=5.0).rows()[0]
    assert row.speedup is not None
    assert (row.speedup_low, row.speedup_high, row.converged) == (None, None, False)


def test_the_processes_measure_in_random_order(run: Callable[..., Store]) -> None:
    workers = _Workers(noise=0.2)
    store = run(workers, _CASES[:1])
    assert store.rows()[0].measurement.run_lengths == [99, 99, 99]
    assert len({message["seed"] for do, message in workers.log if do == "measure"}) == workers.count("measure")


def test_rows_name_the_caches_and_cold_ones_are_not_watched(run: Callable[..., Store]) -> None:
    workers = _Workers()
    warm, _, cold, _ = run(workers, [Case(k=3, threads=1), Case(k=3, threads=1, caches="cold")]).rows()
    assert (warm.caches, cold.caches) == ("warm", "cold")
    assert workers.count("utilization") == 1
    assert cold.unavailable["power_w"] == "a steady loop has warm caches"


def test_rows_name_the_launch_and_replays_are_watched_too(run: Callable[..., Store]) -> None:
    cases = [Case(k=3, threads=1, device="cuda"), Case(k=3, threads=1, device="cuda", launch="graph")]
    _, eager, _, replayed = run(_Workers(), cases).rows()
    assert (eager.launch, replayed.launch) == ("eager", "graph")
    assert [_watts(row) for row in (eager, replayed)] == [50.0, 50.0]


def test_processes_that_are_kept_serve_a_group_and_the_rows_say_so(run: Callable[..., Store]) -> None:
    workers = _Workers()
    cases = [_CASES[0], Case(k=3, threads=1, allocator="default"), _CASES[1]]
    store = run(workers, cases, keep_processes=True)
    assert workers.started == ["kept"] * 3 + ["default"] * 3
    assert workers.closed == 6
    assert [row.allocator for row in store.rows()] == ["kept"] * 4 + ["default"] * 2
    assert all("shared-processes" in _kinds(row) for row in store.rows())


def test_disturbed_pairs_are_kept_marked_and_left_out(run: Callable[..., Store]) -> None:
    store = run(_Workers(), [_CASES[0], Case(k=3, threads=1, device="cuda:0")])
    row, *_, untold = store.rows()
    found = row.measurement
    assert found is not None
    assert found.disturbed_values is not None
    marked = zip(found.baseline_values_s, found.disturbed_values, strict=True)
    assert [value for value, mark in marked if mark] == [9.0] * 6
    assert row.speedup == pytest.approx(4, rel=1e-3)
    assert {Note.of("disturbed-pairs", disturbed=6, pairs=18), Note.of("others", share=0.25)} <= set(row.notes)
    assert untold.measurement.disturbed is None  # where the machine cannot tell, every pair counts; the median bears it


def test_the_machine_s_state_is_recorded_before_anything_is_measured(run: Callable[..., Store]) -> None:
    store = run(_Workers(), _CASES[:1])
    run(_Workers(), _CASES[:1], again=store)  # nothing is left to do
    assert [state["threads"] for state in store.header["states"]] == [1]
    run(_Workers(), _CASES, again=store)
    assert [state["threads"] for state in Store.open(store.folder).header["states"]] == [1, 1]


def test_each_row_names_the_revision_that_it_was_measured_at(
    run: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on at a later commit: its environment has the same id."""
    environment = {"git_revision": "one"}
    answer = {"environment_id": "e1"}
    monkeypatch.setattr(_Worker, "_hello", lambda *_: {**answer, "environment": dict(environment)})
    store = run(_Workers(), _CASES[:1])
    environment["git_revision"] = "two"
    run(_Workers(), _CASES, again=store)
    assert [row.git_revision for row in store.rows()] == ["one", "one", "two", "two"]
    assert Store.open(store.folder).header["environments"] == {"e1": {"git_revision": "one"}}


def test_peaks_are_measured_once_for_a_kind_of_arithmetic(run: Callable[..., Store]) -> None:
    workers = _Workers()
    store = run(workers, [*_CASES, Case(k=3, threads=1, dtype="float64")])
    assert workers.count("peaks") == 2
    assert list(store.header["peaks"]) == ["cpu float32, 1 thread", "cpu float64, 1 thread"]


@pytest.mark.parametrize(
    ("do", "fault", "reason"),
    [
        (
            "measure",
            WorkerDied("killed by signal 9 (SIGKILL), probably out of memory"),
            "a measuring process killed by signal 9",
        ),
        ("setup", {"error": "can't allocate memory", "kind": "out-of-memory"}, "out of memory: can't allocate memory"),
        ("setup", {"error": "ValueError: kernel 'gather' does not", "kind": "error"}, "ValueError: kernel 'gather'"),
        ("memory", WorkerDied("no answer within 900 s, so it was killed"), "a measuring process no answer"),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_a_fault_costs_its_case_alone(
    run: Callable[..., Store], do: str, fault: object, reason: str, keep: bool
) -> None:
    workers = _Workers(faults={(do, 3): fault})
    store = run(workers, keep_processes=keep)
    failed, *others = store.rows()
    assert failed.error is not None
    assert failed.error.startswith(reason)
    assert (failed.k, failed.phase, failed.speedup, failed.environment_id) == (3, None, None, "e1")
    assert [(row.k, row.error) for row in others] == [(4, None)] * 2
    assert len(workers.started) == 2 * 3  # whoever met the fault is not asked again


@pytest.mark.parametrize("keep", [False, True])
def test_a_case_that_is_refused_leaves_the_processes_as_they_were(run: Callable[..., Store], keep: bool) -> None:
    reason = "kernel 'triton' does not support this case: Triton is not installed"
    workers = _Workers(faults={("setup", k): {"error": reason, "kind": "user"} for k in (3, 5)})
    cases = [Case(k=k, threads=1) for k in (3, 4, 5, 6)]
    rows = run(workers, cases, keep_processes=keep).rows()
    assert [(row.k, row.error) for row in rows if row.error] == [(3, reason), (5, reason)]
    assert {row.k for row in rows if row.speedup} == {4, 6}
    assert len(workers.started) == workers.closed == 3 * (1 if keep else 4)
    assert workers.count("setup") == 1 + 3 * 3  # of the first case of a workload one process goes first, and is refused


class _RefusesOrDies(_Worker):
    """One that refuses the first case, or dies of it, by its number."""

    def _setup(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if message["case"]["k"] == 3:
            if self.number == 1:
                return {"error": "no such kernel", "kind": "user"}
            if self.number == 2:
                raise WorkerDied("was killed")
        return super()._setup(message)


def test_processes_one_of_which_died_while_another_refused_do_not_serve_the_next_case(
    run: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "_Worker", _RefusesOrDies)
    workers = _Workers()
    failed, *others = run(workers, keep_processes=True).rows()
    assert failed.error == "no such kernel"
    assert [(row.k, row.error) for row in others] == [(4, None)] * 2
    assert len(workers.started) == workers.closed == 2 * 3


@pytest.mark.parametrize("do", ["setup", "check", "measure"])
def test_a_case_that_a_gpu_has_no_room_for_leaves_the_processes_to_the_next_one(
    run: Callable[..., Store], do: str
) -> None:
    workers = _Workers(faults={(do, 3): {"error": "OutOfMemoryError: CUDA out of memory.", "kind": "out-of-memory"}})
    cases = [Case(k=k, threads=1, device="cuda") for k in (3, 4)]
    failed, *others = run(workers, cases, keep_processes=True).rows()
    assert failed.error == "out of memory: OutOfMemoryError: CUDA out of memory."
    assert [(row.k, row.passed) for row in others] == [(4, True)] * 2
    assert len(workers.started) == 3


def test_a_case_that_computes_something_else_is_not_timed(run: Callable[..., Store]) -> None:
    workers = _Workers(faults={("check", 3): {"check": "dw is off by 1e+00", "loops": 1}})
    row, *others = run(workers).rows()
    assert (row.check, row.error, row.speedup, row.passed) == ("dw is off by 1e+00", None, None, False)
    assert len(others) == 2


def test_an_interrupt_keeps_what_is_done_and_a_resumed_run_goes_on(run: Callable[..., Store], tmp_path: Path) -> None:
    workers = _Workers(faults={("measure", 4): KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(workers)
    assert workers.closed == 2 * 3
    (folder,) = tmp_path.iterdir()
    with pytest.raises(Exception, match="another run is writing"):
        Store.open(folder, write=True)
    workers = _Workers()
    store = Store.open(folder)
    assert store.done_case_ids() == {_CASES[0].case_id}


def test_only_what_is_missing_is_measured(run: Callable[..., Store]) -> None:
    store = run(_Workers(), _CASES[:1])
    workers = _Workers()
    run(workers, _CASES, again=store)
    assert len(workers.started) == 3
    assert [row.k for row in store.rows()] == [3, 3, 4, 4]
    assert workers.count("peaks") == 0
    progress: list[SweepProgress] = store.progress  # type: ignore[attr-defined]
    assert [(p.done, p.total) for p in progress if p.stage == "done"] == [(2, 2)]


def test_progress_tells_stages_widths_and_the_time_left(run: Callable[..., Store]) -> None:
    store = run(_Workers())
    progress: list[SweepProgress] = store.progress  # type: ignore[attr-defined]
    stages = ["starting", "checking", "measuring", "measuring", "watching", "done"]
    assert [p.stage for p in progress[:6]] == stages
    assert set(progress[3].half_widths) == {"forward", "backward"}
    assert [len(p.rows) for p in progress if p.stage == "done"] == [2, 2]
    lefts = [p.left_s for p in progress if p.stage == "done"]
    assert lefts[0] > lefts[1] == 0


def test_a_row_holds_what_a_steady_loop_takes_and_why_the_rest_is_null(run: Callable[..., Store]) -> None:
    workers = _Workers()
    forward, backward = run(workers, _CASES[:1]).rows()
    assert [message["seconds"] for do, message in workers.log if do == "utilization"] == [2.0]
    assert [backward.to_json()[name] for name in WATCHED] == [None, 190.0, 50.0, 0.125]
    dense, sparse = backward.dense.utilization, backward.sparse.utilization
    assert dense is not None
    assert sparse is not None
    assert (sparse.iterations, dense.iterations, dense.energy_per_step_j) == (800, 200, 0.5)
    assert backward.unavailable == {"gpu_utilization": "the device is the CPU"}
    assert forward.sparse.utilization is None
    assert forward.unavailable["power_w"] == "only the phase backward is run steadily"


def test_memory_of_tensors_and_of_the_process(run: Callable[..., Store]) -> None:
    forward, backward = run(_Workers(), _CASES[:1]).rows()
    assert (backward.dense.peak_memory_bytes, backward.sparse.peak_memory_bytes) == (200, 100)
    assert (backward.sparse.process_peak_bytes, backward.dense.process_growth_bytes) == (9000, 300)
    assert backward.sparse.peak_reserved_bytes is None
    assert (forward.sparse.peak_memory_bytes, forward.sparse.process_peak_bytes) == (None, None)
    assert "sampled-memory" not in _kinds(backward)
    weight = {"tensor_bytes": 1, "process_bytes": 2, "growth_bytes": 1, "exact": False}
    sampled = _Workers(faults={("memory", 3): {"weights": {"backward": [weight, weight]}}})
    assert "sampled-memory" in _kinds(run(sampled, _CASES[:1]).rows()[1])


def test_nothing_is_watched_where_the_plan_does_not_ask_for_it(run: Callable[..., Store]) -> None:
    workers = _Workers()
    row = run(workers, _CASES[:1], utilization=False).rows()[0]
    assert workers.count("utilization") == 0
    assert row.sparse.utilization is None
    assert row.unavailable["gpu_utilization"] == "not asked for (utilization is off)"


def test_cases_that_the_plan_names_are_watched_where_the_others_are_not(run: Callable[..., Store]) -> None:
    workers = _Workers()
    rows = run(workers, utilization=False, watched=(_CASES[1].case_id,)).rows()
    assert workers.count("utilization") == 1
    assert [(row.k, _watts(row)) for row in rows if row.phase == "backward"] == [(3, None), (4, 50.0)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (WorkerDied("killed by signal 11 (SIGSEGV)"), "the process that was watched killed by signal 11 (SIGSEGV)"),
        ({"error": "RuntimeError: CUDA error: the device is lost", "kind": "error"}, "RuntimeError: CUDA error"),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_a_fault_while_it_is_watched_costs_these_figures_alone(
    run: Callable[..., Store], fault: object, reason: str, keep: bool
) -> None:
    workers = _Workers(faults={("utilization", 3): fault})
    rows = run(workers, keep_processes=keep).rows()
    assert [(row.k, row.error) for row in rows] == [(3, None)] * 2 + [(4, None)] * 2
    assert rows[1].speedup is not None
    assert rows[1].sparse.utilization is None
    assert rows[1].unavailable["power_w"].startswith(reason)
    assert _watts(rows[3]) == 50.0
    assert len(workers.started) == 2 * 3  # whoever met the fault is not asked again


def _mlp(**changes: Any) -> Case:
    return Case(workload="mlp", data="digits", in_features=64, threads=1, **{"method": "unified", **changes})


def test_accuracy_is_compared_once_for_each_training(run: Callable[..., Store]) -> None:
    workers = _Workers()
    cases = [_mlp(), _mlp(kernel="gather"), _mlp(method="meprop")]
    store = run(workers, cases, accuracy_seeds=3, accuracy_steps=7)
    asked = [(message["sparsified"], message["case"]["method"]) for do, message in workers.log if do == "accuracy"]
    assert set(asked) == {(False, "unified"), (True, "unified"), (True, "meprop")}
    assert sorted(seed for do, m in workers.log if do == "accuracy" for seed in m["seeds"]) == sorted([1, 2, 3] * 3)
    parities = [row.parity for row in store.rows() if row.phase == "step"]
    assert [row.parity for row in store.rows() if row.phase != "step"] == [None] * 3
    parity = parities[0]
    assert parity is not None
    assert parities[1] == parity
    assert (parity.seeds, parity.steps, parity.task, parity.verdict) == ((1, 2, 3), 7, "digits", "pass")
    assert parity.difference == pytest.approx(0.1)


@pytest.mark.parametrize("other", [{"rate": 0.2}, {"k": 31}])
def test_what_simplifies_otherwise_is_another_training(run: Callable[..., Store], other: dict[str, Any]) -> None:
    case = Case(workload="mesimp", method="mesimp", data="digits", in_features=64, threads=1, rate=0.1)
    workers = _Workers()
    store = run(workers, [case, replace(case, **other)], accuracy_seeds=2)
    asked = [message["sparsified"] for do, message in workers.log if do == "accuracy"]
    assert (asked.count(False), asked.count(True)) == (2, 4)  # by two processes, a seed each
    assert sum(row.parity is not None for row in store.rows()) == 2


def test_an_accuracy_that_is_refused_costs_itself_alone(run: Callable[..., Store]) -> None:
    case = Case(workload="meact", method="meact", data="digits", in_features=64, threads=1, share=0.004)
    workers = _Workers(faults={("accuracy", case.k): {"error": "pretrain 1 leaves meAct nothing", "kind": "user"}})
    rows = run(workers, [case]).rows()
    assert [row.error for row in rows] == [None] * 2
    assert [row.parity for row in rows] == [None] * 2
    assert Note("its accuracy is not compared: pretrain 1 leaves meAct nothing") in rows[1].notes


def test_accuracy_is_left_out_where_the_plan_does_not_ask_for_it(run: Callable[..., Store]) -> None:
    workers = _Workers()
    run(workers, [_mlp()], checks=("gradients",))
    assert workers.count("accuracy") == 0


def test_peaks_that_a_case_beats_are_measured_again_at_most_twice(run: Callable[..., Store]) -> None:
    """A floor of 2 ms under a time of 1 ms: here the count is wrong, so that measuring again does not help."""
    workers = _Workers(faults={("setup", k): _beaten_setup(k) for k in (3, 4, 5)})
    store = run(workers, [Case(k=k, threads=1) for k in (3, 4, 5)])
    assert workers.count("peaks") == 1 + 2
    assert [row.sparse.efficiency for row in store.rows() if row.phase == "backward"] == [2.0] * 3


def test_a_floor_that_nobody_could_believe_is_left_out(run: Callable[..., Store]) -> None:
    store = run(_Workers(faults={("setup", 3): _beaten_setup(3, 1e9)}), [Case(k=3, threads=1)])
    (row,) = (row for row in store.rows() if row.phase == "backward")
    assert (row.sparse.floor_s, row.sparse.efficiency, row.sparse.flops) == (None, None, 2e9)
    assert "no-floor" in _kinds(row)


def _beaten_setup(k: int, flops: float = 1e8) -> dict[str, Any]:
    costs = {"backward": [[flops, 0], [2 * flops, 0]]}
    return {"kernel": "gather", "k": k, "notes": [], "phases": ["forward", "backward"], "costs": costs}


def test_trusted_peaks_of_earlier_runs_are_not_measured_again(run: Callable[..., Store], cache: PeaksCache) -> None:
    for _ in range(3):
        cache.add("e1", "cpu float32, 1 thread", Peaks({"float32": 7e11}, ((1, 1e10),)))
    workers = _Workers()
    store = run(workers)
    assert workers.count("peaks") == 0
    assert store.header["peaks"]["cpu float32, 1 thread"]["flops_per_s"] == {"float32": 7e11}


def test_no_case_is_begun_that_would_not_be_done_by_the_deadline(run: Callable[..., Store]) -> None:
    cases = [Case(k=k, threads=1) for k in (3, 4, 5, 6)]
    store = run(_Workers(), cases, keep_processes=True)
    first_s, usual_s = (store.rows()[place].elapsed_s for place in (0, 2))
    assert first_s is not None
    assert usual_s is not None
    assert first_s > usual_s  # it starts the processes and measures the peaks

    workers = _Workers()
    within_s = 2 * first_s + 0.5  # of the second case no more is known than what the first one took
    assert within_s - first_s - usual_s < (first_s + usual_s) / 2
    store = run(workers, cases, keep_processes=True, deadline=within_s)
    assert {row.k for row in store.rows()} == {3, 4}
    assert store.left_out == tuple(cases[2:])  # type: ignore[attr-defined]
    assert workers.closed == 3
    assert all(p.left_s <= within_s for p in store.progress)  # type: ignore[attr-defined]
    run(_Workers(), cases, again=store, keep_processes=True)
    assert {row.k for row in store.rows()} == {3, 4, 5, 6}
    assert store.left_out == ()  # type: ignore[attr-defined]


def test_the_first_case_is_begun_however_short_the_deadline_and_one_case_may_overrun_it(
    run: Callable[..., Store],
) -> None:
    store = run(_Workers(), deadline=0.5)
    assert {row.k for row in store.rows()} == {3}
    assert store.left_out == _CASES[1:]  # type: ignore[attr-defined]


def test_waiting_for_another_run_counts_towards_the_deadline(run: Callable[..., Store]) -> None:
    workers = _Workers()

    @contextmanager
    def lock(device: str, waiting: Callable[[int | None], object]) -> Iterator[None]:
        workers.clock.seconds += 100
        yield

    workers.lock = lock  # type: ignore[method-assign]
    store = run(workers, deadline=50.0)
    assert not store.rows()
    assert workers.started == []
    assert store.left_out == _CASES  # type: ignore[attr-defined]


def test_the_best_dense_side_is_found_by_one_process_and_set_up_in_all(run: Callable[..., Store]) -> None:
    workers = _Workers()
    store = run(workers, [Case(k=3, threads=1), *(Case(k=k, threads=1, baseline="best") for k in (3, 4))])
    assert workers.count("baseline") == 1
    chosen = [message["baseline"] for do, message in workers.log if do == "setup"]
    assert chosen == [None] * 3 + [DenseSide(compiled=True).to_json()] * 6
    same, *best = store.rows()[::2]
    assert (same.baseline_chosen, {row.baseline_chosen for row in best}) == (None, {"compiled"})
    assert all(Note("nothing else could be tried") in row.notes for row in best)
    stages = [p.stage for p in store.progress if p.case.baseline == "best" and p.case.k == 3]  # type: ignore[attr-defined]
    assert stages[:4] == ["starting", "choosing the dense side", "compiling", "checking"]
    assert [Row.from_json(row.to_json()).baseline_chosen for row in best] == ["compiled"] * 2


def test_what_is_compiled_one_process_compiles_first_in_each_case(
    run: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "_Worker", _Slow)
    _Slow.answered.clear()
    run(_Workers(), [Case(k=k, threads=1, compile="on") for k in (3, 4)])
    numbers = [number for name, number in _Slow.answered if name == "setup"]
    assert numbers[0] == numbers[3] == 0
