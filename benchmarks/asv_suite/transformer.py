"""A small GPT in training."""

from asv_suite import _costs


class Forward(_costs._Phase, workload="transformer"):
    phase = "forward"


class Backward(_costs._Phase, workload="transformer"):
    phase = "backward"


class Update(_costs._Phase, workload="transformer"):
    phase = "update"


class Step(_costs._Main, workload="transformer"):
    phase = "step"


class Parity(_costs._Parity, workload="transformer"):
    pass
