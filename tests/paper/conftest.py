import pytest

from meprop_bench.paper.evidence import TableEvidence
from meprop_bench.paper.experiment import experiment as plan
from meprop_bench.paper.published import table
from meprop_bench.paper.records import ArmEvaluation, TrainedArm


def trained(arm_id, seed, test, *, best_epoch=5, epochs=10, **more):
    evaluations = tuple(ArmEvaluation(float(epoch), 0.1, test - 0.2) for epoch in range(1, epochs + 1))
    figures = {"best_dev": test - 0.1, "test": test, "final_dev": test - 0.2, "seconds": 1.0}
    evaluations = more.pop("evaluations", evaluations)
    return TrainedArm(
        arm_id=arm_id, seed=seed, evaluations=evaluations, best_epoch=float(best_epoch), **{**figures, **more}
    )


@pytest.fixture(autouse=True)
def _no_data(monkeypatch, tmp_path_factory):
    # What is planned must not depend on which data the machine has.
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path_factory.mktemp("no-data")))


@pytest.fixture
def on_mnist(monkeypatch, tmp_path):
    """The experiment of a table at the short scale, as if MNIST were here: its arms name it and no data are read."""
    from meprop_bench.paper.subjects import Subject

    monkeypatch.setattr(Subject, "_data_missing", lambda self: None)
    return lambda table_id, scale="short", **options: plan(table(table_id), scale, **options)


@pytest.fixture
def evidence(on_mnist):
    """Evidence made of test figures: (part, row) -> one for each seed, or keywords of `trained` for each."""

    def made(table_id, figures, timed=None, **options):
        run = on_mnist(table_id, **options)
        arms = {place: arm for place, arm in run.arms.items() if place in figures}
        found = {}
        for place, arm in arms.items():
            each = [one if isinstance(one, dict) else {"test": one} for one in figures[place]]
            found[arm.arm_id] = [trained(arm.arm_id, seed, **one) for seed, one in enumerate(each, 1)]
        rows = {(run.cases[place].case_id, row.phase): row for place, row in (timed or {}).items()}
        return TableEvidence(run, found, timed=rows)

    return made
