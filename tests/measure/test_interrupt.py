"""What a batch system and a closed terminal send ends a program as Ctrl-C does, and never while it tidies up."""

import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import signal, sys, time
from meprop_bench.measure.interrupt import interruptible
{before}
try:
    with interruptible():
        try:
            print("ready", flush=True)
            time.sleep(float(sys.argv[1]))
        finally:
            if sys.exc_info()[0] is not None:
                print("tidying", flush=True)
                time.sleep(0.5)
            print("tidied", flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""


def start(seconds, before=""):
    program = _PROGRAM.format(before=before)
    process = subprocess.Popen([sys.executable, "-c", program, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_unwinds_once(number):
    with start(60) as process:
        process.send_signal(number)
        assert process.stdout.readline() == "tidying\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == "tidied\ninterrupted\n"


def test_what_is_ignored_stays_ignored():
    with start(0.5, "signal.signal(signal.SIGHUP, signal.SIG_IGN)") as process:
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=30)[0] == "tidied\n"


def test_the_handlers_are_put_back():
    from meprop_bench.measure.interrupt import interruptible

    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
