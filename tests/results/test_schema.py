import dataclasses
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meprop_bench.errors import UserError
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.results.schema import KEYS, SCHEMA, Flat, Parity, Row, Side, Utilization, select
from meprop_bench.stats import mean_difference

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)
TIMES = st.floats(1e-9, 1e6)
COUNTS = st.integers(0, 2**60)


def timed(values=(1e-3, 2e-3), baseline=(2e-3, 4.2e-3), lengths=(1, 1), **changes):
    """What a row holds of what was measured, all of it as its values have it."""
    found = Measurement.from_values("backward", baseline, values, lengths, 1)
    numbers = {
        "values_s": values,
        "baseline_values_s": baseline,
        "run_lengths": lengths,
        "median_s": found.median_s,
        "baseline_median_s": found.baseline_median_s,
        "loops": 1,
        "processes": found.processes,
        "speedup": found.speedup.estimate,
        "speedup_low": found.speedup.low,
        "speedup_high": found.speedup.high,
        "floor_s": found.median_s / 4,
        "efficiency": 0.25,
    }
    return {**numbers, **changes}


def read(**changes):
    """Read a row from JSON whose fields are changed there."""
    return Row.from_json({**json.loads(json.dumps(row(**timed()).to_json())), **changes})


BASE = {
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


def row(**changes):
    return Row.of(**{**BASE, **changes})


def parity(**changes):
    found = mean_difference([(96.0, 96.1), (96.5, 96.2)])
    base = {
        "task": "digits",
        "seeds": (0, 1),
        "steps": 200,
        "baseline": (96.0, 96.5),
        "method": (96.1, 96.2),
        "difference": found.estimate,
        "low": found.low,
        "high": found.high,
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
    ran = draw(st.booleans())
    numbers = timed(
        draw(values),
        draw(values),
        lengths,
        peak_memory_bytes=draw(st.none() | COUNTS),
        flops=draw(st.none() | st.floats(0, 1e18)),
        parity=draw(st.none() | st.just(parity())),
        utilization=draw(st.none() | st.just(utilization())),
        baseline_utilization=draw(st.none() | st.just(utilization(power_w=3.5, unavailable={}))),
        process_peak_bytes=draw(st.none() | COUNTS),
        unavailable=draw(st.dictionaries(NAMES, NAMES, max_size=2)),
    )
    return row(
        case_id=draw(NAMES),
        workload=draw(NAMES),
        k=draw(st.integers(1, 9999) | st.floats(0.001, 1)),
        data=draw(st.none() | NAMES),
        check="passed" if ran else draw(st.text()),
        error=None if ran else draw(st.text()),
        notes=draw(st.lists(st.text(), max_size=3)),
        **(numbers if ran else {}),
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
    assert row(median_s=value).to_json()["median_s"] is None


def test_one_process_has_a_speed_up_without_an_interval():
    one = row(speedup=5.0, speedup_low=math.nan, speedup_high=math.nan)
    assert (one.speedup, one.speedup_low, one.significant, one.half_width) == (5.0, None, None, None)


@pytest.mark.parametrize(("low", "high", "significant"), [(0.9, 1.1, False), (1.0, 1.1, False), (1.01, 1.2, True)])
def test_significant_means_that_the_interval_excludes_1(low, high, significant):
    assert row(speedup=1.05, speedup_low=low, speedup_high=high).significant is significant


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"check": "dw differs by 0.3"}, "dw differs"),
        ({"check": None}, "speed-up"),
        ({"speedup": None, "speedup_low": None, "speedup_high": None, "error": "out of memory"}, "error"),
        ({"speedup_high": None}, "together"),
        ({"values_s": [1e-3, 2e-3, 3e-3]}, "pair up"),
        ({"run_lengths": [1, 1, 0]}, r"run_lengths\[2\] is 0"),
        ({"baseline_values_s": None}, "together"),
        ({"values_s": [-1e-3, 2e-3]}, r"values_s\[0\] is -0.001"),
        ({"values_s": [math.nan, 2e-3]}, r"values_s\[0\] is nan"),
        ({"values_s": [0.0, 2e-3]}, r"values_s\[0\] is 0.0"),
        ({"values_s": [], "baseline_values_s": [], "run_lengths": []}, "pair up"),
        ({"k": True}, "k is True"),
        ({"k": 0}, "k is 0"),
        ({"batch": "ten"}, "batch is 'ten'"),
        ({"batch": 1.5}, "batch"),
        ({"loops": -1}, "loops is -1"),
        ({"method": "uni\x1b[31mfied"}, "method"),
        ({"method": ""}, "method"),
        ({"converged": 1}, "converged"),
        ({"flops": 10**400}, "flops"),
        ({"median_s": 1e-300}, "median_s"),
        ({"peak_memory_bytes": -1}, "peak_memory_bytes is -1"),
        ({"unavailable": {"power_w": 3}}, "unavailable"),
        ({"unavailable": ["power_w"]}, "unavailable"),
        ({"allocator": None}, "allocator"),
    ],
)
def test_a_wrong_row_is_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"speedup": 20.0, "speedup_high": 30.0}, "speedup is 20"),
        ({"speedup_low": 1.9}, "speedup_low is 1.9, but the values have"),
        ({"speedup_high": 9.0}, "speedup_high is 9"),
        ({"median_s": 1e-3}, "median_s is 0.001, but the values have 0.0015"),
        ({"baseline_median_s": 4e-3}, "baseline_median_s"),
        ({"values_s": [2e-3, 4.2e-3], "baseline_values_s": [1e-3, 2e-3]}, "median_s"),
        ({"run_lengths": [2]}, "processes is 2, but run_lengths say 1"),
        ({"processes": 5}, "processes is 5"),
        ({"efficiency": 1.5}, "efficiency is 1.5, but floor_s / median_s is 0.25"),
        ({"efficiency": 0.0}, "efficiency is 0.0"),
        ({"efficiency": -0.25}, "efficiency is -0.25"),
        ({"floor_s": 0.3, "efficiency": 200.0}, "efficiency is 200: a floor is no such multiple"),
        ({"floor_s": None}, "efficiency without"),
        ({"speedup_low": None, "speedup_high": None, "converged": True}, "converged"),
        (
            {
                "values_s": None,
                "baseline_values_s": None,
                "run_lengths": None,
                "speedup": 200.0,
                "speedup_low": None,
                "speedup_high": None,
            },
            "the medians have",
        ),
        ({"power_w": 12.0, "utilization": {"seconds": 2.0, "iterations": 8, "power_w": 10.0}}, "power_w is 12"),
        (
            {"utilization": {"seconds": 2.0, "iterations": 8, "power_w": 10.0, "energy_per_step_j": 9.0}},
            "energy_per_step_j is 9, but power_w has 2.5",
        ),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        read(**changes)


def test_a_rounding_of_another_machine_and_an_efficiency_above_1_contradict_nothing():
    one = row(**timed())
    assert read(speedup=one.speedup * (1 + 1e-9), efficiency=0.25 * (1 - 1e-9)).speedup > 0
    assert read(floor_s=1.02 * one.sparse.median_s, efficiency=1.02).sparse.efficiency == pytest.approx(1.02)


def test_no_numeric_field_but_a_difference_takes_what_is_negative_or_beyond_all_bounds():
    record = {**row(**timed(), parity=parity(), utilization=utilization()).to_json()}
    may_be_negative = {"difference", "low", "high", "temperature_c"}
    kinds = ((None, Row), (None, Side), (None, Flat), ("parity", Parity), ("utilization", Utilization))
    for owner, kind in kinds:
        for spec in dataclasses.fields(kind):
            if spec.name in may_be_negative or not re.search(
                r"float|int\b|Amount|Busy|Count|Number|Percent|Ratio|Seconds|Share", str(spec.type)
            ):
                continue
            many = "tuple" in str(spec.type)
            for value in (-1, 10**400, 1e300, math.inf, math.nan, "1", True):
                wrong = {spec.name: [value] if many else value}
                with pytest.raises(ValueError, match=spec.name):
                    Row.from_json({**record, **(wrong if owner is None else {owner: {**record[owner], **wrong}})})


def test_free_text_is_one_line_without_paths_or_escapes():
    one = row(error="Traceback:\n  \x1b[31mcannot open /home/someone/secret/mnist.gz", check=None, notes=["a\r\nb"])
    assert one.error == "Traceback: [31mcannot open …/mnist.gz"
    assert [note.text for note in one.notes] == ["a b"]


def test_the_keys_are_those_that_are_written_and_a_row_is_made_of_no_others():
    one = row(**timed(), utilization=utilization(), notes=["a note"])
    assert list(one.to_json()) == ["schema", *KEYS]
    assert Row.of(**{name: value for name, value in one.to_json().items() if name in timed()}, **BASE).sparse == Side(
        median_s=one.sparse.median_s, floor_s=one.sparse.floor_s
    )
    with pytest.raises(TypeError, match="'flpos'"):
        row(flpos=3)


def test_what_follows_from_the_structures_is_written_beside_them():
    one = row(**timed(), utilization=utilization(), baseline_flops=3.0)
    record = one.to_json()
    assert (record["processes"], record["cpu_utilization"], record["power_w"]) == (2, 198.0, None)
    assert record["efficiency"] == one.sparse.floor_s / one.sparse.median_s
    assert (record["flops"], record["baseline_flops"], one.dense.flops) == (None, 3.0, 3.0)
    assert record["values_s"] == one.measurement.values_s == [1e-3, 2e-3]


def test_notes_are_stored_in_words_and_as_data():
    notes = (Note.of("others", share=0.314), Note.of("one-process"), Note("something else"))
    one = dataclasses.replace(row(**timed()), notes=notes)
    record = json.loads(json.dumps(one.to_json()))
    assert record["notes"] == [
        "other processes took 31% of the cores meanwhile",
        "one process: no interval",
        "something else",
    ]
    assert record["note_kinds"] == [{"kind": "others", "share": 0.314}, {"kind": "one-process"}, {"kind": "other"}]
    assert Row.from_json(record).notes == notes
    for wrong in ([], [{"kind": "others"}] * 3, [{"kind": "others", "share": "1"}] * 3, [{"kind": "heat", "a": 1}] * 3):
        with pytest.raises(ValueError, match="note_kinds"):
            Row.from_json({**record, "note_kinds": wrong})
    del record["note_kinds"]  # as older versions wrote it
    older = Row.from_json(record).notes
    assert [(note.kind, dict(note.values)) for note in older] == [
        ("others", {"share": 0.31}),
        ("one-process", {}),
        ("other", {}),
    ]


def test_unknown_keys_are_ignored_and_another_schema_is_refused():
    record = {**row().to_json(), "from_the_future": 1}
    assert Row.from_json(record) == row()
    with pytest.raises(UserError, match="meprop-bench/2"):
        Row.from_json({**record, "schema": "meprop-bench/2"})
    del record["method"]
    with pytest.raises(ValueError, match="no 'method'"):
        Row.from_json(record)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"baseline": [1.0]}, "2 seeds, 1 baseline"),
        ({"seeds": [0, 0]}, "twice"),
        ({"verdict": "maybe"}, "verdict is 'maybe'"),
        ({"verdict": "pass"}, "verdict"),
        ({"difference": 3.0}, "parity.difference is 3"),
        ({"low": -0.2}, "parity.low"),
        ({"method": [196.1, 96.2]}, "method"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_a_parity_that_its_accuracies_contradict_is_refused(changes, named):
    assert read(parity=dataclasses.asdict(parity())).parity == parity()
    with pytest.raises(ValueError, match=named):
        read(parity={**dataclasses.asdict(parity()), **changes})


def _losses():
    pairs = [(-2.1, -2.2), (-200.0, -200.3)]
    found = mean_difference(pairs)
    own = {"metric": "minus the loss", "percent": False, "baseline": (-2.1, -200.0), "method": (-2.2, -200.3)}
    return parity(**own, difference=found.estimate, low=found.low, high=found.high, margin=150.0, verdict="pass")


def test_figures_that_are_no_percentages_are_taken_where_a_row_says_so():
    found = dataclasses.asdict(_losses())
    assert read(parity=found).parity == _losses()
    assert (_losses().scale, parity().scale) == (101.05, 100.0)
    del found["percent"]  # as older versions wrote it: they had percentages only
    with pytest.raises(ValueError, match=r"baseline holds -2\.1, which is no percentage"):
        read(parity=found)
    older = dataclasses.asdict(parity())
    del older["percent"]
    assert read(parity=older).parity == parity()


def test_utilization_is_checked_and_says_why_something_is_missing():
    one = row(utilization=utilization(power_w=math.nan), unavailable={"power_w": "a\nb"})
    assert one.sparse.utilization.power_w is None
    assert one.unavailable == {"power_w": "a b"}
    record = one.to_json()
    assert record["utilization"]["throttle_reasons"] == ["power cap", "idle"]
    assert record["utilization"]["unavailable"] == {"power_w": "NVML: Not Supported"}
    assert isinstance(hash(one), int)
    with pytest.raises(ValueError, match=r"iterations is 1\.5"):
        Utilization.from_json({"seconds": 2.0, "iterations": 1.5})
    with pytest.raises(ValueError, match="no 'iterations'; did you mean it by 'iteration'"):
        Utilization.from_json({"seconds": 2.0, "iteration": 3})


def test_rows_from_before_utilization_was_watched_still_load():
    new = {"unavailable", "utilization", "process_peak_bytes", "peak_reserved_bytes", "process_growth_bytes"}
    new |= {"gpu_utilization", "cpu_utilization", "power_w", "energy_per_step_j"}
    record = {name: value for name, value in row().to_json().items() if name.removeprefix("baseline_") not in new}
    assert Row.from_json(record) == row()


def test_select_by_fields():
    three = [row(phase=phase) for phase in ("forward", "backward", "step")]
    assert [one.phase for one in select(three, workload="linear", phase="step")] == ["step"]
    assert select(three, workload="mlp") == []
    with pytest.raises(ValueError, match="'worklaod'"):
        select(three, worklaod="linear")


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        row().k = 9


def test_texts_within_structures_are_printable_lines():
    record = row(parity=parity()).to_json()
    record["parity"] |= {"task": "digits\u202e\x1b[31m", "metric": "a\nb"}
    found = Row.from_json(record).parity
    assert (found.task, found.metric) == ("digits [31m", "a b")
