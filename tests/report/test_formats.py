import csv
import io
import json
import random

import pytest

from meprop_bench.report.formats import _texts, as_json
from meprop_bench.report.terminal import as_table, write_as
from meprop_bench.results.schema import Row
from tests.report.texts import as_csv


def test_json_is_the_promised_object_and_gives_the_rows_back(document, rows):
    target = io.StringIO()
    write_as("json", document, target)
    record = json.loads(target.getvalue(), parse_constant=lambda name: 1 / 0)
    assert list(record) == ["schema", "command", "environment", "rows", "findings"]
    assert record["schema"] == "meprop-bench/1"
    assert [Row.from_json(row) for row in record["rows"]] == rows
    assert record["environment"]["aabbccddeeff"]["cores"] == 2


def test_csv_has_a_line_per_row_and_parity_in_columns(document, rows, make_row):
    read = list(csv.DictReader(io.StringIO(as_csv(document))))
    assert len(read) == len(rows)
    assert round(float(read[0]["speedup"]), 9) == 150.0
    assert read[0]["parity_verdict"] == ""
    assert "values_s" not in read[0]
    assert [line["parity_verdict"] for line in read if line["parity_verdict"]] == ["pass", "inconclusive", "fail"]
    assert len({len(line) for line in csv.reader(io.StringIO(as_csv(document)))}) == 1
    hostile = type(document)("t", "c", "s", [make_row("a", notes=['a, "b"', "c"])])
    assert next(csv.DictReader(io.StringIO(as_csv(hostile))))["notes"] == 'a, "b"; c'


FIGURES = [
    *(random.Random(4).uniform(1, 10) * 10.0**power for power in range(-320, 300)),
    *(random.Random(5).random() for _ in range(1000)),
    *(1e-4, 9.999999999999999e-05, 1e16, 9999999999999998.0, 1e15, 123456789.0, 0.0, -1.5, 5e-324),
]


@pytest.mark.parametrize(
    "values",
    [FIGURES, ["a, b"] * 3, [None] * 3, ["a,b", 'say "x"', "two\nlines", "", "µ", " x", None, 3, 0.25, 1e-5]],
    ids=["figures", "one text", "nothing", "texts"],
)
def test_a_csv_is_what_a_writer_of_csv_writes(values):
    target = io.StringIO()
    csv.writer(target, lineterminator="\n").writerows((value, 1) for value in values)
    assert "".join(f"{text},1\n" for text in _texts(values)) == target.getvalue()


def test_a_csv_has_flags_and_lists_as_words():
    assert list(_texts([True, False, [1, "x"], {"a": "b, c"}])) == ["true", "false", "1; x", '"a: b, c"']


def test_no_rows_are_no_fault(document):
    empty = type(document)("t", "c", "s", [])
    assert json.loads(as_json(empty))["rows"] == []
    assert len(as_csv(empty).splitlines()) == 1


def test_a_pipe_gets_no_escapes_and_whole_lines(document):
    text = as_table(document)
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if line.startswith("unified") and "150x" in line)
    assert line.endswith("passed")
    assert "0.81x [0.80, 0.82]" in text
    assert "… " not in text


def test_a_pipe_gets_no_colour_even_if_the_environment_asks_for_it(document, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    target = io.StringIO()
    write_as("table", document, target)
    assert "\x1b" not in target.getvalue()
    assert max(map(len, target.getvalue().splitlines())) > 100


def test_a_terminal_gets_colour_in_its_width(document, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = as_table(document, terminal=True, width=160)
    assert "\x1b[32m" in text


def test_a_command_stays_in_one_line(make_folder, rows):
    from meprop_bench.report.document import Document

    command = "meprop-bench speedup " + " ".join(f"--k {k}" for k in range(1, 60))
    assert f"made by: {command}\n" in as_table(Document.load(make_folder(rows, command=command)))


def test_markup_in_a_name_is_a_name(document, make_row):
    document = type(document)("[bold]t", "c", "s", [make_row("a", method="[red]x[/red]", notes=["[link]"])])
    text = as_table(document)
    assert "[red]x[/red]" in text
    assert "[bold]t" in text


def test_a_stream_that_cannot_hold_a_character_gets_its_like_or_a_question_mark(document):
    target = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_as("table", document, target)
    text = target.buffer.getvalue()
    assert b"8192 -> 8192" in text
    assert b"k 8 150x 8875 16.0x k 512" in text


def test_in_a_notebook_the_text_is_returned_and_not_shown(document, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "150x [149, 151]" in as_table(document)
