from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure import lock
from meprop_bench.measure.lock import FOLDER, device_lock, device_name

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


_JOB = """
import os, sys
from pathlib import Path
from meprop_bench.measure import lock
if {private!r}:
    lock._open = lambda path: None  # what is in its /tmp, nobody else sees
def waiting(holder):
    print("waits", holder, flush=True)
with lock.device_lock({device!r}, waiting):
    print("held", flush=True)
    sys.stdin.read()
"""


_OWN_TMP = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /tmp && exec "$@"', "sh")
"""Runs a program that sees a /tmp of its own, as Slurm's job_container/tmpfs does."""


def _job(device: str, *within: str, private: bool = False, **variables: str) -> subprocess.Popen[str]:
    """Start a process that takes a device, where all of the machine find it if no variable says otherwise."""
    env = {name: value for name, value in os.environ.items() if name != FOLDER} | variables
    code = _JOB.format(device=device, private=private)
    pipe = subprocess.PIPE
    return subprocess.Popen([*within, sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, env=env)


@pytest.fixture
def device() -> Iterator[str]:
    """A device of this test alone: the locks of this machine are those of whoever measures on it."""
    name = f"cuda:{secrets.token_hex(6)}"
    yield name
    for path in Path("/tmp").glob(f"meprop-bench-{device_name(name)}*.lock"):
        path.unlink()


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _second_waits_for_the_first(first: subprocess.Popen[str], second: subprocess.Popen[str]) -> None:
    try:
        assert _said(second) in (f"waits {first.pid}", "waits None")  # within a container the kernel may hide it
        first.communicate("")
        assert _said(second) == "held"
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="names of the kernel's are Linux's")
def test_jobs_with_temporary_folders_of_their_own_wait_for_each_other(device: str, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first = _job(device, private=True, TMPDIR=str(folders[0]))
    assert _said(first) == "held"
    _second_waits_for_the_first(first, _job(device, private=True, TMPDIR=str(folders[1])))


@pytest.mark.skipif(sys.platform != "linux", reason="names of the kernel's are Linux's")
def test_jobs_with_a_tmp_of_their_own_wait_for_each_other(device: str) -> None:
    if any(Path(path).is_relative_to("/tmp") for path in (sys.prefix, lock.__file__)):
        pytest.skip("what is tested lies in /tmp itself")
    tried = subprocess.run([*_OWN_TMP, "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    if tried is None or tried.returncode:
        pytest.skip("this user cannot mount a /tmp of their own")
    first = _job(device, *_OWN_TMP)
    assert _said(first) == "held"
    assert not list(Path("/tmp").glob(f"meprop-bench-{device_name(device)}*"))
    _second_waits_for_the_first(first, _job(device, *_OWN_TMP))


def test_containers_that_share_tmp_wait_for_each_other(device: str, tmp_path: Path) -> None:
    """Their networks, and so the names, are apart: whatever TMPDIR is, the file is in /tmp."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    other = _JOB.replace("def waiting", "lock._Name = lock._LockedFile\nlock.sys.platform = 'other'\ndef waiting")
    env = {name: value for name, value in os.environ.items() if name != FOLDER}
    pipe = subprocess.PIPE
    jobs = []
    for folder in folders:
        code = other.format(device=device, private=False)
        jobs.append(
            subprocess.Popen(
                [sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, env={**env, "TMPDIR": str(folder)}
            )
        )
        if len(jobs) == 1:
            assert _said(jobs[0]) == "held"
    _second_waits_for_the_first(*jobs)


def test_a_folder_that_is_named_has_the_locks(device: str, tmp_path: Path) -> None:
    first = _job(device, **{FOLDER: str(tmp_path)})
    assert _said(first) == "held"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"meprop-bench-{device_name(device)}{part}.lock" for part in ("", "-next")
    }
    assert not list(Path("/tmp").glob(f"meprop-bench-{device_name(device)}*"))
    _second_waits_for_the_first(first, _job(device, **{FOLDER: str(tmp_path)}))


def test_a_folder_that_cannot_have_them_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "none"))
    with pytest.raises(UserError, match="where no lock can be made"), device_lock("cpu"):
        raise AssertionError


def test_a_system_without_names_measures_by_files_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)

    class Refusing(socket.socket):
        def bind(self, _: Any) -> None:
            raise OSError(95, "not supported")

    monkeypatch.setattr(lock.socket, "socket", Refusing)
    with device_lock(device):
        pass


class _Nvml:
    """Two chips; `fails` is a machine without the library."""

    class NVMLError(Exception):
        pass

    uuids = ("GPU-aaaa-1111", "GPU-bbbb-2222")

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.open = fails, 0

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.NVMLError
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.uuids):
            raise self.NVMLError
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.uuids[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a function that puts a library in place."""

    def put(library: _Nvml) -> _Nvml:
        monkeypatch.setattr(lock, "import_module", lambda name: library)
        lock._uuid.cache_clear()
        return library

    yield put
    lock._uuid.cache_clear()


def test_a_chip_is_known_by_its_uuid_whatever_number_a_job_sees(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library = nvml(_Nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [device_name(device) for device in ("cpu", "cuda", "cuda:1", "cuda:7")] == [
        "cpu", "cuda-GPU-aaaa-1111", "cuda-GPU-bbbb-2222", "cuda-7"
    ]  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-aaaa")
    assert [device_name(f"cuda:{n}") for n in (0, 1)] == ["cuda-GPU-bbbb-2222", "cuda-GPU-aaaa-1111"]
    assert library.open == 0
    library.uuids = ("GPU-bbbb-2222",)  # a job that is shown the second chip alone
    lock._uuid.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert device_name("cuda:0") == "cuda-GPU-bbbb-2222"


def test_without_nvml_it_has_the_name_that_the_variable_gives_it(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(_Nvml(fails=True))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [device_name(device) for device in ("cpu", "cuda", "cuda:0", "cuda:3")] == [
        "cpu", "cuda-0", "cuda-0", "cuda-3"
    ]  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-ab/c")
    assert [device_name(device) for device in ("cuda:0", "cuda:1", "cuda:2")] == ["cuda-2", "cuda-GPU-ab-c", "cuda-2"]
