import json
import os
import resource
import subprocess
import sys
import time

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.decide import judge
from meprop_bench.gate.files import read, read_file
from meprop_bench.gate.files.figures import MOST_VALUES
from meprop_bench.gate.series import Summary
from meprop_bench.gate.settings import Settings


def series(*paths, **options):
    return {one.name: one for one in read(*paths, **options)}


def test_what_both_have_is_compared_and_the_rest_is_told(write, bench):
    base = write("base.json", bench("test_a"), bench("test_b"), bench("test_gone"))
    head = write("head.json", bench("test_b", factor=1.2), bench("test_new"), bench("test_a"))
    found = read(base, head)
    assert (found.base, found.head) == ("base.json (pytest-benchmark 5.3.1)", "head.json (pytest-benchmark 5.3.1)")
    assert found.notes == (
        "1 not judged, in base.json only: tests/test_it.py::test_gone/time",
        "1 not judged, in head.json only: tests/test_it.py::test_new/time",
    )
    both = list(found)
    assert len(found) == len(both) == 2
    assert [one.case for one in both] == ["tests/test_it.py::test_a", "tests/test_it.py::test_b"]
    assert both[0].base == both[0].head == tuple(bench("test_a")["stats"]["data"])
    assert both[1].head == tuple(bench("test_b", factor=1.2)["stats"]["data"])
    assert (both[0].figure, both[0].quantity, both[0].unit, both[0].own_processes) == ("time", "time", "s", False)


@pytest.mark.parametrize(
    ("stats", "error"),
    [
        ({}, None),
        ({"q1": None, "q3": None}, None),
        ({"q1": None, "iqr": None}, 1.2533141 * 1e-5 / 20**0.5),
    ],
)
def test_without_values_the_quartiles_or_what_else_there_is_stand_for_them(write, bench, stats, error):
    base = write("base.json", bench("test_a", data=False, stats=stats))
    (one,) = read(base, write("head.json", bench("test_a")))
    own = bench("test_a")["stats"]
    expected = Summary.of_quartiles(own["median"], own["q1"], own["q3"], 20)
    assert one.base.median == own["median"]
    assert one.base.count == 20
    assert one.base.error == pytest.approx(expected.error if error is None else error)
    assert isinstance(one.head, tuple)
    assert "kept no values of 1 of its figures" in read(base, base).notes[0]


def test_values_beyond_what_is_needed_are_thinned_out(write, bench):
    path = write("base.json", bench("test_a", stats={"data": [1e-3 + 1e-9 * n for n in range(5 * MOST_VALUES)]}))
    (one,) = read(path, path)
    assert len(one.base) == MOST_VALUES
    assert one.base[:2] == (1e-3, 1e-3 + 5e-9)


@pytest.mark.parametrize("count", [0, 1, 2, 999, 3000])
@pytest.mark.parametrize("data", [False, True])
def test_any_number_of_rows_is_read_in_pieces_and_in_order(many, count, data):
    path = many("many.json", count, data=data)
    found = read_file(path)
    assert len(found) == count
    for kind in found.kinds:
        assert list(found.places(kind)) == [f"tests/test_it.py::test_case[{number}]" for number in range(count)]
    if count:
        rows = json.loads(path.read_text())["benchmarks"]
        (kind,) = found.kinds
        for number in (0, count // 2, count - 1):
            side = found.side(found.places(kind)[rows[number]["fullname"]])
            stats = rows[number]["stats"]
            assert side == tuple(stats["data"]) if data else side.median == stats["median"]


def test_rows_that_hide_cuts_and_what_json_does_not_have_are_read_all_the_same(write, bench, monkeypatch):
    monkeypatch.setattr("meprop_bench.gate.files.stream._CHUNK", 4000)
    tricky = {"note": '}, {"fullname": "no", ', "list": [{"a": 1}, {"b": [{}, {}]}], "nan": float("nan")}
    rows = [bench(f"test_{n}[}}, {{-ü]", extra_info=tricky if n % 7 else {}) for n in range(60)]
    path = write("tricky.json", *rows)
    found = read_file(path)
    (kind,) = found.kinds
    assert list(found.places(kind)) == [row["fullname"] for row in rows]
    assert [found.side(place) for place in found.places(kind).values()] == [tuple(r["stats"]["data"]) for r in rows]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"python_version": "3.12.1"}, "python_version is 3.11.7 and 3.12.1"),
        ({"cpu": {"brand_raw": "Xeon", "count": 2, "arch": "X86_64"}}, "cpu.brand_raw is AMD EPYC and Xeon"),
        ({"torch": "2.13.0"}, "torch is not stated and 2.13.0"),
        ({"machine": "aarch64", "system": "Darwin"}, "machine is x86_64 and aarch64, system is Linux and Darwin"),
    ],
)
def test_times_of_different_environments_are_refused(write, bench, changes, what):
    base, head = write("base.json", bench("test_a")), write("head.json", bench("test_a"), machine=changes)
    with pytest.raises(UserError) as caught:
        read(base, head)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hosts_of_the_same_make_are_compared_with_a_note_that_does_not_name_them(write, bench):
    other = {"node": "runner-2", "release": "6.1.9", "cpu": {"brand_raw": "AMD EPYC", "arch": "X86_64", "count": 2}}
    found = read(write("base.json", bench("test_a")), write("head.json", bench("test_a"), machine=other))
    assert len(found) == 1
    assert "two hosts" in found.notes[0]
    assert "runner" not in found.notes[0]


@pytest.mark.parametrize("machine", [{"node": None, "release": None}, {"node": ""}, {}])
def test_a_host_that_is_not_known_is_not_said_to_be_another(write, bench, machine):
    assert read(write("base.json", bench("test_a")), write("head.json", bench("test_a"), machine=machine)).notes == ()


def test_a_file_that_does_not_say_where_it_was_measured_is_refused(write, bench):
    base, head = write("base.json", bench("test_a")), write("head.json", bench("test_a"), machine_info={})
    with pytest.raises(UserError, match=r"head.json does not say where it was measured") as caught:
        read(base, head)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


def test_foreign_files_have_no_ratios(write, bench):
    path = write("base.json", bench("test_a"))
    with pytest.raises(UserError, match=r"base.json holds no ratios sparse / dense") as caught:
        read(path, path, ratios_only=True)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


def test_nothing_in_common_is_not_comparable_and_no_rows_are_nothing_measured(write, bench):
    base, head, none = (
        write("base.json", bench("test_a")),
        write("head.json", bench("test_b")),
        write("none.json"),
    )
    with pytest.raises(UserError, match=r"no figure in common.*test_a") as caught:
        read(base, head)
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE
    for pair in ((base, none), (none, base)):
        with pytest.raises(UserError, match=r"none.json holds no figures") as caught:
            read(*pair)
        assert caught.value.exit_code == ExitCode.NOTHING_MEASURED


def test_the_candidate_of_a_foreign_file_has_to_be_named(write, bench):
    with pytest.raises(UserError, match=r"add --candidate"):
        read(write("base.json", bench("test_a")))


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1e-3])
def test_times_that_cannot_be_are_refused_with_their_name(write, bench, value, data):
    stats = {"data": [1e-3, value, 1e-3]} if data else {"median": value}
    path = write("base.json", bench("test_a"), bench("test_bad", data=data, stats=stats))
    with pytest.raises(UserError, match=r"test_bad.* is (nan|-?inf|-0.001): it is finite and not negative"):
        read_file(path)


def verdicts(base, head, **settings):
    compared = read(base, head)
    found = judge(compared.rest, Settings(**settings), blocks=compared.blocks)
    return {one.case.rpartition(":")[2]: one for one in found}, compared.notes


def test_a_few_rounds_of_0_hide_nothing(write, bench):
    values = bench("test_a")["stats"]["data"]
    base = write("base.json", bench("test_a"), bench("test_b"), bench("test_c"))
    few, many = [0.0, *values], [0.0] * 12 + values[:8]
    head = write(
        "head.json",
        bench("test_a", stats={"data": [2 * value for value in few]}),
        bench("test_b", stats={"data": few}),
        bench("test_c", stats={"data": many}),
    )
    found, notes = verdicts(base, head, margin=0.1)
    assert {case: (one.verdict, one.reason) for case, one in found.items()} == {
        "test_a": ("fail", ""),
        "test_b": ("pass", ""),
        "test_c": ("inconclusive", "a value of 0: too short for its clock"),
    }
    assert notes == ("head.json: rounds of 0 s count as the shortest of their benchmark: 2",)


def test_what_is_left_of_rounds_of_0_is_judged_as_if_they_were_as_short_as_can_be(write, bench):
    values = bench("test_a")["stats"]["data"]
    shortest = write("shortest.json", bench("test_a", stats={"data": [1e-9, *values]}))
    zero = write("zero.json", bench("test_a", stats={"data": [0.0, *values]}))
    (one,), (other,) = (verdicts(*pair)[0].values() for pair in ((shortest, zero), (zero, shortest)))
    assert one.change.estimate == other.change.estimate == 1
    assert one.noise == pytest.approx(other.noise)


@pytest.mark.parametrize(
    ("stats", "reason"),
    [
        ({"data": [0.0, 0.0]}, "a value of 0: too short for its clock"),
        ({"data": [0.0, 2e-3]}, "a value of 0, which cannot be"),
        ({"data": None, "median": 0.0}, "a value of 0: too short for its clock"),
        ({"data": [], "rounds": 0}, "measured 0 times"),
        ({"data": [], "rounds": 0, "median": None, "mean": None}, "measured 0 times"),
        ({"data": [1e-3]}, "one value on a side: no interval"),
        (
            {"data": None, "q1": None, "q3": None, "iqr": None, "stddev": None},
            "a file does not tell how well it knows its median: no interval",
        ),
        ({"data": None, "rounds": None}, "a file does not tell how well it knows its median: no interval"),
        ({"data": None, "rounds": 1}, "one value on a side: no interval"),
    ],
)
def test_what_a_file_says_too_little_of_is_inconclusive_and_says_why(write, bench, stats, reason):
    odd, sound = bench("test_a", stats=stats), bench("test_a")
    for base, head in ((odd, sound), (sound, odd), (odd, odd)):
        found, notes = verdicts(write("base.json", base, bench("test_b")), write("head.json", head, bench("test_b")))
        summed_up = not stats["data"] and reason != "measured 0 times"
        assert any("kept no values" in note for note in notes) == summed_up
        assert (found["test_a"].verdict, found["test_a"].reason) == ("inconclusive", reason)


def test_constant_values_are_judged_by_what_processes_differ_by(write, bench):
    same = {"data": [1e-3] * 20}
    base = write("base.json", bench("test_a", stats=same))
    for factor, verdict in ((1.0, "pass"), (1.5, "fail"), (1.1, "inconclusive")):
        head = write("head.json", bench("test_a", stats={"data": [factor * 1e-3] * 20}))
        assert verdicts(base, head, margin=0.1)[0]["test_a"].verdict == verdict


def test_a_name_that_appears_twice_is_refused(write, bench):
    with pytest.raises(UserError, match=r"'tests/test_it.py::test_a' twice"):
        read_file(write("base.json", bench("test_a"), bench("test_b"), bench("test_a")))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x"}, "without 'stats'"),
        ({"stats": {"median": 1.0}}, "without 'name'"),
        ({"fullname": "x", "stats": {}}, "'x' has neither values nor a median"),
        ({"fullname": "x", "stats": {"median": "fast"}}, r"row 1 is not one of a result: Expected `float"),
        ({"fullname": "x", "stats": {"median": 1.0, "rounds": 10**30}}, "row 1 is not one of a result: Expected `int`"),
        (
            {"fullname": "x", "stats": {"median": 1.0, "rounds": -1}},
            "row 1 is not one of a result: Expected `int` >= 0",
        ),
        ("text", "row 1 is not one of a result"),
    ],
)
def test_rows_of_another_shape_are_one_line(write, row, message):
    with pytest.raises(UserError, match=message) as caught:
        read_file(write("odd.json", row))
    assert caught.value.exit_code == ExitCode.USAGE


def test_20_000_rows_are_judged(many):
    base, head = many("base.json", 20_000), many("head.json", 20_000, factor=1.01)
    compared = read(base, head)
    found = judge(compared.rest, Settings(margin=0.5), blocks=compared.blocks)
    assert found.counts() == {"pass": 20_000, "fail": 0, "inconclusive": 0, "report_only": 0}
    assert found.cases == [f"tests/test_it.py::test_case[{number}]" for number in range(20_000)]


def test_blocks_and_the_rest_are_all_that_both_files_have(write, bench):
    base = write("base.json", *(bench(f"test_{i}", data=bool(i % 3)) for i in range(12)))
    head = write(
        "head.json", *(bench(f"test_{i}", data=bool(i % 2), factor=1 + i / 10) for i in reversed(range(2, 14)))
    )
    compared = read(base, head)
    (block,) = compared.blocks
    assert list(block.cases) == [one.case for one in compared]
    assert set(block.cases) == {f"tests/test_it.py::test_{i}" for i in range(2, 12)}
    assert list(compared.rest) == []
    together, apart = judge([], Settings(), blocks=compared.blocks), judge(compared, Settings())
    assert [(one.verdict, one.pairs) for one in together] == [(one.verdict, one.pairs) for one in apart]
    assert [one.head for one in together] == [one.head for one in apart]


@pytest.mark.skipif("MEPROP_BENCH_MILLION" not in os.environ, reason="takes a minute, 2 GiB and a quiet machine")
def test_a_million_rows_are_judged_in_20_s_and_2_gib(many, tmp_path):
    """By hand: MEPROP_BENCH_MILLION=1 pytest tests/gate/files -k million. The only test that looks at a clock."""
    base, head = many("base.json", 1_000_000), many("head.json", 1_000_000, factor=1.0)
    begun = time.monotonic()
    command = [sys.executable, "-m", "meprop_bench", "gate", "--baseline", base, "--candidate", head, "--margin", "0.5"]
    found = subprocess.run([*command, "--output", tmp_path / "gate.md"], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert found.returncode == 0, found.stderr
    assert seconds < 20
    assert peak < 2 << 30
