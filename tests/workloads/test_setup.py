from __future__ import annotations

from collections.abc import Mapping

from meprop_bench.measure.clock import Clock
from meprop_bench.results.schema import PASSED
from meprop_bench.workloads import After, Call, Prepared

_PAIR: tuple[Call, Call] = (int, float)


def _subject(_: int, __: Clock) -> Mapping[str, float]:
    return {}


def _prepared(**calls: Mapping[str, tuple[Call, Call]]) -> Prepared:
    return Prepared(
        phases=("forward",), baseline=_subject, method=_subject, check=lambda: PASSED, kernel="gather", k=1, **calls
    )  # type: ignore[arg-type]


def test_the_main_phase_is_the_steady_one_else_a_step_else_a_backward_pass() -> None:
    other: tuple[Call, Call] = (str, str)
    assert _prepared(steady={"step": other}, memory={"step": _PAIR}).main == ("step", other)
    assert _prepared(memory={"backward": other, "step": _PAIR}).main == ("step", _PAIR)
    assert _prepared(memory={"forward": other, "backward": _PAIR}).main == ("backward", _PAIR)
    assert _prepared(memory={"forward": other}).main is None


def test_after_makes_both_calls() -> None:
    made: list[str] = []

    def call() -> str:
        made.append("call")
        return "result"

    assert After(lambda: made.append("before"), call)() == "result"
    assert made == ["before", "call"]
