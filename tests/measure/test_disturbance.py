from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from meprop_bench.measure import procfs
from meprop_bench.measure.disturbance import Contention, contention

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux scheduler")


@pytest.mark.parametrize(
    ("waited", "stolen", "reads", "wall", "disturbed"),
    [
        (0.0, 0.0, 0, 1.0, False),
        (0.04, 0.0, 0, 1.0, False),
        (0.06, 0.0, 0, 1.0, True),
        (0.03, 0.03, 0, 1.0, True),  # what was lost for several reasons adds up
        (0.06, 0.0, 0, 2.0, False),
        (0.0, 0.0, 1, 1.0, True),
        (-1.0, 0.0, 0, 1.0, False),
    ],
)
def test_lost_time_counts_against_the_wall_time(waited, stolen, reads, wall, disturbed):
    counters = {"waited": 7.0, "stolen": 3.0, "reads": 5, "wall": 100.0}
    probe = Contention(
        [lambda: counters["waited"], lambda: counters["stolen"]],
        lambda: counters["reads"],
        now=lambda: counters["wall"],
    )
    probe.begin()
    for name, passed in (("waited", waited), ("stolen", stolen), ("reads", reads), ("wall", wall)):
        counters[name] += passed
    assert probe.disturbed() is disturbed


@pytest.fixture
def system(system, monkeypatch):
    """The process may use the cores 0 and 2."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    return system


def _stat(stolen: int) -> str:
    """Ticks withheld from each core; core 1 is not ours."""
    cores = "".join(f"cpu{core} 1 0 1 9 0 0 0 {ticks} 0 0\n" for core, ticks in enumerate((stolen, 77, 5)))
    return f"cpu  9 9 9 9 9 9 9 99 0 0\n{cores}intr 5\n"


@linux
def test_the_kernel_s_counters_add_up(system):
    system("proc/self/task/7/schedstat", "1000000 2000000 5\n")
    system("proc/self/task/8/schedstat", "0 0 0\n")
    system("proc/stat", _stat(10))
    system("proc/self/cgroup", "0::/\n")
    system("sys/fs/cgroup/cpu.max", "150000 100000\n")
    system("sys/fs/cgroup/cpu.stat", "usage_usec 5\nthrottled_usec 250000\n")
    with contention() as probe:
        assert sum(read() for read in probe._lost_s) == pytest.approx(0.002 + 0.15 + 0.25)
        probe.begin()
        assert not probe.disturbed()
        system("proc/self/task/8/schedstat", "0 9000000000 0\n")
        assert probe.disturbed()
        probe.begin()
        system("proc/stat", _stat(900))
        assert probe.disturbed()


@linux
def test_a_machine_without_a_hypervisor_is_not_asked_about_it(system):
    system("proc/self/task/7/schedstat", "0 0 0\n")
    system("proc/stat", "cpu  0 0 0 9 0 0 0 0 0 0\ncpu0 1 0 1 9 0 0 0 0 0 0\n")
    with contention() as probe:
        assert len(probe._lost_s) == 1


@linux
def test_a_kernel_that_does_not_tell(system):
    with pytest.raises(procfs.Unavailable, match="how long a thread waited"):
        contention()


@linux
def test_two_processes_on_one_core_are_seen_waiting_and_files_are_closed():
    """For real: pinned to one core, two busy processes must wait for each other."""
    if not os.path.exists("/proc/self/schedstat"):
        pytest.skip("this kernel does not count waits")
    allowed, open_before = os.sched_getaffinity(0), len(os.listdir("/proc/self/fd"))
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(child.pid, {min(allowed)})
        os.sched_setaffinity(0, {min(allowed)})
        with contention() as probe:
            probe.begin()
            end = time.process_time() + 0.1
            while time.process_time() < end:
                pass
            assert probe.disturbed()
    finally:
        child.kill()
        child.wait()
        os.sched_setaffinity(0, allowed)
    assert len(os.listdir("/proc/self/fd")) == open_before
