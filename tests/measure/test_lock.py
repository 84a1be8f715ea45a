from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from meprop_bench.measure.lock import device_lock, device_name

_HOLDER = """
import sys, time
from pathlib import Path
from meprop_bench.measure.lock import device_lock
with device_lock({device!r}, folder=Path({folder!r})):
    print("held", flush=True)
    sys.stdin.read()
"""


class _Held:
    """Another process that holds a device."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        code = _HOLDER.format(device=device, folder=str(folder))
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def end(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.communicate()


@pytest.fixture
def held(tmp_path: Path):
    other = _Held(tmp_path)
    yield other
    if other.process.poll() is None:
        other.end()


def test_a_second_run_waits_and_a_killed_one_holds_nothing(held: _Held, tmp_path: Path) -> None:
    holders: list[int | None] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            held.end(signal.SIGKILL)

    with device_lock("cpu", holders.append, folder=tmp_path, sleep=sleep):
        assert len(slept) >= 3
    expected = held.process.pid if Path("/proc/locks").exists() else None
    assert holders in ([expected], [None])  # within a container the kernel may hide it


def test_two_runs_alternate(tmp_path: Path) -> None:
    """Both want it twenty times; who gives it back comes after who waits, though it asks at once."""
    code = f"""
import sys, time
from pathlib import Path
from meprop_bench.measure.lock import device_lock
folder = Path({str(tmp_path)!r})
(folder / sys.argv[1]).touch()
while len(list(folder.glob("run-*"))) < 2:
    time.sleep(0.001)
for _ in range(20):
    with device_lock("cpu", folder=folder, sleep=lambda _: time.sleep(0.0005)):
        with (folder / "log").open("a") as log:
            log.write(sys.argv[1][-1])
        time.sleep(0.005)
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, f"run-{name}"]) for name in "ab"]
    assert [run.wait(60) for run in runs] == [0, 0]
    order = (tmp_path / "log").read_text()
    assert sorted(order) == ["a"] * 20 + ["b"] * 20
    changes = sum(one != other for one, other in pairwise(order))
    assert changes >= 20  # of 39; one after the other it would be 1


def test_devices_do_not_wait_for_each_other(held: _Held, tmp_path: Path) -> None:
    def never(_: float) -> None:
        raise AssertionError

    with device_lock("cuda:0", folder=tmp_path, sleep=never), device_lock("cuda:1", folder=tmp_path, sleep=never):
        pass


def test_who_holds_it_may_take_it_again(tmp_path: Path) -> None:
    def never(_: float) -> None:
        raise AssertionError

    with device_lock("cpu", folder=tmp_path, sleep=never):
        with device_lock("cpu", folder=tmp_path, sleep=never):
            pass
        with device_lock("cpu", folder=tmp_path, sleep=never):
            pass
    other = _Held(tmp_path)  # it is free again, in spite of the file that stayed
    other.end()


def test_an_interrupt_while_waiting_leaves_nothing_behind(held: _Held, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), device_lock("cpu", folder=tmp_path, sleep=interrupted):
        raise AssertionError
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["missing", "folder", "link"])
def test_where_no_lock_can_be_had_it_is_measured_without(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "locks"
    if kind != "missing":
        folder.mkdir()
        path = folder / "meprop-bench-cpu.lock"
        path.mkdir() if kind == "folder" else path.symlink_to(tmp_path / "elsewhere")
    with device_lock("cpu", folder=folder):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_the_same_chip_has_the_same_name_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [device_name(device) for device in ("cpu", "cuda", "cuda:0", "cuda:3")] == [
        "cpu", "cuda-0", "cuda-0", "cuda-3"
    ]  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-ab/c")
    assert [device_name(device) for device in ("cuda:0", "cuda:1", "cuda:2")] == ["cuda-2", "cuda-GPU-ab-c", "cuda-2"]
