import math

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.files import read, read_file
from meprop_bench.gate.series import Summary

SAMPLES = [1.0e-3, 1.1e-3, 1.2e-3]
TIMED = {"result": [1.1e-3], "params": [], "version": "v1", "samples": [SAMPLES], "stats_repeat": [3]}


def one(path, head=None):
    (found,) = read(path, head or path)
    return found


def test_samples_are_values_of_one_process(write_asv):
    found = one(write_asv("a.json", {"linear.time_backward": TIMED}))
    assert (found.case, found.figure, found.quantity, found.unit) == ("linear.time_backward", "value", "time", "s")
    assert found.base == tuple(SAMPLES)
    assert not found.own_processes


def test_parameters_are_a_product_and_failed_or_skipped_points_are_told_apart(write_asv):
    params = [["'a'", "'b'"], ["1", "2"]]
    values = {
        "params": params,
        "version": "v1",
        "stats_repeat": [5] * 4,
        "stats_q_25": [0.9] * 4,
        "stats_q_75": [1.1] * 4,
    }
    base = write_asv("base.json", {"x.time_it": {**values, "result": [1.0, 1.0, 1.0, 1.0]}})
    head = write_asv("head.json", {"x.time_it": {**values, "result": [1.0, None, float("nan"), 2.0]}})
    found = {each.case: each for each in read(base, head)}
    assert list(found) == ["x.time_it('a', 1)", "x.time_it('a', 2)", "x.time_it('b', 2)"]
    assert found["x.time_it('a', 2)"].failure == "asv has it as failed"
    assert found["x.time_it('a', 1)"].base == Summary.of_quartiles(1.0, 0.9, 1.1, 5)
    notes = read(base, head).notes
    assert "head.json: not judged: 1 skipped" in notes
    assert any("without a figure in head.json: x.time_it('b', 1)/value" in note for note in notes)


def test_the_interval_of_the_median_is_used_where_it_is_finite(write_asv):
    values = {**TIMED, "samples": None, "stats_q_25": [1e-3], "stats_q_75": [1.2e-3]}
    bounded = {**values, "stats_ci_99_a": [1.05e-3], "stats_ci_99_b": [1.15e-3], "stats_repeat": [10]}
    endless = {**bounded, "stats_ci_99_a": [-math.inf], "stats_ci_99_b": [math.inf]}
    found = {each.case: each.base for each in read(*[write_asv("a.json", {"time_a": bounded, "time_b": endless})] * 2)}
    assert found["time_a"] == Summary.of_interval(1.1e-3, 1.05e-3, 1.15e-3, 0.99, 10)
    assert found["time_b"] == Summary.of_quartiles(1.1e-3, 1e-3, 1.2e-3, 10)


@pytest.mark.parametrize(
    ("name", "unit", "quantity", "expected"),
    [
        ("a.B.time_x", None, "time", "s"),
        ("a.B.timeraw_x", None, "time", "s"),
        ("a.B.peakmem_x", None, "memory", "B"),
        ("a.B.mem_x", None, "memory", "B"),
        ("a.B.track_x", None, "count", "1"),
        ("a.B.track_x", "seconds", "time", "s"),
        ("a.B.track_x", "bytes", "memory", "B"),
        ("a.B.track_x", "method / dense time", "ratio", "1"),
        ("a.B.track_x", "apples", "count", "1"),
    ],
)
def test_what_is_measured_is_told_by_benchmarks_json_or_by_the_name(write_asv, name, unit, quantity, expected):
    path = write_asv("a.json", {name: {"result": [3.0], "params": [], "version": "1"}}, units=unit and {name: unit})
    found = one(path)
    assert (found.quantity, found.unit, found.base) == (quantity, expected, (3.0,))


def test_a_number_that_was_tracked_several_times_has_noise(write_asv):
    found = one(write_asv("a.json", {"track_x": {**TIMED, "result": [2.0], "samples": [[1.0, 2.0, 3.0]]}}))
    assert (found.quantity, found.unit, found.base) == ("ratio", "value", (1.0, 2.0, 3.0))


def test_ratios_only_are_this_projects_ratios(write_asv):
    units = {"track_ratio": "method / dense time", "track_x": "apples"}
    results = {"track_ratio": {**TIMED, "result": [0.4]}, "track_x": {**TIMED, "result": [2.0]}}
    base = write_asv("base.json", results, units=units)
    head = write_asv("head.json", results, units=units, params={"machine": "other"})
    (found,) = read(base, head, ratios_only=True)
    assert found.case == "track_ratio"


def test_what_cannot_be_judged_is_noted(write_asv):
    results = {"track_accuracy_gap": {"result": [0.3], "params": []}, "track_x": {"result": [-1.0], "params": []}}
    path = write_asv(
        "a.json",
        {**results, "time_x": TIMED},
        units={"track_accuracy_gap": "points of accuracy lost", "time_x": "seconds"},
    )
    found = read(path, path)
    assert [each.case for each in found] == ["time_x"]
    assert "a.json: not judged: 1 accuracy gaps: an asv result has none of their seeds" in found.notes
    assert any("negative" in note for note in found.notes)


def test_what_holds_nothing_that_could_be_judged_is_not_called_empty(write_asv):
    base = write_asv("base.json", {"track_x": {"result": [5], "params": []}})
    head = write_asv("head.json", {"track_x": {"result": [-5], "params": []}})
    with pytest.raises(UserError, match=r"^head.json holds nothing that could be judged: 1 tracked") as caught:
        read(base, head)
    assert caught.value.exit_code == ExitCode.NOTHING_MEASURED


def test_another_version_of_a_benchmark_is_another_benchmark(write_asv):
    base = write_asv("base.json", {"time_x": TIMED, "time_y": TIMED})
    found = read(base, write_asv("head.json", {"time_x": {**TIMED, "version": "v2"}, "time_y": TIMED}))
    assert [each.case for each in found] == ["time_y"]
    assert "another version of the benchmark" in found.notes[0]


def test_a_benchmark_that_failed_as_a_whole_is_a_failure_of_its_head(write_asv):
    base = write_asv("base.json", {"time_x": TIMED, "time_y": TIMED})
    head = write_asv("head.json", {"time_x": {"result": None, "params": [], "version": "v1"}, "time_y": None})
    assert [each.failure for each in read(base, head)] == ["asv has it as failed"] * 2


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"params": {"machine": "other"}}, "machine is box and other"),
        ({"python": "3.12", "params": {"python": "3.12"}}, "python is 3.11 and 3.12"),
        ({"requirements": {"torch": "2.13"}}, "requirements.torch is not stated and 2.13"),
        ({"env_vars": {"OMP_NUM_THREADS": "1"}}, "env_vars.OMP_NUM_THREADS is not stated and 1"),
    ],
)
def test_times_of_different_environments_are_refused(write_asv, changes, what):
    base = write_asv("base.json", {"time_x": TIMED})
    with pytest.raises(UserError, match=what) as caught:
        read(base, write_asv("head.json", {"time_x": TIMED}, **changes))
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"result": [1.0, 2.0]}, "does not fit its parameters"),
        ({"params": [["1", "2"]]}, "does not fit its parameters"),
        ({"params": "x"}, "does not fit its parameters"),
        ({"result": ["fast"]}, "is 'fast', not a number"),
        ({"samples": [["fast"]]}, "a sample of .* is 'fast', not a number"),
        ({"samples": [[-1.0]]}, "finite and not negative"),
        ({"result": [math.inf], "samples": None, "stats_repeat": None}, "finite and not negative"),
    ],
)
def test_results_that_cannot_be_are_refused_with_their_name(write_asv, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_file(write_asv("a.json", {"time_x": {**TIMED, **changes}}))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "time_x" in str(caught.value)


@pytest.mark.parametrize("columns", [["result", ["params"]], ["result", None], [], "result", {"result": 1}])
def test_columns_that_are_no_names_are_refused(write_asv, columns):
    with pytest.raises(UserError, match="without usable columns"):
        read_file(write_asv("a.json", {"time_x": TIMED}, result_columns=columns))


def test_a_broken_benchmarks_json_beside_it_is_not_needed(write_asv):
    path = write_asv("a.json", {"time_x": TIMED}, units={})
    (path.parent.parent / "benchmarks.json").write_text("{")
    assert one(path).quantity == "time"


def test_a_result_that_asv_itself_wrote(tmp_path):
    pytest.importorskip("asv")
    from asv.results import Results
    from asv.runner import BenchmarkResult

    about = {"name": "x.time_it", "version": "1", "params": [["1", "2"]], "param_names": ["n"]}
    samples = [[1e-3, 1.1e-3, 0.9e-3] * 3, None]
    for name, keep in (("with", True), ("without", False)):
        results = Results({"machine": "box", "python": "3.11"}, {}, "abcdef12", 1, "3.11", name, {})
        results.add_result(
            about, BenchmarkResult([1e-3, math.nan], samples, [1, None], 0, "", None), record_samples=keep
        )
        results.save(str(tmp_path))
    kept, lost = sorted((tmp_path / "box").glob("*.json"), key=lambda path: "without" in path.name)
    found = one(kept, lost)
    assert found.case == "x.time_it(1)"
    assert found.base == tuple(samples[0])
    assert found.head.median == pytest.approx(1e-3)
    assert found.head.count == 9
    assert found.head.error > 0
