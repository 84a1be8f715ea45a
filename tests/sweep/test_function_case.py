"""What a measuring process answers about a function that a project names."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meprop_bench
from meprop_bench.errors import Absent, UserError
from meprop_bench.measure.worker import Worker
from meprop_bench.sweep.function_case import FunctionCase
from meprop_bench.sweep.worker import PROTOCOL, WorkerSession

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def session() -> WorkerSession:
    return WorkerSession()


@pytest.fixture
def ask(session: WorkerSession) -> Ask:
    def go(do: str, **fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(json.dumps(session.handle({"do": do, **fields}), allow_nan=False))
        return answer

    return go


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return what writes a file, and gives the JSON of a case of it."""

    def case(text: str, function: str = "work", setup: str | None = None, **fields: Any) -> dict[str, Any]:
        file = tmp_path / f"bench_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(text)
        named = None if setup is None else f"{file}:{setup}"
        record: dict[str, Any] = json.loads(
            json.dumps(FunctionCase(f"{file}:{function}", threads=1, setup=named, **fields).changed())
        )
        return record

    return case


def _blocks(ask: Ask, count: int = 2) -> list[dict[str, Any]]:
    loops = {"baseline": 1, "method": 1}
    answer = ask("turns", me="a", plan=[("a", "method", 0.0)] * count, loops=loops, lead=0)
    assert not answer["stopped"]
    blocks: list[dict[str, Any]] = answer["blocks"]
    return blocks


def _calls(session: WorkerSession) -> list[Any]:
    form = session.loaded["function_case"]
    calls: list[Any] = sys.modules[form.function.__module__].CALLS
    return calls


_NOTES = "CALLS = []\ndef work(*args, **kwargs):\n    CALLS.append((args, kwargs))\n"


def test_a_function_is_timed_in_blocks(ask: Ask, bench: Callable[..., dict[str, Any]]) -> None:
    setup = ask("setup_function", case=bench("def work(n=1000): return sum(range(n))"))
    assert setup == {"phases": ["call"], "costs": {}}
    checked = ask("check_function", warm_s=0.0)
    assert checked["side_loops"][0] == checked["side_loops"][1] >= 1
    assert checked["changed"] is False
    assert all(set(one["values"]) == {"call"} and one["values"]["call"] > 0 for one in _blocks(ask))
    ask("again_function", seed=3)
    assert len(_blocks(ask, 3)) == 3


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, ((), {})),
        ({"args": (1, "a"), "kwargs": {"b": 2}}, ((1, "a"), {"b": 2})),
        ({"sizes": (7,), "args": (1,)}, ((7, 1), {})),
    ],
)
def test_what_a_function_is_called_with(
    fields: dict[str, Any], given: Any, ask: Ask, session: WorkerSession, bench: Callable[..., dict[str, Any]]
) -> None:
    ask("setup_function", case=bench(_NOTES, **fields))
    ask("check_function", warm_s=0.0)
    assert _calls(session)[0] == given


@pytest.mark.parametrize(
    ("made", "given"),
    [
        ("None", ((), {})),
        ("'x' * size", (("xxx",), {})),
        ("(['x'], {'n': size})", (("x",), {"n": 3})),
        ("('x', 'y')", ((("x", "y"),), {})),  # one argument: no pair of arguments and keywords
    ],
)
def test_a_set_up_makes_the_arguments(
    made: str, given: Any, ask: Ask, session: WorkerSession, bench: Callable[..., dict[str, Any]]
) -> None:
    text = f"{_NOTES}def make(size):\n    return {made}\n"
    ask("setup_function", case=bench(text, setup="make", sizes=(3,)))
    ask("check_function", warm_s=0.0)
    assert _calls(session)[0] == given


def test_arguments_are_the_same_each_time_and_made_anew(
    ask: Ask, session: WorkerSession, bench: Callable[..., dict[str, Any]]
) -> None:
    text = f"import random\n{_NOTES}def make():\n    return [random.random()]\n"
    ask("setup_function", case=bench(text, setup="make"))
    ask("check_function", warm_s=0.0)
    random.seed(99)
    ask("again_function", seed=1)
    _blocks(ask)
    first, last = _calls(session)[0][0][0], _calls(session)[-1][0][0]
    assert first == last
    assert first is not last


def test_what_changes_its_arguments_is_told_and_can_have_fresh_ones(
    ask: Ask, session: WorkerSession, bench: Callable[..., dict[str, Any]]
) -> None:
    text = "CALLS = []\ndef work(x):\n    CALLS.append(len(x))\n    x.append(1)\ndef make():\n    return []\n"
    ask("setup_function", case=bench(text, setup="make"))
    assert ask("check_function", warm_s=0.0)["changed"] is True
    ask("setup_function", case=bench(text, setup="make", each_call=True))
    assert ask("check_function", warm_s=0.0)["changed"] is False
    _blocks(ask)
    assert set(_calls(session)) == {0}
    ask("peak_function")
    assert set(_calls(session)) == {0}


def test_the_peak_of_a_call(ask: Ask, bench: Callable[..., dict[str, Any]]) -> None:
    ask("setup_function", case=bench("def work(): return bytearray(1 << 20)"))
    ask("check_function", warm_s=0.0)
    assert 1 << 20 <= ask("peak_function")["peak"] < 2 << 20


def test_a_call_that_takes_long_is_one_value(
    ask: Ask, session: WorkerSession, bench: Callable[..., dict[str, Any]]
) -> None:
    text = "import time\nCALLS = []\ndef work():\n    CALLS.append(1)\n    time.sleep(0.6)\n"
    ask("setup_function", case=bench(text))
    assert ask("check_function", warm_s=1.0) == {"side_loops": [1, 1], "changed": False, "traced": True}
    ask("again_function", seed=1)
    assert len(_calls(session)) == 1
    session.loaded["function_case"].first_s = 20.0
    assert ask("peak_function")["peak"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def work():\n    raise ValueError('no\\nmore')",
            r"work cannot be called (bench_0.py, line 2): ValueError: no",
        ),
        ("import sys\ndef work():\n    sys.exit(3)", "ends the program when it is called (exit 3)"),
        ("import os\ndef work():\n    os.chdir(os.sep)", "changes the working directory when it is called"),
    ],
)
def test_what_a_call_raises_is_one_line(
    text: str, message: str, ask: Ask, bench: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path.cwd())  # and back again
    ask("setup_function", case=bench(text))
    with pytest.raises(UserError) as caught:
        ask("check_function", warm_s=0.0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_and_what_runs_nothing(ask: Ask, bench: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(Absent, match="has no function 'wrk': did you mean 'work'"):
        ask("setup_function", case=bench("def work(): pass", function="wrk"))
    with pytest.raises(UserError, match="a coroutine function, whose call runs nothing"):
        ask("setup_function", case=bench("async def work(): pass"))
    with pytest.raises(UserError, match="a generator function"):
        ask("setup_function", case=bench("def work(): pass\ndef make():\n    yield 1", setup="make"))


def test_its_process_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """The environment of a project that knows nothing of this package may hold nothing else."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/meprop_bench").symlink_to(Path(meprop_bench.__file__).parent)
    (tmp_path / "bench.py").write_text("def work(): return sum(range(100))\n")
    case = FunctionCase("bench.py:work", threads=1).changed()
    loops = {"baseline": 1, "method": 1}
    requests: list[dict[str, Any]] = [
        {"do": "hello_function", "threads": 1, "device": "cpu"},
        {"do": "enter_project", "path": [str(tmp_path)], "first": True},
        {"do": "setup_function", "case": case},
        {"do": "check_function", "warm_s": 0.0},
        {"do": "meet"},
        {"do": "turns", "me": "a", "plan": [["a", "method", 0.0]], "loops": loops, "lead": 1},
        {"do": "again_function", "seed": 1},
        {"do": "peak_function"},
        {"do": "origins", "names": ["bench"], "below": str(tmp_path / "nowhere")},
    ]
    program = [sys.executable, "-S", "-P", "-m", "meprop_bench.sweep.worker"]  # without site-packages
    with Worker(program, {"PYTHONPATH": str(tmp_path / "package")}, tmp_path) as worker:
        answers = [worker.request(one, 60.0) for one in requests]
    assert [answer.get("error") for answer in answers] == [None] * len(requests)
    assert answers[0]["protocol"] == PROTOCOL
    assert answers[0]["environment"]["python"]
    assert answers[-1]["origins"] == {"bench": str(tmp_path / "bench.py")}
