"""The papers' perceptron trained by meAct, each example through its own neurons."""

WORKLOAD = "meact"
PHASES = ("forward", "backward", "update", "step")


def test_meact(case, phase, time):
    time(case, phase)
