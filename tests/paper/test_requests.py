import json

import torch

from meprop_bench.measure.environment import collect
from meprop_bench.paper.experiment import PaperArm
from meprop_bench.paper.published import PublishedSetting
from meprop_bench.paper.records import TrainedArm
from meprop_bench.sweep.worker import WorkerSession


def test_a_training_says_where_and_by_which_code_it_was_made():
    session = WorkerSession()
    hello = session.handle({"do": "hello", "threads": torch.get_num_threads(), "device": "cpu", "kernels": False})
    setting = PublishedSetting(method="dense", hidden=8, layers=1, batch=50, optimizer="adam")
    arm = PaperArm("digits", "digits", setting, 1, examples=100)
    answer = session.handle({"do": "train_arm", "arm": arm.to_json(), "seed": 1, "device": "cpu"})
    trained = TrainedArm.from_json(answer)
    assert (trained.environment_id, trained.git_revision) == (
        hello["environment_id"],
        hello["environment"].get("git_revision"),
    )
    assert trained.git_revision == collect("cpu", "default").get("git_revision")
    assert trained.test is not None


def test_a_training_and_a_count_say_that_the_data_are_not_the_published_ones(other_mnist):
    session = WorkerSession()
    setting = PublishedSetting(method="dense", hidden=8, layers=1, batch=50, optimizer="adam")
    arm = PaperArm("mnist", "mnist", setting, 1, examples=20)
    answer = session.handle({"do": "train_arm", "arm": arm.to_json(), "seed": 1, "device": "cpu"})
    assert TrainedArm.from_json(json.loads(json.dumps(answer))).data_published is False
    counts = session.handle({"do": "examples", "source": "mnist"})
    assert (counts["train_size"], counts["published"]) == (20, 0)
    assert session.handle({"do": "examples", "source": "digits"})["published"] == 1
