import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meprop_bench.errors import UserError
from meprop_bench.results.schema import SCHEMA, Parity, Row, Utilization, select

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)
TIMES = st.floats(0, 1e6)
COUNTS = st.integers(0, 2**60)


def row(**changes):
    base = {
        "case_id": "0123abcd",
        "workload": "linear",
        "method": "unified",
        "kernel": "gather",
        "kernel_requested": "auto",
        "k": 8,
        "batch": 1024,
        "in_features": 8192,
        "out_features": 8192,
        "device": "cpu",
        "threads": 2,
        "dtype": "float32",
        "gradient": "rows",
        "allocator": "kept",
        "phase": "backward",
        "environment_id": "aabbccddeeff",
        "check": "passed",
    }
    return Row(**{**base, **changes})


def parity(**changes):
    base = {
        "task": "digits",
        "seeds": (0, 1),
        "steps": 200,
        "baseline": (96.0, 96.5),
        "method": (96.1, 96.2),
        "difference": -0.1,
        "low": -2.6,
        "high": 2.4,
        "margin": 0.5,
        "verdict": "inconclusive",
    }
    return Parity(**{**base, **changes})


def utilization(**changes):
    base = {
        "seconds": 2.0,
        "iterations": 800,
        "cpu_utilization": 198.0,
        "throttle_reasons": ("power cap", "idle"),
        "unavailable": {"power_w": "NVML: Not Supported"},
    }
    return Utilization(**{**base, **changes})


@st.composite
def rows(draw):
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    values = st.lists(TIMES, min_size=sum(lengths), max_size=sum(lengths))
    timed = draw(st.booleans())
    interval = sorted(draw(st.lists(st.floats(0.01, 1e4), min_size=3, max_size=3)))
    numbers = {
        "values_s": draw(values),
        "baseline_values_s": draw(values),
        "run_lengths": lengths,
        "median_s": draw(st.none() | st.floats()),
        "speedup": interval[1],
        "speedup_low": interval[0],
        "speedup_high": interval[2],
        "converged": draw(st.booleans()),
        "peak_memory_bytes": draw(st.none() | COUNTS),
        "efficiency": draw(st.none() | st.floats()),
        "parity": draw(st.none() | st.just(parity())),
        "utilization": draw(st.none() | st.just(utilization())),
        "baseline_utilization": draw(st.none() | st.just(utilization(power_w=3.5, unavailable={}))),
        "process_peak_bytes": draw(st.none() | COUNTS),
        "unavailable": draw(st.dictionaries(NAMES, NAMES, max_size=2)),
    }
    return row(
        case_id=draw(NAMES),
        workload=draw(NAMES),
        k=draw(st.integers(1, 9999) | st.floats(0.001, 1)),
        data=draw(st.none() | NAMES),
        check="passed" if timed else draw(st.text()),
        error=None if timed else draw(st.text()),
        notes=draw(st.lists(st.text(), max_size=3)),
        **(numbers if timed else {}),
    )


@settings(max_examples=150, deadline=None)
@given(rows())
def test_a_row_survives_json(one):
    text = json.dumps(one.to_json(), allow_nan=False)
    assert "\n" not in text
    assert Row.from_json(json.loads(text)) == one


def test_the_json_has_the_promised_keys():
    record = row(parity=parity(), values_s=[1.0], baseline_values_s=[2.0], run_lengths=[1]).to_json()
    assert list(record)[:2] == ["schema", "case_id"]
    assert record["schema"] == SCHEMA
    promised = "workload method kernel k batch in_features out_features device threads dtype phase median_s values_s"
    promised += " speedup speedup_low speedup_high floor_s efficiency peak_memory_bytes parity environment_id"
    assert set(promised.split()) <= set(record)
    assert record["parity"]["seeds"] == [0, 1]
    assert type(record["values_s"]) is list


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(value):
    assert row(median_s=value, efficiency=value).to_json()["median_s"] is None


def test_one_process_has_a_speed_up_without_an_interval():
    one = row(speedup=5.0, speedup_low=math.nan, speedup_high=math.nan)
    assert (one.speedup, one.speedup_low, one.significant, one.half_width) == (5.0, None, None, None)


@pytest.mark.parametrize(("low", "high", "significant"), [(0.9, 1.1, False), (1.0, 1.1, False), (1.01, 1.2, True)])
def test_significant_means_that_the_interval_excludes_1(low, high, significant):
    assert row(speedup=1.05, speedup_low=low, speedup_high=high).significant is significant


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"speedup": 2.0, "check": "dw differs by 0.3"}, "dw differs"),
        ({"speedup": 2.0, "check": None}, "speed-up"),
        ({"median_s": 1.0, "error": "out of memory"}, "error"),
        ({"speedup": 2.0, "speedup_low": 2.5, "speedup_high": 3.0}, "2.5"),
        ({"speedup": 2.0, "speedup_low": 1.5}, "together"),
        ({"values_s": [1.0], "baseline_values_s": [1.0, 2.0], "run_lengths": [1]}, "pair up"),
        ({"values_s": [1.0], "baseline_values_s": [1.0], "run_lengths": [1, 0]}, "pair up"),
        ({"values_s": [1.0]}, "together"),
        ({"values_s": [-1.0], "baseline_values_s": [1.0], "run_lengths": [1]}, "negative"),
        ({"values_s": [math.nan], "baseline_values_s": [1.0], "run_lengths": [1]}, "values_s"),
        ({"k": True}, "k is True"),
        ({"batch": "ten"}, "batch is 'ten'"),
        ({"batch": 1.5}, "batch"),
        ({"method": "uni\x1b[31mfied"}, "method"),
        ({"method": ""}, "method"),
        ({"converged": 1}, "converged"),
        ({"flops": 10**400}, "flops"),
    ],
)
def test_a_wrong_row_is_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named.replace("[", r"\[")):
        row(**changes)


def test_free_text_is_one_line_without_paths_or_escapes():
    one = row(error="Traceback:\n  \x1b[31mcannot open /home/someone/secret/mnist.gz", check=None, notes=["a\r\nb"])
    assert one.error == "Traceback: [31mcannot open …/mnist.gz"
    assert one.notes == ("a b",)


def test_unknown_keys_are_ignored_and_another_schema_is_refused():
    record = {**row().to_json(), "from_the_future": 1}
    assert Row.from_json(record) == row()
    with pytest.raises(UserError, match="meprop-bench/2"):
        Row.from_json({**record, "schema": "meprop-bench/2"})
    del record["method"]
    with pytest.raises(ValueError, match="'method'"):
        Row.from_json(record)


def test_parity_needs_a_figure_for_each_seed_and_a_known_verdict():
    with pytest.raises(ValueError, match="2 seeds, 1 baseline"):
        parity(baseline=(1.0,))
    with pytest.raises(ValueError, match="verdict"):
        parity(verdict="maybe")
    assert parity(low=math.nan, high=math.nan).low is None


def test_utilization_is_checked_and_says_why_something_is_missing():
    one = row(utilization=utilization(power_w=math.nan), gpu_utilization=math.inf, unavailable={"power_w": "a\nb"})
    assert one.utilization.power_w is None
    assert one.gpu_utilization is None
    assert one.unavailable == {"power_w": "a b"}
    record = one.to_json()
    assert record["utilization"]["throttle_reasons"] == ["power cap", "idle"]
    assert record["utilization"]["unavailable"] == {"power_w": "NVML: Not Supported"}
    assert isinstance(hash(one), int)
    with pytest.raises(ValueError, match="iterations"):
        utilization(iterations=1.5)
    with pytest.raises(ValueError, match="unavailable holds 3"):
        row(unavailable={"power_w": 3})
    with pytest.raises(ValueError, match="unavailable is"):
        row(unavailable=["power_w"])
    with pytest.raises(ValueError, match="utilization without 'iterations'"):
        Utilization.from_json({"seconds": 2.0})


def test_rows_from_before_utilization_was_watched_still_load():
    new = {"unavailable", "utilization", "process_peak_bytes", "peak_reserved_bytes", "process_growth_bytes"}
    new |= {"gpu_utilization", "cpu_utilization", "power_w", "energy_per_step_j"}
    record = {name: value for name, value in row().to_json().items() if name.removeprefix("baseline_") not in new}
    assert Row.from_json(record) == row()
    for folder in (Path(__file__).parents[2] / "reports").glob("*/measurements.jsonl"):
        for line in folder.read_text().splitlines():
            assert Row.from_json(json.loads(line)).case_id


def test_select_by_fields():
    three = [row(phase=phase) for phase in ("forward", "backward", "step")]
    assert [one.phase for one in select(three, workload="linear", phase="step")] == ["step"]
    assert select(three, workload="mlp") == []
    with pytest.raises(ValueError, match="'worklaod'"):
        select(three, worklaod="linear")


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        row().k = 9
