"""Numbers that no file can mean: one line and exit code 2, whichever tool wrote it and wherever they stand."""

import json
import math

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.files import read_file
from meprop_bench.gate.files.stream import LARGEST, count, number
from tests.gate.files.test_ours import document, row

HUGE = int("9" * 400)
NAN = math.nan
NO_TIME = [NAN, math.inf, -math.inf, -1.0, 1e308, HUGE, True, "1.0", [1.0], {}]
NO_COUNT = [*NO_TIME, 1.5, 1e17]


def refused(path, capsys):
    """The file is refused by one line, on either side."""
    assert run(["gate", "--baseline", str(path), "--candidate", str(path)]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("meprop-bench: error: ")
    assert err.count("\n") == 1
    assert path.name in err
    assert len(err) < 400


ASV = {"result": [1e-3], "params": [], "version": "v", "stats_repeat": [10], "stats_number": [1]}
INTERVAL = {"stats_ci_99_a": [0.9e-3], "stats_ci_99_b": [1.1e-3], "stats_q_25": [0.9e-3], "stats_q_75": [1.1e-3]}


UNKNOWN = (NAN, math.inf, -math.inf)
"""What asv writes for a benchmark that was skipped, and for an interval that it has not."""


def of_asv(place, value):
    changes = {
        "result": {"result": [value]},
        "samples": {"samples": [[1e-3, value, 1e-3]]},
        "ci": {**INTERVAL, "stats_ci_99_b": [value]},
        "quartile": {**INTERVAL, "stats_ci_99_a": [None], "stats_q_75": [value]},
        "tracked": {"result": [value]},
    }
    return {("track_x" if place == "tracked" else "time_x"): {**ASV, **changes[place]}}


REFUSED = {
    "samples": NO_TIME,
    "result": [value for value in NO_TIME if value not in (NAN,)],
    "tracked": [value for value in NO_TIME if value not in (NAN, -1.0)],
    "ci": [value for value in NO_TIME if value not in UNKNOWN],
    "quartile": [value for value in NO_TIME if value not in UNKNOWN],
}
CASES = [(place, value) for place, values in REFUSED.items() for value in values]


@pytest.mark.parametrize(("place", "value"), CASES, ids=lambda one: repr(one)[:20])
def test_values_of_asv(write_asv, capsys, place, value):
    refused(write_asv("a.json", of_asv(place, value)), capsys)


@pytest.mark.parametrize("value", NO_COUNT, ids=lambda one: repr(one)[:20])
@pytest.mark.parametrize("place", ["stats_repeat", "stats_number"])
def test_counts_of_asv(write_asv, capsys, place, value):
    refused(write_asv("a.json", {"time_x": {**ASV, **INTERVAL, place: [value]}}), capsys)


@pytest.mark.parametrize(
    ("low", "high"), [(1.1e-3, 0.9e-3), (-1e300, 1e300)], ids=["turned round", "wider than a number"]
)
def test_intervals_that_cannot_be(write_asv, capsys, low, high):
    refused(write_asv("a.json", {"time_x": {**ASV, "stats_ci_99_a": [low], "stats_ci_99_b": [high]}}), capsys)


@pytest.mark.parametrize("ends", [[None, None], [-math.inf, math.inf], [math.nan, math.nan]])
def test_an_interval_that_asv_has_not_is_none(write_asv, ends):
    path = write_asv("a.json", {"time_x": {**ASV, "stats_ci_99_a": ends[:1], "stats_ci_99_b": ends[1:]}})
    assert math.isnan(read_file(path).side(0).error)


@pytest.mark.parametrize("value", NO_TIME, ids=lambda one: repr(one)[:20])
@pytest.mark.parametrize("place", ["data", "median", "mean", "q3", "iqr", "stddev"])
def test_values_of_pytest_benchmark(write, bench, capsys, place, value):
    stats = {"data": [1e-3, value, 1e-3]} if place == "data" else {"data": None, place: value}
    if place == "mean":
        stats |= {"median": None}
    if place in ("iqr", "stddev"):
        stats |= {"q1": None}
    if place == "stddev":
        stats |= {"iqr": None}
    refused(write("a.json", bench("test_a"), bench("test_b", stats=stats)), capsys)


@pytest.mark.parametrize("value", [-1e-3, NAN, math.inf])
@pytest.mark.parametrize("place", ["median", "mean", "min", "q1", "stddev", "total"])
def test_what_the_values_make_needless_cannot_be_anything_either(write, bench, capsys, place, value):
    refused(write("a.json", bench("test_a"), bench("test_b", stats={place: value})), capsys)


@pytest.mark.parametrize("value", [*NO_TIME, 1.5, -(2**70), 2**70], ids=lambda one: repr(one)[:20])
@pytest.mark.parametrize("place", ["rounds", "iterations"])
def test_counts_of_pytest_benchmark(write, bench, capsys, place, value):
    refused(write("a.json", bench("test_a", stats={"data": None, place: value})), capsys)


@pytest.mark.parametrize("where", ["a field", "a size", "deep inside"])
def test_integers_without_end_anywhere(write, bench, write_asv, tmp_path, capsys, where):
    own = document(tmp_path / "own.json", [row()])
    text = own.read_text()
    if where == "a field":
        refused(write("a.json", bench("test_a"), version=HUGE), capsys)
        refused(write_asv("b.json", {"time_x": ASV}, date=HUGE), capsys)
        own.write_text(text.replace('"batch": 10', f'"batch": {HUGE}'))
    elif where == "a size":
        refused(write_asv("b.json", {"track_x": {"result": [HUGE], "params": []}}), capsys)
        own.write_text(text.replace('"peak_memory_bytes": 1000', f'"peak_memory_bytes": {HUGE}'))
    else:
        refused(write("a.json", bench("test_a", data=False), machine={"cpu": {"count": [HUGE]}}), capsys)
        own.write_text(text.replace('"torch": "2.13.0"', f'"torch": {HUGE}'))
    refused(own, capsys)
    lines = tmp_path / "own.jsonl"
    lines.write_text(json.dumps(row().to_json()).replace('"batch": 10', f'"batch": {HUGE}'))
    refused(lines, capsys)


def test_many_points_of_which_none_is_there_are_not_counted_out(write_asv, capsys):
    params = [[str(value) for value in range(100)]] * 10
    refused(write_asv("a.json", {"time_x": {"result": None, "params": params}}), capsys)


def test_numbers_at_the_ends_are_judged(write, bench, capsys):
    for low, high in ((5e-324, 1e300), (1e300, 5e-324)):
        files = [
            write(f"{name}.json", bench("t", stats={"data": [value] * 9})) for name, value in (("a", low), ("b", high))
        ]
        code = run(["gate", "--baseline", str(files[0]), "--candidate", str(files[1]), "--format", "json"])
        assert code == (ExitCode.REGRESSION if low < high else ExitCode.OK)
        json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_tracked_numbers_at_the_ends_are_judged(write_asv):
    low, high = (
        write_asv(f"{value}.json", {"track_x": {"result": [value], "params": []}}) for value in (5e-324, 1e300)
    )
    assert run(["gate", "--baseline", str(low), "--candidate", str(high)]) == ExitCode.REGRESSION
    assert run(["gate", "--baseline", str(high), "--candidate", str(low)]) == ExitCode.OK


def test_a_tracked_number_that_is_0_is_judged_where_it_can_be(write_asv):
    files = {
        name: write_asv(f"{name}.json", {"track_x": {"result": [values[0]], "params": [], "samples": [values]}})
        for name, values in {"zero": [0.0, 0.0], "some": [0.0, 1.0], "two": [2.0, 2.0]}.items()
    }
    codes = {
        (base, head): run(["gate", "--baseline", str(files[base]), "--candidate", str(files[head])])
        for base in files
        for head in files
        if base != head
    }
    assert codes[("zero", "two")] == ExitCode.REGRESSION
    assert codes[("two", "zero")] == codes[("some", "zero")] == ExitCode.OK
    assert codes[("zero", "some")] == codes[("some", "two")] == codes[("two", "some")] == ExitCode.INCONCLUSIVE


def test_a_number_is_checked_once():
    assert number(3, "x") == 3.0
    assert number(-LARGEST, "x", signed=True) == -LARGEST
    assert count(2**53, "x") == 2**53
    for wrong in (None, True, "1", math.nan, 1e301, HUGE):
        with pytest.raises(UserError, match=r"^x is "):
            number(wrong, "x")
