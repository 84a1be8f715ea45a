from __future__ import annotations

import gc
import random

import pytest

from meprop_bench.measure.paired import calibrate, measure_pairs, warm_up


def measure(clock, baseline, method, *, seconds=1.0, least_pairs=1, loops=1, seed=0, probe=None):
    return measure_pairs(
        baseline,
        method,
        seconds=seconds,
        least_pairs=least_pairs,
        loops=loops,
        rng=random.Random(seed),
        clock=clock,
        probe=probe,
    )


def test_each_pair_holds_both_sides_of_every_phase(clock):
    # Binary fractions of a second: the fake clock adds them exactly.
    baseline, method = clock.subject(forward=1 / 64, backward=4 / 64), clock.subject(forward=1 / 64, backward=1 / 64)
    pairs = measure(clock, baseline, method)

    assert pairs[0].phases == {"forward": (1 / 64, 1 / 64), "backward": (4 / 64, 1 / 64)}
    assert len(pairs) == 9  # pairs of 7/64 s in a second: the tenth would end after it
    assert clock.now() <= 1.0


def test_the_order_is_random_seeded_and_told(clock):
    order = []
    baseline, method = clock.subject(step=1 / 64), clock.subject(step=1 / 64)

    def spy(name, subject):
        return lambda loops, c: (order.append(name), subject(loops, c))[1]

    pairs = measure(clock, spy("b", baseline), spy("m", method), seconds=2, seed=3)

    firsts = [name == "b" for name in order[::2]]
    assert [pair.baseline_first for pair in pairs] == firsts
    assert 0.25 < sum(firsts) / len(firsts) < 0.75
    again = measure(clock, baseline, method, seconds=2, seed=3)
    assert [pair.baseline_first for pair in again] == firsts
    other = measure(clock, baseline, method, seconds=2, seed=4)
    assert [pair.baseline_first for pair in other] != firsts


def test_a_pair_longer_than_the_budget_is_still_taken(clock):
    slow = clock.subject(step=30.0)
    assert len(measure(clock, slow, slow, seconds=1.0)) == 1
    assert len(measure(clock, slow, slow, seconds=0.0, least_pairs=3)) == 3


def test_loops_are_passed_on(clock):
    seen = []

    def subject(loops, _):
        seen.append(loops)
        clock.advance(0.4)
        return {"step": 0.4 / loops}

    measure(clock, subject, subject, loops=7)
    assert set(seen) == {7}


class Disturbances:
    """Says of the n-th pair what it was told to say, and remembers when it was asked."""

    def __init__(self, clock, answers):
        self.clock, self.answers, self.asked = clock, iter(answers), []

    def begin(self):
        self.asked.append(self.clock.now())

    def disturbed(self):
        self.asked.append(self.clock.now())
        return next(self.answers)


def test_a_disturbed_pair_is_marked_kept_and_taken_again(clock):
    probe = Disturbances(clock, [False, True, True, False, False, False])
    subject = clock.subject(step=0.5)
    pairs = measure(clock, subject, subject, seconds=0.0, least_pairs=3, probe=probe)
    assert [pair.disturbed for pair in pairs] == [False, True, True, False, False]
    assert [end - begin for begin, end in zip(probe.asked[::2], probe.asked[1::2], strict=True)] == [1.0] * 5


def test_a_machine_that_is_always_disturbed_comes_to_an_end(clock):
    subject = clock.subject(step=0.5)
    pairs = measure(clock, subject, subject, seconds=0.0, least_pairs=3, probe=Disturbances(clock, [True] * 99))
    assert [pair.disturbed for pair in pairs] == [True] * 6
    # The seconds are what they are: a disturbed pair has its share of them.
    pairs = measure(clock, subject, subject, seconds=10.0, probe=Disturbances(clock, [True, False] * 9))
    assert len(pairs) == 10


@pytest.mark.parametrize(("argument", "value"), [("least_pairs", 0), ("seconds", -1.0), ("seconds", float("nan"))])
def test_arguments_are_checked(clock, argument, value):
    with pytest.raises(ValueError, match=argument):
        measure(clock, clock.subject(step=1.0), clock.subject(step=1.0), **{argument: value})


def test_different_phases_are_an_error(clock):
    with pytest.raises(ValueError, match="phases differ"):
        measure(clock, clock.subject(forward=1.0), clock.subject(backward=1.0))


def test_the_collector_rests_during_a_pair_and_is_restored_even_after_an_error(clock):
    states = []

    def subject(loops, _):
        states.append(gc.isenabled())
        clock.advance(1.0)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        measure(clock, subject, subject)
    assert states == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_garbage_of_a_pair_is_collected_before_the_next(clock):
    class Node:
        alive = 0

        def __init__(self):
            self.me = self
            Node.alive += 1

        def __del__(self):
            Node.alive -= 1

    seen = []

    def subject(loops, _):
        seen.append(Node.alive)
        Node()
        clock.advance(0.1)
        return {"step": 0.1}

    measure(clock, subject, subject)
    assert seen[::2] == [0] * len(seen[::2])
    assert seen[1::2] == [1] * len(seen[1::2])


def test_warm_up_counts_seconds_and_iterations(clock):
    assert warm_up(clock.subject(step=0.3), clock, seconds=1.0) == 4
    assert warm_up(clock.subject(step=30.0), clock, seconds=1.0) == 1
    assert warm_up(clock.subject(step=30.0), clock, seconds=0.0, least=3) == 3


@pytest.mark.parametrize(
    ("seconds", "loops"), [(2.0, 1), (1.5e-3, 1), (1e-3 / 2, 2), (1e-3 / 64, 64), (1e-3 / 999, 999)]
)
def test_calibrated_values_last_a_millisecond(clock, seconds, loops):
    assert calibrate(clock.subject(step=seconds), clock) == pytest.approx(loops, rel=0.01)


def test_a_tiny_phase_does_not_blow_up_the_call(clock):
    loops = calibrate(clock.subject(backward=4e-3, update=1e-6), clock)
    assert loops == 12  # 12 iterations of 4 ms fill the 50 ms allowed; the update would have asked for 1000


def test_a_subject_that_takes_no_time_still_ends(clock):
    def subject(loops, _):
        return {"step": 0.0}

    assert calibrate(subject, clock) == 1_000_000
