from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from meprop_bench.doctor import noise
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerError
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.worker import WorkerSession

_CALM = dict.fromkeys(("others_s", "stolen_s", "throttled_s", "overheated", "swapped_in"), 0) | {
    "wall_s": 1.0,
    "cores": 2,
}


class Answering:
    """A worker that answers from a script."""

    def __init__(self, **answers: Mapping[str, Any]) -> None:
        self.answers, self.asked = answers, []

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        self.asked.append(dict(message))
        return dict(self.answers.get(message["do"], {}))

    def close(self) -> None:
        pass


def pool(worker: Answering) -> Pool[int]:
    return Pool.of(lambda: worker, 1)


def measured(spread: float, *, marks: list[bool] | None = None) -> Answering:
    """Parts whose median ratios differ by about `spread`."""
    rng = random.Random(0)

    class Spread(Answering):
        def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
            part = rng.gauss(0, spread)
            pairs = [[3e-4 * (1 + part), 3e-4] for _ in range(4)]
            return {"pairs": {"step": pairs}, "disturbed": marks, "activity": _CALM}

    return Spread()


@pytest.mark.parametrize(
    ("spread", "state", "words"),
    [
        (0.0, "ok", "within reach"),
        (0.003, "ok", "within reach"),
        (0.03, "warning", "may need more"),
        (0.3, "problem", "out of"),
    ],
)
def test_identical_code_says_what_width_can_be_reached(spread: float, state: str, words: str) -> None:
    found = noise.measure(pool(measured(spread)), loops=3)
    assert found.processes == Plan.processes
    first, second = noise.judge(found)
    assert (first.state, words in first.text) == (state, True), first
    assert (second.check, second.state) == ("disturbed", "note")


def test_a_machine_that_disturbs_most_pairs_is_told() -> None:
    _, calm = noise.judge(noise.measure(pool(measured(0.001, marks=[False, False, False, True])), loops=1))
    _, wild = noise.judge(noise.measure(pool(measured(0.001, marks=[True, True, False, True])), loops=1))
    assert (calm.state, wild.state) == ("ok", "warning")
    assert wild.text.startswith("15 of 20 pairs")


def test_preparing_asks_for_the_check() -> None:
    worker = Answering(check={"check": "passed", "loops": 6})
    assert noise.prepare(pool(worker), noise.identical()) == 6
    assert [message["do"] for message in worker.asked] == ["hello", "setup", "check"]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"check": {"check": "dw is off by 1e-1", "loops": 1}}, "dw is off"),
        ({"setup": {"error": "out of memory", "kind": "out-of-memory"}}, "could not setup: out of memory"),
    ],
)
def test_a_process_that_does_not_get_ready_says_why(answers: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkerError) as caught:
        noise.prepare(pool(Answering(**answers)), noise.identical())
    assert words in noise.reason(caught.value)


def test_the_sweep_s_own_worker_answers_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_PART_S", 0.0)
    session = WorkerSession()

    class Here(Answering):
        def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
            return {} if message["do"] == "hello" else dict(session.handle(message))

    loops = noise.prepare(pool(Here()), noise.identical())
    found = noise.measure(pool(Here()), loops)
    assert min(found.run_lengths) >= 2
    assert noise.judge(found)[0].check == "A/A"
