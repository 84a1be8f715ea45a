from __future__ import annotations

import json
from pathlib import Path

import pytest

from meprop_bench.errors import UserError
from meprop_bench.sweep.plan import Plan, load_preset, parse_axis, plan_axes, plan_preset, preset_names
from meprop_bench.workloads.case import Case


def _plan(**axes: list[object]) -> Plan:
    return plan_axes({axis.replace("_", "-"): values for axis, values in axes.items()})


def test_axes_are_multiplied_out_in_order() -> None:
    plan = _plan(k=[8, 32], gradient=["dense", "rows"], method=["unified"], hidden=[64])
    assert [(case.k, case.gradient) for case in plan.cases] == [(8, "dense"), (8, "rows"), (32, "dense"), (32, "rows")]
    assert {case.in_features for case in plan.cases} == {64}


def test_without_axes_there_is_a_small_sweep_of_one_layer() -> None:
    plan = plan_axes({})
    assert {case.workload for case in plan.cases} == {"linear"}
    assert len(plan.cases) == 6
    assert (plan.target, plan.budget, plan.processes) == (0.02, 20.0, 5)


def test_a_model_of_one_s_own_meets_the_best_dense_side_unless_it_is_said_otherwise() -> None:
    axes: dict[str, list[object]] = {"model": ["mnist"], "optimizer": ["adam"], "k": [0.1], "method": ["unified"]}
    (best,), (same,) = _plan(**axes).cases, _plan(**axes, baseline=["same"]).cases
    assert (best.baseline, same.baseline) == ("best", "same")
    assert "baseline" not in best.label
    assert "same baseline" in same.label
    assert {case.baseline for case in plan_axes({}).cases} == {"same"}


def test_repeats_are_cases_of_their_own() -> None:
    plan = plan_axes({"method": ["dense"], "seed": [0, 1], "slowdown": [0.0, 0.03]}, seed=7)
    assert [(case.seed, case.slowdown) for case in plan.cases] == [(0, 0.0), (0, 0.03), (1, 0.0), (1, 0.03)]
    assert plan.seed == 7
    assert {case.seed for case in plan_axes({}, seed=7).cases} == {7}
    plan = plan_preset(load_preset("aa"))
    assert (plan.target, plan.budget, plan.processes) == (0.02, 20.0, 5)  # a run as everybody gets it
    assert sorted((case.slowdown, case.seed) for case in plan.cases) == [
        (s, seed) for s in (0.0, 0.03) for seed in range(10)
    ]


def test_the_usual_k_are_parts_of_the_layer_and_a_k_that_is_given_has_to_be() -> None:
    assert {case.k for case in _plan(method=["meprop"]).cases} == {10, 30, 100}
    assert {case.k for case in _plan(method=["meprop"], hidden=[64]).cases} == {10, 30, 16}
    assert {case.k for case in _plan(method=["meprop"], hidden=[2]).cases} == {1}
    with pytest.raises(UserError, match="k 600 is more than the layer's 500 outputs"):
        _plan(k=[600], hidden=[500])


def test_a_case_that_is_named_twice_is_measured_once() -> None:
    assert len(_plan(k=[8, 8], method=["meprop"]).cases) == 1


def test_the_mlp_says_which_data_it_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    (case,) = _plan(workload=["mlp"], method=["unified"], k=[8]).cases
    assert (case.data, case.in_features, case.out_features) == ("digits", 64, 500)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").touch()
    (case,) = _plan(workload=["mlp"], method=["unified"], k=[8]).cases
    assert (case.data, case.in_features) == ("mnist", 784)


def test_two_workloads_each_take_their_own_axes() -> None:
    plan = _plan(workload=["linear", "mlp"], method=["unified"], k=[8], data=["digits"], in_features=[32])
    assert [(case.workload, case.data, case.in_features) for case in plan.cases] == [
        ("linear", None, 32),
        ("mlp", "digits", 64),
    ]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"k": [0]}, "k must be an integer of at least 1 or a ratio in \\(0, 1\\], not 0"),
        ({"method": ["mepropp"]}, "did you mean 'meprop'"),
        ({"workload": ["cnn"]}, "choose from linear, mlp"),
        ({"data": ["mnist"]}, "the axis 'data' is for the workload mlp"),
        ({"workload": ["mlp"], "in_features": [3]}, "the axis 'in-features' is for the workload linear"),
        ({"workload": ["mlp"], "data": ["minst"]}, "did you mean 'mnist'"),
    ],
)
def test_a_wrong_axis_is_found_before_anything_is_measured(axes: dict[str, list[object]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _plan(**axes)


def test_typed_axes_are_lists_of_numbers_and_words() -> None:
    assert parse_axis("k", ("8, 0.1", "32")) == [8, 0.1, 32]
    assert parse_axis("method", ("meprop,unified",)) == ["meprop", "unified"]
    assert isinstance(parse_axis("k", ("1.0",))[0], float)
    assert parse_axis("seed", ("0,1",)) == [0, 1]
    files = "files=train,dev,test;batch=8"  # a value with commas, as tune writes it
    assert parse_axis("options", (f"{files},batch=16",)) == [files, "batch=16"]
    with pytest.raises(UserError, match="seed must be an integer of at least 0, not 'x'"):
        parse_axis("seed", ("x",))
    for axis, text in (("k", "many"), ("batch", "1.5"), ("hidden", "")):
        with pytest.raises(UserError, match=f"{axis} must be an integer of at least 1"):
            parse_axis(axis, (text,))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"target": 0}, "target must be between 0 and 1"),
        ({"target": float("nan")}, "target must be between 0 and 1"),
        ({"budget": -1}, "budget must be more than 0 seconds"),
        ({"processes": 0}, "processes must be an integer from 1"),
        ({"checks": ("gradient",)}, "did you mean 'gradients'"),
        ({"utilization": 1}, "utilization must be true or false, not 1"),
        ({"pin": "yes"}, "pin must be true or false, not 'yes'"),
    ],
)
def test_settings_are_checked(setting: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan(name="x", cases=(Case(),), **setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_of_the_package_is_sound(name: str) -> None:
    preset = load_preset(name)
    plan = plan_preset(preset)
    assert plan.name == name
    assert len(plan.analysis) > 50
    assert "gradients" in plan.checks
    assert len({case.case_id for case in plan.cases}) == len(plan.cases)
    assert json.loads(json.dumps(plan.to_json()))["name"] == name


def test_the_targets_are_all_there() -> None:
    found = {
        (case.batch, case.in_features, case.out_features, case.method, case.k, case.gradient)
        for case in plan_preset(load_preset("targets")).cases
    }
    both = ("rows", "dense")
    wanted = {(1024, 8192, 8192, "unified", k, g) for k in (8, 32, 128, 512) for g in both}
    wanted |= {(1024, 8192, 8192, "meprop", k, "rows") for k in (8, 32)}
    wanted |= {(50, 784, 500, "unified", 30, g) for g in both}
    wanted |= {(1024, 2048, 2048, "meprop", 30, g) for g in both}
    wanted |= {(10, 784, 500, "meprop", 20, g) for g in both}
    assert found == wanted
    assert {case.threads for case in plan_preset(load_preset("targets")).cases} == {2}


def test_the_rows_of_a_whole_step_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"transformer": "multi30k"}
    monkeypatch.setattr("meprop_bench.sweep.plan._which_data", lambda _, workload: data.get(workload, "mnist"))
    plan = plan_preset(load_preset("step"))
    cases = [case for case in plan.cases if case.workload in ("mlp", "transformer")]
    found = {
        (case.batch, case.out_features, case.layers, case.k, case.optimizer, case.gradient, case.fused_step)
        for case in cases
        if case.baseline == "fused"
    }
    small = {
        (batch, 500, 2, 30, optimizer, "rows", step)
        for batch in (10, 50)
        for optimizer in ("adagrad", "sgd", "rowadam")
        for step in ("none", "method", "both")
    }
    large = {
        (*shape, optimizer, "rows", "none")
        for shape in ((256, 2048, 3, 64), (1024, 8192, 2, 32))
        for optimizer in ("adagrad", "sgd")
    }
    gpt = {(*shape, 0.0625, "adamw", "dense", "none") for shape in ((8, 384, 4), (4, 768, 2))}
    assert found == small | large | gpt
    assert {(case.heads, case.length) for case in plan.cases if case.workload == "transformer"} == {(6, 256), (12, 256)}
    best = [case for case in cases if case.baseline == "best"]
    assert {(case.batch, case.optimizer) for case in best} == {
        (b, o) for b in (10, 50, 256) for o in ("adagrad", "sgd")
    }
    assert len(cases) == len(found) + len(best)
    assert {case.threads for case in plan.cases} == {2}
    compared = [case for case in plan.cases if case.case_id in plan.compared]
    assert {(case.batch, case.out_features, case.fused_step) for case in compared} == {
        (10, 500, "none"),
        (50, 500, "none"),
    }
    assert len(compared) == 6


def test_the_quick_report_has_a_small_and_a_large_step() -> None:
    plan = plan_preset(load_preset("quick"))
    steps = [case for case in plan.cases if case.workload == "mlp"]
    assert [(case.out_features, case.baseline, case.gradient) for case in steps] == [
        (500, "fused", "rows"),
        (2048, "fused", "rows"),
    ]
    assert plan.compared == (steps[0].case_id,)


def test_options_take_the_place_of_the_presets_own() -> None:
    plan = plan_preset(load_preset("targets"), {"threads": [1], "k": [4]}, budget=1.0, seed=3)
    assert {case.threads for case in plan.cases} == {1}
    assert {case.k for case in plan.cases} == {4}
    assert (plan.budget, plan.seed, {case.seed for case in plan.cases}) == (1.0, 3, {3})
    assert plan.utilization
    quick = load_preset("quick")
    assert not plan_preset(quick).utilization
    assert plan_preset(quick, utilization=True).utilization


def test_only_a_plan_that_pins_or_watches_some_says_so() -> None:
    """Runs that were begun when nothing could be pinned are resumed by what they are: not pinned."""
    free, bound = (Plan(name="x", cases=(Case(),), pin=pin).to_json() for pin in (False, True))
    assert not {"pin", "watched", "compared"} & set(free)
    assert bound == {**free, "pin": True}
    assert Plan(name="x", cases=(Case(),), watched=("a",)).to_json() == {**free, "watched": ("a",)}


def test_a_sweep_of_a_preset_may_have_its_cases_watched(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    sweeps = "[[sweep]]\nmethod = 'unified'\nk = [3, 4, 5]\n[[sweep]]\nmethod = 'unified'\nk = 4\nutilization = true\n"
    path.write_text(_SOUND.replace("[[sweep]]\nk = 3\n", "utilization = false\n" + sweeps))
    preset = load_preset(str(path))
    plan = plan_preset(preset)
    assert [case.k for case in plan.cases] == [3, 4, 5]  # in the order of their first sweep
    assert plan.watched == (plan.cases[1].case_id,)
    assert not plan.utilization
    for said in (True, False):  # an option is about all of them
        assert (plan_preset(preset, utilization=said).watched, plan_preset(preset, utilization=said).utilization) == (
            (),
            said,
        )
    path.write_text(path.read_text().replace("utilization = true", "utilization = 1"))
    with pytest.raises(
        UserError, match=r"the preset .*mine.toml cannot be used: sweep\[1\].utilization is 1: expected bool, got int"
    ):
        load_preset(str(path))


def test_a_sweep_of_a_preset_may_have_its_accuracy_compared(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(_SOUND + "[[sweep]]\nk = 4\nmethod = 'unified'\naccuracy = true\n")
    preset = load_preset(str(path))
    plan = plan_preset(preset)
    assert plan.checks == ("gradients",)
    assert plan.compared == tuple(case.case_id for case in plan.cases if case.k == 4)
    assert plan.to_json()["compared"] == plan.compared
    for checks in (("gradients", "accuracy"), ("gradients",)):  # an option is about all of them
        assert (plan_preset(preset, checks=checks).compared, plan_preset(preset, checks=checks).checks) == ((), checks)


_SOUND = 'name = "mine"\nanalysis = "why"\nchecks = ["gradients"]\n[[sweep]]\nk = 3\n'


def test_a_file_of_the_users_own_is_a_preset_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(_SOUND)
    plan = plan_preset(load_preset(str(path)))
    assert plan.name == "mine"
    assert {case.k for case in plan.cases} == {3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("k = 3", "bacth = 3"), "unknown axis in the preset .*: 'bacth': did you mean 'batch'"),
        (("name", "nmae"), "'nmae': did you mean 'name'"),
        (("[[sweep]]", "[sweep]"), "write its axes under \\[\\[sweep\\]\\]"),
        (("k = 3", "k = []"), "the axis 'k' in the preset .* is empty"),
        (
            ('["gradients"]', '"gradients"'),
            "the preset .* cannot be used: checks is 'gradients': expected array, got str",
        ),
        (('analysis = "why"\n', ""), "has no 'analysis'"),
        (("k = 3", "k = "), "is not TOML"),
        (("k = 3", "k = [3, 0]"), r"sweep\[0\].k must be an integer of at least 1 or a ratio in \(0, 1\], not 0"),
        (("k = 3", "in-features = 2.5"), r"sweep\[0\].in-features must be an integer of at least 1, not 2.5"),
        (("checks", "target = nan\nchecks"), "target must be between 0 and 1 .* not nan"),
        (("checks", "budget = true\nchecks"), "budget must be more than 0 seconds, and finite, not True"),
        (("checks", "processes = 2.5\nchecks"), "processes must be an integer from 1 to 10000, not 2.5"),
        (("checks", "processes = inf\nchecks"), "processes must be an integer from 1 to 10000, not inf"),
        (("k = 3", "method = 7"), r"sweep\[0\].method must be a text, not 7"),
    ],
)
def test_a_misspelt_preset_is_one_line_with_a_suggestion(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(_SOUND.replace(*change, 1))
    with pytest.raises(UserError, match=words) as caught:
        plan_preset(load_preset(str(path)))
    assert "\n" not in str(caught.value)


def test_a_preset_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown preset 'target': did you mean 'targets'"):
        load_preset("target")
    with pytest.raises(UserError, match="No such file"):
        load_preset(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_preset(str(tmp_path / "binary.toml"))


def test_a_task_is_timed_with_the_usual_optimizer_and_a_users_model_with_its_own() -> None:
    found = plan_axes({"model": ["mnist", "my_model.py:build"], "method": ["unified"], "k": [0.1]}).cases
    assert [(case.model, case.optimizer) for case in found] == [("mnist", "adam"), ("my_model.py:build", "own")]
    (sgd,) = plan_axes({"model": ["mnist"], "method": ["unified"], "k": [0.1], "optimizer": ["sgd"]}).cases
    assert sgd.optimizer == "sgd"
