"""Short training runs: does a method learn as well as dense training from the same seeds, on the same batches?"""


def test_parity(case, results):
    parity = results.parity(case)
    assert parity.verdict != "fail", f"{parity.metric}: {-parity.difference:.3g} lost, {parity.margin:.3g} allowed"
