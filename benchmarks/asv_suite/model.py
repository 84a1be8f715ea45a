"""Models of your own, or of tasks, in training: with a preset that names some."""

from asv_suite import _costs


class Forward(_costs._Phase, workload="model"):
    phase = "forward"


class Backward(_costs._Phase, workload="model"):
    phase = "backward"


class Update(_costs._Phase, workload="model"):
    phase = "update"


class Step(_costs._Main, workload="model"):
    phase = "step"


class Parity(_costs._Parity, workload="model"):
    pass
