from __future__ import annotations

import threading

from meprop_bench.sweep.waiting import Waiting


class Said(list[str]):
    """Lines, of which a test awaits so many."""

    def __init__(self) -> None:
        self.come = threading.Semaphore(0)

    def __call__(self, line: str) -> None:
        self.append(line)
        self.come.release()


def test_what_lasts_is_said_again_and_again() -> None:
    said = Said()
    with Waiting(said, 0.01) as waiting:
        waiting.on("compiling the dense side", of="k=3")
        for _ in range(3):
            assert said.come.acquire(timeout=60)
        waiting.on("compiling the dense side", of="k=3")  # goes on
        waiting.on("measuring", of="k=3")
        while not said[-1].startswith("k=3: measuring: "):
            assert said.come.acquire(timeout=60)
    assert said[0].startswith("k=3: compiling the dense side: ")
    assert said[0].endswith(" s")
    assert {*waiting.spent} == {"compiling the dense side", "measuring"}
    assert waiting.spent["compiling the dense side"] >= 0.04  # said after 0.01, 0.02 and 0.04 s


def test_a_line_that_lasts_or_fails_holds_nothing_up() -> None:
    begun, end = threading.Event(), threading.Event()

    def say(line: str) -> None:
        begun.set()
        assert end.wait(60)
        raise BrokenPipeError(line)

    with Waiting(say, 0.01) as waiting:
        waiting.on("starting")
        assert begun.wait(60)
        waiting.on("measuring")  # while the line is being said
        end.set()
    assert {*waiting.spent} == {"starting", "measuring"}


def test_what_is_soon_over_is_not_said() -> None:
    said = Said()
    with Waiting(said, 600.0) as waiting:
        for what in ("starting", "", "starting"):
            waiting.on(what)
    assert said == []
    assert waiting.spent.keys() == {"starting"}
