"""A search, and a curve, in shards come to what one run comes to; a machine that answers at once times and trains."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.environment import hardware
from meprop_bench.measure.paired import Measurement
from meprop_bench.report.document import Document
from meprop_bench.results.merge import Shards
from meprop_bench.results.shards import Shard
from meprop_bench.results.store import Store
from meprop_bench.stats import LEVEL, Interval, mean_interval
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning import run as tuning
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.curve import CurvePart, joined
from meprop_bench.tuning.journal import Journal, Trained
from meprop_bench.tuning.judge import ArmResult
from meprop_bench.tuning.merge import TuningShards
from meprop_bench.tuning.run import TuneRequest
from meprop_bench.tuning.shards import key_of
from meprop_bench.tuning.timing import Costs, Timing
from tests.results.test_merge import ENV, row
from tests.tuning.instant import Instant

KS = "0.0625,0.125,0.25,0.5"
SEARCH = ("--method", "unified", "--steps", "200", "--seeds", "4", "--threads", "2")
CURVE = ("--method", "unified", "--k", "0.25,0.0625", "--budgets", "1s,4s", "--seeds", "5")


class Timed(Instant):
    """Its times lie in rows, as those of real processes do."""

    environment: Mapping[str, Any] = {**ENV, **hardware()}
    environment_id = "e0"
    speed: Callable[[Arm], float] = staticmethod(lambda arm: 1 + 0.1 * math.log2(1 / arm.k))
    dense_s = 0.01
    threads = 2
    baseline: str | None = None

    def __init__(self, recipe: Any, store: Store, budget: Budget, **_: Any) -> None:
        super().__init__(recipe, store, budget)
        self.store = store

    def measure(self, arms: Sequence[Arm], budget: Budget) -> Mapping[Arm, Timing]:
        self.store.write_environment({self.environment_id: type(self).environment})
        return {arm: self._timed(arm) for arm in arms}

    def _timed(self, arm: Arm) -> Timing:
        if (speed := type(self).speed(arm)) <= 0:
            return Timing.without("check failed: dW differs")
        case_id = hashlib.sha256(arm.key.encode()).hexdigest()[:12]
        known = [each for each in self.store.rows() if each.case_id == case_id]
        if not known:
            dense_s = type(self).dense_s
            found = Measurement("step", (((dense_s, dense_s / speed),) * 2,) * 2, 1)
            known = [
                row(
                    case_id, workload="mlp", phase="step", method=arm.method, k=arm.k, threads=self.threads,
                    environment_id=self.environment_id,
                    values_s=[dense_s / speed] * 4, baseline_values_s=[dense_s] * 4, median_s=found.median_s,
                    baseline_median_s=found.baseline_median_s, speedup=found.speedup.estimate,
                    speedup_low=found.speedup.low, speedup_high=found.speedup.high,
                )
            ]  # fmt: skip
            self.store.append(known)
        step = known[0]
        assert step.speedup is not None
        assert step.dense.median_s is not None
        ratio = Interval.of(step.speedup, step.speedup_low, step.speedup_high)
        return Timing(ratio, step.dense.median_s, case_id=case_id, baseline=self.baseline)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[Timed]:
    class Own(Timed):
        pass

    monkeypatch.setattr(tuning, "Processes", Own)
    monkeypatch.setattr("meprop_bench.cli.tune.state_before", lambda *_: None)  # it watches the machine for a second
    monkeypatch.setattr("meprop_bench.cli.tune.unavailable_reason", lambda _: "is not wanted here")  # it takes seconds
    return Own


class Run:
    """Commands under one folder, and what they print as JSON."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys

    def __call__(self, out: str, *words: str) -> dict[str, Any]:
        """Run `tune` as a whole."""
        return self.record(["tune", "--task", "digits", "--out", str(self.root / out), *words])

    def shards(self, out: str, of: int, *words: str) -> list[str]:
        """Run it in shards, and return their folders."""
        for index in range(1, of + 1):
            self(out, *words, "--shard", f"{index}/{of}")
        return sorted(str(folder) for folder in (self.root / out).iterdir())

    def merge(self, folders: Sequence[str], out: str, *words: str) -> dict[str, Any]:
        return self.record(["merge", *folders, "--out", str(self.root / out), *words])

    def record(self, words: Sequence[str]) -> dict[str, Any]:
        self._capsys.readouterr()
        code = run([*words, "--format", "json"])
        said = self._capsys.readouterr()
        assert said.out, said.err
        found: dict[str, Any] = json.loads(said.out)["tune"]
        assert code == found["exit_code"]
        return found

    def refused(self, words: Sequence[str], code: ExitCode = ExitCode.NOT_COMPARABLE) -> str:
        self._capsys.readouterr()
        assert run(words) == code
        said = self._capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines()[-1].startswith("meprop-bench: error: ")
        return said.err


@pytest.fixture
def tune(machine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, capsys)


def taken(found: Mapping[str, Any]) -> Mapping[str, Any]:
    arm: Mapping[str, Any]
    (arm,) = (each for each in found["arms"] if each["arm"] == found["take"])
    return arm


@pytest.mark.parametrize(("ks", "of"), [("0.0625,0.25", 2), (KS, 2), (KS, 4)])
def test_shards_of_a_search_take_what_one_search_takes(tune: Run, ks: str, of: int) -> None:
    one = tune("one", *SEARCH, "--k", ks)
    folders = tune.shards("shards", of, *SEARCH, "--k", ks)
    merged = tune.merge(folders[::-1], "all")
    assert (one["verdict"], one["take"]) == ("take", {"method": "unified", "k": 0.0625})
    for name in ("verdict", "take", "steps", "metric", "margin", "code", "commands", "dense_step_s", "exit_code"):
        assert merged[name] == one[name], name
    ours, theirs = taken(merged), taken(one)
    for name in ("timing", "gain", "steps", "seeds", "dense_steps", "standing"):
        assert ours[name] == theirs[name], name
    for name in ("equal_steps", "equal_time"):
        assert ours[name]["estimate"] == theirs[name]["estimate"]
    assert {each["arm"]["k"] for each in merged["arms"] if "end" not in each["arm"]} == set(map(float, ks.split(",")))


def test_shards_have_the_chance_of_error_of_one_search_among_them(tune: Run, machine: Any) -> None:
    """An arm that is judged first in its shard has half of its shard's share."""
    machine.train = lambda self, jobs, budget: iter(
        [(job, Trained(90 + (job.arm is not None) * 0.1 * math.sin(job.seed * 5), 0.01, 0.01)) for job in jobs]
    )
    for of in (1, 2):
        merged = tune.merge(tune.shards(f"shards{of}", of, *SEARCH, "--k", "0.0625,0.25"), f"all{of}")
        differences = [0.1 * math.sin(seed * 5) for seed in (4, 5, 6, 7)]
        wanted = mean_interval(differences, 1 - LEVEL / of / 2)
        assert taken(merged)["equal_steps"]["low"] == pytest.approx(wanted.low)
        assert taken(merged)["equal_steps"]["high"] == pytest.approx(wanted.high)


def test_a_single_shard_is_the_search(tune: Run) -> None:
    one = tune("one", "--budget", "1h", "--method", "unified", "--k", KS)
    (folder,) = tune.shards("shards", 1, "--budget", "1h", "--method", "unified", "--k", KS)
    assert tune.merge([folder], "all") == one
    (whole,) = (tune.root / "one").iterdir()
    assert (tune.root / "all" / "README.md").read_bytes() == (whole / "README.md").read_bytes()


@pytest.mark.parametrize("of", [2, 4, 5])
def test_shards_of_a_curve_are_the_curve(tune: Run, machine: Any, of: int) -> None:
    machine.quality = staticmethod(lambda arm, steps: 90 + math.log2(steps) - (0 if arm is None else 0.02 / arm.k))
    one = tune("one", *CURVE)
    merged = tune.merge(tune.shards("shards", of, *CURVE), "all")
    assert merged == one
    assert len(one["points"]) == 6
    assert all(len(point["figures"]) == 5 for point in one["points"])
    (whole,) = (tune.root / "one").iterdir()
    assert (tune.root / "all" / "README.md").read_bytes() == (whole / "README.md").read_bytes()
    assert Store.open(tune.root / "all").rows() == Store.open(whole).rows()
    assert Document.load(tune.root / "all").outcome == Document.load(whole).outcome


def test_a_curve_of_machines_with_different_dense_sides_says_so(tune: Run, machine: Any) -> None:
    folders = []
    for index, side in enumerate(("eager", "compiled"), 1):
        machine.baseline = side
        tune("shards", *CURVE, "--shard", f"{index}/2")
        folders = sorted(str(each) for each in (tune.root / "shards").iterdir())
    said = "The machines had different dense sides (compiled; eager): their steps differ by that."
    assert said in tune.merge(folders, "all")["sentence"]
    machine.baseline = "eager"
    assert said[:40] not in tune.merge(tune.shards("alike", 2, *CURVE), "same")["sentence"]


def test_a_shard_that_trained_nothing_has_no_say_in_the_margin(tune: Run, machine: Any) -> None:
    """Half a percent of dense's own figure, which such a shard does not know."""
    examine = machine.examine
    machine.examine = lambda self: {**examine(self), "percent": False}
    machine.speed = staticmethod(lambda arm: 1.5 if arm.k == 0.0625 else 0.9)
    merged = tune.merge(tune.shards("shards", 2, *SEARCH, "--k", "0.0625,0.25"), "all")
    assert merged["margin"] == pytest.approx(0.005 * 90, rel=0.2)


def test_a_curve_of_arms_that_gain_nothing(tune: Run, machine: Any) -> None:
    machine.speed = staticmethod(lambda arm: 0.9)
    one = tune("one", *CURVE)
    assert one["sentence"].startswith("Stay dense: no arm's training gains anything")
    assert tune.merge(tune.shards("shards", 2, *CURVE), "all") == one


def test_parity_over_budgets_is_split_alike(tune: Run) -> None:
    words = ["parity", "--task", "digits", "--method", "unified", "--k", "0.25", "--budgets", "1s,4s"]
    one = tune.record([*words, "--out", str(tune.root / "one")])
    for index in (1, 2):
        tune.record([*words, "--out", str(tune.root / "shards"), "--shard", f"{index}/2"])
    assert tune.merge([str(each) for each in (tune.root / "shards").iterdir()], "all") == one


def test_a_shard_has_no_verdict(tune: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = tune("out", *SEARCH, "--k", KS, "--shard", "2/4")
    said = "Shard 2/4, 1 of 4 arms: `merge` judges all of them."
    assert (found["verdict"], found["take"], found["code"], found["exit_code"]) == ("part", None, None, 0)
    assert found["sentence"] == said
    assert len({each["arm"]["k"] for each in found["arms"]}) == 1
    (folder,) = (tune.root / "out").iterdir()
    assert folder.name.endswith("_tune-digits-shard-2-of-4")
    assert Document.load(folder).outcome == said
    found = tune("out", *CURVE, "--shard", "1/5")
    assert found["sentence"] == "Shard 1/5, 1 of 5 seeds: `merge` judges all of them."
    assert {point["standing"] for point in found["points"]} == {None, "open"}
    assert found["exit_code"] == 0


def test_a_shard_goes_on_in_its_own_folder_alone(tune: Run, machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "--task", "digits", "--out", str(tune.root / "out"), *SEARCH, "--k", KS]
    machine.stop_after = 3
    assert run([*words, "--shard", "1/2"]) == ExitCode.INTERRUPTED
    (first,) = (tune.root / "out").iterdir()
    before = (first / "trainings.jsonl").read_text()
    machine.stop_after = math.inf
    assert run([*words, "--shard", "2/2", "--resume"]) == ExitCode.OK
    assert run([*words, "--resume"]) == ExitCode.OK
    assert len(list((tune.root / "out").iterdir())) == 3
    assert (first / "trainings.jsonl").read_text() == before
    folders = [str(each) for each in (tune.root / "out").glob("*-shard-*")]
    said = tune.refused(["merge", *folders, "--out", str(tune.root / "all")])
    assert "shard 1/2 has not measured 2 of its 2 arms: measure them (--resume goes on)" in said
    assert run([*words, "--shard", "1/2", "--resume"]) == ExitCode.OK
    assert (first / "trainings.jsonl").read_text().startswith(before)
    assert tune.merge(folders, "all")["verdict"] == "take"


def test_what_is_missing_is_named_and_left_open(tune: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folders = tune.shards("shards", 4, *SEARCH, "--k", KS)
    own = {Arm.from_json(json.loads(key)).k: index for index in range(1, 5)
           for key in Shard(index, 4).part(key_of(Arm("unified", k)) for k in (0.0625, 0.125, 0.25, 0.5))}  # fmt: skip
    folders.pop(own[0.0625] - 1)
    said = tune.refused(["merge", *folders, "--out", str(tune.root / "all")])
    assert f"shard {own[0.0625]}/4 is missing, with 1 of 4 arms" in said
    assert not (tune.root / "all").exists()
    merged = tune.merge(folders, "all", "--partial")
    assert merged["take"]["k"] == 0.125
    assert merged["sentence"].endswith(" 1 of 4 arms is not among these: the shard is missing, or not at its end.")
    curve = tune.shards("curve", 2, *CURVE)
    said = tune.refused(["merge", curve[0], "--out", str(tune.root / "half")])
    assert "shard 2/2 is missing, with 2 of 5 seeds" in said


def test_dense_is_not_said_to_be_best_without_the_arms_of_all_shards(tune: Run, machine: Any) -> None:
    machine.quality = staticmethod(lambda arm, steps: 90.0 if arm is None else 80.0)
    folders = tune.shards("shards", 2, *SEARCH, "--k", "0.0625,0.25")
    assert tune.merge(folders, "all")["verdict"] == "dense"
    half = tune.merge(folders[:1], "half", "--partial")
    assert half["verdict"] == "undecided"
    assert half["sentence"].startswith(
        "Undecided: 1 of 2 arms is of a shard that is missing, or not at the end. Of the others: Stay dense"
    )


@pytest.mark.parametrize(
    ("words", "then"),
    [
        (SEARCH, " More --seeds may decide, in all shards anew."),
        (SEARCH[:4], "/2, with --resume, may decide; then merge again."),
    ],
)
def test_an_undecided_search_says_what_may_decide(tune: Run, machine: Any, words: tuple[str, ...], then: str) -> None:
    machine.train = lambda self, jobs, budget: iter(
        [(job, Trained(90 + (job.arm is not None) * 9 * math.sin(job.seed * 5), 0.01, 0.01)) for job in jobs]
    )
    merged = tune.merge(tune.shards("shards", 2, *words, "--k", "0.0625,0.25"), "all")
    assert merged["verdict"] == "undecided"
    assert merged["sentence"].endswith(then)


def test_a_shard_whose_arms_all_fail_is_no_missing_one(tune: Run, machine: Any) -> None:
    machine.speed = staticmethod(lambda arm: -1.0 if arm.k == 0.25 else 1.5)
    words = ["tune", "--task", "digits", "--out", str(tune.root / "out"), *SEARCH, "--k", "0.0625,0.25"]
    codes = {run([*words, "--shard", f"{index}/2"]) for index in (1, 2)}
    assert codes == {ExitCode.OK, ExitCode.NOTHING_MEASURED}
    folders = [str(each) for each in (tune.root / "out").iterdir()]
    merged = tune.merge(folders, "all")
    assert merged["take"]["k"] == 0.0625
    assert {each["standing"] for each in merged["arms"]} == {"pass", "failed"}
    machine.speed = staticmethod(lambda arm: -1.0)
    words[words.index(str(tune.root / "out"))] = str(tune.root / "none")
    for index in (1, 2):
        assert run([*words, "--shard", f"{index}/2"]) == ExitCode.NOTHING_MEASURED
    folders = [str(each) for each in (tune.root / "none").iterdir()]
    said = tune.refused(["merge", *folders, "--out", str(tune.root / "nothing")], ExitCode.NOTHING_MEASURED)
    assert "no arm could be timed: check failed: dW differs" in said
    assert not (tune.root / "nothing").exists()


def test_seeds_are_trained_as_long_as_their_own_machine_s_clock_says() -> None:
    """Each pair is of one clock; the difference between clocks is in the spread of the seeds."""
    arm, parts = Arm("unified", 0.25), []
    for seed, dense_s, speed in ((1, 0.010, 2.0), (2, 0.011, 2.1), (3, 0.010, 1.01)):
        journal, timing = Journal(), Timing(Interval(speed, speed, speed), dense_s)
        part = CurvePart.of(journal, Costs(0.0, 0.0, 100, 1000), {arm: timing}, [1.0], [seed])
        for job in part.jobs:
            journal.add(job, Trained(job.steps / 100 + (job.arm is not None), 1.0, 1.0))
        parts.append(part)
    dense, sparse = joined(parts[::-1], metric="accuracy").points
    assert (dense.figures, sparse.figures) == ((1.0, 0.9), (3.0, 2.9))
    assert parts[1].steps == {(1.0, None): 90, (1.0, arm): 190}
    assert sparse.difference is not None
    assert sparse.difference.estimate == pytest.approx(2.0)
    assert (dense.steps, dense.clocks, sparse.clocks) == (100, (90, 100), (190, 200))
    # The third machine saw no gain: its seed is not among the pairs.
    assert not parts[2].jobs


def test_clocks_that_differ_are_shown(tune: Run, machine: Any) -> None:
    for index, dense_s in ((1, 0.010), (2, 0.0125)):
        machine.dense_s = dense_s
        tune("out", *CURVE, "--shard", f"{index}/2")
    folders = [str(each) for each in (tune.root / "out").iterdir()]
    merged = tune.merge(folders, "all")
    assert [point["steps_by_clock"] for point in merged["points"] if point["arm"] is None] == [[80, 100], [320, 400]]
    assert "320 to 400" in (tune.root / "all" / "README.md").read_text()


def damaged(folder: str, name: str, change: Callable[[Any], Any]) -> None:
    path = Path(folder) / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.fixture
def folders(tune: Run) -> list[str]:
    return tune.shards("shards", 2, *SEARCH, "--k", "0.0625,0.25")


def test_shards_that_contradict_each_other_are_refused(tune: Run, folders: list[str]) -> None:
    words = ["merge", *folders, "--out", str(tune.root / "all")]

    def other_margin(header: Any) -> Any:
        header["shard"]["plan"]["margin"] = 1.0
        return header

    kept = (Path(folders[1]) / "environment.json").read_text()
    damaged(folders[1], "environment.json", other_margin)
    assert "are of different runs: margin is not said and 1.0" in tune.refused(words)
    (Path(folders[1]) / "environment.json").write_text(kept)
    assert "is named twice" in tune.refused(["merge", folders[0], *words[1:]], ExitCode.USAGE)

    state = (Path(folders[1]) / "tune.json").read_text()

    def other_metric(state: Any) -> Any:
        state["found"]["task"]["metric"] = "BLEU"
        return state

    damaged(folders[1], "tune.json", other_metric)
    assert "differ in the metric or the data: run the same thing on all machines" in tune.refused(words)

    def other_time(state: Any) -> Any:
        state["found"]["shard"]["findings"][0]["timing"]["speedup"] *= 2
        return state

    (Path(folders[1]) / "tune.json").write_text(state)
    damaged(folders[1], "tune.json", other_time)
    assert "has another time of case" in tune.refused(words)

    def anothers(state: Any) -> Any:
        state["found"]["shard"] = json.loads((Path(folders[0]) / "tune.json").read_text())["found"]["shard"]
        return state

    (Path(folders[1]) / "tune.json").write_text(state)
    damaged(folders[1], "tune.json", anothers)
    assert "holds what is not its own (unified, k = " in tune.refused(words)

    def no_standing(state: Any) -> Any:
        state["found"]["shard"]["findings"][0]["standing"] = "best"
        return state

    (Path(folders[1]) / "tune.json").write_text(state)
    damaged(folders[1], "tune.json", no_standing)
    assert "tune.json: there is no standing 'best'; run the shard again" in tune.refused(words, ExitCode.USAGE)


def test_trainings_that_are_another_s_or_gone_are_refused(tune: Run, folders: list[str]) -> None:
    words = ["merge", *folders, "--out", str(tune.root / "all")]
    path = Path(folders[0]) / "trainings.jsonl"
    text = path.read_text()
    stray = {"seed": 1, "steps": 5, "figure": 1.0, "seconds": 1.0, "steps_s": 1.0}
    path.write_text(f"{text}{json.dumps(stray | {'arm': {'method': 'unified', 'k': 0.375}})}\n")
    assert "holds what is not its own (unified, k = 0.375, 5 steps, seed 1)" in tune.refused(words)
    path.write_text("".join(line for line in text.splitlines(keepends=True) if '"seed": 7' not in line))
    assert "by trainings that are not there: the folder was changed" in tune.refused(words)
    path.write_text(text)
    assert tune.merge(folders, "all")["verdict"] == "take"


def test_the_figures_are_those_of_the_trainings(tune: Run, folders: list[str]) -> None:
    """What decides is judged once more when shards are put together: a standing alone is not believed."""

    def worse(line: str) -> str:
        record = json.loads(line)
        return json.dumps(record | {"figure": record["figure"] - 5} if "arm" in record else record) + "\n"

    for folder in folders:
        path = Path(folder) / "trainings.jsonl"
        path.write_text("".join(map(worse, path.read_text().splitlines())))
    assert tune.merge(folders, "all")["verdict"] != "take"


def test_machines_of_different_kinds_have_no_common_answer(tune: Run, machine: Any) -> None:
    words = [*SEARCH, "--k", "0.0625,0.25"]
    tune("out", *words, "--shard", "1/2")
    machine.environment_id, machine.environment = "e1", {**ENV, "cpu_model": "Other"}
    tune("out", *words, "--shard", "2/2")
    merge = ["merge", *map(str, (tune.root / "out").iterdir()), "--out", str(tune.root / "all")]
    for more in ([], ["--mixed-environments"]):
        said = tune.refused([*merge, *more])
        assert "different environments (cpu_model is " in said
        assert "measure all on machines of one kind: a search has one answer, for machines of one kind" in said


def test_steps_on_other_threads_are_refused(tune: Run, machine: Any) -> None:
    words = [*SEARCH, "--k", "0.0625,0.25"]
    tune("out", *words, "--shard", "1/2")
    machine.threads = 1
    tune("out", *words, "--shard", "2/2")
    said = tune.refused(["merge", *map(str, (tune.root / "out").iterdir()), "--out", str(tune.root / "all")])
    assert "differ in the threads of a timed step (say --threads)" in said


def test_another_dense_side_in_another_shard_is_said(tune: Run, machine: Any) -> None:
    words = [*SEARCH, "--k", "0.0625,0.25"]
    for index, side in ((1, "compiled, fused optimizer"), (2, "eager, fused optimizer")):
        machine.baseline = side
        tune("out", *words, "--shard", f"{index}/2")
    merged = tune.merge([str(each) for each in (tune.root / "out").iterdir()], "all")
    own = taken(merged)["timing"]["baseline"]
    (other,) = {"compiled, fused optimizer", "eager, fused optimizer"} - {own}
    assert merged["sentence"].endswith(
        f" Other shards had another dense side ({other}): their gains and this one's do not compare."
    )


def test_what_was_merged_is_a_search_s_folder(
    tune: Run, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tune.root / "reports" / "2026-01-02_box_all"
    out.parent.mkdir()
    assert run(["merge", *folders, "--out", str(out)]) == ExitCode.OK
    printed = capsys.readouterr().out
    assert "Take unified, k = 0.0625" in printed
    assert "Measured again by" in printed
    document = Document.load(out)
    assert document.outcome.startswith("Take unified, k = 0.0625")
    assert document.notes == ()
    assert (out / "README.md").read_text().startswith("Take unified, k = 0.0625")
    trained = [json.loads(line) for line in (out / "trainings.jsonl").read_text().splitlines()]
    assert {each["shard"] for each in trained} == {"1/2", "2/2"}
    assert len(trained) == sum(len((Path(each) / "trainings.jsonl").read_text().splitlines()) for each in folders)
    assert run(["report", str(out)]) == ExitCode.OK
    assert "Take unified, k = 0.0625" in capsys.readouterr().out
    assert run(["report", "--index", str(out.parent)]) == ExitCode.OK
    capsys.readouterr()
    assert "Take unified, k = 0.0625" in (out.parent / "README.md").read_text()
    assert run(["merge", *folders, "--out", str(tune.root / "csv"), "--format", "csv"]) == ExitCode.OK
    assert len(capsys.readouterr().out.splitlines()) > 1
    said = tune.refused(["merge", str(out), "--out", str(tune.root / "twice")], ExitCode.USAGE)
    assert "is no shard" in said


def test_what_was_merged_is_not_gone_on_with(tune: Run, folders: list[str], tmp_path: Path) -> None:
    assert run(["merge", *folders, "--out", str(tmp_path / "all")]) == ExitCode.OK
    with Store.open(tmp_path / "all", write=True) as store, pytest.raises(UserError, match="was merged from shards"):
        TuneRequest(Recipe("digits", schedule="cosine")).run(store, 600.0)


def test_the_real_clock_is_no_shard_s(tune: Run) -> None:
    words = ["tune", "--task", "digits", "--real-clock", "--shard", "1/2", "--out", str(tune.root / "out")]
    assert "--real-clock runs what is taken, which no shard knows" in tune.refused(words, ExitCode.USAGE)


def test_the_split_is_by_method_and_k_whatever_goes_with_them() -> None:
    request = TuneRequest(Recipe("digits"))
    parts = [request.sharded(Shard(index, 5)).part for index in range(1, 6)]
    own = [part.own for part in parts if part is not None]
    keys = {key_of(arm) for arm in request.arms(rows=True)}
    assert frozenset().union(*own) == keys
    assert sum(map(len, own)) == len(keys) == 12
    assert key_of(Arm("unified", 0.25, "rows", left=("x",), ks=(("y", 0.5),))) == key_of(Arm("unified", 0.25))


def test_findings_are_what_they_were_when_they_are_read_again() -> None:
    gain, seen = Interval(1.5, 1.4, 1.6), Interval(0.1, -0.2, 0.4)
    full = ArmResult(Arm("unified", 0.25, "rows"), "pass", "passes", Timing(gain, 0.01, case_id="a"), gain, 100, 5,
                     seen, 67, seen)  # fmt: skip
    for finding in (full, ArmResult(Arm("meprop", 8), "left out", "its step is not timed")):
        assert ArmResult.from_json(json.loads(json.dumps(finding.to_json()))) == finding


def test_shards_are_read_and_not_written(tune: Run, folders: list[str]) -> None:
    path = Path(folders[0]) / "trainings.jsonl"
    path.write_bytes(path.read_bytes() + b'{"seed": 1, "st')  # a kill cut it off
    before = {each: each.read_bytes() for folder in folders for each in Path(folder).iterdir()}
    shards = TuningShards(Shards.of([Store.open(Path(folder)) for folder in folders]))
    assert shards.done == {key_of(Arm("unified", k)) for k in (0.0625, 0.25)}
    assert {each: each.read_bytes() for folder in folders for each in Path(folder).iterdir()} == before


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"margin": 0.25, "methods": ("meprop",), "ks": (4, 0.5, 1.0), "gradients": ("rows",), "kernel": "gather"},
        {"leave": ("a", "b.*"), "k_by_layer": "x=0.5;y=3", "steps": 10, "seeds": 3, "threads": 2},
        {"budgets": (1.0, 60.0)},
    ],
)
def test_a_plan_asks_for_what_was_asked(asked: dict[str, Any]) -> None:
    request = TuneRequest(Recipe("digits", {"hidden": 16}, schedule="cosine"), **asked)
    again = TuneRequest.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    assert again.arms(rows=True) == request.arms(rows=True)
