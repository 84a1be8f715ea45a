"""The second convolution of the papers' network."""

from asv_suite import _costs


class Forward(_costs._Phase, workload="conv"):
    phase = "forward"


class Backward(_costs._Main, workload="conv"):
    phase = "backward"
