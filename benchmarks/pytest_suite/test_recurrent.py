"""The recurrent layer of the papers' tagger."""

WORKLOAD = "lstm"
PHASES = ("forward", "backward")


def test_recurrent(case, phase, time):
    time(case, phase)
