"""Real children, each a few lines of Python without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from meprop_bench.measure.worker import Worker, WorkerDied

posix = pytest.mark.skipif(os.name != "posix", reason="needs process groups and signals")

HANDLER = """
import os, signal, subprocess, sys, time
from meprop_bench.errors import UserError
from meprop_bench.measure.worker import serve
print("banner of a library, printed while importing")

def handle(message):
    match message["do"]:
        case "echo":
            return {"echo": message["value"], "pid": os.getpid()}
        case "env":
            return {"value": os.environ.get(message["name"])}
        case "print":
            print("noise")
            sys.stdout.flush()
            os.write(1, b"noise from native code\\n")
            subprocess.run([sys.executable, "-c", "print('noise of a child')"])
            return {"stdin": sys.stdin.read()}
        case "user":
            raise UserError("k is 0: use at least 1")
        case "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\\nmore")
        case "fail":
            raise KeyError("step")
        case "nan":
            return {"value": float("nan")}
        case "exit":
            print("last words", file=sys.stderr)
            sys.exit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            open(message["file"], "w").write(str(child.pid))
            time.sleep(600)
        case "orphan":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            os._exit(5)

serve(handle)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(HANDLER)
    return [sys.executable, str(path)]


@pytest.fixture
def worker(program):
    with Worker(program) as worker:
        yield worker


def gone(pid: int, within: float = 20.0) -> bool:
    """Whether a process ends (a zombie has ended) within some seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
        time.sleep(0.02)
    return False


def test_requests_are_answered_one_after_the_other(worker):
    for value in (1, "zwei", [3.0, None], "x" * 1_000_000):
        assert worker.request({"do": "echo", "value": value}, 60)["echo"] == value
    assert worker.request({"do": "echo", "value": 0}, 60)["pid"] == worker.pid


def test_what_libraries_print_never_reaches_the_protocol(worker):
    assert worker.request({"do": "print"}, 60) == {"stdin": ""}
    assert worker.request({"do": "echo", "value": 1}, 60)["echo"] == 1


@posix
def test_what_was_printed_while_importing_is_kept_for_the_last_words(worker):
    with pytest.raises(WorkerDied, match="its last line: banner of a library, printed while importing"):
        worker.request({"do": "die"}, 60)


def test_the_environment_is_changed_or_cleared(program, monkeypatch):
    monkeypatch.setenv("SOME_SETTING", "inherited")
    for changes, expected in (({}, "inherited"), ({"SOME_SETTING": "7"}, "7"), ({"SOME_SETTING": None}, None)):
        with Worker(program, changes) as worker:
            assert worker.request({"do": "env", "name": "SOME_SETTING"}, 60) == {"value": expected}


@pytest.mark.parametrize(
    ("do", "error", "kind"),
    [
        ("user", "k is 0: use at least 1", "user"),
        (
            "memory",
            "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
            "out-of-memory",
        ),
        ("fail", "KeyError: 'step'", "error"),
        ("nan", "ValueError: Out of range float values are not JSON compliant", "error"),
    ],
)
def test_an_exception_is_an_answer_and_the_worker_lives_on(worker, do, error, kind):
    answer = worker.request({"do": do}, 60)
    assert answer["error"].startswith(error)
    assert "\n" not in answer["error"]
    assert answer["kind"] == kind
    assert worker.request({"do": "echo", "value": 1}, 60)["echo"] == 1


def test_an_exit_is_reported_with_the_last_words(worker):
    with pytest.raises(WorkerDied, match=r"^exited with status 3; its last line: last words$") as died:
        worker.request({"do": "exit"}, 60)
    with pytest.raises(WorkerDied, match="status 3"):
        worker.request({"do": "echo", "value": 1}, 60)
    assert "\n" not in died.value.reason


@posix
def test_a_kill_is_reported_as_probably_out_of_memory(worker):
    with pytest.raises(WorkerDied, match=r"^killed by signal 9 \(Killed.*\), probably out of memory"):
        worker.request({"do": "die"}, 60)


@posix
def test_a_child_that_was_reaped_behind_our_back_is_gone(worker):
    """As when Ctrl-C comes between the system call that reaps it and the line that notes its status."""
    os.kill(worker.pid, signal.SIGKILL)
    os.waitpid(worker.pid, 0)
    with pytest.raises(WorkerDied):
        worker.request({"do": "echo", "value": 1}, 60)
    worker.close()


@posix
def test_a_hang_is_killed_with_its_whole_group(worker, tmp_path):
    file = tmp_path / "pid"
    worker.request({"do": "echo", "value": 1}, 60)
    with pytest.raises(WorkerDied, match=r"^no answer within 2 s, so it was killed"):
        worker.request({"do": "hang", "file": str(file)}, 2)
    assert gone(worker.pid)
    assert gone(int(file.read_text()))


@posix
def test_a_grandchild_that_holds_the_pipes_does_not_hide_an_exit(worker):
    with pytest.raises(WorkerDied, match="exited with status 5"):
        worker.request({"do": "orphan"}, 60)


def test_garbage_after_the_first_answer_is_fatal():
    code = "print('{}', flush=True); input(); print('garbage', flush=True); input(); input()"
    with Worker([sys.executable, "-c", code]) as worker:
        assert worker.request({}, 60) == {}
        with pytest.raises(WorkerDied, match="answered garbage: garbage"):
            worker.request({}, 60)


def test_a_child_that_cannot_start_its_program_says_why():
    with (
        Worker([sys.executable, "-c", "import no_such_module"]) as worker,
        pytest.raises(WorkerDied, match=r"status 1.*ModuleNotFoundError: No module named 'no_such_module'"),
    ):
        worker.request({"do": "echo"}, 60)


def test_a_child_that_never_reads_does_not_block_a_large_request():
    with (
        Worker([sys.executable, "-c", "import time; time.sleep(600)"]) as worker,
        pytest.raises(WorkerDied, match="no answer"),
    ):
        worker.request({"value": "x" * 1_000_000}, 0.2)


def test_nan_in_a_request_is_the_callers_error(worker):
    with pytest.raises(ValueError, match="JSON"):
        worker.request({"value": float("nan")}, 60)
    assert worker.request({"do": "echo", "value": 1}, 60)["echo"] == 1


def test_close_is_idempotent_and_final(program):
    worker = Worker(program)
    worker.request({"do": "echo", "value": 1}, 60)
    worker.close()
    worker.close()
    assert gone(worker.pid)
    with pytest.raises(WorkerDied, match="closed"):
        worker.request({"do": "echo", "value": 1}, 60)


def test_a_forgotten_worker_is_ended(program):
    worker = Worker(program)
    worker.request({"do": "echo", "value": 1}, 60)
    pid = worker.pid
    del worker
    assert gone(pid)


PARENT = """
import signal, sys, time
from meprop_bench.measure.worker import Worker
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored, and inherited so
worker = Worker([sys.executable, {program!r}])
print(worker.request({{"do": "echo", "value": 1}}, 60)["pid"], flush=True)
{then}
"""


@posix
@pytest.mark.parametrize(
    ("then", "sent"),
    [
        ("sys.exit()", None),
        ('worker.request({"do": "hang", "file": FILE}, 600)', signal.SIGINT),
        ('worker.request({"do": "hang", "file": FILE}, 600)', signal.SIGKILL),
        ("time.sleep(600)", signal.SIGKILL),
    ],
    ids=["exit", "ctrl-c", "killed amid a request", "killed while idle"],
)
def test_no_parent_leaves_an_orphan(program, tmp_path, then, sent):
    file = tmp_path / "pid"
    code = textwrap.dedent(PARENT).format(program=program[1], then=then.replace("FILE", repr(str(file))))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if sent is not None:
            while "hang" in then and not (file.exists() and file.read_text()):
                time.sleep(0.02)
            parent.send_signal(sent)
        parent.wait(60)
        assert gone(pid)
        if file.exists():
            assert gone(int(file.read_text()))
    finally:
        parent.kill()
        parent.communicate()


def test_readers_end_with_their_worker(program):
    before = threading.active_count()
    for _ in range(3):
        with Worker(program) as worker:
            worker.request({"do": "echo", "value": 1}, 60)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before
