from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from meprop_bench.errors import UserError, one_of
from meprop_bench.methods import METHODS, Method
from meprop_bench.workloads.case import WORKLOADS, Case, recipe_of


def test_a_case_survives_json() -> None:
    case = Case(method="unified", k=0.1, batch=7, gradient="rows", device="cuda", threads=1)
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case
    assert case.device == "cuda:0"
    assert case.selection == "unified"


def test_the_id_is_the_same_for_the_same_case_only() -> None:
    case = Case(k=30, threads=2)
    assert case.case_id == Case(k=30, threads=2).case_id
    others = [
        Case(k=31, threads=2),
        Case(k=30, threads=1),
        Case(k=30, threads=2, seed=1),
        Case(k=30, threads=2, gradient="rows"),
        Case(k=1, threads=2),
        Case(k=1.0, threads=2),  # all of them, not one
    ]
    assert len({case.case_id, *(other.case_id for other in others)}) == 1 + len(others)


def test_the_id_does_not_change_from_version_to_version() -> None:
    """Stored rows are found again by it: if this fails, old folders cannot be resumed or compared."""
    assert Case(method="unified", k=8, batch=1024, threads=2, allocator="kept").case_id == "de3f925ee4ec"
    whole = Case(method="unified", k=8, batch=1024, threads=2, allocator="kept", device="cuda")
    assert whole.case_id == "02642968ab86"
    assert Case(**{**whole.to_json(), "dtype": "tf32"}).label == f"{whole.label.removesuffix(' cuda:0')} tf32 cuda:0"


@pytest.mark.parametrize("k", [0, -3, True, math.nan, math.inf, 1.5, 0.0, "8", None])
def test_no_k_means_no_gradient(k: object) -> None:
    with pytest.raises(UserError, match="k must be an integer of at least 1 or a ratio") as caught:
        Case(k=k)  # type: ignore[arg-type]
    assert repr(k) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("method", "meporp", "did you mean 'meprop'"),
        ("workload", "liner", "did you mean 'linear'"),
        ("gradient", "sparse", "dense, rows"),
        ("dtype", "fp32", "float32, float64, bfloat16, float16, tf32"),
        ("dtype", "tf32", "the rounding of a GPU's products: use --device cuda, or --dtype float32"),
        ("allocator", "keep", "did you mean 'kept'"),
        ("device", "gpu", "cpu, cuda"),
        ("device", "cuda:x", "cpu, cuda"),
        ("kernel", "nativ", "did you mean 'native'"),
        ("batch", 0, "batch must be an integer of at least 1, not 0"),
        ("threads", 2.0, "threads must be an integer"),
        ("batch", 1 << 41, "not 2199023255552: at most 1099511627776"),
        ("seed", -1, "seed must be an integer of at least 0, not -1"),
        ("seed", 1 << 32, "not 4294967296: at most 4294967295"),
        ("data", "mnist", "workload mlp"),
        ("caches", "hot", "choose from warm, cold"),
        ("launch", "later", "choose from eager, graph"),
        ("launch", "graph", "launch 'graph' replays CUDA graphs: use --device cuda"),
        ("length", 3, "does nothing in the workload linear: it is for the workload lstm, gru, seq2seq"),
        ("method", "mesimp", "choose from meprop, unified, random, random-unified"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(field: str, value: object, words: str) -> None:
    with pytest.raises(UserError) as caught:
        Case(**{field: value})  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_mlp_needs_data_that_fit() -> None:
    with pytest.raises(UserError, match="unknown data None"):
        Case(workload="mlp")
    with pytest.raises(UserError, match="which have 64"):
        Case(workload="mlp", data="digits", in_features=784)
    with pytest.raises(UserError, match="adam takes no gradient as rows"):
        Case(workload="mlp", data="digits", in_features=64, gradient="rows")
    assert Case(workload="mlp", data="digits", in_features=64, gradient="rows", optimizer="sgd").label.startswith("mlp")


def test_an_unknown_field_in_json_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'batch'"):
        Case.from_json({"bacth": 3})


@pytest.mark.parametrize("workload", ["linear", "lstm", "gru", "seq2seq", "mlp", "mesimp"])
def test_more_than_all_outputs_cannot_be_kept(workload: str) -> None:
    more = {"data": "digits", "in_features": 64} if workload in ("mlp", "mesimp") else {}
    method = "mesimp" if workload == "mesimp" else "meprop"
    assert Case(workload=workload, method=method, k=500, out_features=500, **more).k == 500  # type: ignore[arg-type]
    with pytest.raises(UserError, match="k 501 is more than the layer's 500 outputs: take at most 500"):
        Case(workload=workload, method=method, k=501, out_features=500, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("workload", ["linear", "mlp", "conv", "lstm", "gru", "seq2seq"])
def test_layers_of_another_module_are_not_timed_as_those_of_nn(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "first", Method("example", module="elsewhere.first"))
    for name, found in WORKLOADS.items():
        monkeypatch.setitem(WORKLOADS, name, replace(found, methods=(*found.methods, "first")))
    size = {"size": 12, "filter": 5} if workload == "conv" else {}
    data = {"data": "digits", "in_features": 64} if workload == "mlp" else {}
    with pytest.raises(UserError, match=r"nn's layers, and the method first makes those of elsewhere.first: .*--model"):
        Case(workload=workload, method="first", k=4, **size, **data)
    assert Case(workload="model", model="digits", method="first", k=4).method == "first"


def test_one_of_names_the_nearest() -> None:
    assert one_of("colour", "red", ("red", "blue")) == "red"
    with pytest.raises(UserError, match="unknown colour 'rde': did you mean 'red'\\? choose from red, blue"):
        one_of("colour", "rde", ("red", "blue"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filter": 13}, "filter 13 is larger than maps of 12 x 12"),
        ({"k": 65}, "k 65 is more than the 64 positions of a map"),
        ({"method": "unified", "k": 1}, "choose from meprop, random"),
        ({"gradient": "rows", "k": 1}, "gradient 'rows' does nothing in the workload conv"),
        ({"kernel": "coo", "k": 1}, "choose from masked, gather, native, auto"),
    ],
)
def test_a_convolution_has_axes_of_its_own(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Case(workload="conv", **changes)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_what_a_workload_has_is_filled_in() -> None:
    case = Case(workload="conv", k=0.1)
    assert (case.size, case.filter, case.length) == (12, 5, None)
    assert Case(workload="lstm").length == 25
    assert Case(workload="meact", method="meact", data="digits", in_features=64).share == 0.004
    assert Case(workload="mesimp", method="mesimp", data="digits", in_features=64, rate=0.2, threads=1).label.endswith(
        "p=0.2 cpu:1"
    )


def test_replays_are_for_layers_on_a_gpu() -> None:
    case = Case(device="cuda", launch="graph")
    assert case.label.endswith("graph launch cuda:0")
    assert case.case_id != Case(device="cuda").case_id
    with pytest.raises(UserError, match="launch 'graph' is for layers"):
        Case(workload="mlp", data="digits", in_features=64, device="cuda", launch="graph")


def test_a_task_is_timed_with_its_own_options() -> None:
    case = Case(workload="model", model="mnist", k=0.1, options="batch=256;hidden=2048; dropout=0.5;activation=tanh")
    options = {"batch": 256, "hidden": 2048, "dropout": 0.5, "activation": "tanh", "device": "cpu"}
    assert recipe_of(case).options == options
    assert case.case_id != Case(workload="model", model="mnist", k=0.1).case_id
    assert "batch=256" in case.label
    with pytest.raises(UserError, match="options are written as batch=256;hidden=2048, and not as 'batch'"):
        Case(workload="model", model="mnist", k=0.1, options="batch")
    with pytest.raises(UserError, match="has its own in its code"):
        Case(workload="model", model="my_model.py:build", k=0.1, optimizer="own", options="batch=256")
