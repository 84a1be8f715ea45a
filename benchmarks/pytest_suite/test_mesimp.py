"""The papers' perceptron simplified by meSimp, in training and as its users run it."""

WORKLOAD = "mesimp"
PHASES = ("forward", "backward", "update", "step", "decode")


def test_mesimp(case, phase, time):
    time(case, phase)
