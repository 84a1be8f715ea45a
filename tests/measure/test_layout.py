"""Where processes lie is asked of the processes themselves."""

import json
import os
import subprocess
import sys

import pytest

from meprop_bench.measure import layout
from meprop_bench.measure.layout import PADDING, alike, unavailable_reason

_WHERE = """\
import ctypes, json
libc = ctypes.CDLL(None)
with open("/proc/self/stat") as stat:
    begins = stat.read().rsplit(")", 1)[1].split()[25]  # of the stack
print(json.dumps([ctypes.cast(libc.malloc, ctypes.c_void_p).value, begins]))
"""


def place(draw):
    argv, variables = alike([sys.executable, "-c", _WHERE], draw)
    done = subprocess.run(argv, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return done.stdout


def refused():
    """Why processes are randomised all the same; None where they need not be."""
    if sys.platform != "linux":
        return "not Linux"
    code = "import ctypes; raise SystemExit(ctypes.CDLL(None).personality(0x0040000) < 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    return "the system does not let processes choose their personality" if done.returncode else None


@pytest.mark.skipif(refused() is not None, reason=str(refused()))
def test_processes_of_one_draw_lie_alike_and_the_next_elsewhere():
    first, other = 5 + (7 << 12), 600 + (9 << 12)
    assert place(first) == place(first)
    assert place(other) == place(other) != place(first)
    (libraries, stack), (libraries_too, stack_too) = (
        json.loads(place(draw)) for draw in (5 + (7 << 12), 600 + (7 << 12))
    )
    assert libraries == libraries_too
    assert stack != stack_too


def test_what_is_run_keeps_its_arguments_and_its_exit_code():
    argv, variables = alike(
        [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "a b", "-c"], 2**32 - 1
    )
    done = subprocess.run(argv, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (3, "['a b', '-c']")
    assert set(variables) <= {PADDING}


def test_elsewhere_than_on_linux_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert alike(["a", "b"], 7) == (["a", "b"], {})


@pytest.mark.skipif(refused() is not None, reason=str(refused()))
def test_where_processes_lie_alike_there_is_nothing_to_say():
    assert unavailable_reason() is None


@pytest.mark.skipif(sys.platform != "linux", reason="not Linux")
@pytest.mark.parametrize(
    ("call", "instead", "words"),
    [
        # As where the call is refused: nothing is changed, and nothing is raised.
        ("personality(0x0040000)", "personality(0xFFFFFFFF)", "does not let a process choose its personality"),
        ("resource.setrlimit", "raise ValueError; (lambda *_: None)", "a stack of 128 MiB is beyond the limit"),
        ("os.execv", "sys.exit", "does not answer"),
    ],
)
def test_a_refusal_is_seen_by_asking_a_process(monkeypatch, call, instead, words):
    assert call in layout._LAUNCH
    monkeypatch.setattr(layout, "_LAUNCH", layout._LAUNCH.replace(call, instead))
    assert words in unavailable_reason()


def test_elsewhere_than_on_linux_there_is_no_such_thing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert unavailable_reason() == "only Linux lets a process choose its addresses"
