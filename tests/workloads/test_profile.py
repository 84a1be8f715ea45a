from __future__ import annotations

from collections.abc import Callable

import pytest

from meprop_bench.measure.clock import WallClock
from meprop_bench.ops.cost import linear_stages
from meprop_bench.workloads import Case, setup
from meprop_bench.workloads import profile as profile_module
from meprop_bench.workloads.profile import break_even_k, break_even_size, overhead, stages

CLOCK = WallClock()


def _case(**changes: object) -> Case:
    small = {"k": 3, "batch": 5, "in_features": 7, "out_features": 11, "threads": 1, "method": "unified"}
    return Case(**{**small, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sparse"),
    [
        ({}, ["selection", "dx", "dW", "scatter"]),
        ({"gradient": "rows"}, ["selection", "dx", "dW", "scatter"]),
        ({"kernel": "gather"}, ["selection", "gather", "dx", "dW", "scatter"]),
        ({"kernel": "gather", "gradient": "rows"}, ["selection", "gather", "dx", "dW", "scatter"]),
        ({"kernel": "masked"}, ["selection", "dx", "dW"]),
        ({"method": "meprop"}, ["selection", "dx", "dW", "scatter"]),
        ({"method": "random", "kernel": "embedding_bag", "gradient": "rows"}, ["selection", "dx", "dW", "scatter"]),
        ({"k": 11}, ["dense layers"]),
    ],
)
def test_stages_of_a_layer(changes: dict[str, object], sparse: list[str]) -> None:
    case = _case(**changes)
    found = stages(setup(case).layers(), CLOCK, seconds=0)
    assert [stage.name for stage in found["sparse"]] == sparse
    assert [stage.name for stage in found["dense"]] == (
        ["dense layers"] if sparse == ["dense layers"] else ["selection", "dx", "dW"]
    )
    assert all(stage.seconds >= 0 for side in found.values() for stage in side)
    counted = {stage.name for side in found.values() for stage in side if stage.flops is not None}
    assert counted >= {*sparse} - ({"scatter"} if changes.get("gradient") == "rows" else set())


def test_stages_have_their_costs() -> None:
    layers = setup(_case(method="meprop")).layers()
    found = {stage.name: stage for stage in stages(layers, CLOCK, seconds=0)["sparse"]}
    rows = layers[0].dy.abs().topk(3, dim=1).indices.unique().numel()  # type: ignore[no-untyped-call]
    expected = linear_stages(5, 7, 11, 4, "meprop", 3, "dense", rows)
    expected["scatter"] = expected.pop("zeros")
    assert {name: (stage.flops, stage.bytes) for name, stage in found.items()} == expected


def test_stages_of_a_model_leave_the_output_layer_dense_and_the_first_without_dx() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    case = _case(workload="mlp", data="digits", in_features=64, out_features=16, batch=8, k=4)
    found = {side: {stage.name: stage for stage in parts} for side, parts in _of(case).items()}
    assert list(found["sparse"]) == ["selection", "dx", "dW", "scatter", "dense layers"]
    assert found["dense"]["dx"].flops == 2 * 8 * 16 * 16  # of the second layer alone
    assert found["dense"]["dW"].flops == 2 * 8 * 16 * (64 + 16)
    assert found["sparse"]["dense layers"] == found["dense"]["dense layers"]


def _of(case: Case) -> dict[str, list[profile_module.Stage]]:
    return stages(setup(case).layers(), CLOCK, seconds=0)


def test_stages_are_differences_of_calls_that_ask_for_more_and_less() -> None:
    taken = {"selection": 2.0, "db+dx": 5.0, "db+dW": 9.0, "db+rows": 6.0}
    assert profile_module._differences(taken) == {"selection": 2.0, "dx": 3.0, "dW": 4.0, "scatter": 3.0}
    taken = {"selection": 2.0, "db+dx": 1.9, "db+dW": 9.0, "rows": 1.0}
    assert profile_module._differences(taken) == {"selection": 2.0, "dx": 0.0, "dW": 6.0, "scatter": 1.0}


def test_the_gather_is_told_from_selection_and_product_where_it_is_a_copy() -> None:
    taken = {"selection": 2.0, "db+dx": 5.0, "db+dW": 9.0, "db+rows": 6.0, "gather dy": 0.5, "gather w": 1.0}
    found = profile_module._differences(taken)
    assert found == {"selection": 1.5, "gather": 1.5, "dx": 2.0, "dW": 4.0, "scatter": 3.0}
    first_layer = {name: value for name, value in taken.items() if name != "gather w"}  # nobody wants its dx
    assert profile_module._differences({**first_layer, "db+dx": 2.0})["gather"] == 0.5
    gather = next(stage for stage in _of(_case(kernel="gather"))["sparse"] if stage.name == "gather")
    assert (gather.flops, gather.bytes) == (0, 2 * 4 * 3 * (5 + 7))  # k columns of dy, k rows of W: read and written


def test_the_price_of_a_call() -> None:
    for changes in ({}, {"method": "meprop", "gradient": "rows"}, {"dtype": "float64", "kernel": "gather"}):
        case = _case(**changes)
        found = overhead(case, setup(case).layers(), CLOCK, seconds=0)
        assert set(found) == {"forward", "backward"}
        assert all(0 < seconds < 1 for pair in found.values() for seconds in pair)


class _Ratios:
    """Speed-ups from a formula; each costs a second."""

    def __init__(self, formula: Callable[[int], float], seconds: float) -> None:
        self._formula, self._left = formula, seconds
        self.points: list[tuple[int, float]] = []

    @property
    def spent(self) -> bool:
        return self._left <= 0

    def __call__(self, value: int) -> float:
        self._left -= 1
        self.points.append((value, self._formula(value)))
        return self._formula(value)


@pytest.mark.parametrize("crossing", [1.5, 3, 50, 199, 498.5])
@pytest.mark.parametrize("known", [1, 30, 400])
def test_a_search_closes_in_on_the_crossing_from_any_side(crossing: float, known: int) -> None:
    """k: small ones pay; size: large ones do."""
    for small_pays, power in ((True, 1), (False, -1)):
        ratios = _Ratios(lambda value, power=power: (crossing / value) ** power, seconds=99)  # type: ignore[misc]
        pays, loses = profile_module._search(ratios, known, (1, 499), small_pays=small_pays)  # type: ignore[arg-type]
        assert pays is not None
        assert loses is not None
        low, high = sorted((pays, loses))
        assert low <= crossing <= high
        assert high <= max(low + 1, 1.1 * low)
        assert len(ratios.points) <= 16


@pytest.mark.parametrize(("formula", "end"), [(2.0, (499, None)), (0.5, (None, 1))])
def test_a_search_without_a_crossing_ends_at_the_end(formula: float, end: tuple[int | None, int | None]) -> None:
    ratios = _Ratios(lambda _: formula, seconds=99)
    assert profile_module._search(ratios, 30, (1, 499), small_pays=True) == end  # type: ignore[arg-type]


def test_a_search_ends_with_its_time() -> None:
    ratios = _Ratios(lambda value: 50 / value, seconds=2)
    assert profile_module._search(ratios, 10, (1, 499), small_pays=True) == (10, 80)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, {"k": 0.3, "method": "meprop"}, {"in_features": 11, "gradient": "rows"}])
def test_break_even_of_a_case(changes: dict[str, object]) -> None:
    case = _case(**changes)
    layers = setup(case).layers()
    by_k, by_size = (search(case, layers, CLOCK, seconds=0.02) for search in (break_even_k, break_even_size))
    assert by_k is not None
    assert by_size is not None
    assert (by_k.axis, by_k.ends, by_k.points[0][0]) == ("k", (1, 10), 3)
    assert (by_size.axis, by_size.points[0][0], by_size.ends[0]) == ("hidden", 11, 2 if changes.get("k") else 4)
    assert all(ratio > 0 for _, ratio in (*by_k.points, *by_size.points))


def test_a_dense_case_has_no_break_even() -> None:
    case = _case(k=11)
    layers = setup(case).layers()
    assert break_even_k(case, layers, CLOCK, seconds=0.01) is None
    assert break_even_size(case, layers, CLOCK, seconds=0.01) is None


def test_a_slow_pair_is_timed_once() -> None:
    class Slow(WallClock):
        def __init__(self) -> None:
            super().__init__(timer=lambda: self.seconds)
            self.seconds = 0.0

    clock = Slow()

    def take(seconds: float) -> None:
        clock.seconds += seconds

    assert profile_module._quick_ratio(lambda: take(6), lambda: take(2), clock, 1.0) == 3.0
    assert clock.seconds == 8.0
    assert profile_module._quick_ratio(lambda: take(0.06), lambda: take(0.02), clock, 1.0) == pytest.approx(3.0)
    assert clock.seconds < 9.5


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        (
            {"workload": "conv", "size": 6, "filter": 3, "method": "meprop", "in_features": 2, "out_features": 4},
            (1, 15),
        ),
        ({"workload": "lstm", "length": 3}, (1, 10)),
    ],
)
def test_break_even_of_other_layers(changes: dict[str, object], ends: tuple[int, int]) -> None:
    case = _case(**changes)
    layers = setup(case).layers()
    assert layers == ()
    by_k, by_size = (search(case, layers, CLOCK, seconds=0.02) for search in (break_even_k, break_even_size))
    assert by_k is not None
    assert by_size is not None
    assert by_k.ends == ends
    assert by_size.points[0][0] == case.out_features


def test_what_selects_nothing_has_no_break_even() -> None:
    """The baseline once more, as the method."""
    case = _case(method="dense", k=1.0)
    assert break_even_k(case, setup(case).layers(), CLOCK, seconds=0.01) is None
    assert break_even_size(case, setup(case).layers(), CLOCK, seconds=0.01) is None


def test_layers_of_several_widths_have_no_break_even() -> None:
    sizes = {"data": "made-up", "out_features": 32, "heads": 2, "layers": 1, "length": 16, "batch": 4, "threads": 1}
    case = Case(workload="transformer", method="unified", k=0.25, **sizes)  # type: ignore[arg-type]
    layers = setup(case).layers()
    assert {layer.w.shape[0] for layer in layers if layer.request} == {32, 96, 128}
    assert break_even_k(case, layers, CLOCK, seconds=0.01) is None
    assert break_even_size(case, layers, CLOCK, seconds=0.01) is None


def test_a_model_without_linear_layers_has_no_break_even() -> None:
    case = _case(workload="seq2seq", k=2, in_features=500, length=3, layers=1, optimizer="adam")
    assert break_even_k(case, (), CLOCK, seconds=0.01) is None
    assert break_even_size(case, (), CLOCK, seconds=0.01) is None
