"""Models of your own, or of tasks, in training: with a preset that names some."""

WORKLOAD = "model"
PHASES = ("forward", "backward", "update", "step")


def test_model(case, phase, time):
    time(case, phase)
