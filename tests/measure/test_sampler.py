from __future__ import annotations

import threading

import pytest

from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.sampler import Sampler, SampleSummary, mean


class Fake:
    """A source that records what it is asked, and fails where it is told to."""

    def __init__(self, name="a", *, reason=None, faults=()):
        self.fields = (f"{name}_level", f"{name}_count")
        self.asked = []
        self.threads = []
        self._reason, self._faults = reason, dict(faults)

    def _ask(self, what):
        self.asked.append(what)
        self.threads.append(threading.current_thread())
        if what in self._faults:
            raise self._faults[what]

    def unavailable_reason(self):
        self._ask("reason")
        return self._reason

    def start(self):
        self._ask("start")

    def read(self):
        self._ask("read")

    def stop(self):
        self._ask("stop")

    def summary(self, seconds):
        self._ask("summary")
        return SampleSummary({self.fields[0]: self.asked.count("read")}, {self.fields[1]: f"{seconds:g} s"})

    def close(self):
        self._ask("close")


def pauses(count):
    """The block ends after so many pauses; nobody waits."""
    answers = iter([False] * count + [True])
    return lambda seconds: next(answers)


def sample(*sources, readings=3, clock=None):
    ticks = iter([10.0, 12.5])
    with Sampler(sources, now=clock or (lambda: next(ticks)), pause=pauses(readings - 1)) as sampler:
        sampler._thread.join()
    return sampler


def test_gauges_are_read_in_a_thread_and_counters_on_both_sides_of_the_block():
    source = Fake()
    sampler = sample(source)
    assert source.asked == ["reason", "start", "read", "read", "read", "stop", "summary", "close"]
    here = threading.current_thread()
    assert [thread is here for thread in source.threads] == [True, True, False, False, False, True, True, True]
    assert sampler.seconds == 2.5
    assert sampler.summary == SampleSummary({"a_level": 3}, {"a_count": "2.5 s"})


def test_what_cannot_be_read_here_says_why_in_each_field_and_is_not_asked():
    source, other = Fake(reason="no driver"), Fake("b")
    found = sample(source, other).summary
    assert source.asked == ["reason", "close"]
    assert found.unavailable == {"a_level": "no driver", "a_count": "no driver", "b_count": "2.5 s"}
    assert found.values == {"b_level": 3}


@pytest.mark.parametrize("where", ["reason", "start", "read", "stop", "summary"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Unavailable("the GPU is lost"), "the GPU is lost"),
        (OSError("/home/somebody/secret"), "OSError while reading it"),
    ],
)
def test_a_source_that_fails_costs_its_own_fields_and_is_closed(where, fault, said):
    source, other = Fake(faults={where: fault}), Fake("b")
    found = sample(source, other).summary
    assert [found.unavailable[name] for name in source.fields] == [said] * 2
    assert source.asked.count(where) == 1
    assert source.asked[-1] == "close"
    assert found.values == {"b_level": 3}


def test_a_close_that_fails_is_no_fault():
    assert sample(Fake(faults={"close": ValueError()})).summary.values == {"a_level": 3}


def test_a_reading_that_does_not_return_is_left_behind():
    class Stuck(Fake):
        def read(self):
            super().read()
            never.wait(10)

    never = threading.Event()
    source, other = Stuck(), Fake("b")
    with Sampler([other, source], patience_s=0.01) as sampler:
        while "read" not in source.asked:
            pass
    never.set()
    assert sampler.summary.unavailable["a_level"] == "a reading did not return within 0.01 s"
    assert "close" not in source.asked  # its thread may be in the library still
    assert sampler.summary.values == {"b_level": 1}


def test_an_error_of_the_block_passes_and_the_thread_ends():
    source = Fake()
    sampler = Sampler([source])
    with pytest.raises(RuntimeError, match="no memory"), sampler:
        raise RuntimeError("no memory")
    assert not sampler._thread.is_alive()
    assert source.asked[-1] == "close"


def test_the_interval_is_checked():
    with pytest.raises(ValueError, match="interval_s is more than 0"):
        Sampler([], interval_s=0)


def test_mean():
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5
