"""The papers' perceptron in training."""

WORKLOAD = "mlp"
PHASES = ("forward", "backward", "update", "step", "linear-backward")


def test_mlp(case, phase, time):
    time(case, phase)
