import json

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.paper.experiment import check_runnable, experiment, experiment_of, reasons
from meprop_bench.paper.published import published, table
from meprop_bench.paper.subjects import SCALES, SUBJECTS, Subject
from meprop_bench.tasks import TASKS, task_options


@pytest.mark.parametrize("table_id", published())
def test_every_scale_of_every_table_is_planned_or_says_why_not(table_id, on_mnist):
    for scale in SCALES:
        found = on_mnist(table_id, scale)
        assert found.runnable or found.skipped
        assert found.estimate_s(2) >= 0
        if scale == "smoke":
            assert found.estimate_s(2) <= 60


def test_short_tables_take_about_eight_minutes_on_two_cores(on_mnist):
    times = {table_id: on_mnist(table_id).estimate_s(2) / 60 for table_id in published()}
    assert times.pop("tkde:9") <= 25
    assert max(times.values()) <= 12, times


def test_what_is_run_follows_from_the_published_rows(on_mnist):
    found = on_mnist("icml:1")
    dense, sparse = (found.arms["MNIST (AdaGrad)", name].setting for name in ("MLP (h=500)", "meProp (k=10)"))
    assert (dense.method, sparse.method, sparse.k, sparse.optimizer) == ("dense", "meprop", 10, "adagrad")
    case = found.cases["MNIST (Adam)", "meProp (k=20)"]
    assert (case.workload, case.k, case.batch, case.out_features) == ("mlp", 20, 10, 500)
    assert found.cases["POS-Tag (Adam)", "meProp (k=5)"].workload == "lstm"
    large = on_mnist("icml:7").cases["Synthetic", "meProp (k=8)"]
    assert (large.in_features, large.out_features, large.batch) == (8192, 8192, 1024)


def test_equal_arms_are_trained_once(on_mnist):
    found = on_mnist("icml:fig4")
    assert len(found.arms) == 12
    assert len(found.distinct_arms) == 8


def test_a_watched_training_serves_where_nobody_watches(on_mnist):
    """The two are equal but for the record (test_arm); not the other way round."""
    watched, plain = (on_mnist(table_id).distinct_arms[0] for table_id in ("tkde:fig4", "tkde:13"))
    assert (watched.watched, plain.watched) == (True, False)
    assert plain.trained_alike == (plain.arm_id, watched.arm_id)
    assert watched.trained_alike == (watched.arm_id,)


def test_what_a_scale_shrinks_is_said(on_mnist):
    changes = " ".join(reasons(on_mnist("tkde:13").changes))
    assert "masks are fixed after 4 epochs in place of 10" in changes
    assert "batches of 50 in place of 10" in " ".join(reasons(on_mnist("icml:5").changes))
    assert "k = 32, 512 alone" in " ".join(reasons(on_mnist("icml:8").changes))


def test_without_data_a_part_is_left_out_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    found = experiment(table("icml:4"), "short")
    assert not found.runnable
    assert any("meprop-bench data fetch mnist" in reason for _, reason in found.skipped)
    with pytest.raises(UserError, match="icml:4 cannot be run here") as error:
        check_runnable(found)
    assert error.value.exit_code == ExitCode.NOTHING_MEASURED


def test_the_smoke_scale_needs_no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    for table_id in ("icml:1", "icml:4", "tkde:2", "tkde:8", "tkde:10"):
        found = experiment(table(table_id), "smoke")
        assert not found.skipped
        assert {arm.data for arm in found.distinct_arms} <= {"digits", "made-up sentences"}


def test_what_is_said_of_a_task_is_so():
    for about in SUBJECTS.values():
        for name in {about.task, about.smoke} & set(TASKS):
            assert about.dropout == ("dropout" in task_options(name))
            assert 0 < about.learned_from < 100


def test_a_smaller_model_keeps_what_is_smaller_still(on_mnist):
    arms = on_mnist("icml:3").arms
    small, sparse = (arms["POS-Tag (Adam)", name].setting for name in ("LSTM (h=5)", "meProp (k=5)"))
    assert (small.hidden, sparse.hidden, sparse.k) == (5, 128, 5)


def test_what_a_paper_leaves_open_is_read_and_said(on_mnist):
    found = on_mnist("icml:3")
    arms = {place: arm.setting.activation for place, arm in found.arms.items()}
    assert arms["MNIST (Adam)", "meProp (k=20)"] == arms["MNIST (Adam)", "MLP (h=20)"] == "sigmoid"
    assert arms["Parsing (Adam)", "meProp (k=20)"] is None
    assert "MNIST (Adam): activation sigmoid, which the paper" in " ".join(reasons(found.changes))
    assert not any(arm.setting.activation for arm in on_mnist("tkde:2").distinct_arms)


def test_adagrad_moves_rows_and_is_held_against_a_fused_step(on_mnist):
    cases = on_mnist("icml:1").cases
    by_rows, dense = (cases[f"MNIST ({name})", f"meProp (k={k})"] for name, k in (("AdaGrad", 10), ("Adam", 20)))
    assert (by_rows.optimizer, by_rows.gradient, by_rows.baseline) == ("adagrad", "rows", "fused")
    assert (dense.optimizer, dense.gradient, dense.baseline) == ("adam", "dense", "same")
    assert "adagrad by rows" in " ".join(reasons(on_mnist("icml:1").changes))


def test_a_run_that_timed_adagrad_by_dense_gradients_keeps_it(on_mnist):
    plan = json.loads(json.dumps(on_mnist("icml:1").to_json()))
    record = next(record for record in plan["cases"] if record.get("optimizer") == "adagrad")
    record |= {"gradient": "dense", "baseline": "same"}
    found = experiment_of(plan)
    case = found.cases["MNIST (AdaGrad)", "meProp (k=10)"]
    assert (case.gradient, case.baseline) == ("dense", "same")
    assert "adagrad by rows" not in " ".join(reasons(found.changes))


def test_seeds_can_be_chosen_and_must_be_some(on_mnist):
    assert on_mnist("icml:3", seeds=7).seeds == tuple(range(1, 8))
    with pytest.raises(UserError, match="--seeds must be at least 1"):
        on_mnist("icml:3", seeds=0)


def test_an_experiment_is_read_back_where_nothing_is_there(on_mnist, monkeypatch):
    for table_id in published():
        wanted = on_mnist(table_id)
        plan = json.loads(json.dumps(wanted.to_json()))
        monkeypatch.setattr(Subject, "reason_not_trained", lambda self, scale: "no data here")
        found = experiment_of(plan)
        monkeypatch.undo()
        monkeypatch.setattr(Subject, "_data_missing", lambda self: None)
        assert (found.arms, found.cases, found.seeds) == (wanted.arms, wanted.cases, wanted.seeds)
        assert (found.skipped, found.counted) == (wanted.skipped, wanted.counted)


def test_a_run_that_timed_other_ks_keeps_them(on_mnist):
    now = on_mnist("icml:8")
    plan = json.loads(json.dumps(now.to_json()))
    place = ("MNIST", "meProp (k=128)")
    assert place not in now.cases
    plan["cases"][0]["k"] = 128
    found = experiment_of(plan)
    assert found.cases[place].k == 128
    assert len(found.cases) == len(now.cases) == 2
    assert "k = 128, 512 alone" in " ".join(reasons(found.changes))
