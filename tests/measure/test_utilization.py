from __future__ import annotations

import json

import pytest

from meprop_bench.measure.clock import WallClock
from meprop_bench.measure.host import Host, Rapl
from meprop_bench.measure.nvml import Nvml
from meprop_bench.measure.sampler import SampleSummary
from meprop_bench.measure.utilization import sources_for, watch


class Meter:
    """A source that finds what a test says."""

    def __init__(self, values, unavailable=None, reason=None):
        self.fields = (*values, *(unavailable or {}))
        self._found = SampleSummary(values, unavailable or {})
        self._reason = reason
        self.calls = []

    def unavailable_reason(self):
        return self._reason

    def start(self):
        self.calls.append("start")

    def read(self):
        pass

    def stop(self):
        self.calls.append("stop")

    def summary(self, seconds):
        return self._found

    def close(self):
        pass


def test_the_loop_is_led_in_and_watched_for_as_long_as_asked(clock):
    meter = Meter({"cpu_utilization": 150.0})
    calls = []

    def call():
        calls.append("start" in meter.calls)
        clock.advance(1 / 64)

    found = watch(call, "cpu", clock, seconds=2.0, sources=[meter])
    assert (found["iterations"], found["seconds"]) == (128, 2.0)
    assert calls.count(False) == 4  # 1/20 s before anybody looks
    assert calls.count(True) == 128
    assert meter.calls == ["start", "stop"]
    assert found["cpu_utilization"] == 150.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_call_longer_than_the_time_is_made_once(clock):
    found = watch(lambda: clock.advance(30.0), "cpu", clock, seconds=2.0, sources=[])
    assert (found["iterations"], found["seconds"]) == (1, 30.0)


def test_a_gpu_is_led_in_for_a_second_and_waited_for_within_the_loop(clock):
    waits = []

    def synchronize():
        waits.append(clock.now())
        clock.advance(0.5)  # what the queue still held

    clock.synchronize = synchronize
    values = {"gpu_energy_j": 1000.0, "gpu_energy_source": "counter", "gpu_power_w": 390.0}
    found = watch(lambda: clock.advance(0.25), "cuda:0", clock, seconds=2.0, sources=[Meter(values)])
    assert waits == [1.0, 3.5]
    assert (found["iterations"], found["seconds"]) == (8, 2.5)
    assert (found["power_w"], found["energy_per_step_j"]) == (400.0, 125.0)
    assert found["energy_source"] == "NVML counter"
    assert "gpu_energy_source" not in found


def test_a_queue_of_launches_does_not_grow_without_bound(clock):
    waits = []
    clock.synchronize = lambda: waits.append(clock.now())
    found = watch(lambda: clock.advance(1 / 256), "cuda:0", clock, seconds=2.0, sources=[])
    assert found["iterations"] == 512
    assert waits == [100 / 256, 200 / 256, 1.0, *(1 + calls / 256 for calls in (100, 200, 300, 400, 500)), 3.0]


def test_on_the_cpu_energy_is_the_packages(clock):
    found = watch(lambda: clock.advance(0.25), "cpu", clock, seconds=2.0, sources=[Meter({"cpu_energy_j": 100.0})])
    assert (found["power_w"], found["energy_per_step_j"], found["energy_source"]) == (50.0, 12.5, "RAPL")
    assert found["unavailable"]["gpu_utilization"] == "the device is the CPU"


@pytest.mark.parametrize(("device", "field"), [("cpu", "cpu_energy_j"), ("cuda:0", "gpu_energy_j")])
def test_without_a_meter_power_and_energy_have_its_reason(clock, device, field):
    meter = Meter({field: 1.0, "gpu_energy_source": "counter"}, reason="no driver")
    found = watch(lambda: clock.advance(0.25), device, clock, seconds=2.0, sources=[meter])
    said = found["unavailable"]
    assert {said[name] for name in ("power_w", "energy_per_step_j", "energy_source", field)} == {"no driver"}
    assert not {"power_w", "energy_per_step_j", "gpu_energy_source"} & set(found)


def test_an_error_of_the_call_passes(clock):
    def call():
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        watch(call, "cpu", clock, seconds=1.0, sources=[])
    with pytest.raises(ValueError, match="seconds is more than 0"):
        watch(call, "cpu", clock, seconds=0.0)


def test_the_sources_of_a_device():
    assert [type(source) for source in sources_for("cpu")] == [Host, Rapl]
    assert [type(source) for source in sources_for("cuda:0")] == [Host, Rapl, Nvml]


def test_this_very_machine():
    total = []
    found = watch(lambda: total.append(sum(range(1000))), "cpu", WallClock(), seconds=0.05)
    assert found["iterations"] > 1
    assert found["cpu_utilization"] > 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found
