import json
import math
import random
import re
from pathlib import Path

import pytest

from meprop_bench.errors import UserError
from meprop_bench.gate.explain import as_text, because
from meprop_bench.gate.machine_readable import json_pieces
from meprop_bench.gate.pairs import process_pairs, spread
from meprop_bench.gate.series import Summary
from meprop_bench.gate.stored import Explained, keep, kept, of_outcome
from meprop_bench.stats import Interval
from tests.gate.test_outputs import MIXED, judgement, outcome


def runs(ratio, count=6, seed=0):
    """Pairs of processes whose head takes `ratio` times as long, give or take 2%, of 40 pairs of values each."""
    rng = random.Random(seed)
    of_process = [rng.gauss(0, 0.02) for _ in range(count)]
    return tuple(
        tuple((1e-3, 1e-3 * ratio * math.exp(own + rng.gauss(0, 0.01))) for _ in range(40)) for own in of_process
    )


README = Path(__file__).parents[2] / "meprop_bench" / "gate" / "README.md"


def measured(ratio=1.3, verdict="fail", **changes):
    found = process_pairs(runs(ratio))
    middle = math.exp(sum(math.log(pair.ratio) for pair in found) / len(found))
    change = Interval(middle, middle / 1.03, middle * 1.03)
    made = judgement(verdict, change=change, margin=0.05, head=1e-3 * middle, pairs=6, **changes)
    return Explained(made, found)


def test_a_pair_of_processes_is_six_numbers():
    (one, other) = process_pairs((((1.0, 2.0), (2.0, 4.4), (1.0, 1.8)), (), ((1.0, 0.0),), ((3.0, 3.0),)))
    assert (one.base, one.head, one.values) == (1.0, 2.0, 3)
    assert (one.low, one.ratio, one.high) == pytest.approx((math.sqrt(1.8 * 2), 2.0, math.sqrt(2 * 2.2)))
    assert (other.ratio, other.low, other.high) == (1.0, 1.0, 1.0)
    assert spread([one]) is None
    assert spread([one, other]) == pytest.approx(math.log(2) / math.sqrt(2))


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_each_pair_is_a_line_and_all_fit(width):
    text = as_text([measured()], terminal=False, width=width)
    lines = text.splitlines()
    assert lines[0] == "linear k=8/backward: fail"
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if re.match(r" +\d ", line)]
    assert len(rows) == 6
    assert all(row.count("●") == row.count("│") == row.count("┊") == 1 for row in rows)
    assert all(row.index("│") < row.index("┊") < row.index("●") for row in rows)
    assert ("1.00 ms" in rows[0]) == (width >= 72)
    (whole,) = [line for line in lines if line.lstrip().startswith("all ")]
    assert whole.index("┊") < whole.index("├") < whole.index("◆") < whole.index("┤")
    head = next(line for line in lines if "head / base" in line and "pair" in line)
    assert "1.000" in head
    assert "1.050" in head
    assert "The pairs of processes spread by" in text


def test_the_documentation_shows_what_is_drawn():
    text = as_text([measured(1.12, case="linear 784→500 B=50 unified k=30 cpu:2")], terminal=False, width=100)
    assert text.strip() in README.read_text("utf-8")


def test_what_lies_beyond_the_axis_is_marked():
    pairs = process_pairs((((1.0, 0.01), (1.0, 1.1), (1.0, 1.1), (1.0, 100.0)), ((1.0, 1.2),) * 3))
    rows = as_text([Explained(judgement(pairs=2), pairs)], terminal=False, width=80).splitlines()
    row = next(line for line in rows if line.startswith("   1"))
    assert re.search("◂─*●─*▸$", row.replace("│", "─").replace("┊", "─"))


@pytest.mark.parametrize(
    ("ratio", "verdict", "sentence"),
    [
        (1.3, "fail", r"The interval begins at 1\.2\d\d, above 1\.050\."),
        (1.0, "pass", r"The interval ends at 1\.0\d\d, below 1\.050\."),
        (1.04, "inconclusive", r"The interval, 1\.0\d\d to 1\.\d{3}, holds 1\.050: more pairs would decide"),
        (1.07, "fail", r"The interval begins at 1\.0\d\d, so that a loss is certain, and holds 1\.050: that much is"),
    ],
)
def test_a_sentence_says_why(ratio, verdict, sentence):
    assert re.match(sentence, because(measured(ratio, verdict).judgement))
    assert re.search(sentence, " ".join(as_text([measured(ratio, verdict)], terminal=False, width=80).split()))


def test_a_reason_is_the_sentence_and_a_least_difference_moves_the_bound():
    assert because(judgement(reason="one value")) == "Why: one value."
    assert because(judgement("pass", least=1e-4)) == "The interval ends at 1.010, below 1.100."
    lost = judgement("fail", quantity="accuracy", unit="points", change=Interval(1.2, 0.9, 1.5), margin=0.5)
    assert because(lost) == "The interval begins at +0.90, above +0.50."
    assert because(judgement(change=None)) == "There is no interval."


def test_what_would_have_failed_is_said_of_the_figure_alone():
    text = " ".join(as_text([measured(caught=0.044)], terminal=False, width=80).split())
    assert "A slowdown of 4.4% or more would have failed with 95% probability." in text


def test_colour_is_for_a_terminal_and_signs_for_what_can_show_them():
    assert "\x1b[" in as_text([measured()], terminal=True, width=80)
    plain = as_text([measured()], terminal=False, width=80, encoding="ascii")
    assert plain.isascii()
    assert len([line for line in plain.splitlines() if "-o-" in line]) >= 1
    assert as_text([measured()], terminal=False, width=80).translate(str.maketrans("│┊─●◆├┤", "|:-o*[]")) == plain


def test_values_of_files_are_two_histograms_on_one_axis():
    rng = random.Random(1)
    base, head = (tuple(scale * rng.lognormvariate(0, 0.03) for _ in range(200)) for scale in (1e-3, 1.5e-3))
    found = Explained(judgement("fail", 1.5), (), base, (*head, 1.0))
    lines = as_text([found], terminal=False, width=80).splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("base    200 values, median 1.00 ms"))
    assert re.match(r"head    201 values, median 1.5\d ms, \d+ of them beyond the axis", lines[first + 2])
    bars = [re.search("[▁▂▃▄▅▆▇█][▁▂▃▄▅▆▇█ ]*", lines[first + place]) for place in (1, 3)]
    assert bars[0].end() < bars[1].start()
    assert "█" in bars[0][0]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ((1.0,), (1.0,)),
        ((1.0,), ()),
        ((0.0, 0.0), (0.0,)),
        (Summary(1.0, 0.1, 9), Summary(2.0, math.nan, 9)),
        (Summary(1.0, 1e-9, 9), (1.0, 2.0)),
        ((97.1, 97.2, 96.9), (97.0, 97.1, 96.8)),
    ],
)
def test_few_values_and_none_are_drawn_as_well(base, head):
    text = as_text([Explained(judgement(), (), base, head)], terminal=False, width=80)
    assert "base " in text
    assert ("no values" in text) == (not (base and head) or isinstance(base, Summary))


def test_hostile_names_are_one_line_each():
    made = measured(case="\x1b[31m[bold]x\n" + "y" * 9999, reason="\u202e[/]")
    text = as_text([made], terminal=True, width=80)
    assert "\x1b[31m[bold]" not in text
    assert "\\x1b[31m[bold]" in text.replace("\n", "")
    assert "\u202e" not in text


def test_three_are_explained_and_the_rest_is_named():
    text = as_text([measured(case=f"case {n}") for n in range(9)], terminal=False, width=100)
    assert text.count(": fail") == 3
    assert "6 more match: 'case 3/backward'" in text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_what_was_measured_last_is_kept_and_read_back(folder):
    made = measured()
    found = outcome(made.judgement, judgement(case="other"), runs={("linear k=8", "backward"): runs(1.3)})
    keep(found, folder)
    (again,) = of_outcome(kept(folder), "linear k=8/backward")
    assert again == made
    assert len(of_outcome(kept(folder), "backward")) == 2
    assert of_outcome(kept(folder), "oth*")[0].pairs == []
    (folder / "elsewhere").mkdir()
    assert not kept(folder / "elsewhere").exists()
    keep(MIXED, folder / "elsewhere")  # nothing was measured
    assert not kept(folder / "elsewhere").exists()


def test_a_figure_that_is_not_there_is_one_line(folder):
    (path := folder / "gate.json").write_text("".join(json_pieces(MIXED)))
    with pytest.raises(
        UserError, match="no figure 'linear k=9/backward' was judged: did you mean 'linear k=8/backward'"
    ):
        of_outcome(path, "linear k=9/backward")
    with pytest.raises(UserError, match="did you mean 'worst/backward'"):
        of_outcome(path, "orst")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not what"),
        ("[]", "is not what"),
        ('{"schema": "meprop-bench/1", "judgements": []}', "has the schema 'meprop-bench/1'"),
        ('{"schema": "meprop-bench-gate/1", "judgements": [{}]}', "is not what"),
        ('{"schema": "meprop-bench-gate/1", "judgements": []}', "no figure 'x' was judged"),
        ("\xff", "is not what"),
    ],
)
def test_a_file_that_is_no_outcome_is_one_line(folder, text, words):
    (path := folder / "gate.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=words) as found:
        of_outcome(path, "x")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("change", 0.0), ("change", -1.0), ("change", 1e300), ("change_low", -5.0), ("change_high", 1e300),
        ("margin", 0.0), ("margin", 1e30), ("least", 1e30), ("base", 0.0), ("base", -1.0), ("pairs", -3),
        ("caught", -1.0), ("quantity", "accuracy"), ("unit", "\x1b"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_no_traceback(folder, field, value):
    made = measured()
    record = json.loads("".join(json_pieces(outcome(made.judgement, runs={("linear k=8", "backward"): runs(1.3)}))))
    record["judgements"][0][field] = value
    (path := folder / "gate.json").write_text(json.dumps(record))
    for width in (60, 200):
        assert as_text(of_outcome(path, "*"), terminal=False, width=width)
    record["judgements"][0]["processes"][0]["ratio"] = 0.0
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="is not what"):
        of_outcome(path, "*")
