from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from meprop_bench.measure.clock import ColdClock, CudaEventClock, CudaGraphClock, WallClock, clock_for, overhead


def test_time_is_the_mean_of_a_loop(clock):
    calls = []

    def fn():
        calls.append(None)
        clock.advance(0.5 * len(calls))

    assert clock.time(fn, 4) == pytest.approx((0.5 + 1 + 1.5 + 2) / 4)
    assert len(calls) == 4


def test_phases_run_in_order_and_are_timed_apart(clock):
    order = []

    def phase(name, seconds):
        def run():
            order.append(name)
            clock.advance(seconds)

        return run

    times = clock.time_phases({"forward": phase("f", 1.0), "backward": phase("b", 3.0), "update": phase("u", 0.25)}, 2)

    assert times == pytest.approx({"forward": 1.0, "backward": 3.0, "update": 0.25})
    assert list(times) == ["forward", "backward", "update"]
    assert order == ["f", "b", "u"] * 2


@pytest.mark.parametrize("loops", [0, -1])
def test_loops_are_checked(clock, loops):
    with pytest.raises(ValueError, match=str(loops)):
        clock.time(lambda: None, loops)
    with pytest.raises(ValueError, match=str(loops)):
        clock.time_phases({"step": lambda: None}, loops)


def test_the_wall_clock_moves_forward():
    clock = WallClock()
    clock.synchronize()
    assert clock.time(lambda: sum(range(1000)), 3) > 0
    assert clock.now() <= clock.now()


def test_clock_for_a_device():
    assert isinstance(clock_for("cpu"), WallClock)
    with pytest.raises(ValueError, match="tpu"):
        clock_for("tpu")
    with pytest.raises(ValueError, match="cpu"):
        CudaEventClock("cpu")
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device"):
        clock_for("cpu", graphs=True)
    with pytest.raises(ValueError, match="warm or cold"):
        clock_for("cpu", caches="tepid")
    assert isinstance(clock_for("cpu", caches="cold"), ColdClock)
    assert isinstance(clock_for("cuda:0", graphs=True), CudaGraphClock)


def test_a_wall_clock_of_a_device_waits_at_both_ends_and_at_each_boundary(monkeypatch):
    device = {"queued": 0.0, "done": 0.0, "waits": 0}

    def wait(_):
        device["waits"] += 1
        device["done"] = device["queued"]

    def launch():
        device["queued"] += 0.5

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    clock = WallClock("cuda:0", timer=lambda: device["done"])
    assert clock.time(launch, 4) == 0.5
    assert device["waits"] == 2
    assert clock.time_phases({"one": launch, "two": lambda: (launch(), launch())}, 3) == {"one": 0.5, "two": 1.0}
    assert device["waits"] == 2 + 1 + 6


def test_the_overhead_is_what_the_clock_says_of_nothing(clock):
    tick = clock.now

    def ticking():
        clock.advance(1.0)  # a reading of this clock takes a second
        return tick()

    clock.now = ticking
    # A loop of 100 has one reading in it, a single call one of its own, a boundary between phases one.
    assert overhead(clock) == {"call": pytest.approx(0.01), "single": 1.0, "phase": 1.0}
    real = overhead(WallClock(), loops=10, repeats=2)
    assert set(real) == {"call", "single", "phase"}
    assert all(seconds >= 0 for seconds in real.values())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_events_time_the_device_and_not_the_launch():
    clock = clock_for("cuda:0")
    x = torch.randn(4096, 4096, device="cuda:0")
    one, two = (lambda: x @ x), (lambda: (x @ x, x @ x))
    clock.time(two, 3)
    phases = clock.time_phases({"one": one, "two": two}, 5)
    assert phases["two"] > 1.3 * phases["one"]
    # No device does a petaflop/s in fp32; the launches alone would take microseconds.
    assert clock.time(one, 5) > 2 * 4096**3 / 1e15


def test_events_are_read_after_the_loop_only(monkeypatch):
    """The arithmetic of CudaEventClock, on a device made of paper: work is queued, and done when someone waits."""
    device = {"queued": 0.0, "waits": 0}

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream"
            self.at = device["queued"]

        def synchronize(self):
            device["waits"] += 1

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    def synchronize(which):
        device["waits"] += 1

    def launch(seconds):
        def run():
            device["queued"] += seconds

        return run

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda which: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "device", lambda which: nullcontext())
    clock = clock_for("cuda:0")

    assert clock.time(launch(0.25), 4) == pytest.approx(0.25)
    assert device["waits"] == 2
    assert clock.time_phases({"forward": launch(0.5), "backward": launch(1.5)}, 3) == pytest.approx(
        {"forward": 0.5, "backward": 1.5}
    )
    assert device["waits"] == 4  # at both ends, whatever the loops
