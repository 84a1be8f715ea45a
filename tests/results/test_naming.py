"""A case has one name, whether a plan or a row holds it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.results.axes import AXES, case_name
from meprop_bench.results.schema import Row
from meprop_bench.sweep.rows import failed_row
from meprop_bench.workloads.case import Case

_CASES: list[tuple[dict[str, Any], str]] = [
    ({"in_features": 784}, "linear 784→500 B=50 meprop k=30 cpu:2"),
    (
        {"threads": 1, "gradient": "rows", "kernel": "coo"},
        "linear 500→500 B=50 meprop k=30 coo kernel rows gradient cpu:1",
    ),
    ({"device": "cuda", "dtype": "bfloat16", "k": 0.1}, "linear 500→500 B=50 meprop k=0.1 bfloat16 cuda:0"),
    ({"device": "cuda", "launch": "graph"}, "linear 500→500 B=50 meprop k=30 graph launch cuda:0"),
    (
        {"workload": "mlp", "data": "mnist", "in_features": 784, "baseline": "fused"},
        "mlp mnist h=500 B=50 meprop k=30 fused baseline cpu:2",
    ),
    (
        {"workload": "model", "model": "mnist", "baseline": "best"},
        "model mnist meprop k=30 adam cpu:2",
    ),
    (
        {"workload": "mlp", "data": "mnist", "in_features": 784, "layers": 5, "optimizer": "adagrad"},
        "mlp mnist h=500 layers=5 B=50 meprop k=30 adagrad cpu:2",
    ),
    ({"workload": "seq2seq", "batch": 20}, "seq2seq h=500 T=20 B=20 meprop k=30 cpu:2"),
    (
        {"workload": "conv", "k": 6, "in_features": 16, "out_features": 32, "caches": "cold", "seed": 3},
        "conv 16→32 12x12 filter=5 B=50 meprop k=6 cold caches cpu:2 seed=3",
    ),
    ({"workload": "gru", "method": "unified"}, "gru 500→500 T=25 B=50 unified k=30 cpu:2"),
    (
        {"workload": "meact", "method": "meact", "data": "digits", "in_features": 64, "allocator": "default"},
        "meact digits h=500 B=50 meact p=0.004 default allocator cpu:2",
    ),
    (
        {"workload": "mesimp", "method": "mesimp", "data": "digits", "in_features": 64},
        "mesimp digits h=500 B=50 mesimp k=30 p=0.1 cpu:2",
    ),
    ({"method": "dense"}, "linear 500→500 B=50 dense cpu:2"),
    ({"method": "dense", "slowdown": 0.03}, "linear 500→500 B=50 dense +3% cpu:2"),
]


@pytest.mark.parametrize(("changes", "name"), _CASES, ids=[name for _, name in _CASES])
def test_a_case_and_its_row_are_named_by_all_that_tells_them_apart(changes: dict[str, Any], name: str) -> None:
    case = Case(**{"threads": 2, "allocator": "kept", **changes})
    row = failed_row(case, "it was not measured", "e0")
    assert case.label == name
    assert case_name(row) == name


def test_a_row_from_before_there_were_baselines_is_what_it_was() -> None:
    """It is called as it was, has the id of the same case, and is not taken for one with a fused optimizer."""
    folder = Path(__file__).parents[2] / "reports" / "2026-11-22_amd-epyc-2c_paper-icml-1-short-2"
    lines = map(json.loads, (folder / "measurements.jsonl").read_text().splitlines())
    stored = next(line for line in lines if line["workload"] == "mlp")
    assert not {"baseline", "fused_step"} & stored.keys()
    row = Row.from_json(stored)
    assert (row.baseline, row.baseline_chosen, row.fused_step) == ("same", None, "none")
    assert case_name(row) == "mlp mnist h=500 B=10 meprop k=10 adagrad cpu:2"
    axes = {axis.field: getattr(row, axis.stored) for axis in AXES.values()}
    same = Case.from_json(axes)
    assert same.case_id == row.case_id
    fused = replace(same, baseline="fused")
    assert fused.case_id != row.case_id
    assert fused.label == "mlp mnist h=500 B=10 meprop k=10 adagrad fused baseline cpu:2"
