import pytest

from meprop_bench.paper.claims import NEARLY, SAME, judge, overall
from meprop_bench.results.schema import Row

MNIST = "MNIST (Adam)"
DENSE, SPARSE = (MNIST, "MLP (h=500)"), (MNIST, "meProp (k=20)")


def verdicts(evidence, row="meProp (k=20)", part=MNIST):
    return {claim.kind: claim for claim in judge(evidence) if (claim.part, claim.row) == (part, row)}


@pytest.mark.parametrize(
    ("sparse", "verdict"),
    [
        ([98.0, 98.1, 98.05], "reproduced"),
        ([97.0, 97.1, 97.05], "not reproduced"),
        ([98.5, 97.0, 98.0], "inconclusive"),
        ([98.0], "inconclusive"),  # one seed has no interval
    ],
)
def test_as_good_as_dense_is_judged_by_the_interval_over_paired_seeds(evidence, sparse, verdict):
    found = verdicts(evidence("icml:1", {DENSE: [98.0, 98.1, 98.0][: len(sparse)], SPARSE: sparse}))
    assert found["at-least"].verdict == verdict


def test_better_needs_more_than_as_good(evidence):
    small, same = (MNIST, "MLP (h=20)"), [98.0, 98.01, 97.99]
    assert verdicts(evidence("icml:3", {small: [98.0] * 3, SPARSE: same}))["better"].verdict == "inconclusive"
    assert verdicts(evidence("icml:3", {small: [95.7, 95.8, 95.6], SPARSE: same}))["better"].verdict == "reproduced"
    assert verdicts(evidence("icml:3", {small: [99.1, 99.2, 99.3], SPARSE: same}))["better"].verdict == "not reproduced"


def test_a_level_is_the_best_seed_s_within_the_tolerance(evidence):
    printed = 98.01
    for best, verdict in ((printed - SAME["%"] + 0.01, "reproduced"), (printed - SAME["%"] - 0.01, "not reproduced")):
        assert verdicts(evidence("icml:1", {SPARSE: [best, 90.0, 90.0]}))["level"].verdict == verdict
    # A level that is exceeded by more is another one, too.
    assert verdicts(evidence("icml:1", {SPARSE: [99.0]}))["level"].verdict == "not reproduced"


def test_a_level_that_is_missed_while_learning_is_open(evidence):
    seeds = [{"test": 97.0, "best_epoch": 10}] * 3
    found = verdicts(evidence("icml:1", {SPARSE: seeds}))["level"]
    assert found.verdict == "inconclusive"
    assert "still learning" in found.why


def test_a_level_of_other_data_is_not_compared(evidence):
    found = verdicts(evidence("icml:1", {SPARSE: [98.01] * 2}, scale="smoke"))["level"]
    assert found.verdict == "inconclusive"
    assert "other data" in found.why


def test_iterations_may_come_a_little_later(evidence):
    def at(*epochs):
        return [{"test": 98.0, "best_epoch": epoch} for epoch in epochs]

    found = [
        verdicts(evidence("icml:1", {DENSE: at(5, 5, 5), SPARSE: at(*later)})) for later in ((5, 6, 5), (9, 10, 9))
    ]
    assert [one["iterations"].verdict for one in found] == ["reproduced", "not reproduced"]
    same = verdicts(evidence("icml:1", {DENSE: at(5, 5), SPARSE: at(5, 5)}))["iterations"]
    assert same.ours == "5.0 against 5.0, +0.0 [+0.0, +0.0]"


def row(speedup, low, high, phase="linear-backward", **changes):
    base = {"workload": "mlp", "method": "meprop", "kernel": "native", "kernel_requested": "auto", "k": 20, "batch": 10}
    base |= {"in_features": 784, "out_features": 500, "device": "cpu", "threads": 2, "dtype": "float32"}
    base |= {"gradient": "dense", "allocator": "kept", "check": "passed", "case_id": "x", "environment_id": "e"}
    times = {"speedup": speedup, "speedup_low": low, "speedup_high": high}
    return Row(**{**base, **times, "phase": phase, "median_s": 1e-3, "baseline_median_s": 3e-3, **changes})


@pytest.mark.parametrize(
    ("interval", "faster", "factor"),
    [
        ((3.0, 2.9, 3.1), "reproduced", "not reproduced"),
        ((0.9, 0.85, 0.95), "not reproduced", "not reproduced"),
        ((1.0, 0.9, 1.1), "inconclusive", "not reproduced"),
        ((25.0, 24.0, 26.0), "reproduced", "reproduced"),
        ((NEARLY * 21.4, 18.0, 20.0), "reproduced", "inconclusive"),
        ((3.0, None, None), "inconclusive", "inconclusive"),
    ],
)
def test_speed_and_its_factor_are_judged_apart(evidence, interval, faster, factor):
    found = verdicts(evidence("icml:1", {}, {SPARSE: row(*interval)}))
    assert (found["faster"].verdict, found["factor"].verdict) == (faster, factor)


def test_a_case_that_failed_says_why(evidence):
    failed = row(None, None, None, check=None, error="out of memory", median_s=None)
    found = verdicts(evidence("icml:1", {}, {SPARSE: failed}))["faster"]
    assert (found.verdict, found.why) == ("inconclusive", "out of memory")


def test_sizes_may_not_be_larger_than_printed(evidence):
    place = ("MNIST", "meSimp (k=160, p=0.10)")
    for size, verdict in ((150.0, "reproduced"), (300.0, "not reproduced")):
        sizes = {"size": size, "size linear0": size - 5, "size linear1": size + 5}
        seeds = [{"test": 98.3, "sizes": {**sizes, "nonzeros linear0": 120.0}}] * 3
        found = evidence("tkde:11", {place: seeds})
        claims = [claim for claim in judge(found) if (claim.part, claim.row, claim.kind) == (*place, "size")]
        assert [claim.verdict for claim in claims] == [verdict] * 3
        assert [claim.ours.split()[0] for claim in claims] == [f"{size:.0f}", f"{size - 5:.0f}", f"{size + 5:.0f}"]


def test_the_change_of_parameters_is_compared_after_the_masks(evidence):
    part = "right: update"
    places = [(part, "MLP (h=500)"), (part, "meAct (p=0.004, e=10)")]
    flat, falling = [1.0] * 8, [1.0] * 4 + [0.1] * 4  # of eight epochs, four before the masks
    seeds = [[{"test": 98.0, "updates": tuple(curve)}] * 2 for curve in (flat, falling)]
    found = evidence("tkde:fig4", dict(zip(places, seeds, strict=True)))
    claim = next(claim for claim in judge(found) if claim.kind == "smaller-update")
    assert (claim.verdict, claim.ours) == ("reproduced", "10.00x [10.00, 10.00]")


def test_what_was_not_run_is_inconclusive_with_the_reason(evidence):
    claims = judge(evidence("icml:3", {}))
    assert {claim.verdict for claim in claims} == {"inconclusive"}
    assert all(claim.why for claim in claims)
    assert overall(claims) == f"{len(claims)} inconclusive"
