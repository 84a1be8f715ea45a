"""What a measuring process answers about two functions of a user, without a process."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meprop_bench.measure.clock import WallClock
from meprop_bench.sweep.functions import CALL, Functions, Timed, _compared, device_of_functions, fingerprint
from meprop_bench.sweep.worker import WorkerSession

_CALLS: list[tuple[Any, ...]] = []


def _note(*args: Any) -> int:
    _CALLS.append(args)
    return len(args)


def _boom(*_: Any) -> None:
    raise ValueError("bad\nnumber")


def _quits() -> None:
    raise SystemExit(3)


def _append(values: list[int]) -> int:
    values.append(1)
    return 0


def _fresh() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ([],), {}


def _late() -> None:
    """Fails at its second call."""
    _CALLS.append(())
    if len(_CALLS) > 1:
        raise RuntimeError("late")


def _sleeps() -> None:
    time.sleep(0.06)


def _products(count: int) -> None:
    import torch

    x = torch.ones(4096, 4096, device="cuda")
    for _ in range(count):
        x = x @ x


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    _CALLS.clear()
    session = WorkerSession()

    def go(do: str, functions: Functions | None = None, **fields: Any) -> dict[str, Any]:
        if functions is not None:
            (tmp_path / "functions").write_bytes(pickle.dumps(functions))
            fields["file"] = str(tmp_path / "functions")
        answer: dict[str, Any] = json.loads(json.dumps(session.handle({"do": do, **fields}), allow_nan=False))
        return answer

    return go


def _tried(ask: Callable[..., dict[str, Any]], functions: Functions, **fields: Any) -> dict[str, Any]:
    assert ask("load_functions", functions) == {}
    return ask("try_functions", **{"warm_s": 0.0, **fields})


def test_both_are_called_and_timed_in_pairs(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meprop_bench.sweep.functions._MOST_S", 1e9)  # on a busy machine a short call can take long
    tried = _tried(ask, Functions(Timed(_note, (1,)), Timed(_note, (1, 2))))
    assert tried["differ"] is None
    assert tried["changed"] == [False, False]
    assert tried["device"] == "cpu"
    assert tried["loops"][0] == tried["loops"][1] > 1  # like caches, as both are short
    _CALLS.clear()
    found = ask("time_functions", seconds=0.0, least_pairs=3, loops=[2, 5], seed=1)
    assert 3 <= len(found["pairs"][CALL]) <= 6
    assert all(first > 0 and second > 0 for first, second in found["pairs"][CALL])
    count = len(found["pairs"][CALL])
    assert (_CALLS.count((1,)), _CALLS.count((1, 2))) == (2 * count, 5 * count)


def test_a_short_function_does_not_make_a_long_one_s_values_long(ask: Callable[..., dict[str, Any]]) -> None:
    reference, candidate = _tried(ask, Functions(Timed(_sleeps), Timed(int)))["loops"]
    assert reference == 1
    assert candidate > 100


def test_untimed_each_is_called_once(ask: Callable[..., dict[str, Any]]) -> None:
    tried = _tried(ask, Functions(Timed(_note), Timed(_note, (2,))), timed=False)
    assert tried["loops"] == [1, 1]
    assert _CALLS == [(), (2,)]
    with pytest.raises(ValueError, match="no case whose check passed"):
        ask("time_functions", seconds=0.0, least_pairs=1, loops=[1, 1], seed=1)


def test_fresh_arguments_are_made_before_each_call_and_not_timed(ask: Callable[..., dict[str, Any]]) -> None:
    fresh, same = Timed(_append, setup=_fresh), Timed(_append, ([],))
    assert _tried(ask, Functions(same, fresh))["changed"] == [True, False]
    slow = Timed(_note, setup=_sleeps)  # returns None: the arguments stay
    assert _tried(ask, Functions(slow, slow), timed=True)["loops"] == [1, 1]
    ((first, second),) = ask("time_functions", seconds=0.0, least_pairs=1, loops=[1, 1], seed=1)["pairs"][CALL][:1]
    assert max(first, second) < 0.06
    wrong = _tried(ask, Functions(Timed(_note), Timed(_note, setup=int)))
    assert wrong["raised"]["line"] == "TypeError: a setup function returns (args, kwargs) or None, not 0"


@pytest.mark.parametrize(
    ("functions", "side", "line"),
    [
        (Functions(Timed(int), Timed(_boom, (1,))), 1, "ValueError: bad"),
        (Functions(Timed(_quits), Timed(int)), 0, "SystemExit: 3"),
    ],
)
def test_what_a_function_raises_is_answered_with_its_traceback(
    ask: Callable[..., dict[str, Any]], functions: Functions, side: int, line: str
) -> None:
    raised = _tried(ask, functions)["raised"]
    assert (raised["side"], raised["line"]) == (side, line)
    assert raised["traceback"].startswith("Traceback (most recent call last):")
    assert "test_functions.py" in raised["traceback"].splitlines()[1]  # nothing of ours in front


def test_so_is_what_it_raises_later(ask: Callable[..., dict[str, Any]]) -> None:
    assert _tried(ask, Functions(Timed(int), Timed(_late)))["raised"]["line"] == "RuntimeError: late"
    _CALLS.clear()
    assert "raised" not in _tried(ask, Functions(Timed(_note), Timed(_note)))


def test_what_cannot_be_loaded_says_why(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"cnowhere\nfunction\n.")
    raised = ask("load_functions", file=str(tmp_path / "broken"))["raised"]
    assert (raised["side"], raised["line"]) == (None, "ModuleNotFoundError: No module named 'nowhere'")


@pytest.mark.parametrize(
    ("reference", "candidate", "same", "words"),
    [
        (3, 3, True, None),
        (3, 4, True, "4, not 3"),
        (np.arange(3), np.arange(3), True, None),
        (np.arange(3), np.array([0, 1, 3]), True, "array([0, 1, 3]), not array([0, 1, 2])"),
        (np.arange(3), np.arange(4), True, "not array"),
        ([np.arange(3)], [np.arange(3)], True, "give same_result a function of both results"),  # == is no answer
        (1.0, 1.0 + 1e-9, lambda first, second: abs(first - second) < 1e-6, None),
        (1.0, 1.1, lambda first, second: abs(first - second) < 1e-6, "1.1, not 1.0"),
        (1.0, 1.0 + 1e-9, np.testing.assert_allclose, None),
        (1.0, 1.1, np.testing.assert_allclose, "Not equal to tolerance"),
    ],
)
def test_results_are_compared_as_is_asked(reference: Any, candidate: Any, same: Any, words: str | None) -> None:
    found = _compared(same, reference, candidate)
    assert found is None if words is None else words in (found or "")


def test_different_results_are_not_timed(ask: Callable[..., dict[str, Any]]) -> None:
    tried = _tried(ask, Functions(Timed(_note), Timed(_note, (2,)), same_result=True))
    assert tried["differ"] == "1, not 0"
    assert _CALLS == [(), (2,)]


def test_arguments_have_one_fingerprint_even_if_the_call_between_imports_a_pickler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, local = ([1, 2], [3]), (lambda: 0,)
    monkeypatch.delitem(sys.modules, "cloudpickle", raising=False)
    before = fingerprint((plain, {}))
    assert fingerprint((local, {})) is None
    import cloudpickle

    assert before is not None
    assert fingerprint((plain, {})) == before
    assert fingerprint((plain, {"a": 1})) != before
    assert fingerprint((local, {})) == hashlib.sha256(cloudpickle.dumps((local, {}))).hexdigest()
    assert fingerprint(((), {})) is None


def test_the_device_is_one_that_the_functions_have_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert device_of_functions() == "cpu"
    cuda = SimpleNamespace(is_initialized=lambda: False, current_device=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert device_of_functions() == "cpu"
    cuda.is_initialized = lambda: True
    assert device_of_functions() == "cuda:1"


@pytest.mark.cuda
def test_a_value_on_a_gpu_waits_for_it(ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    clocks = list[str]()

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    monkeypatch.setattr("meprop_bench.sweep.functions.WallClock", lambda device: clocks.append(device) or WallClock())
    tried = _tried(ask, Functions(Timed(_products, (1,)), Timed(_products, (2,))))
    assert tried["device"] == clocks[0] == "cuda:0"
