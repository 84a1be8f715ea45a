import json
import threading

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure.worker import WorkerDied, WorkerLost
from meprop_bench.paper.experiment import experiment
from meprop_bench.paper.folder import as_overview, best_results, read
from meprop_bench.paper.published import table
from meprop_bench.paper.records import ArmEvaluation, TrainedArm, Trainings
from meprop_bench.paper.runner import missing, slug, train_all
from meprop_bench.paper.subjects import Subject
from meprop_bench.report.formats import write_report
from meprop_bench.results.store import Store
from meprop_bench.sweep.deadline import Deadline


class Worker:
    """Answers as a worker does; `faults` are (seed, method) whose training ends it or fails."""

    def __init__(self, asked, faults):
        self.asked, self.faults = asked, faults

    def request(self, message, timeout):
        if message["do"] == "hello":
            return {"environment": {"cpu": "x"}, "environment_id": "e1"}
        arm, seed = message["arm"], message["seed"]
        self.asked.append((arm["setting"]["method"], seed))
        if fault := self.faults.pop((arm["setting"]["method"], seed), None):
            raise fault
        from meprop_bench.paper.experiment import PaperArm

        test = 90.0 + seed / 10 + (arm["setting"]["method"] != "dense")
        wanted = PaperArm.from_json(arm)
        course = tuple(ArmEvaluation(float(epoch), 0.1, 91.0 - epoch) for epoch in range(1, wanted.epochs + 1))
        figures = {"evaluations": course, "best_epoch": 1.0, "best_dev": 90.0, "test": test}
        return TrainedArm(arm_id=wanted.arm_id, seed=seed, **figures).to_json()

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    # MNIST's part alone, so that there are two arms.
    absent = "the data are not here"
    monkeypatch.setattr(Subject, "reason_not_trained", lambda self, scale: None if self.name == "mnist" else absent)
    found = experiment(table("icml:3"), "smoke", seeds=3)

    def go(faults=None, processes=2, resume=False, deadline=None):
        asked: list[tuple[str, int]] = []
        plan = found.to_json()
        store = (
            Store.find_resumable(tmp_path, slug(found), "cpu", plan)
            if resume
            else Store.create(tmp_path, slug(found), "cpu", "meprop-bench paper run icml:3", plan)
        )
        steps = []
        with store:
            trainings = Trainings(store.folder, write=True)
            try:
                late = train_all(
                    found,
                    store,
                    trainings,
                    processes=processes,
                    progress=steps.append,
                    start=lambda: Worker(asked, faults if faults is not None else {}),
                    deadline=deadline,
                )
                assert late == (len(missing(found, trainings)) if deadline else 0)
            finally:
                left = missing(found, trainings)
        return asked, left, steps, store.folder

    return go


def test_every_arm_is_trained_from_every_seed_and_saved(run):
    asked, left, steps, folder = run()
    assert sorted(asked) == [(method, seed) for method in ("dense", "meprop") for seed in (1, 2, 3)]
    assert not left
    assert [step.done for step in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1].left_s == 0
    assert len(Trainings(folder).all()) == 6


def test_a_worker_that_dies_costs_its_training_alone_which_is_tried_again(run):
    _, left, steps, _ = run({("meprop", 2): WorkerDied("was killed")}, processes=1)
    assert [(arm.setting.method, seed) for arm, seed in left] == [("meprop", 2)]
    assert [step.trained.error for step in steps if step.trained.error] == ["its process was killed"]
    asked, left, steps, _ = run(resume=True)
    assert asked == [("meprop", 2)]
    assert not left
    assert steps[-1].done == 6


def test_what_another_machine_trained_has_its_environment(run, monkeypatch):
    request = Worker.request

    def elsewhere(self, message, timeout):
        where = {} if message["do"] == "hello" else {"environment": {"cpu": "y"}, "environment_id": "e2"}
        return {**request(self, message, timeout), **where}

    monkeypatch.setattr(Worker, "request", elsewhere)
    *_, folder = run()
    assert {one.environment_id for one in Trainings(folder).all()} == {"e2"}
    assert Store.open(folder).header["environments"] == {"e1": {"cpu": "x"}, "e2": {"cpu": "y"}}


def test_without_a_machine_that_trains_it_ends_in_one_line_and_a_resumed_run_goes_on(run):
    faults = {("meprop", seed): WorkerLost("gone") for seed in (1, 2)}
    with pytest.raises(UserError, match=r"the machines that train are gone after [0-5] of 6 trainings; .*--resume"):
        run(faults, processes=1)
    _, left, _, _ = run(resume=True)
    assert not left


def test_no_training_is_begun_after_the_deadline_and_a_resumed_run_goes_on(run):
    now = [0.0]
    deadline = Deadline(10.0, lambda: now[0])
    deadline.took = lambda _: now.__setitem__(0, now[0] + 6.0)
    asked, left, steps, _ = run(processes=1, deadline=deadline)
    assert asked == [("dense", 1), ("meprop", 1)]
    assert len(left) == 4
    assert [step.done for step in steps] == [1, 2]
    asked, left, _, _ = run(processes=1, resume=True)
    assert len(asked) == 4
    assert not left


def test_what_breaks_the_run_passes_through_and_keeps_what_is_done(run):
    with pytest.raises(KeyboardInterrupt):
        run({("meprop", 2): KeyboardInterrupt()}, processes=1)
    asked, left, _, _ = run(resume=True)
    assert ("dense", 1) not in asked
    assert not left
    assert threading.active_count() < 20


def test_the_page_and_that_of_claims_show_the_paper_beside_ours(run, tmp_path):
    *_, folder = run()
    with Store.open(folder) as store:
        document = read(store)
        names = {path.name for path in write_report(folder, document)}
    assert {"README.md", "index.html"} <= names
    page = (folder / "README.md").read_text()
    assert "91.20 ± 0.10%" in page
    assert "inconclusive" in page
    assert "meprop-bench paper report" in page
    assert "POS-Tag (Adam), Parsing (Adam): the data are not here" in page
    assert best_results(tmp_path)["icml:3"][1].title == document.title
    page = as_overview(tmp_path)
    assert f"| icml:3 | [smoke]({folder.name}/README.md) |" in page
    assert "| icml:4 | not run | |" in page
    assert "better than MLP (h=20)" in page
    assert "+1.00 \\[+1.00, +1.00\\] points | reproduced" in page


def test_what_claims_nothing_is_counted_wherever_claims_are(run, tmp_path):
    """One training failed, one was cut off while it ran, one while it was written."""
    *_, folder = run({("meprop", 2): WorkerDied("was killed")}, processes=1)
    path = folder / "trainings.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    record = json.loads(lines[0])
    lines[0] = json.dumps({**record, "evaluations": record["evaluations"][:-1]}) + "\n"
    path.write_text("".join(lines)[:-20])
    words = "of 6 trainings 1 failed, 1 cut off, 1 not run: these claim nothing"
    with Store.open(folder) as store:
        document = read(store)
    write_report(folder, document)
    assert words in (folder / "README.md").read_text()
    assert words in as_overview(tmp_path)
    assert {claim.verdict for claim in document.claims} == {"inconclusive"}
    assert any("1 failed" in claim.why for claim in document.claims)


def test_a_result_within_a_report_of_several_runs_counts_and_is_linked_where_it_is(run, tmp_path):
    *_, folder = run()
    root = tmp_path / "reports"
    (root / "2026-03-04_nvidia-h200_gpu").mkdir(parents=True)
    moved = folder.rename(root / "2026-03-04_nvidia-h200_gpu" / folder.name)
    assert list(best_results(root)) == ["icml:3"]
    page = as_overview(root)
    place = moved.relative_to(root).as_posix()
    assert f"| icml:3 | [smoke]({place}/README.md) |" in page
    assert f"([page]({place}/README.md))" in page
