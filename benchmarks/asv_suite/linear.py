"""One linear layer."""

from asv_suite import _costs


class Forward(_costs._Phase, workload="linear"):
    phase = "forward"


class Backward(_costs._Main, workload="linear"):
    phase = "backward"
