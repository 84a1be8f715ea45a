"""The sentences and the text of a profile, from made-up figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.profile import Node, merged
from meprop_bench.report.profile import as_text
from meprop_bench.report.why import answers, spared
from meprop_bench.results.profile import BreakEven, Profile, Stage

BACKWARD = {"floor_s": 10e-6, "baseline_floor_s": 200e-6, "flops": 1e6, "bytes": 4e5, "baseline_flops": 2e7}


@pytest.fixture
def profile(make_row):
    """A layer: forward 100 µs on both sides, backward 400 µs dense and 100 µs sparse."""
    both = {"median": 100e-6, "processes": 1, "gradient": "dense", "kernel": "native"}
    rows = (
        make_row("a", phase="forward", speedup=1.0, floor_s=95e-6, baseline_floor_s=95e-6, **both),
        make_row("a", speedup=4.0, baseline_bytes=8e5, **both, **BACKWARD),
    )
    stages = {
        "dense": (
            Stage(name="selection", seconds=10e-6, flops=1, bytes=1, floor_s=1e-6, bound="memory"),
            Stage(name="dx", seconds=180e-6, flops=1, bytes=1, floor_s=100e-6, bound="arithmetic"),
            Stage(name="dW", seconds=180e-6, flops=1, bytes=1, floor_s=100e-6, bound="arithmetic"),
            Stage(name="rest", seconds=30e-6),
        ),
        "sparse": (
            Stage(name="selection", seconds=40e-6, flops=1, bytes=1, floor_s=4e-6, bound="memory"),
            Stage(name="dx", seconds=10e-6, flops=1, bytes=1, floor_s=9e-6, bound="arithmetic"),
            Stage(name="dW", seconds=30e-6, flops=1, bytes=1, floor_s=15e-6, bound="arithmetic"),
            Stage(name="scatter", seconds=25e-6, flops=0, bytes=1, floor_s=24e-6, bound="memory"),
            Stage(name="rest", seconds=-5e-6),
        ),
    }
    inner = Node("aten::mm", 280e-6, 2.0, 0.0)
    tree = Node("backward", 800e-6, 1.0, 0.0, (Node("AddmmBackward0", 700e-6, 1.0, 0.0, (inner,)),))
    return Profile(
        label="linear 784→500",
        rows=rows,
        stages=stages,
        stages_of="backward",
        layers=(1, 1),
        overhead={"forward": (3e-6, 12e-6), "backward": (24e-6, 25e-6)},
        trees={"dense": (tree,), "sparse": (replace(tree, seconds=200e-6, children=()),)},
        break_even=(
            BreakEven(axis="k", pays=190, loses=210, ends=(1, 499), points=((190, 1.02), (210, 0.97)), held="of 500"),
            BreakEven(axis="hidden", pays=64, loses=32, ends=(31, 9999), points=((64, 1.1), (32, 0.9)), held="k=30"),
        ),
    )


def _answer(profile, words):
    return next(found for found in answers(profile) if words in found.question)


def test_where_the_time_goes(profile):
    text = _answer(profile, "Where").text
    assert "Together 200 µs, 2.50x the speed of dense: forward 100 µs (50%), backward 100 µs (50%)" in text
    assert "longest stage of the sparse backward is selection and db, 40.0 µs or 40%" in text
    assert "The scatter into a dense dW, 25%, most of it zeros, is spared by gradients as rows." in text


def test_the_rest_of_a_model_is_more_than_autograd(profile):
    assert "rest (autograd, Python)" in as_text(profile)
    rows = tuple(replace(row, workload="model") for row in profile.rows)
    assert "rest (other operators, autograd)" in as_text(replace(profile, rows=rows))


def test_what_is_at_its_floor_and_what_is_not(profile):
    text = _answer(profile, "floor").text
    assert "At its floor (within 1.25x): gather and product dx (1.11x), scatter into dense dW (1.04x), forward" in text
    assert "Above it: selection and db 40.0 µs, 10.0x (bound by memory); gather and product dW 30.0 µs, 2.00x" in text


def test_the_ceiling_by_amdahl(profile):
    step_s, spared_s = spared(profile)
    assert (step_s, spared_s) == (pytest.approx(500e-6), pytest.approx(360e-6))
    text = _answer(profile, "Amdahl").text
    assert "make up 72% of the dense forward and backward together (360 µs of 500 µs)" in text
    assert "Were that free, the whole would be 3.57x as fast; it is 2.50x" in text
    assert "this workload has none" in text


def test_a_measured_gain_beyond_the_ceiling_is_explained(profile):
    assert "more than that" not in _answer(profile, "Amdahl").text
    stages = {
        **profile.stages,
        "dense": tuple(replace(one, seconds=one.seconds / 2) for one in profile.stages["dense"]),
    }
    text = _answer(replace(profile, stages=stages), "Amdahl").text
    assert "would be 1.56x as fast; it is 2.50x. It is more than that, since the products, timed alone, take" in text


def test_gather_and_product_are_one_figure_unless_the_gather_is_a_copy(profile):
    fused = as_text(profile)
    assert "gather and product dx" in fused
    assert "Gather and product are one figure: the kernel native reads" in " ".join(fused.split())
    gather = Stage(name="gather", seconds=5e-6, flops=0, bytes=1, floor_s=1e-6, bound="memory")
    copied = {**profile.stages, "sparse": (gather, *profile.stages["sparse"])}
    apart = as_text(replace(profile, stages=copied))
    assert "gather of dy and W" in apart
    assert "gather and product" not in apart.lower()
    masked = replace(profile, rows=tuple(replace(row, kernel="masked") for row in profile.rows))
    assert "gather" not in as_text(masked)


def test_rows_are_scattered_into_a_tensor_of_their_own(profile):
    rows = replace(profile, rows=tuple(replace(row, gradient="rows") for row in profile.rows))
    assert "scatter: tensor of rows" in as_text(rows)
    assert "--gradient rows" not in _answer(rows, "Where").text


def test_a_step_has_its_update_in_the_ceiling(profile, make_row):
    more = [make_row("a", phase="update", median=500e-6, speedup=1.0)]
    more.append(make_row("a", phase="step", median=700e-6, speedup=1000 / 700))
    text = _answer(replace(profile, rows=(*profile.rows, *more)), "Amdahl").text
    assert (
        "36% of the dense step (360 µs of 1.00 ms). Were that free, the whole would be 1.56x as fast; it is 1.43x."
        in text
    )
    assert "optimizer" not in text
    where = _answer(replace(profile, rows=(*profile.rows, *more)), "Where").text
    assert "Most of it is the update (optimizer), which the method leaves as it is." in where


def test_the_calls_against_the_arithmetic(profile):
    found = _answer(profile, "launching")
    assert "Dense: 24.0 µs of 400 µs are the calls (6%), 201 µs the stages' floors" in found.text
    assert "sparse: 25.0 µs of 100 µs are the calls (25%), 52.0 µs the stages' floors" in found.text
    two = _answer(replace(profile, layers=(2, 1)), "launching")
    assert "48.0 µs of 400 µs" in two.text
    assert "2 layers" in two.how


def test_what_was_to_be_expected(profile):
    text = _answer(profile, "expected").text
    assert "20.0x fewer operations and 2.00x fewer bytes than dense" in text
    assert "at this machine's floors it would be 20.0x as fast; measured: 4.00x" in text


@pytest.mark.parametrize(
    ("axis", "pays", "loses", "words"),
    [
        ("k", 190, 210, "At about k=200, of 500: sparse pays at 190 and no longer at 210."),
        ("k", 499, None, "At none: with k=499, of 500, sparse is still faster."),
        ("k", 240, None, "Beyond k=240, of 500, where sparse is still faster; there was no time for more."),
        ("k", None, 1, "At none: not even with k=1, of 500, sparse is faster."),
        ("k", None, 3, "Below k=3, of 500, where sparse is not faster; there was no time for more."),
        ("hidden", 64, 32, "From about hidden=45 (of 500): sparse does not pay at 32 and does at 64."),
        ("hidden", 1, None, "From the smallest on that has so many neurons, hidden=1 (of 500)."),
        ("hidden", 62, None, "From hidden=62 or less (of 500); there was no time for smaller ones."),
        ("hidden", None, 499, "Not up to hidden=499 (of 500): the largest that is tried."),
        ("hidden", None, 99, "Not up to hidden=99 (of 500): there was no time for larger ones."),
    ],
)
def test_where_sparse_breaks_even(profile, axis, pays, loses, words):
    found = BreakEven(axis=axis, pays=pays, loses=loses, ends=(1, 499), points=((30, 1.5),), held="of 500")
    answer = answers(replace(profile, break_even=(found,)))[-1]
    assert answer.text == words
    assert answer.how == "1 quick measurements of the backward pass alone, so approximate: 30: 1.50x"


def test_without_stages_there_are_fewer_answers(profile):
    bare = replace(profile, stages={}, stages_of=None, overhead={}, break_even=(), trees={})
    assert [found.question for found in answers(bare)] == [
        "Where does the time go?", "Which part is at its floor?", "What is the ceiling for this model (Amdahl)?",
        "How much was to be expected?",
    ]  # fmt: skip
    assert "The whole backward pass makes up 80%" in _answer(bare, "Amdahl").text
    assert "backward 100 µs, 10.0x" in _answer(bare, "floor").text
    assert "Stages" not in as_text(bare)


def test_the_text_shows_both_sides(profile):
    text = as_text(profile)
    assert text.startswith("linear 784→500\n")
    assert all(len(line) <= 128 for line in text.splitlines())
    assert "\x1b" not in text
    stages = text[text.index("Stages of the backward") :]
    assert next(line for line in stages.splitlines() if line.startswith("scatter")).split() == [
        "scatter", "into", "dense", "dW", "–", "25.0", "µs", "24.0", "µs", "1.04x", "memory"
    ]  # fmt: skip
    assert "-5.00 µs" in stages
    assert "Shares are torch.profiler's, under which the phases took 2.00x as long" in " ".join(text.split())


def test_times_of_operators_are_shares_of_the_unprofiled_time(profile):
    """800 µs under the profiler are 400 µs without, of which AddmmBackward0 has 7/8."""
    text = as_text(profile)
    assert "backward 400 µs 100%" in text
    assert "AddmmBackward0 350 µs 88%" in text
    assert "aten::mm 140 µs 35% ×2" in text
    assert "itself 210 µs 52%" in text  # of AddmmBackward0, what is not aten::mm


def test_a_narrow_terminal_gets_one_tree_after_the_other(profile):
    text = as_text(profile, terminal=True, width=80)
    assert "\x1b" in text
    lines = [line for line in text.splitlines() if "backward" in line and "100%" in line]
    assert len(lines) == 2


def test_a_gpus_seconds_are_told(profile):
    tree = Node("backward", 1e-4, 1.0, 3e-4, (Node("aten::mm", 5e-5, 1.0, 3e-4, (Node("kernel gemm", 0, 2, 3e-4),)),))
    text = as_text(replace(profile, trees={"dense": (tree,), "sparse": ()}))
    assert "aten::mm 200 µs 50% GPU 300 µs" in text


def test_json_holds_everything_but_the_rows(profile):
    found = profile.to_json()
    assert "rows" not in found
    assert found["stages"]["sparse"][0]["name"] == "selection"
    assert BreakEven.from_json(found["break_even"][0]) == profile.break_even[0]
    assert Node.from_json(found["trees"]["dense"][0]) == profile.trees["dense"][0]


def test_what_the_processes_do_not_agree_on_is_no_figure(profile):
    def spread(row):
        runs = tuple(((1e-4 * factor, 1e-4 * factor),) for factor in (0.01, 0.1, 1.0, 10.0))
        return replace(row, measurement=Measurement(row.phase, runs, 1))

    wild = replace(profile, rows=tuple(spread(row) for row in profile.rows))
    assert wild.vague_phases == ["forward", "backward"]
    told = [found for found in answers(wild) if "break even" not in found.question and "size" not in found.question]
    text = "Cannot tell: the processes differ too much in the forward and the backward."
    assert {found.text for found in told} == {text}
    assert "cannot tell" in as_text(wild)


def test_stages_have_intervals_and_one_that_is_too_wide_is_no_figure(profile):
    stages = dict(profile.stages)
    first, second, *rest = stages["sparse"]
    sure, vague = replace(first, low=38e-6, high=42e-6), replace(second, low=-10e-6, high=30e-6)
    told = replace(profile, stages=stages | {"sparse": (sure, vague, *rest)})
    assert (sure.vague, vague.vague, first.vague) == (False, True, False)
    assert "40.0 µs ±5%" in as_text(told)
    assert "Cannot tell: gather and product dx." in _answer(told, "floor").text


def test_a_busy_machine_is_the_first_line_of_a_profile(profile):
    assert as_text(replace(profile, doubts=("This machine was busy.",))).startswith("This machine was busy.")


def test_trees_of_several_processes_are_one(profile):
    def tree(seconds, *parts):
        children = tuple(Node(name, part, 2.0) for name, part in parts)
        return Node("backward", seconds, 1.0, 0.0, children)

    found = merged([tree(10.0, ("mm", 6.0), ("a", 1.0)), tree(12.0, ("mm", 8.0), ("3 others", 2.0))])
    assert (found.name, found.seconds) == ("backward", 11.0)
    assert found.low < 10.0
    assert found.high > 12.0
    assert [(child.name, child.seconds) for child in found.children] == [("mm", 7.0), ("others", 1.5)]
    alone = tree(10.0, ("mm", 6.0))
    assert merged([alone]) is alone
    assert (alone.low, Node.from_json({k: v for k, v in alone.to_json().items() if k not in ("low", "high")})) == (
        None,
        alone,
    )
