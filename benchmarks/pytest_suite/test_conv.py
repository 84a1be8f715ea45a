"""The second convolution of the papers' network."""

WORKLOAD = "conv"
PHASES = ("forward", "backward")


def test_conv(case, phase, time):
    time(case, phase)
