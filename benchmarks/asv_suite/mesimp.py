"""The papers' perceptron simplified by meSimp, in training and as its users run it."""

from asv_suite import _costs


class Decode(_costs._Phase, workload="mesimp"):
    phase = "decode"


class Step(_costs._Main, workload="mesimp"):
    phase = "step"


class Parity(_costs._Parity, workload="mesimp"):
    pass
