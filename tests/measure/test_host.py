from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest

from meprop_bench.measure import procfs
from meprop_bench.measure.host import Host
from meprop_bench.measure.sampler import Sampler

Linux = namedtuple("Linux", "user nice system idle iowait irq softirq steal guest guest_nice")
Mac = namedtuple("Mac", "user nice system idle")


class Machine:
    """A machine whose counters a test moves: it plays psutil, the process's clock and getrusage."""

    def __init__(self, times=None):
        self.times = times or Linux(100.0, 0.0, 10.0, 500.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0)
        self.cpu_s = 7.0
        self.usage = SimpleNamespace(ru_nvcsw=100, ru_nivcsw=10, ru_minflt=1000)
        self.resident = [100, 300, 200]
        self.frequency = SimpleNamespace(current=2400.0)
        self.frequencies_read = 0

    def psutil(self):
        process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=self.resident.pop(0)))
        return SimpleNamespace(Process=lambda: process, cpu_times=lambda: self.times, cpu_freq=self.read_frequency)

    def read_frequency(self):
        self.frequencies_read += 1
        if isinstance(self.frequency, Exception):
            raise self.frequency
        return self.frequency

    def host(self, **changes):
        parts = {"psutil": self.psutil(), "process_time": lambda: self.cpu_s, "getrusage": lambda: self.usage}
        return Host(**{**parts, **changes})


@pytest.fixture(autouse=True)
def quota(monkeypatch):
    """A control group that holds the process back for 0.75 s between two questions."""
    waits = iter([2.0, 2.75])
    monkeypatch.setattr(procfs, "cpu_throttled_s", lambda: next(waits))


def run(machine, host, *, cpu_s=3.0, user=4.0, steal=0.2, readings=3):
    host.start()
    for _ in range(readings):
        host.read()
    machine.cpu_s += cpu_s
    machine.times = machine.times._replace(user=machine.times.user + user)
    if hasattr(machine.times, "steal"):
        # A guest's time is in `user` already, and waiting for a disk is idle.
        machine.times = machine.times._replace(steal=machine.times.steal + steal, guest=0.5, iowait=9.0)
    machine.usage = SimpleNamespace(ru_nvcsw=150, ru_nivcsw=13, ru_minflt=1900)
    host.stop()
    return host.summary(2.0)


def test_the_process_and_the_others_in_percent_of_a_core():
    machine = Machine()
    found = run(machine, machine.host())
    assert found.values["cpu_utilization"] == 150.0
    assert found.values["cpu_throttled_s"] == 0.75
    assert found.values["others_cpu_utilization"] == pytest.approx(50.0)  # 4 s busy, 3 s of them ours, in 2 s
    assert found.values["cpu_steal"] == pytest.approx(10.0)
    assert found.unavailable == {}


def test_levels_and_counts():
    machine = Machine()
    values = run(machine, machine.host()).values
    assert values["rss_bytes"] == 300
    assert values["cpu_frequency_mhz"] == 2400.0
    assert [values[name] for name in ("voluntary_switches", "involuntary_switches", "page_faults")] == [50, 3, 900]


def test_others_are_never_less_than_nothing():
    machine = Machine()
    assert run(machine, machine.host(), cpu_s=5.0).values["others_cpu_utilization"] == 0.0


def test_the_frequency_is_read_now_and_then():
    machine = Machine()
    machine.resident = [1] * 25
    run(machine, machine.host(), readings=25)
    assert machine.frequencies_read == 3


@pytest.mark.parametrize("shown", [None, SimpleNamespace(current=0.0), NotImplementedError(), FileNotFoundError()])
def test_a_kernel_that_shows_no_frequency(shown):
    machine = Machine()
    machine.frequency = shown
    found = run(machine, machine.host())
    assert found.unavailable == {"cpu_frequency_mhz": "the kernel does not show it"}
    assert "cpu_frequency_mhz" not in found.values


def test_a_system_without_steal_and_getrusage():
    machine = Machine(times=Mac(100.0, 0.0, 10.0, 500.0))
    host = machine.host()
    host._getrusage = None
    found = run(machine, host)
    assert found.values["others_cpu_utilization"] == pytest.approx(50.0)
    assert found.unavailable == {
        "cpu_steal": "the system does not count it",
        "voluntary_switches": "the system has no getrusage",
        "involuntary_switches": "the system has no getrusage",
        "page_faults": "the system has no getrusage",
    }


def test_a_process_that_no_quota_limits(monkeypatch):
    def none():
        raise procfs.Unavailable("no control group limits it")

    monkeypatch.setattr(procfs, "cpu_throttled_s", none)
    machine = Machine()
    assert run(machine, machine.host()).unavailable == {"cpu_throttled_s": "no control group limits it"}


def test_a_loop_without_a_reading_says_so():
    machine = Machine()
    found = run(machine, machine.host(), readings=0)
    assert found.unavailable["rss_bytes"] == "not read"


def test_this_very_machine():
    with Sampler([Host()], interval_s=0.005) as sampler:
        total = sum(range(2_000_000))
    assert total
    values = sampler.summary.values
    assert 0 < values["cpu_utilization"] < 100 * 64
    assert values["rss_bytes"] > 1 << 20
    assert set(values) | set(sampler.summary.unavailable) == set(Host.fields)
    assert not set(values) & set(sampler.summary.unavailable)
