"""The rows as Parquet."""

from __future__ import annotations

import io
import json

import pytest

from meprop_bench.errors import UserError
from meprop_bench.report import parquet

pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow (extra parquet)")


def read(document):
    from pyarrow import parquet as files

    target = io.BytesIO()
    parquet.write_parquet(document, target)
    return files.read_table(io.BytesIO(target.getvalue()))


def test_the_columns_are_those_of_the_csv_with_the_raw_values(document, monkeypatch):
    monkeypatch.setattr(parquet, "_BATCH", 7)  # several groups of rows
    found = read(document)
    head, *lines = document.lines()
    assert found.column_names == [*head, "values_s", "baseline_values_s", "run_lengths", "disturbed"]
    records = found.to_pylist()
    assert len(records) == len(lines)
    for record, line, row in zip(records, lines, document.rows, strict=True):
        assert record["case_id"] == row.case_id
        assert record["speedup"] == row.speedup
        assert record["k"] == row.k
        assert record["parity_verdict"] == line[head.index("parity_verdict")]
        assert record["values_s"] == (None if row.measurement is None else row.measurement.values_s)
    about = json.loads(found.schema.metadata[b"meprop-bench"])
    assert about["command"] == document.command
    assert about["environment"] == document.environments


def test_types_are_those_of_the_fields_whatever_the_values_are(document):
    schema = read(document).schema
    wanted = {
        "k": pa.float64(), "batch": pa.int64(), "converged": pa.bool_(), "method": pa.string(), "power_w": pa.float64(),
        "utilization_sm_clock_mhz": pa.float64(), "parity_seeds": pa.string(), "values_s": pa.list_(pa.float64()),
    }  # fmt: skip
    assert {name: schema.field(name).type for name in wanted} == wanted


def test_no_rows_are_a_table_without_any(document):
    object.__setattr__(document, "rows", [])
    assert read(document).num_rows == 0


def test_without_pyarrow_it_says_what_to_install(document, monkeypatch):
    monkeypatch.setattr("meprop_bench.optional.unavailable_reason", lambda _: "is not installed")
    with pytest.raises(UserError, match=r"pip install 'meprop-bench\[parquet\]'"):
        parquet.write_parquet(document, io.BytesIO())
