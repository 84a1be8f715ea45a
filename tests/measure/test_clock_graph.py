"""The graph clock on a device made of paper: capturing records calls, a replay does their work, events tell it."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

from meprop_bench.measure import clock as clock_module
from meprop_bench.measure.clock import clock_for


class Device:
    """Work is queued in seconds. While a graph is captured, calls record their work instead of doing it."""

    def __init__(self) -> None:
        self.queued = 0.0
        self.recording: Graph | None = None
        self.captures = 0
        self.launches = 0
        self.streams = []

    def launch(self, seconds):
        def run():
            self.launches += 1
            if self.recording is not None:
                self.recording.seconds += seconds
            else:
                self.queued += seconds

        return run


class Graph:
    device: Device

    def __init__(self) -> None:
        self.seconds = 0.0

    def replay(self) -> None:
        self.device.queued += self.seconds


class Event:
    device: Device

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self, _):
        self.at = self.device.queued

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class Stream:
    def wait_stream(self, _):
        pass


@pytest.fixture
def device(monkeypatch):
    device = Graph.device = Event.device = Device()

    @contextmanager
    def capture(into, pool, stream):
        assert pool == "pool"
        device.streams.append(stream)
        device.captures += 1
        device.recording = into
        try:
            yield
        finally:
            device.recording = None

    def issued_on(stream):
        device.streams.append(stream)
        return nullcontext()

    monkeypatch.setattr(clock_module, "_streams", {})
    replacements = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: "pool",
        "current_stream": lambda *_: Stream(),
        "stream": issued_on,
        "device": lambda _: nullcontext(),
        "synchronize": lambda _: None,
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    return device


def test_replays_are_timed_and_a_function_is_captured_once(device):
    clock = clock_for("cuda:0", graphs=True)
    step = device.launch(0.5)
    assert clock.time(step, 4) == pytest.approx(0.5)
    launches = device.launches
    assert clock.time(step, 7) == pytest.approx(0.5)
    assert (device.captures, device.launches) == (1, launches)  # no Python runs between replays


def test_a_replay_can_be_called_by_others_and_is_the_one_that_was_timed(device):
    clock = clock_for("cuda:0", graphs=True)
    step = device.launch(0.5)
    clock.time(step, 1)
    queued = device.queued
    clock.replay(step)()
    assert device.queued == queued + 0.5
    assert device.captures == 1


def test_phases_are_graphs_of_their_own_in_order(device):
    clock = clock_for("cuda:0", graphs=True)
    phases = {"forward": device.launch(0.5), "backward": device.launch(1.5)}
    for loops in (1, 3):
        found = clock.time_phases(phases, loops)
        assert found == pytest.approx({"forward": 0.5, "backward": 1.5})
        assert list(found) == ["forward", "backward"]
    assert device.captures == 2


def test_what_is_set_up_for_a_capture_is_issued_on_its_stream(device):
    with clock_module.on_capture_stream("cuda:0"):
        pass
    clock_for("cuda:0", graphs=True).time(device.launch(0.5), 2)
    assert len(device.streams) == 3  # the set-up, the warm rounds, the capture
    assert len(set(map(id, device.streams))) == 1


def test_cold_replays(device):
    clock = clock_for_cold(device)
    assert clock.time(device.launch(0.5), 3) == pytest.approx(0.5)


def clock_for_cold(device):
    from meprop_bench.measure.clock import ColdClock

    return ColdClock(clock_for("cuda:0", graphs=True), device.launch(64.0))


def test_what_cannot_be_captured_is_one_line(device):
    def waits():
        if device.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with pytest.raises(ValueError, match=r"captured as a CUDA graph: operation not permitted .* capturing$"):
        clock_for("cuda:0", graphs=True).time(waits, 1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_backward_pass_is_captured_with_all_that_it_does():
    with clock_module.on_capture_stream("cuda:0"):
        x, w = (torch.randn(2048, 2048, device="cuda:0", requires_grad=True) for _ in range(2))
        y = x @ w.t()
        dy = torch.randn_like(y)

    def backward():
        return torch.autograd.grad(y, (x, w), dy, retain_graph=True)

    eager, replayed = clock_for("cuda:0"), clock_for("cuda:0", graphs=True)
    eager.time(backward, 3)
    assert replayed.time(backward, 20) == pytest.approx(eager.time(backward, 20), rel=0.5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_costs_less_than_its_launches():
    x = torch.randn(64, 64, device="cuda:0")

    def chain():
        y = x
        for _ in range(50):
            y = y + 1
        return y

    eager, graph = clock_for("cuda:0"), clock_for("cuda:0", graphs=True)
    eager.time(chain, 3)
    assert graph.time(chain, 20) < eager.time(chain, 20)
