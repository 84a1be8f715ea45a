"""A translator in training, encoder and decoder sparsified by turns."""

WORKLOAD = "seq2seq"
PHASES = ("forward", "backward", "update", "step")


def test_seq2seq(case, phase, time):
    time(case, phase)
