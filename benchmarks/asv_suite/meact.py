"""The papers' perceptron trained by meAct, each example through its own neurons."""

from asv_suite import _costs


class Backward(_costs._Phase, workload="meact"):
    phase = "backward"


class Step(_costs._Main, workload="meact"):
    phase = "step"


class Parity(_costs._Parity, workload="meact"):
    pass
