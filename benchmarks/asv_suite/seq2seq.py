"""A translator in training, encoder and decoder sparsified alternately."""

from asv_suite import _costs


class Backward(_costs._Phase, workload="seq2seq"):
    phase = "backward"


class Step(_costs._Main, workload="seq2seq"):
    phase = "step"
