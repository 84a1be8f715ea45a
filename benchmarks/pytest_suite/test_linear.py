"""One linear layer."""

WORKLOAD = "linear"
PHASES = ("forward", "backward")


def test_linear(case, phase, time):
    time(case, phase)
