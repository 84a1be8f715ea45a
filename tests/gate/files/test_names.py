"""Names of any kind, through all readers and into all outputs: keys as they stand, shown so that they do nothing."""

import html
import json
import re
from dataclasses import replace
from xml.etree import ElementTree as Xml

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.gate.files import read
from meprop_bench.gate.markdown import LIMIT, as_comment, marker, neutral
from meprop_bench.gate.names import LONGEST, shown, visible, without_addresses
from tests.gate.files.conftest import benchmark
from tests.gate.files.test_ours import document, row
from tests.gate.test_outputs import judgement, outcome

LIVE = [
    *("@octocat", "@org/team", "#12", "GH-12", "gh-7", "GHSA-abcd-1234-efgh", "owner/repo#1", "!12 $3 %4 &5 ~6"),
    *("https://example.com/a?b=c", "HTTP://EXAMPLE.COM", "ftp://a.b", "www.example.com", "WWW.EXAMPLE.COM"),
    *("joe@example.com", "mailto:joe@example.com", "xmpp:a@b.c", "me/it@" + "0123456789" * 4, "deadbeef", "1234567"),
    *("abc1234...def5678", ":tada:", "TestX::b::c", "$x^2$", "<https://e.com>"),
]
MARKUP = [
    *("<b>x</b>", "<img src=x onerror=alert(1)>", "<!-- x -->", "-->", "<details>", "</details>", "&lt;b&gt;"),
    *("![x](y.png)", "[x](javascript:y)", "[^1]", "`code`", "``` fence", "a|b|c", "**b** _i_ ~~s~~", "\\@x"),
    *("- item", "1. item", "# head", "> quote", "---", "- [ ] x", "  lead", "|" * 400, "`" * 400, "@a" * 400),
]
UNPRINTABLE = [
    *(
        "a\nb",
        "a\r\nb",
        "a\tb",
        "\x00",
        "a\x00b",
        "a\x01b",
        "\x1b[31mred",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202eevil",
        "\u200f",
    ),
    *("\ud800", "a\udfffb", "\ufffe", "\ufeff", "   a  b\n0  1  2\n1  3  4"),
]
ALIKE = [
    *("x", "X", "ſ", "s", "straße", "STRASSE", "é", "e\u0301", "a b", "a  b", " a b", "a b ", "a\n b"),
    *("x" * 10_000 + "1", "x" * 10_000 + "2", "/home/me/one/x.py", "/home/me/two/x.py", "a\\nb", "a/time", "a/value"),
]
NAMES = [*LIVE, *MARKUP, *UNPRINTABLE, *ALIKE]
FAILED = NAMES[::3]
"""Those that are slower, or failed, in the head."""


def pytest_benchmark_files(write):
    def rows(factor):
        return [
            {**benchmark("t", factor=factor if name in FAILED else 1.0), "name": name, "fullname": name}
            for name in NAMES
        ]

    return write("base.json", *rows(1.0)), write("head.json", *rows(2.0)), list(NAMES)


def asv_files(write_asv, *, benchmarks):
    """Each name is a benchmark of its own, or a value of one's parameter."""

    def results(failing):
        points = {"samples": [1e-3, 1.01e-3, 1.02e-3] * 5, "stats_repeat": 15}
        if benchmarks:
            known = {column: [value] for column, value in points.items()}
            return {
                f"time_{name}": {"result": [None if failing and name in FAILED else 1e-3], "params": [], **known}
                for name in NAMES
            }
        values = [None if failing and name in FAILED else 1e-3 for name in NAMES]
        return {
            "m.time_a": {"result": values, "params": [NAMES]} | {key: [of] * len(NAMES) for key, of in points.items()}
        }

    base, head = write_asv("base.json", results(False)), write_asv("head.json", results(True))
    return base, head, [f"time_{name}" for name in NAMES] if benchmarks else None


@pytest.mark.parametrize("kind", ["pytest-benchmark", "asv benchmarks", "asv parameters"])
def test_a_name_is_a_key_as_it_stands_and_all_outputs_are_sound(kind, write, write_asv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if kind == "pytest-benchmark":
        base, head, cases = pytest_benchmark_files(write)
    else:
        base, head, cases = asv_files(write_asv, benchmarks=kind == "asv benchmarks")
    outputs = [word for ending in ("json", "md", "xml", "txt") for word in ("--output", f"o.{ending}")]
    files = ["--baseline", str(base), "--candidate", str(head)]
    assert run(["gate", *files, "--margin", "0.2", *outputs]) == ExitCode.REGRESSION
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))

    found = json.loads((tmp_path / "o.json").read_text())["judgements"]
    assert len(found) == len({one["case"] for one in found}) == len(NAMES)
    if cases:
        assert sorted(one["case"] for one in found) == sorted(cases)
    in_file_order = {one["case"]: one["verdict"] for one in found}
    if cases is None:
        assert sorted(in_file_order.values()) == sorted("fail" if name in FAILED else "pass" for name in NAMES)
    else:
        wanted = {case: "fail" if name in FAILED else "pass" for case, name in zip(cases, NAMES, strict=True)}
        assert in_file_order == wanted

    tests = list(Xml.fromstring((tmp_path / "o.xml").read_bytes()).iter("testcase"))
    assert len(tests) == len({one.get("classname") for one in tests}) == len(NAMES)
    assert sum(one.find("failure") is not None for one in tests) == len(FAILED)
    assert_neutral((tmp_path / "o.md").read_text(encoding="utf-8"))


def assert_neutral(text):
    """Nothing in it is a link, a mention, an image or HTML other than the gate's own, and no cell is long."""
    assert len(text) < LIMIT
    lines = text.splitlines()
    text = text.replace("\u00a0", " ")
    assert all(line.isprintable() for line in text.replace("\u200b", "").split("\n"))
    tables = [line.replace("<wbr>", "") for line in text.splitlines() if line.startswith("|")]
    for line in tables:
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)
        assert len(cells) == 6
        assert len(cells[1]) <= 3 * LONGEST + 10  # case, figure and reason
        assert max(len(cell.strip()) for cell in cells[2:]) <= LONGEST
    others = [line for line in lines if not line.startswith(("|", "<!-- meprop", "<details>", "</details>", "```"))]
    for line in [*tables, *others]:
        plain = re.sub(r"(?<!\\)`[^`]*`|^meprop-bench .*", "", line)
        text = html.unescape(re.sub(r"\\(?=[!-/:-@\[-`{-~])", "", plain))
        assert not re.search(r"@\w|#\w|\bgh-\d|\bghsa-|://|www\.|:[\w+-]+:|[!$%&~]\d", text, re.IGNORECASE), line
        assert not re.search(r"(?<![0-9A-Za-z])[0-9a-f]{7,}(?![0-9A-Za-z])", text, re.IGNORECASE), line
        assert not re.search(r"(?<!\\)(?:\\\\)*[<>`\[\]&$]", plain), line


@pytest.mark.parametrize("name", [name for name in NAMES if name.isprintable() and name.strip()])
def test_names_of_this_projects_rows_too(name, tmp_path):
    base = document(tmp_path / "base.json", [row(workload=name), row("b", workload=f"{name}.")])
    broken = {"values_s": None, "baseline_values_s": None, "run_lengths": None, "disturbed": None, "flops": None}
    broken |= {"peak_memory_bytes": None, "phase": None, "check": "dx is wrong"}
    head = document(tmp_path / "head.json", [row(workload=name, **broken), row("b", workload=f"{name}.")])
    found = list(read(base, head))
    assert {one.case.split(" 784")[0] for one in found if one.failure} == {name}
    assert {one.case.split(" 784")[0] for one in found} == {name, f"{name}."}


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_this_project_writes_no_name_that_is_not_printable(name, tmp_path, capsys):
    path = document(tmp_path / "a.json", [row(workload="NAME")])
    path.write_text(path.read_text().replace('"NAME"', json.dumps(name)))
    assert run(["gate", "--baseline", str(path), "--candidate", str(path)]) == ExitCode.USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_numbers_in_a_name_are_not_shortened(tmp_path):
    rows = [row("a", k=0.1234567), row("b", k=0.1234568), row("c", batch=12_345_678), row("d", batch=12_345_679)]
    found = read(*[document(tmp_path / "a.json", rows)] * 2)
    assert len({one.case for one in found}) == 4


def test_what_is_shown_is_short_and_tells_names_apart():
    assert [shown(name) for name in ("a b", "a\nb", "a\\b", "\x00", "\ud800", "\u202e")] == [
        *("a b", "a\\nb", "a\\b", "\\x00", "\\ud800", "\\u202e")
    ]
    assert shown("t[/home/me/data/x.csv]") == "t[…/x.csv]"
    assert visible("t[/home/me/data/x.csv]") == "t[/home/me/data/x.csv]"
    long = [shown("x" * 10_000 + end) for end in "12"]
    assert {len(name) for name in long} == {LONGEST}
    assert long[0] != long[1]


def test_a_comment_names_its_gate_and_no_suite_can_end_the_mark():
    suites = [
        "gate",
        "a--b",
        "a-->b",
        "a%2Db",
        "a-%2Db",
        "CI / gate",
        "x" * 1000,
        "x" * 1001,
        "ü",
        "a\nb",
        "\udcff",
        "@a #1",
    ]
    found = [marker(suite) for suite in suites]
    assert len(set(found)) == len(suites)
    for one in found:
        assert re.fullmatch(r"<!-- meprop-bench gate: [!-~ ]+ -->", one)
        assert one.index("-->") == len(one) - 3
        assert "--" not in one[4:-3]
    assert as_comment(replace(outcome(judgement()), suite="a suite")).startswith(
        "<!-- meprop-bench gate: a suite -->\n"
    )


@pytest.mark.parametrize("count", [5, 3000])
def test_a_comment_of_the_longest_names_fits_and_says_what_it_left_out(count):
    text = as_comment(
        outcome(*(judgement(case=f"{'ü@a' * 5000}{i}") for i in range(count)), notes=("#1 " * 5000,) * 40)
    )
    assert len(text.encode()) < LIMIT
    assert f"{count} passed" in text
    assert ("more are not shown" in text) == (count == 3000)
    assert "and 20 more notes" in text
    assert text.count("<details>") == text.count("</details>")


def test_the_verdict_comes_first_and_what_passed_is_folded():
    found = outcome(
        judgement(case="sound"),
        judgement("inconclusive", 1.01, case="unclear"),
        judgement("fail", 1.3, case="slow"),
        judgement("fail", 2.0, case="shown", report_only=True),
        notes=("a note",),
    )
    text = as_comment(found)
    assert text.splitlines()[2] == "### ❌ Failed: 1 of 3 figures got worse"
    order = ["### ❌ Failed", "1 failed", "#### Failed", "slow", "#### Inconclusive", "unclear", "- a note"]
    order += ["<details><summary>1 passed", "sound", "</details>", "<details><summary>1 only reported", "shown"]
    order += ["<details><summary>How to read", "meprop-bench gate --base main"]
    places = [text.index(words) for words in order[:3]]
    for words in order[3:]:
        places.append(text.index(words, places[-1]))
    assert places == sorted(places)


def test_what_is_neutral_is_still_the_name():
    for name in LIVE:
        assert neutral(name).replace("\u200b", "") == name


ADDRESSES = ("<function f at 0x7f1234567890>", "<function f at 0x7f00000000aa>")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (ADDRESSES[0], "<function f at …>"),
        (
            "partial(<function f at 0x7f12ab>, <g object at 0x000001F2B3C4D5E8>)",
            "partial(<function f at …>, <g object at …>)",
        ),
        ("<Foo 0x7f1234567890>", "<Foo …>"),
        ("mask=0xff00ff", "mask=0xff00ff"),
        ("at 10", "at 10"),
    ],
)
def test_an_address_is_no_part_of_a_benchmark(name, plain):
    assert without_addresses(name) == plain


def asv_points(write_asv, name, points):
    """One benchmark with a parameter; None is a point that failed."""
    known = {"params": [list(points)], "result": list(points.values()), "stats_repeat": [10] * len(points)}
    known |= {"stats_ci_99_a": [0.99e-3] * len(points), "stats_ci_99_b": [1.01e-3] * len(points)}
    sound = {"result": [1e-3], "params": [], "samples": [[1e-3] * 9]}
    return write_asv(name, {"m.time_a": known, "m.time_b": sound})


def failures_and_notes(base, head):
    found = read(base, head)
    series = list(found)
    assert len(series) == len(found)
    return {one.case for one in series if one.failure}, "\n".join(found.notes)


def test_names_that_differ_by_an_address_are_matched_where_that_is_clear(write_asv):
    one, other = ADDRESSES
    base = asv_points(write_asv, "base.json", {one: 1e-3})
    failed, notes = failures_and_notes(base, asv_points(write_asv, "head.json", {other: None}))
    assert failed == {f"m.time_a({one})"}
    assert "1 matched without the address in the name: m.time_a(<function f at …>)" in notes
    slower = read(base, asv_points(write_asv, "head.json", {other: 2e-3}))
    assert [(each.base.median, each.head.median) for each in slower if "time_a" in each.case] == [(1e-3, 2e-3)]


def test_a_name_with_an_address_hides_no_slowdown(write, bench):
    one, other = (f"test_a[{address}]" for address in ADDRESSES)
    base, head = write("base.json", bench(one)), write("head.json", bench(other, factor=2))
    assert run(["gate", "--baseline", str(base), "--candidate", str(head), "--margin", "0.2"]) == ExitCode.REGRESSION


@pytest.mark.parametrize("whole", [None, {"result": None}, {"result": None, "params": []}])
def test_a_benchmark_that_failed_before_it_had_parameters_failed_at_all_of_them(write_asv, whole):
    points = {"params": [["1", "2"]], "result": [1e-3, 1e-3], "stats_repeat": [10, 10]}
    sound = {"result": [1e-3], "params": [], "samples": [[1e-3] * 9]}
    there = write_asv("there.json", {"m.time_a": points, "m.time_b": sound})
    broken = write_asv("broken.json", {"m.time_a": whole, "m.time_b": sound})
    assert failures_and_notes(there, broken)[0] == {"m.time_a(1)", "m.time_a(2)"}
    failed, notes = failures_and_notes(broken, there)
    assert not failed
    assert "2 not judged, failed in broken.json: m.time_a(1)/value" in notes
    one = write_asv(
        "one.json", {"m.time_a": {**points, "params": [["1", "3"]], "result": [1e-3, None]}, "m.time_b": sound}
    )
    failed, notes = failures_and_notes(there, one)
    assert not failed  # a point that is new and failed says nothing of the others
    assert "1 failed in one.json, and there.json has nothing to compare with: m.time_a(3)" in notes


def test_several_names_that_differ_by_an_address_are_told_and_not_mixed_up(write_asv):
    one, other = ADDRESSES
    third, fourth = one.replace("78", "11"), one.replace("78", "22")
    base = asv_points(write_asv, "base.json", {one: 1e-3, other: 1e-3})
    failed, notes = failures_and_notes(base, asv_points(write_asv, "head.json", {third: 1e-3, fourth: 1e-3}))
    assert not failed
    assert "2 not judged, as several differ by the address in the name alone" in notes
    failed, _ = failures_and_notes(base, asv_points(write_asv, "head.json", {third: 1e-3, fourth: None}))
    assert failed == {f"m.time_a({fourth})"}  # one of the two ran before
    both = asv_points(write_asv, "base.json", {one: 1e-3, other: None})
    assert failures_and_notes(both, asv_points(write_asv, "head.json", {third: 1e-3, fourth: None}))[0] == set()


def test_a_failure_is_named_whatever_the_base_has_of_it(write_asv):
    units = {"track_gap": "points of accuracy lost", "track_x": "apples"}

    def file(name, **values):
        results = {key: {"result": [value], "params": []} for key, value in values.items()}
        return write_asv(name, {**results, "time_b": {"result": [1.0], "params": []}}, units=units)

    failed, notes = failures_and_notes(
        file("base.json", track_gap=0.3, track_x=-1.0, time_skipped=float("nan"), time_both=None, time_mended=None),
        file(
            "head.json", track_gap=None, track_x=None, time_skipped=None, time_both=None, time_mended=1.0, time_new=None
        ),
    )
    assert failed == {"track_gap", "track_x"}
    assert "failed in both: time_both" in notes
    assert "1 not judged, failed in base.json: time_mended/value" in notes
    assert "2 failed in head.json, and base.json has nothing to compare with: time_skipped, time_new" in notes


@pytest.mark.parametrize(
    ("params", "labels"),
    [
        ([["1, 2", "1"], ["3", "2, 3"]], ['("1, 2", 3)', '("1, 2", "2, 3")', "(1, 3)", '(1, "2, 3")']),
        (
            [["(1, 2)", "'a, b'", "<f a, b>", "it's", "a) (b"]],
            ["((1, 2))", "('a, b')", "(<f a, b>)", '("it\'s")', '("a) (b")'],
        ),
    ],
)
def test_parameters_with_commas_are_not_taken_for_others(write_asv, params, labels):
    count = len(labels)
    path = write_asv("a.json", {"t": {"params": params, "result": [1.0] * count, "samples": [[1.0, 1.1]] * count}})
    assert [one.case for one in read(path, path)] == [f"t{label}" for label in labels]
