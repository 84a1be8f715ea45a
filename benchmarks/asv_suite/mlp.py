"""The papers' perceptron in training."""

from asv_suite import _costs


class Forward(_costs._Phase, workload="mlp"):
    phase = "forward"


class Backward(_costs._Phase, workload="mlp"):
    phase = "backward"


class Update(_costs._Phase, workload="mlp"):
    phase = "update"


class Step(_costs._Main, workload="mlp"):
    phase = "step"


class Parity(_costs._Parity, workload="mlp"):
    pass
