import csv
import io
import json

from meprop_bench.report.formats import as_csv, as_json, write_as
from meprop_bench.results.schema import Row


def test_json_is_the_promised_object_and_gives_the_rows_back(document, rows):
    target = io.StringIO()
    write_as("json", document, target)
    record = json.loads(target.getvalue(), parse_constant=lambda name: 1 / 0)
    assert list(record) == ["schema", "command", "environment", "rows"]
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
    hostile = type(document)("t", "c", "s", [make_row("a", notes=['a, "b"', "c"])])
    assert next(csv.DictReader(io.StringIO(as_csv(hostile))))["notes"] == 'a, "b"; c'


def test_no_rows_are_no_fault(document):
    empty = type(document)("t", "c", "s", [])
    assert json.loads(as_json(empty))["rows"] == []
    assert len(as_csv(empty).splitlines()) == 1
