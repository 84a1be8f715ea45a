import numpy as np
import pytest

from meprop_bench.gate.past import Past, PastRuns, seen

RUNS = PastRuns(["a", "b", "c"], [0.0, np.log(2), 0.0], np.log(4), 0.0)


def test_a_figure_has_the_values_of_its_newest_runs():
    values = np.array([[np.nan, 1.0], [2.0, np.inf], [3.1234567, 4.0]])
    past = Past(RUNS, values, np.array([np.nan, 5.0]), np.array([np.nan, 6.0]))
    assert past.of(0) == {"past": [2.0, 3.12346]}
    assert past.of(1) == {"past": [1.0, None, 4.0], "second": 5.0, "third": 6.0}
    assert past.of(2) == {}  # a line that is no figure


def test_what_a_whole_run_had_in_common_is_taken_off():
    found = seen(RUNS, 1.0, [2.0, 3.0], 4.0, 5.0, 6.0)
    assert [(one.name, one.value) for one in found] == [
        ("b", 2.0),
        ("c", 3.0),
        *(("this run", 4.0), ("second run", 5.0), ("third run", 6.0)),
    ]
    assert [one.ratio for one in found] == pytest.approx([1.0, 3.0, 1.0, 5.0, 6.0])
    assert [one.name for one in seen(RUNS, 1.0, [None, 3.0], None, None)] == ["c"]


@pytest.mark.parametrize(("level", "past"), [(None, [1.0]), (0.0, [1.0]), (-1.0, [1.0]), (1.0, []), (1.0, [1.0] * 4)])
def test_what_cannot_be_drawn_is_left_out(level, past):
    assert seen(RUNS, level, past, 1.0, None) == []
    assert seen(RUNS, 1e-300, [1.0], 1e30, None) == []
