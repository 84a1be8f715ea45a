from dataclasses import replace

import pytest

from meprop_bench.paper.claims import NEARLY, SAME, judge, overall
from meprop_bench.paper.records import ArmEvaluation, Decoding
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


def test_a_difference_whose_interval_is_too_wide_is_no_figure(evidence):
    found = verdicts(evidence("icml:1", {DENSE: [98.0, 98.0], SPARSE: [98.0, 80.0]}))
    assert found["at-least"].ours == "cannot tell"


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


@pytest.mark.parametrize(
    ("tests", "verdict"),
    [
        ([98.0, 97.9, 98.1], "reproduced"),
        ([98.0, 98.0, 10.28], "inconclusive"),
        ([98.0, 10.1, 19.72], "not reproduced"),
    ],
)
def test_the_best_of_seeds_at_chance_reproduces_no_level(evidence, tests, verdict):
    found = verdicts(evidence("icml:1", {SPARSE: tests}))["level"]
    assert found.verdict == verdict
    assert ("near chance" in found.why) is (verdict != "reproduced")


def test_the_best_of_all_k_is_that_of_rows_that_learned(evidence):
    part, ks = "left: accuracy over k", (5, 25, 100)
    figures = {(part, f"meProp (k={k})"): [98.15, 98.1, 98.1] for k in ks}
    found = [verdicts(evidence("icml:fig4", {**figures, (part, "meProp (k=5)"): low}), "best of meProp", part)["best"]
             for low in ([96.0] * 3, [96.0, 10.1, 96.0], [96.0])]  # fmt: skip
    planned = {row for (name, row) in evidence("icml:fig4", {}).experiment.arms if name == part}
    assert planned == {"MLP (h=500)", *(f"meProp (k={k})" for k in ks)}
    assert [one.verdict for one in found] == ["reproduced", "inconclusive", "inconclusive"]


@pytest.mark.parametrize(
    ("dense", "sparse", "verdict"),
    [
        ([10.1] * 3, [10.1] * 3, "inconclusive"),  # equal, since neither learned
        ([10.1, 11.35, 10.28], [98.0, 98.1, 98.0], "inconclusive"),  # no merit
        ([98.0, 98.0, 11.35], [98.3, 98.3, 98.3], "inconclusive"),
        ([98.0, 98.1, 98.0], [10.1, 11.35, 98.2], "not reproduced"),  # though its interval holds everything
        ([98.0, 98.1, 98.0], [98.1, 98.2, 98.2], "reproduced"),
    ],
)
def test_a_direction_is_between_models_that_learned(evidence, dense, sparse, verdict):
    assert verdicts(evidence("icml:1", {DENSE: dense, SPARSE: sparse}))["at-least"].verdict == verdict
    small = (MNIST, "MLP (h=20)")
    better = verdicts(evidence("icml:3", {small: [test - 1 for test in dense], SPARSE: sparse}))["better"]
    assert better.verdict == verdict


def test_what_gives_the_same_figures_to_the_last_loss_is_its_baseline(evidence):
    found = verdicts(evidence("icml:1", {DENSE: [98.0, 98.1, 97.9], SPARSE: [98.0, 98.1, 97.9]}))["at-least"]
    assert (found.verdict, "exactly as that of MLP (h=500)" in found.why) == ("inconclusive", True)


@pytest.mark.parametrize(("pace", "verdict"), [(0.0, "reproduced"), (0.2, "reproduced"), (0.5, "inconclusive")])
def test_a_row_ahead_of_a_baseline_that_was_still_learning(evidence, pace, verdict):
    """98.3 against 97.5, which gains so much an epoch at its end."""
    curve = tuple(ArmEvaluation(float(epoch), 0.1, 97.4 + pace * (epoch - 10)) for epoch in range(1, 11))
    own = {"best_epoch": 10, "best_dev": 97.4, "evaluations": curve}
    seeds = [{"test": test, **own} for test in (97.5, 97.51, 97.49)]
    found = verdicts(evidence("icml:3", {(MNIST, "MLP (h=20)"): seeds, SPARSE: [98.3, 98.31, 98.3]}))["better"]
    assert found.verdict == verdict
    only = (ArmEvaluation(8.0, 0.1, 97.4),)
    once = [{**seed, "best_epoch": 8, "evaluations": only} for seed in seeds]
    found = verdicts(evidence("icml:3", {(MNIST, "MLP (h=20)"): once, SPARSE: [98.3, 98.31, 98.3]}))["better"]
    assert found.verdict == "inconclusive"  # of one evaluation nobody knows how it went on


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


@pytest.mark.parametrize(
    ("dense", "sparse", "verdict"),
    [
        ((10, 10, 10), (10, 10, 10), "inconclusive"),  # a tie at the end of the run
        ((5, 5, 5), (9, 10, 10), "not reproduced"),  # later, and that is the least it is
        ((10, 10, 10), (5, 5, 6), "reproduced"),  # earlier, however much later the baseline's would have come
        ((5, 5, 5), (5, 5, 10), "inconclusive"),
        ((5, 5, 5), (6, 6, 9), "inconclusive"),  # of one epoch more nobody knows
    ],
)
def test_a_best_score_at_the_end_of_a_run_is_not_its_best(evidence, dense, sparse, verdict):
    def at(epochs):
        return [{"test": 98.0 - epoch / 10, "best_epoch": epoch} for epoch in epochs]

    assert verdicts(evidence("icml:1", {DENSE: at(dense), SPARSE: at(sparse)}))["iterations"].verdict == verdict


def test_later_than_a_baseline_that_ended_at_its_best_refutes_nothing(evidence):
    dense, sparse = (
        [{"test": 98.0 - shift, "best_epoch": best, "epochs": epochs} for shift in (0, 0.1, 0.2)]
        for best, epochs in ((3, 3), (8, 10))
    )
    assert verdicts(evidence("icml:1", {DENSE: dense, SPARSE: sparse}))["iterations"].verdict == "inconclusive"


def row(speedup, low, high, phase="linear-backward", **changes):
    base = {"workload": "mlp", "method": "meprop", "kernel": "native", "kernel_requested": "auto", "k": 20, "batch": 10}
    base |= {"in_features": 784, "out_features": 500, "device": "cpu", "threads": 2, "dtype": "float32"}
    base |= {"gradient": "dense", "allocator": "kept", "check": "passed", "case_id": "x", "environment_id": "e"}
    times = {"speedup": speedup, "speedup_low": low, "speedup_high": high}
    return Row.of(**{**base, **times, "phase": phase, "median_s": 1e-3, "baseline_median_s": 3e-3, **changes})


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


@pytest.mark.parametrize("tests", [[10.1, 11.35, 10.28], [98.0, 98.0, 10.28]])
def test_a_method_at_chance_is_not_faster(evidence, tests):
    found = verdicts(evidence("icml:1", {SPARSE: tests}, {SPARSE: row(25.0, 24.0, 26.0)}))
    assert (found["faster"].verdict, found["factor"].verdict) == ("inconclusive", "inconclusive")
    slower = verdicts(evidence("icml:1", {SPARSE: tests}, {SPARSE: row(0.9, 0.85, 0.95)}))
    assert slower["faster"].verdict == "not reproduced"


def test_a_method_whose_training_failed_is_not_faster(evidence):
    found = evidence("icml:1", {SPARSE: [98.0, 98.0]}, {SPARSE: row(25.0, 24.0, 26.0)})
    failed = replace(found, failed={found.experiment.arms[SPARSE].arm_id: 1})
    claims = verdicts(failed)
    assert (claims["faster"].verdict, claims["factor"].verdict) == ("inconclusive", "inconclusive")
    assert claims["faster"].why.endswith("but of 3 trainings 1 failed")
    assert verdicts(found)["faster"].verdict == "reproduced"  # what was not trained has its time all the same


def test_a_training_that_failed_was_cut_off_or_is_not_run_claims_nothing(evidence):
    whole = {DENSE: [98.0, 98.1, 98.0], SPARSE: [98.1, 98.2, 98.2]}
    cut = {"test": 98.2, "best_epoch": 2, "epochs": 2}  # of three epochs
    for sparse, why in (
        ([98.1, 98.2], "of 6 trainings 1 not run"),
        ([98.1, 98.2, cut], "of 6 trainings 1 cut off"),
    ):
        found = evidence("icml:1", {**whole, SPARSE: sparse})
        claims = verdicts(found)
        assert {claims[kind].verdict for kind in ("at-least", "level", "iterations")} == {"inconclusive"}
        assert claims["at-least"].why.endswith(why)
        total = len(found.experiment.distinct_arms) * 3
        assert found.lacking().startswith(f"of {total} trainings ")
    assert verdicts(evidence("icml:1", whole))["at-least"].verdict == "reproduced"
    nothing = evidence("icml:1", {})
    failed = replace(nothing, failed={nothing.experiment.arms[SPARSE].arm_id: 3})
    assert verdicts(failed)["level"].why == "of 3 trainings 3 failed"


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_reproduce_nothing(evidence, seeds):
    figures = {DENSE: [97.8, 97.9][:seeds], SPARSE: [98.3, 98.4][:seeds]}
    found = verdicts(evidence("icml:1", {**figures, SPARSE: [98.01] * seeds}, seeds=seeds))
    assert {found[kind].verdict for kind in ("at-least", "level", "iterations")} == {"inconclusive"}


def test_other_data_in_the_files_of_mnist_reproduce_no_level(evidence):
    def on(published, tests):
        return [{"test": test, "data_published": published} for test in tests]

    dense, sparse = [97.8, 97.9, 97.8], [98.0, 98.0, 98.1]
    for published, level in ((True, "reproduced"), (None, "reproduced"), (False, "inconclusive")):
        found = verdicts(evidence("icml:1", {DENSE: on(published, dense), SPARSE: on(published, sparse)}))
        assert (found["level"].verdict, found["at-least"].verdict) == (level, "reproduced")
    mixed = verdicts(evidence("icml:1", {DENSE: on(True, dense), SPARSE: on(False, sparse)}))
    assert mixed["at-least"].verdict == "inconclusive"
    assert "other data" in mixed["at-least"].why


@pytest.mark.parametrize(("published", "verdict"), [(None, "reproduced"), (1, "reproduced"), (0, "inconclusive")])
def test_sizes_of_other_data_are_not_the_paper_s(evidence, published, verdict):
    found = evidence("tkde:1", {})
    part = next(part for part in found.experiment.table.parts if part.task == "mnist")
    counts = {("mnist", column): int(value) for row in part.rows for column, value in row.figures.items()}
    counts |= {} if published is None else {("mnist", "published"): published}
    claims = [claim for claim in judge(replace(found, counts=counts)) if claim.part == part.name]
    assert {claim.verdict for claim in claims} == {verdict}


def test_a_small_model_at_chance_reproduces_no_size(evidence):
    place = ("MNIST", "meSimp (k=160, p=0.10)")
    sizes = {"size": 5.0, "size linear0": 5.0, "size linear1": 5.0}
    for tests, some, verdict in (
        ([98.3] * 3, sizes, "reproduced"),
        ([98.3, 98.3, 11.35], sizes, "inconclusive"),
        ([98.3] * 3, {}, "inconclusive"),
    ):
        seeds = [{"test": test, "sizes": own} for test, own in zip(tests, (sizes, sizes, some), strict=True)]
        claims = [
            claim
            for claim in judge(evidence("tkde:11", {place: seeds}))
            if (claim.part, claim.kind) == ("MNIST", "size")
        ]
        assert {claim.verdict for claim in claims} == {verdict}


@pytest.mark.parametrize(
    ("sizes", "products", "verdict"),
    [
        ((70, 240), (1000, 200), "reproduced"),
        ((60, 240), (1000, 200), "inconclusive"),
        ((70, 240), (9, 9), "inconclusive"),
    ],
)
def test_decoding_is_faster_by_what_the_trainings_removed(evidence, sizes, products, verdict):
    place = ("MNIST", "meSimp (k=160, p=0.10)")
    left = {"size": 155.0, "size linear0": 70.0, "size linear1": 240.0}
    found = evidence("tkde:11", {place: [{"test": 98.3, "sizes": left}] * 3})
    arm_id = found.experiment.arms[place].arm_id
    timed = Decoding(arm_id, {"linear0": sizes[0], "linear1": sizes[1]}, products, (((2.0, 1.0),), ((2.1, 1.0),)), "e")
    claim = verdicts(replace(found, decodings={arm_id: timed}), place[1], "MNIST")["decode"]
    assert claim.verdict == verdict


def test_a_dead_model_makes_no_smaller_updates(evidence):
    part = "right: update"
    places = [(part, "MLP (h=500)"), (part, "meAct (p=0.004, e=10)")]
    flat, dead = [1.0] * 8, [1.0] * 4 + [0.0] * 4
    falling = [1.0] * 4 + [0.1] * 4
    dense = [{"test": 98.0, "updates": tuple(flat)}] * 3
    sparse = [{"test": 98.0, "updates": tuple(curve)} for curve in (falling, falling, dead)]
    found = evidence("tkde:fig4", dict(zip(places, [dense, sparse], strict=True)))
    claim = next(claim for claim in judge(found) if claim.kind == "smaller-update")
    assert (claim.verdict, claim.ours) == ("inconclusive", "10.00x [10.00, 10.00]")


def test_a_speed_up_over_a_dense_time_that_disagrees_claims_nothing(evidence):
    doubted = row(30.0, 29.0, 31.0, baseline_disagreement=2.9)
    found = verdicts(evidence("icml:1", {}, {SPARSE: doubted}))
    assert [found[kind].verdict for kind in ("faster", "factor")] == ["inconclusive"] * 2
    assert "equal dense times differ by up to 2.9x" in found["faster"].why
    wide = verdicts(evidence("icml:1", {}, {SPARSE: row(1.0, 0.01, 300.0)}))
    assert wide["faster"].ours == "cannot tell"


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
    seeds = [[{"test": 98.0, "updates": tuple(curve)}] * 3 for curve in (flat, falling)]
    found = evidence("tkde:fig4", dict(zip(places, seeds, strict=True)))
    claim = next(claim for claim in judge(found) if claim.kind == "smaller-update")
    assert (claim.verdict, claim.ours) == ("reproduced", "10.00x [10.00, 10.00]")


def test_what_was_not_run_is_inconclusive_with_the_reason(evidence):
    claims = judge(evidence("icml:3", {}))
    assert {claim.verdict for claim in claims} == {"inconclusive"}
    assert all(claim.why for claim in claims)
    assert overall(claims) == f"{len(claims)} inconclusive"
