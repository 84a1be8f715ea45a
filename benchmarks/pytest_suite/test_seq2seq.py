"""A translator in training, encoder and decoder sparsified alternately."""

WORKLOAD = "seq2seq"
PHASES = ("forward", "backward", "update", "step")


def test_seq2seq(case, phase, time):
    time(case, phase)
