"""Every results folder of this repository, of older versions too, is read with the figures it was written with."""

import json
from pathlib import Path

import pytest

from meprop_bench.paper.folder import load
from meprop_bench.results.reading import rows_of
from meprop_bench.results.schema import Row
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS

REPORTS = Path(__file__).parents[2] / "reports"
FOLDERS = sorted(path.parent for path in REPORTS.rglob(ENVIRONMENT))


def test_there_are_some():
    assert len(FOLDERS) > 10


EARLIEST = Path(__file__).with_name("earliest.jsonl")
"""A row of the first results, which are not among the reports any more."""


def test_rows_of_every_earlier_format_are_among_them():
    lines = [line for folder in FOLDERS for line in (folder / MEASUREMENTS).read_text().splitlines()]
    lines += EARLIEST.read_text().splitlines()
    assert {len(json.loads(line)) for line in lines} >= {64, 66, 69, 71}  # fields of a row, as axes and figures came


def test_the_earliest_row_is_read_as_it_was_written():
    (text,) = EARLIEST.read_bytes().splitlines(keepends=True)
    (row,) = rows_of([text])
    line = json.loads(text)
    assert {name: row.to_json()[name] for name in line} == line
    assert row == Row.from_json(line)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_committed_folder_is_read_as_it_was_written(folder):
    document, store = load(folder)
    assert store.notes == []
    lines = [json.loads(line) for line in (folder / MEASUREMENTS).read_text().splitlines()]
    latest = {(line["case_id"], line["phase"]): line for line in lines}
    read = {(row.case_id, row.phase): row.to_json() for row in store.rows()}
    assert list(read) == list(latest)
    assert [(row.case_id, row.phase) for row in document.rows] == list(latest)
    for key, line in latest.items():
        again = {name: read[key][name] for name in line}
        if line.get("parity") and "percent" not in line["parity"]:  # what it did not have then is what it was
            assert again["parity"].pop("percent") is True
        assert again == line
