import json

import pytest
import torch

from meprop_bench.algorithms.removal import remove
from meprop_bench.errors import UserError
from meprop_bench.measure.worker import WorkerDied
from meprop_bench.models.mlp import MLP
from meprop_bench.models.parser import Parser
from meprop_bench.models.tagger import Tagger
from meprop_bench.paper.claims import judge
from meprop_bench.paper.evidence import lines
from meprop_bench.paper.experiment import PaperArm, experiment
from meprop_bench.paper.published import PublishedSetting, table
from meprop_bench.paper.records import DECODINGS, Decoding, Decodings, TrainedArm, Trainings, sizes_of
from meprop_bench.paper.requests import Decoders, cut_layers, multiplications
from meprop_bench.paper.runner import decode_all, take
from meprop_bench.paper.subjects import Subject
from meprop_bench.results.store import Store

FASTER = Decoding("a", {"hidden": 5}, (100, 10), (((0.2, 0.1), (0.2, 0.1)), ((0.21, 0.1), (0.2, 0.1))), "e1")


def test_a_cut_model_computes_with_fewer_neurons_and_counts_them():
    torch.manual_seed(0)
    model, x = MLP(8, 6, 3), torch.randn(4, 8)
    with torch.no_grad():  # what is cut off says nothing from here on
        model.linear1.weight[:, 4:] = 0
        model.output.weight[:, 2:] = 0
    expected = model(x)
    assert multiplications(model) == 8 * 6 + 6 * 6 + 6 * 3
    cut_layers(model, {"linear0": 4, "linear1": 2})
    assert multiplications(model) == 8 * 4 + 4 * 2 + 2 * 3
    torch.testing.assert_close(model(x), expected)


def test_tagger_and_parser_are_cut():
    tagger = Tagger(10, (3, 3), 5, hidden=6, word_size=4, feature_size=2)
    cut_layers(tagger, {"lstm.l0": 3, "lstm.l0_reverse": 3})
    assert multiplications(tagger) == 2 * 4 * 3 * (8 + 3) + 6 * 5
    assert tagger(torch.zeros(2, 4, 3, dtype=torch.int64)).shape == (2, 4, 5)
    parser = Parser(10, 4, 3, hidden=6, size=2)
    cut_layers(parser, {"hidden": 2})
    assert multiplications(parser) == 96 * 2 + 2 * 7


@pytest.mark.parametrize("sizes", [{"nowhere": 2}, {"linear0": 7}, {"linear0": 0}])
def test_what_cannot_be_cut_is_refused(sizes):
    with pytest.raises(ValueError, match="cannot leave"):
        cut_layers(MLP(8, 6, 3), sizes)


def test_decoding_is_timed_in_pairs():
    setting = PublishedSetting(method="mesimp", k=4, rate=0.1, hidden=16, layers=2, batch=50, optimizer="adam")
    decoders = Decoders(PaperArm("digits", "digits", setting, 1, examples=100), {"linear0": 3, "linear1": 2})
    before, after = map(multiplications, decoders.models)
    assert (before, after) == (64 * 16 + 16 * 16 + 16 * 10, 64 * 3 + 3 * 2 + 2 * 10)
    pairs = decoders.pairs(0.0, 1)
    assert len(pairs) == 2
    assert all(value > 0 for pair in pairs for value in pair)


def test_what_was_cut_amiss_is_not_timed(monkeypatch):
    def amiss(structure, keep):
        remove(structure, {group: kept.flip(0) for group, kept in keep.items()})

    monkeypatch.setattr("meprop_bench.paper.requests.remove", amiss)
    setting = PublishedSetting(method="mesimp", k=4, rate=0.1, hidden=16, layers=2, batch=50, optimizer="adam")
    with pytest.raises(ValueError, match="the cut model's output is off by"):
        Decoders(PaperArm("digits", "digits", setting, 1, examples=100), {"linear0": 3, "linear1": 2})


def test_decodings_survive_the_file_and_a_damaged_one_is_an_error(tmp_path):
    Decodings(tmp_path).add(FASTER)
    found = Decodings(tmp_path)
    assert found.get("a", {"hidden": 5}) == FASTER
    assert found.get("a", {"hidden": 6}) is None  # of other sizes
    assert found.get("b", {"hidden": 5}) is None
    for damaged in ("{", "[1]", '[{"arm_id": "a"}]', json.dumps([{**vars(FASTER), "runs": [[[0.2, -0.1]]]}])):
        (tmp_path / DECODINGS).write_text(damaged)
        with pytest.raises(UserError, match=f"{DECODINGS} is damaged"):
            Decodings(tmp_path)


def test_the_sizes_are_means_over_seeds_and_of_layers_alone():
    found = [
        TrainedArm(arm_id="a", seed=seed, sizes={"size": 9.0, "size x": size}) for seed, size in ((1, 3.0), (2, 4.4))
    ]
    assert sizes_of(found) == {"x": 4}
    assert sizes_of([TrainedArm(arm_id="a", seed=1, sizes={"size": 92.7})]) == {}  # meAct's
    assert sizes_of([]) == {}


class Worker:
    """Answers as a worker does; the one that is told to dies when it is asked to decode."""

    def __init__(self, dies):
        self.dies, self.closed = dies, False

    def request(self, message, timeout):
        if message["do"] == "decode" and self.dies:
            raise WorkerDied("was killed")
        return {
            "hello": {"environment": {"cpu": "x", "git_revision": "abc"}, "environment_id": "e1"},
            "cut": {"multiplications": [100, 10]},
            "decode": {"pairs": [[0.2, 0.1], [0.22, 0.11]]},
        }[message["do"]]

    def close(self):
        self.closed = True


@pytest.fixture
def simplified(monkeypatch, tmp_path):
    """A table's experiment with MNIST's part alone, and what stores a folder with its trainings."""
    monkeypatch.setattr(Subject, "reason_not_trained", lambda self, _: None if self.name == "mnist" else "left out")

    def folder(table_id):
        found = experiment(table(table_id), "smoke", seeds=2)
        store = Store.create(tmp_path, table_id.replace(":", "-"), "cpu", "meprop-bench paper run", found.to_json())
        return found, store, Trainings(store.folder, write=True)

    return folder


def test_what_is_simplified_is_decoded_once_and_taken_over(simplified):
    found, store, trainings = simplified("tkde:10")
    for arm in found.distinct_arms:
        for seed in found.seeds:
            sizes = {"size": 4.0, "size linear0": 4.0} if arm.setting.method == "mesimp" else {}
            trainings.append(TrainedArm(arm_id=arm.arm_id, seed=seed, test=90.0, sizes=sizes, environment_id="e1"))
    workers, said = [], []

    def start(dies=False):
        workers.append(Worker(dies))
        return workers[-1]

    decode_all(found, store, trainings, start=lambda: start(dies=True), tell=said.append)
    assert "was not timed: was killed" in said[0]
    assert not Decodings(store.folder).found
    decode_all(found, store, trainings, start=start, tell=said.append)
    assert "2.00x with 10.0x fewer products" in said[1]
    assert len(workers) == 2 * found.processes
    assert all(worker.closed for worker in workers)
    decode_all(found, store, trainings, start=start, tell=said.append)
    assert len(workers) == 2 * found.processes  # it is done
    other, into, theirs = simplified("tkde:11")
    assert take(other, into, theirs, store) == ((4, 4), (0, 0))
    (taken,) = Decodings(into.folder).found.values()
    assert (taken.origin, taken.git_revision) == (store.folder.name, "abc")
    for each in (store, into):
        each.close()


def test_the_claim_is_judged_by_time_and_the_products_are_told(evidence):
    part, row = "MNIST", "meSimp (k=160, p=0.10)"
    sizes = {f"size {name}": float(size) for name, size in FASTER.sizes.items()}
    found = evidence("tkde:10", {(part, row): [{"test": test, "sizes": sizes} for test in (98.0, 98.1, 98.2)]})
    claim = next(claim for claim in judge(found) if (claim.part, claim.kind) == (part, "decode"))
    assert (claim.verdict, claim.ours, claim.paper) == ("inconclusive", "–", "3.2x by its size")
    arm_id = found.experiment.arms[part, row].arm_id
    found.decodings[arm_id] = FASTER
    claim = next(claim for claim in judge(found) if (claim.part, claim.kind) == (part, "decode"))
    assert claim.verdict == "reproduced"
    assert claim.ours.startswith("2.0")
    assert claim.ours.endswith("10.0x fewer products")
    said = {line.column: line.mean for line in lines(found) if line.row == row}
    assert (said["decode_before_s"], said["decode_after_s"]) == (0.2, 0.1)
    assert (said["products_before"], said["products_after"]) == (100, 10)
