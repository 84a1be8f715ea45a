"""Short training runs: does a method learn as well as dense training from the same seeds, on the same batches?"""


def test_parity(case, results):
    parity = results.parity(case)
    assert parity.verdict != "fail", f"{-parity.difference:.2f} points lost, and {parity.margin} are allowed"
