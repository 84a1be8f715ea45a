"""A small GPT in training."""

WORKLOAD = "transformer"
PHASES = ("forward", "backward", "update", "step")


def test_transformer(case, phase, time):
    time(case, phase)
