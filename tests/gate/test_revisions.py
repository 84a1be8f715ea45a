"""Two revisions, interleaved: what is asked of whom, when it stops, and what faults cost. The workers answer as
real ones would, and time passes on a fake clock only."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.case_records import SIDES, CaseRecords, PairRecord, record_of
from meprop_bench.gate.decide import judge
from meprop_bench.gate.judgement import Outcome
from meprop_bench.gate.processes import start_revision
from meprop_bench.gate.revisions import GateProgress, Measured, Rounds, measure
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.worktree import Checkout
from meprop_bench.measure.layout import PADDING
from meprop_bench.measure.worker import WorkerDied
from meprop_bench.stats import median, paired_ratio
from meprop_bench.sweep.plan import Plan, plan_axes
from meprop_bench.sweep.worker import PROTOCOL
from meprop_bench.workloads.case import Case

_BLOCK_S = 0.01


class _Fakes:
    """Workers on one fake clock: `head_times` slower in the head; `wrong` says what goes wrong."""

    def __init__(
        self,
        head_times: float = 1.0,
        wrong: Callable[[str, str, int, Case], Any] | None = None,
        worker: type[_Fake] | None = None,
    ) -> None:
        self.time = 0.0
        self.worker = worker or _Fake
        self.head_times = head_times
        self.wrong = wrong or (lambda side, do, worker, case: None)
        self.started: list[str] = []
        self.seeds: list[int] = []
        self.held: list[str] = []
        self.open = 0
        self.alone = RLock()
        self.log: list[tuple[str, str]] = []
        self.asked: list[Mapping[str, Any]] = []

    def now(self) -> float:
        return self.time

    @contextmanager
    def lock(self, device: str, waiting: Callable[[int | None], object]) -> Iterator[None]:
        self.held.append(device)
        yield
        self.held.pop()

    def start(self, checkout: Checkout, case: Case) -> _Fake:
        assert self.held == ["cpu"]
        self.started.append(checkout.side)
        self.seeds.append(checkout.draw)
        self.open += 1
        return self.worker(self, checkout, len(self.started))


class _Fake:
    def __init__(self, fakes: _Fakes, checkout: Checkout, number: int) -> None:
        self._fakes, self._checkout, self._number = fakes, checkout, number
        self._case = Case()

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        with self._fakes.alone:  # both sides are asked at once
            return self._answer(message)

    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        fakes, side, do = self._fakes, self._checkout.side, message["do"]
        assert fakes.held == ["cpu"]
        fakes.log.append((side, do))
        fakes.asked.append(message)
        if do == "setup":
            self._case = Case.from_json(message["case"])
        if (fault := fakes.wrong(side, do, self._number, self._case)) is not None:
            if isinstance(fault, BaseException):
                raise fault
            return dict(fault)
        answer: dict[str, Any] = getattr(self, f"_{do}")(message)
        return answer

    def _hello(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._fakes.time += 1.0
        package = str(self._checkout.folder / "meprop_bench")
        return {"environment": {"of": self._checkout.side}, "protocol": PROTOCOL, "package": package}

    def _setup(self, message: Mapping[str, Any]) -> dict[str, Any]:
        costs = {"backward": [[10, 20], [4, 8]]}
        return {"phases": ["forward", "backward", "linear-backward"], "costs": costs}

    def _check(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"check": "passed", "loops": 3, "side_loops": [2, 3]}

    def _again(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def _meet(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {} if "port" in message else {"port": 4711}

    def _turns(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert message["me"] == self._checkout.side
        assert (message["loops"], message["lead"]) == ({"baseline": 2, "method": 3}, 1)
        mine = [(which, slowdown) for who, which, slowdown in message["plan"] if who == message["me"]]
        return {"blocks": [self._block(which, slowdown) for which, slowdown in mine], "stopped": False}

    def _block(self, which: str, slowdown: float) -> dict[str, Any]:
        self._fakes.time += _BLOCK_S
        head = self._checkout.side == "head"
        usual = 4e-3 if which == "baseline" else 1e-3
        times = self._fakes.head_times if head and which == "method" else 1.0
        noise = 1 + 1e-6 * (self._number % 7)
        backward = usual * times * noise * (1 + slowdown)
        return {"values": {"forward": usual, "backward": backward, "linear-backward": 1.0}, "disturbed": False}

    def _count(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"operators": {"backward": 5 if self._checkout.side == "head" else 4}}

    def _memory(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"weights": {"backward": [{"tensor_bytes": 100}, {"tensor_bytes": 64}]}}

    def _accuracy(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert message["sparsified"] is True
        return {"accuracies": [[seed, 90.0 + seed] for seed in message["seeds"]]}

    def close(self) -> None:
        self._fakes.open -= 1


_BASE = Checkout("base", "main (111111111111)", "1" * 40, Path("/somewhere/base"))
_HEAD = Checkout("head", "the work tree", None, Path("/somewhere/head"), ("the head is a snapshot",))


def _plan(k: Sequence[int] = (2,), **settings: Any) -> Plan:
    axes = {"method": ("unified",), "k": k, "hidden": (8,), "batch": (4,)}
    return plan_axes(axes, **{"budget": 60.0, "processes": 2, **settings})


def _measure(fakes: _Fakes, plan: Plan, undecided: Callable[[Sequence[Series]], list[str]] = lambda _: []) -> Measured:
    found = measure(plan, _BASE, _HEAD, undecided=undecided, start=fakes.start, lock=fakes.lock, now=fakes.now)
    assert fakes.open == 0
    return found


def _by_figure(found: Measured) -> dict[str, Series]:
    return {series.figure: series for series in found.series}


def test_the_figures_of_a_case() -> None:
    found = _measure(_Fakes(head_times=1.25), _plan())
    figures = _by_figure(found)
    assert list(figures) == [
        "forward",
        "backward",
        "sparse/dense backward",
        "flops backward",
        "bytes backward",
        "operators backward",
        "peak memory backward",
    ]
    backward = figures["backward"]
    assert backward.pairs is not None
    assert (backward.quantity, backward.unit, len(backward.pairs)) == ("time", "s", 2)
    assert 1 / paired_ratio(backward.pairs).estimate == pytest.approx(1.25, rel=1e-4)
    ratio = figures["sparse/dense backward"]
    assert ratio.pairs is not None
    assert ratio.pairs[0][0] == (pytest.approx(0.25, rel=1e-4), pytest.approx(0.3125, rel=1e-4))
    operators, memory = figures["operators backward"], figures["peak memory backward"]
    assert (operators.quantity, operators.base, operators.head) == ("count", (4,), (5,))
    assert (memory.quantity, memory.unit, memory.base, memory.head) == ("memory", "B", (64,), (64,))
    assert found.notes == ("the head is a snapshot",)
    assert found.environment == {"of": "head"}


def test_the_accuracy_of_the_sparsified_side_is_compared_for_each_seed_once() -> None:
    fakes = _Fakes()
    axes = {"workload": ("mlp",), "method": ("unified",), "k": (4,), "data": ("digits",)}
    plan = plan_axes(axes, budget=60.0, processes=3, accuracy_seeds=2)
    accuracy = _by_figure(_measure(fakes, plan))["accuracy"]
    assert (accuracy.quantity, accuracy.base, accuracy.head) == ("accuracy", (91.0, 92.0), (91.0, 92.0))
    assert accuracy.own_processes
    assert Counter(fakes.log)["head", "accuracy"] == 2  # one for each seed


def test_a_quality_that_is_no_percentage_is_lost_in_percent_of_the_bases() -> None:
    answer = {"accuracies": [[1, -2.0], [2, -2.5]], "percent": False}
    fakes = _Fakes(wrong=lambda side, do, number, case: answer if do == "accuracy" else None)
    axes = {"workload": ("transformer",), "method": ("unified",), "k": (4,), "data": ("made-up",), "hidden": (8,)}
    accuracy = _by_figure(_measure(fakes, plan_axes(axes, budget=60.0, processes=2, accuracy_seeds=2)))["accuracy"]
    assert (accuracy.unit, accuracy.base) == ("%", (-2.0, -2.5))


@pytest.mark.parametrize("without", [("base", "head"), ("head",)])
def test_a_model_that_says_no_quality_is_timed_alone_unless_the_base_said_it(without: tuple[str, ...]) -> None:
    refused = {"error": "model does not say how good a model is", "kind": "user"}
    fakes = _Fakes(wrong=lambda side, do, number, case: refused if do == "accuracy" and side in without else None)
    axes = {"workload": ("model",), "model": ("digits",), "optimizer": ("adam",), "method": ("unified",), "k": (4,)}
    found = _measure(fakes, plan_axes(axes, budget=60.0, processes=2))
    if "base" in without:
        assert "backward" in _by_figure(found)
        assert "accuracy" not in _by_figure(found)
        assert any("its accuracy is not compared: model does not say" in note for note in found.notes)
    else:
        assert [series.figure for series in found.series] == ["correctness check"]


def test_each_round_has_fresh_processes_and_blocks_alternate() -> None:
    fakes = _Fakes()
    found = _measure(fakes, _plan(processes=7))
    assert found.rounds == 7
    pairs = list(zip(fakes.started[::2], fakes.started[1::2], strict=True))
    assert len(pairs) == 8  # the first pair is there for what is compiled and kept
    assert set(pairs) == {("base", "head"), ("head", "base")}  # in random order, at this seed in both
    plans = {side: [one for one in fakes.asked if one["do"] == "turns" and one["me"] == side] for side in SIDES}
    assert [one["plan"] for one in plans["base"]] == [one["plan"] for one in plans["head"]]
    assert all(one["number"] == other["number"] for one, other in zip(plans["base"], plans["head"], strict=True))
    blocks = [side for one in plans["base"] for side, _, _ in one["plan"]]
    assert all({first, second} == {"base", "head"} for first, second in zip(blocks[::2], blocks[1::2], strict=True))
    assert 0.2 < blocks[::2].count("base") / (len(blocks) / 2) < 0.8


def test_it_goes_on_for_what_is_undecided_until_that_is_decided() -> None:
    plan = _plan(k=(2, 3))
    first, second = (case.label for case in plan.cases)

    def undecided(series: Sequence[Series]) -> list[str]:
        pairs = [len(one.pairs or ()) for one in series if one.case == second and one.figure == "backward"]
        return [second] if pairs[0] < 5 else []

    found = _measure(_Fakes(), plan, undecided)
    counts = {one.case: len(one.pairs or ()) for one in found.series if one.figure == "backward"}
    assert counts == {first: 2, second: 5}


def test_it_ends_when_the_budget_is_spent() -> None:
    plan = _plan(k=(2, 3), budget=40.0)
    fakes = _Fakes()
    found = _measure(fakes, plan, lambda series: [one.case for one in series])
    assert found.rounds > 5
    assert fakes.time <= 2 * 40.0 + 2.0  # the cases' budgets, and the first start


def test_a_noisy_case_has_what_the_others_do_not_need() -> None:
    plan = _plan(k=(2, 3, 4), budget=40.0, processes=4)
    noisy = plan.cases[1].label
    fakes = _Fakes()
    found = _measure(fakes, plan, lambda series: [noisy])
    alone = _measure(_Fakes(), replace(plan, cases=plan.cases[1:2]), lambda series: [noisy])
    counts = {one.case: len(one.pairs or ()) for one in found.series if one.figure == "backward"}
    assert [count for case, count in counts.items() if case != noisy] == [4, 4]
    assert counts[noisy] > 2 * alone.rounds
    assert fakes.time <= 3 * 40.0 + 2.0
    most = {one.case: one.most for one in found.series}
    assert most[noisy] == counts[noisy]
    # What the others could have had, had they been slower: nothing is left.
    assert set(most.values()) == {4, counts[noisy]}


def test_progress_says_where_it_is() -> None:
    seen: list[GateProgress] = []
    fakes = _Fakes()
    rest: dict[str, Any] = {"start": fakes.start, "lock": fakes.lock, "now": fakes.now}
    measure(_plan(), _BASE, _HEAD, undecided=lambda _: [], progress=seen.append, **rest)
    assert [(one.stage, one.round) for one in seen] == [
        ("preparing", 0),
        *((stage, number) for number in (1, 2) for stage in ("starting", "checking", "measuring")),
    ]
    assert (seen[-1].left, seen[-1].total, seen[-1].budget_s) == (1, 1, 60.0)


def test_identical_code_is_not_fifty_times_slower_on_a_machine_that_is_busy() -> None:
    """Where threads wait for a core that another program has, a block takes 20 ms instead of 0.25, or does not."""

    class Busy(_Fake):
        def __init__(self, fakes: _Fakes, checkout: Checkout, number: int) -> None:
            super().__init__(fakes, checkout, number)
            self._rng = random.Random(number)  # its own: both sides are asked at once

        def _block(self, which: str, slowdown: float) -> dict[str, Any]:
            self._fakes.time += 0.5  # so slow that there is time for three set-ups
            found = super()._block(which, slowdown)
            times = 80.0 if self._rng.random() < 0.5 else 1.0
            return {"values": {phase: times * value for phase, value in found["values"].items()}, "disturbed": True}

    found = _measure(_Fakes(worker=Busy), _plan(processes=40, budget=6000.0))
    backward = _by_figure(found)["backward"]
    assert backward.pairs is not None
    # Of 40 processes the medians of three blocks would put twelve or so off, the fastest blocks three.
    off = [run for run in backward.pairs if not 0.1 < median(head / base for base, head in run) < 10]
    assert len(off) <= 5
    assert not [one.name for one in judge([backward], Settings()) if one.verdict == "fail"]
    (busy,) = [note for note in found.notes if "the machine was busy with something else during" in note]
    assert "120 of 120 set-ups" in busy


@pytest.mark.parametrize(
    ("variables", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "1000"}, None)],
)
def test_threads_of_a_worker_sleep_while_they_wait_unless_the_user_says_otherwise(
    variables: Mapping[str, str], policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spinning ones lose their core to the neighbours, for 40 times as long as a small backward pass takes."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    started: list[dict[str, str | None]] = []
    monkeypatch.setattr("meprop_bench.sweep.worker.Worker", lambda argv, env, cwd: started.append(env))
    start_revision(_BASE, _plan().cases[0])
    assert started[0].get("OMP_WAIT_POLICY") == policy
    assert str(started[0]["PYTHONPATH"]).startswith(str(_BASE.folder))


@pytest.mark.parametrize(("chosen", "expected"), [(None, "7"), ("0", "0")])
def test_a_worker_hashes_by_the_seed_of_its_pair_unless_the_user_has_chosen_one(
    chosen: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if chosen is not None:
        monkeypatch.setenv("PYTHONHASHSEED", chosen)
    started: list[dict[str, str | None]] = []
    monkeypatch.setattr("meprop_bench.sweep.worker.Worker", lambda argv, env, cwd=None: started.append(env))
    start_revision(replace(_BASE, draw=7), _plan().cases[0])
    assert started[0]["PYTHONHASHSEED"] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody chooses a process's addresses")
def test_both_of_a_pair_lie_alike_and_the_next_pair_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], str | None]] = []
    monkeypatch.setattr(
        "meprop_bench.sweep.worker.Worker", lambda argv, env, cwd=None: started.append((argv, env[PADDING]))
    )
    for draw in (7 + (3 << 12), 8 + (4 << 12)):
        for checkout in (_BASE, _HEAD):
            start_revision(replace(checkout, draw=draw), _plan().cases[0])
    assert started[0] == started[1]
    assert started[2] == started[3]
    assert started[0][1] != started[2][1]
    assert started[0][0] != started[2][0]


def test_both_of_a_pair_hash_alike_and_the_next_pair_otherwise() -> None:
    fakes = _Fakes()
    _measure(fakes, _plan(processes=3))
    seeds = fakes.seeds
    assert [first for first, _ in zip(seeds[::2], seeds[1::2], strict=True)] == seeds[1::2]
    assert len(set(seeds)) == 4


def test_a_run_waits_for_the_device_and_does_not_pay_for_that() -> None:
    fakes = _Fakes()
    seen: list[GateProgress] = []

    @contextmanager
    def lock(device: str, waiting: Callable[[int | None], object]) -> Iterator[None]:
        waiting(123)
        fakes.time += 1000.0  # another run's case
        with fakes.lock(device, waiting):
            yield

    plan = _plan(k=(2, 3), processes=3)
    found = measure(
        plan, _BASE, _HEAD, undecided=lambda _: [], progress=seen.append, start=fakes.start, lock=lock, now=fakes.now
    )
    assert found.rounds == 3
    assert {one.stage for one in seen} >= {"waiting", "preparing", "measuring"}


def test_a_revision_gets_of_a_case_what_differs_from_the_defaults() -> None:
    fakes = _Fakes()
    plan = _plan()
    _measure(fakes, plan)
    cases = [message["case"] for message in fakes.asked if message["do"] == "setup"]
    fields = {"method", "k", "batch", "in_features", "out_features", "threads", "allocator"}
    assert all(set(case) == fields for case in cases)
    assert Case.from_json(cases[0]) == plan.cases[0]


def test_what_the_head_has_lost_is_not_passed_and_what_is_new_is_only_shown() -> None:
    class Changed(_Fake):
        def _setup(self, message: Mapping[str, Any]) -> dict[str, Any]:
            head = self._checkout.side == "head"
            return {
                "phases": ["backward", "step"] if head else ["forward", "backward"],
                "costs": {"step" if head else "forward": [[10, 20], [4, 8]]},
            }

        def _block(self, which: str, slowdown: float) -> dict[str, Any]:
            found = super()._block(which, slowdown)
            return {**found, "values": {**found["values"], "step": 1.0}}

    found = _measure(_Fakes(worker=Changed), _plan())
    verdicts = {one.figure: one for one in judge(found.series, Settings(margin=0.5))}
    for lost in ("forward", "flops forward", "bytes forward"):
        assert (verdicts[lost].verdict, verdicts[lost].reason) == ("inconclusive", "gone: the head has none")
        assert not verdicts[lost].report_only
    for new in ("step", "flops step"):
        assert (verdicts[new].reason, verdicts[new].report_only) == ("new: the base has none", True)
    assert verdicts["backward"].verdict == "pass"


def test_a_case_that_runs_another_kernel_says_so() -> None:
    class Otherwise(_Fake):
        def _setup(self, message: Mapping[str, Any]) -> dict[str, Any]:
            return {**super()._setup(message), "kernel": f"the {self._checkout.side}'s"}

    (note,) = [note for note in _measure(_Fakes(worker=Otherwise), _plan()).notes if "kernel" in note]
    assert note.endswith("the base runs the kernel the base's, the head the head's")


# Faults.


def _when(side: str, do: str, fault: Any, *, k: int | None = None, workers: Sequence[int] = ()) -> Any:
    def wrong(where: str, what: str, worker: int, case: Case) -> Any:
        hit = (where, what) == (side, do) and k in (None, case.k) and (not workers or worker in workers)
        return fault if hit else None

    return wrong


@pytest.mark.parametrize(
    ("do", "fault", "reason"),
    [
        ("check", {"check": "dx is off by 1e-1"}, "its gradients are wrong: dx is off by 1e-1"),
        ("setup", {"error": "ValueError: no", "kind": "error"}, "ValueError: no"),
        ("turns", {"error": "can't", "kind": "out-of-memory"}, "out of memory: can't"),
        ("turns", WorkerDied("killed by signal 11"), "killed by signal 11"),
    ],
)
def test_what_only_the_head_cannot_do_fails(do: str, fault: Any, reason: str) -> None:
    plan = _plan(k=(2, 3))
    found = _measure(_Fakes(wrong=_when("head", do, fault, k=3)), plan)
    failed = [one for one in found.series if one.failure]
    assert [(one.case, one.failure) for one in failed] == [(plan.cases[1].label, reason)]
    assert {one.case for one in found.series if one.pairs} == {plan.cases[0].label}


def test_what_an_older_base_does_not_know_is_new() -> None:
    plan = _plan(k=(2, 3))
    error = {"error": "unknown field of a case 'share'", "kind": "user"}
    found = _measure(_Fakes(wrong=_when("base", "setup", error, k=3)), plan)
    (new,) = [one for one in judge(found.series, Settings(margin=0.5)) if one.case == plan.cases[1].label]
    assert (new.verdict, new.report_only) == ("inconclusive", True)
    assert new.reason == "new: the base has none (unknown field of a case 'share')"
    assert found.incomparable == ()


def test_what_the_base_has_and_cannot_do_is_not_comparable() -> None:
    plan = _plan(k=(2, 3))
    error = {"error": "ValueError: no", "kind": "error"}
    found = _measure(_Fakes(wrong=_when("base", "setup", error, k=3)), plan)
    (broken,) = [one for one in judge(found.series, Settings(margin=0.5)) if one.case == plan.cases[1].label]
    assert (broken.verdict, broken.report_only) == ("inconclusive", False)
    assert broken.reason == "not comparable: the base cannot do it: ValueError: no"
    assert found.incomparable == (plan.cases[1].label,)
    outcome = Outcome("a", "b", judge(found.series, Settings(margin=0.5)), (), incomparable=found.incomparable)
    assert outcome.exit_code == ExitCode.NOT_COMPARABLE


def test_where_the_base_cannot_and_the_head_dies_of_it_the_case_is_noted_and_the_others_get_a_fresh_pair() -> None:
    plan = _plan(k=(3, 2, 4, 5, 6), processes=3)  # some come after the first, in any order

    dead: set[int] = set()

    def wrong(side: str, do: str, worker: int, case: Case) -> Any:
        if do == "setup" and case.k == 3:
            if side == "base":
                return {"error": "no", "kind": "user"}
            dead.add(worker)
        return WorkerDied("killed by signal 11") if worker in dead else None

    found = _measure(_Fakes(wrong=wrong), plan)
    counts = {one.case: len(one.pairs or ()) for one in found.series if one.figure == "backward"}
    assert counts == {case.label: 3 for case in plan.cases[1:]}
    assert not [one for one in found.series if one.failure]
    assert [(one.case, one.unjudged) for one in found.series if one.unjudged] == [
        (plan.cases[0].label, "new: the base has none (no)")
    ]


def test_a_base_that_can_do_nothing_is_not_comparable() -> None:
    with pytest.raises(UserError, match=r"can do none of the cases; linear .*: no") as caught:
        _measure(_Fakes(wrong=_when("base", "setup", {"error": "no", "kind": "error"})), _plan())
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_process_that_dies_once_costs_its_round_of_the_case_and_a_line(side: str) -> None:
    plan = _plan(k=(2, 3), processes=3)
    died = _when(side, "turns", WorkerDied("killed by signal 9"), k=3, workers=(3, 4))
    found = _measure(_Fakes(wrong=died), plan)
    counts = {one.case: len(one.pairs or ()) for one in found.series if one.figure == "backward"}
    assert counts == {plan.cases[0].label: 3, plan.cases[1].label: 2}
    assert found.notes[1] == (
        f"{plan.cases[1].label}: a process of the {side} killed by signal 9; its pair is left out"
    )


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_process_that_dies_when_the_budget_is_spent_passes_nothing(side: str) -> None:
    plan = _plan(k=(2, 3), processes=1, budget=1e-9)
    died = _when(side, "turns", WorkerDied("killed by signal 9"), k=3)
    found = _measure(_Fakes(wrong=died), plan)
    (nothing,) = [one for one in found.series if one.case == plan.cases[1].label]
    assert nothing.pairs == ()
    assert found.notes[1] == f"{nothing.case}: a process of the {side} killed by signal 9; its pair is left out"
    verdicts = {one.case: one.verdict for one in judge([nothing], Settings())}
    assert verdicts == {nothing.case: "inconclusive"}


@pytest.mark.parametrize(("side", "code"), [("base", ExitCode.NOT_COMPARABLE), ("head", ExitCode.USAGE)])
def test_a_revision_that_does_not_start(side: str, code: ExitCode) -> None:
    died = WorkerDied("exited with status 1; its last line: SyntaxError: invalid syntax")
    fakes = _Fakes(wrong=_when(side, "hello", died))
    with pytest.raises(UserError, match=rf"the {side}, .*does not start: .*SyntaxError") as caught:
        _measure(fakes, _plan())
    assert (caught.value.exit_code, fakes.open) == (code, 0)


@pytest.mark.parametrize(("spoken", "knows"), [({}, "no protocol"), ({"protocol": 99}, "protocol 99, not")])
def test_a_revision_of_another_protocol(spoken: dict[str, Any], knows: str) -> None:
    answer = {"environment": {}, "environment_id": "e", "package": "/somewhere/base/meprop_bench", **spoken}
    with pytest.raises(UserError, match=f"its worker knows {knows}") as caught:
        _measure(_Fakes(wrong=_when("base", "hello", answer)), _plan())
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


def test_a_revision_that_ran_other_code_is_refused() -> None:
    answer = {"environment": {}, "protocol": PROTOCOL, "package": "/installed/meprop_bench"}
    with pytest.raises(UserError, match="ran the package in /installed/meprop_bench instead of its own"):
        _measure(_Fakes(wrong=_when("head", "hello", answer)), _plan())


def test_an_interrupt_ends_the_processes() -> None:
    fakes = _Fakes(wrong=_when("head", "turns", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        measure(_plan(), _BASE, _HEAD, undecided=lambda _: [], start=fakes.start, lock=fakes.lock, now=fakes.now)
    assert fakes.open == 0


# Records.


def test_set_ups_that_were_disturbed_are_left_out_unless_most_were() -> None:
    (case,) = _plan().cases
    pairs = {"backward": ((1.0, 1.0), (1.0, 9.0), (1.0, 1.0))}
    known = CaseRecords(case, records={0.0: [PairRecord(pairs, (False, True, False), {})]})
    assert known.series()[0].pairs == (((1.0, 1.0), (1.0, 1.0)),)
    known = CaseRecords(case, records={0.0: [PairRecord(pairs, None, {})]})
    assert known.series()[0].pairs == (pairs["backward"],)


def test_a_pair_of_processes_that_was_disturbed_throughout_is_left_out_unless_half_of_them_were() -> None:
    (case,) = _plan().cases
    calm = PairRecord({"backward": ((1.0, 1.0),) * 40}, (False,) * 40, {}, 6)
    busy = PairRecord({"backward": ((1.0, 1.4),) * 4}, (True,) * 4, {}, 4)
    known = CaseRecords(case, records={0.0: [calm, busy, calm]})
    assert known.series()[0].pairs == (calm.pairs["backward"],) * 2
    assert known.remarks() == ["1 of 3 pairs of processes were disturbed throughout, and are left out"]
    for records in ([busy], [calm, busy], [busy, busy, calm]):
        known = CaseRecords(case, records={0.0: list(records)})
        assert len(known.series()[0].pairs or ()) == len(records)
    nobody_can_tell = replace(busy, disturbed=None)
    assert len(CaseRecords(case, records={0.0: [calm, nobody_can_tell, calm]}).series()[0].pairs or ()) == 3


def test_a_ratio_changes_by_what_the_neighbours_say_however_the_machine_drifts() -> None:
    """The head's backward pass is 10% slower, its dense side as fast, while the machine gets three times as slow."""
    blocks = [
        {
            side: {"values": {"backward": drift * (slower if side == "head" else 1.0)}, "disturbed": False}
            for side in SIDES
        }
        for slower, drifts in ((1.1, (1.0, 3.0, 1.0, 2.0)), (1.0, (3.0, 1.0, 2.0, 2.0)))
        for drift in drifts
    ]
    blocks[0]["head"]["values"]["backward"] = 50.0  # an outlier moves neither
    blocks[5]["base"]["values"]["backward"] = 50.0
    (case,) = _plan().cases
    record = record_of([blocks[:2], blocks[2:4]], blocks[4:], ["backward"])
    figures = {one.figure: one for one in CaseRecords(case, records={0.0: [record]}).series()}
    (((base, head),),) = figures["sparse/dense backward"].pairs or ()
    assert head / base == pytest.approx(1.1)


def test_slowdowns_are_asked_of_the_head_alone_and_kept_apart() -> None:
    fakes = _Fakes()
    plan = _plan()
    rounds = Rounds(plan, _BASE, _HEAD, slowdowns=(0.0, 0.1), start=fakes.start, lock=fakes.lock, now=fakes.now)
    for _ in range(2):
        rounds.once(plan.cases)
    known = rounds.cases[plan.cases[0]]

    def seen(slowdown: float) -> float:
        series = {one.figure: one for one in known.series(known.records[slowdown])}["backward"]
        assert series.pairs is not None
        return 1 / paired_ratio(series.pairs).estimate

    assert seen(0.0) == pytest.approx(1.0, rel=1e-4)
    assert seen(0.1) == pytest.approx(1.1, rel=1e-4)
