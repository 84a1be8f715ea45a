from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from meprop_bench.measure.machine import Activity, Watch, state, total
from meprop_bench.measure.procfs import Family

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="reads the Linux kernel's files")


@pytest.fixture
def system(system, monkeypatch):
    """The process may use the cores 0 and 2."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    return system


def stat(busy: int, stolen: int) -> str:
    """Ticks of core 0; core 1 is not ours, and core 2 does nothing."""
    cores = f"cpu0 {busy} 0 0 50 3 0 0 {stolen} 0 0\ncpu1 999 0 0 0 0 0 0 999 0 0\ncpu2 0 0 0 7 0 0 0 0 0 0"
    return f"cpu  0 0 0 0 0 0 0 0 0 0\n{cores}\nintr 1 2 3\n"


def machine(write, *, busy=0, stolen=0, throttled=0, hot=0, swapped=0):
    write("proc/stat", stat(busy, stolen))
    write("proc/vmstat", f"pswpin {swapped}\npswpout 3\n")
    write("proc/meminfo", "MemTotal: 100 kB\nSwapTotal:  2048 kB\nSwapFree:  1024 kB\n")
    write("proc/self/cgroup", "0::/job\n")
    write("sys/fs/cgroup/job/cpu.max", "150000 100000\n")
    write("sys/fs/cgroup/job/cpu.stat", f"nr_throttled 3\nthrottled_usec {throttled}\n")
    for core in (0, 1):
        write(f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", f"{hot}\n")
        write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{2_000_000 + 500_000 * core}\n")
    write("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "3500000\n")
    write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")


@linux
def test_what_happened_over_a_stretch(system):
    machine(system, busy=100, stolen=10, throttled=5_000_000, hot=2, swapped=40)
    clock = iter([10.0, 12.0])
    own = iter([5.0, 5.5])
    watch = Watch(now=lambda: next(clock), own_s=lambda: next(own))
    machine(system, busy=250, stolen=40, throttled=5_250_000, hot=3, swapped=47)
    activity = watch.activity()
    assert activity == Activity(
        wall_s=2.0, cores=2, others_s=1.0, stolen_s=pytest.approx(0.3), throttled_s=0.25, overheated=2, swapped_in=7
    )
    assert [note.text for note in activity.notes] == [
        "other processes took 25% of the cores meanwhile",
        "the hypervisor withheld 8% of the cores meanwhile",
        "a CPU quota held the process back for 0.25 s",
        "cores were slowed 2 times because they were too hot",
        "7 pages came back from swap meanwhile",
    ]


@linux
def test_a_calm_machine_needs_no_remark(system):
    machine(system)
    watch = Watch()
    assert watch.activity().notes == []


@linux
def test_what_cannot_be_counted_is_none_with_a_reason(system):
    watch = Watch()
    activity = watch.activity()
    assert (activity.others_s, activity.stolen_s, activity.overheated) == (None, None, None)
    assert activity.wall_s >= 0
    assert activity.notes == []
    assert watch.unavailable["overheated"] == "the kernel does not count it"
    assert "wall_s" not in watch.unavailable


def test_stretches_add_up():
    one = Activity(wall_s=1.0, cores=2, others_s=0.5, stolen_s=0.0, throttled_s=None, overheated=1, swapped_in=0)
    two = Activity(wall_s=3.0, cores=2, others_s=0.25, stolen_s=0.5, throttled_s=None, overheated=0, swapped_in=4)
    assert total([one, two]) == Activity(
        wall_s=4.0, cores=2, others_s=0.75, stolen_s=0.5, throttled_s=None, overheated=1, swapped_in=4
    )
    with pytest.raises(ValueError, match="no activities"):
        total([])


@linux
def test_the_state_before_a_run(system):
    machine(system, busy=100)

    def sleep(_):
        machine(system, busy=100_000, stolen=100_000, swapped=1)

    found = state(4, seconds=0.0, sleep=sleep)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["cpu_usable_cores"], found["cpu_limit"], found["threads"]) == (2, 1.5, 4)
    assert (found["cpu_frequency_mhz"], found["cpu_highest_frequency_mhz"]) == (2250.0, 3500.0)
    assert (found["swap_used_bytes"], found["overheated"]) == (1 << 20, 0)
    assert set(found["unavailable"]) <= {"load_average"}
    words = ["4 threads on 2 usable cores", "CPU quota of 1.5 cores", "other processes keep", "hypervisor withholds"]
    words += ["governor powersave", "from swap"]
    assert len(found["warnings"]) == len(words)
    assert all(word in line for word, line in zip(words, found["warnings"], strict=True))


@linux
def test_a_state_without_the_kernel_s_files_says_why(system):
    found = state(1, seconds=0.0)
    absent = {name for name, value in found.items() if value is None}
    assert {"others_cores", "stolen_cores", "cpu_limit", "cpu_governor", "overheated", "swap_used_bytes"} <= absent
    assert absent == set(found["unavailable"])
    assert found["warnings"] == []


def test_the_real_machine_s_state_is_json():
    found = state(1, seconds=0.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not any("\n" in line for line in found["warnings"])


def process(write, pid: int, parent: int, ticks: tuple[int, int, int, int], start: int = 7) -> None:
    """User, system, and the same of the children that it has waited for."""
    before = f"S {parent} 1 1 0 -1 0 0 0 0 0"
    write(f"proc/{pid}/stat", f"{pid} (a) b) {before} {' '.join(map(str, ticks))} 20 0 1 0 {start} 0 0\n")


@linux
def test_what_a_process_started_is_no_other(system, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "times", lambda: (1.0, 0.5, 2.0, 0.5, 99.0))
    monkeypatch.setattr(os, "getpid", lambda: 10)
    process(system, 10, 1, (999, 999, 999, 999))  # as os.times says
    process(system, 11, 10, (100, 50, 20, 30))
    process(system, 12, 11, (10, 0, 0, 0))
    process(system, 13, 1, (5000, 0, 0, 0))
    family = Family()
    assert family.seconds() == pytest.approx(4.0 + 2.0 + 0.1)
    (tmp_path / "proc/11/stat").unlink()  # it has ended, and its child is another's
    process(system, 12, 1, (60, 0, 0, 0))
    monkeypatch.setattr(os, "times", lambda: (1.0, 0.5, 4.0, 0.5, 99.0))  # as it was waited for
    assert family.seconds() == pytest.approx(6.0 + 0.6)
    (tmp_path / "proc/12/stat").unlink()  # which nobody here is told of
    assert family.seconds() == pytest.approx(6.6)
    process(system, 12, 1, (5000, 0, 0, 0), start=8)  # another one by its number
    assert family.seconds() == pytest.approx(6.6)


@linux
def test_a_living_child_is_of_the_family():
    program = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert Family().seconds() - sum(os.times()[:4]) >= 0.15  # counted in ticks
    child.communicate(b"\n")
