"""The recurrent layer of the papers' tagger."""

from asv_suite import _costs


class Forward(_costs._Phase, workload="lstm"):
    phase = "forward"


class Backward(_costs._Main, workload="lstm"):
    phase = "backward"
