import copy
import pickle

import pytest
import torch
from torch import nn

from meprop_bench.algorithms.activeness import Activeness, watch
from meprop_bench.nn import MePropLinear, convert
from meprop_bench.ops import reference

DY = torch.tensor([[3.0, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 5.0], [1.0, 2.0, 0.0, -3.0]])


def oracle(dy, k, *, selection="example", count_zeros=False):
    idx = reference.select(dy, k, selection)
    kept = reference.keep(idx, *dy.shape)
    return (kept if count_zeros else kept & (dy != 0)).sum(0)


def live(n):
    return torch.ones(n, dtype=torch.bool)


def test_hits_of_non_zero_entries_by_hand():
    record = Activeness(4)
    record(DY, torch.tensor([[0, 3], [3, 2], [1, 3]]))  # example 1 is filled up by neuron 2, whose dy is zero
    assert record.counts.tolist() == [1, 1, 0, 3]
    assert record.examples == 3
    assert record.mean_nonzeros == 7 / 3
    with_zeros = Activeness(4, count_zeros=True)
    with_zeros(DY, torch.tensor([[0, 3], [3, 2], [1, 3]]))
    assert with_zeros.counts.tolist() == [1, 1, 1, 3]


def test_unified_indices_count_for_each_example_whose_entry_is_not_zero():
    record = Activeness(4)
    record(DY, torch.tensor([0, 3]))
    assert record.counts.tolist() == [2, 0, 0, 3]


def test_gates_are_merged_by_their_maximum():
    record = Activeness(2, gates=2)
    record(torch.ones(3, 4), torch.tensor([[0, 2], [0, 3], [1, 3]]))  # gate 0: neurons 0 0 1, gate 1: neurons 0 1 1
    assert record.counts.tolist() == [2, 2]
    assert record.mean_nonzeros == 2


def test_nan_is_active():
    record = Activeness(2)
    record(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[0]]))
    assert record.counts.tolist() == [1, 0]


def test_shapes_that_do_not_fit():
    record = Activeness(4)
    for dy, idx in (((3, 5), (3, 2)), ((4,), (2,)), ((3, 4), (2, 2)), ((3, 1, 4), (3, 1, 2))):
        with pytest.raises(ValueError, match=r"give \(B, gates"):
            record(torch.ones(dy), torch.zeros(idx, dtype=torch.int64))


def test_who_stays():
    record = Activeness(5)
    record._hits.copy_(torch.tensor([10, 7, 0, 7, 3]))
    record.examples = 25
    assert record.enough(0.3, live(5)) == 3  # int(7.5) = 7
    assert record.enough(0.3, live(5), round_to=2) == 4
    assert record.enough(0.3, live(5), round_to=8) == 5
    assert record.enough(1.0, live(5)) == 1  # none is active enough, and one stays
    assert record.best(1, live(5)).tolist() == [True, False, False, False, False]
    assert record.best(2, live(5)).tolist() == [True, True, False, False, False]
    alive = torch.tensor([False, True, True, True, True])
    assert record.enough(0.3, alive) == 2
    assert record.best(3, alive).tolist() == [False, True, False, True, True]
    record.clear()
    assert (record.examples, record.counts.tolist()) == (0, [0] * 5)
    assert record.mean_nonzeros != record.mean_nonzeros


@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("kernel", ["masked", "auto"])
@pytest.mark.parametrize("k", [1, 3, 0.5, 9, 40])
def test_watching_a_layer_is_the_oracle(selection, kernel, k):
    torch.manual_seed(0)
    layer = MePropLinear(5, 9, k=k, selection=selection, kernel=kernel)
    record = Activeness(9)
    watch(layer, record)
    x, out = torch.randn(7, 5), nn.Linear(9, 3)
    y = layer(x)
    y.retain_grad()
    out(y.relu()).pow(2).sum().backward()
    kept = {0.5: 5, 40: 9}.get(k, k)
    assert record.counts.tolist() == oracle(y.grad, kept, selection=selection).tolist()
    assert record.examples == 7
    assert record.mean_nonzeros == (y.grad != 0).sum().item() / 7


def test_leading_dimensions_are_examples_and_evaluation_is_not_counted():
    layer, record = MePropLinear(5, 9, k=3), Activeness(9)
    watch(layer, record)
    with torch.no_grad():
        layer(torch.randn(7, 5))
    layer(torch.randn(0, 5)).sum().backward()
    assert record.examples == 0
    layer(torch.randn(2, 3, 5)).pow(2).sum().backward()
    assert (record.examples, int(record.counts.sum())) == (6, 18)
    layer(torch.randn(5)).pow(2).sum().backward()
    assert record.examples == 7
    record.enabled = False
    layer(torch.randn(5)).pow(2).sum().backward()
    assert record.examples == 7


def test_counting_does_not_change_the_gradients():
    torch.manual_seed(0)
    plain = MePropLinear(5, 9, k=3)
    watched = copy.deepcopy(plain)
    handle = watch(watched, Activeness(9))
    x = torch.randn(7, 5)
    for layer in (plain, watched):
        layer(x).pow(2).sum().backward()
    assert torch.equal(plain.weight.grad, watched.weight.grad)
    handle.remove()
    assert not watched._forward_hooks


def test_a_watched_layer_copies_and_pickles_with_a_record_of_its_own():
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 2))
    record = Activeness(9)
    watch(convert(model, k=2)["0"], record)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.randn(3, 5)).sum().backward()
    assert record.examples == 0


def test_a_random_selection_says_nothing():
    for selection in ("random", "random-unified"):
        with pytest.raises(ValueError, match="chance tells nothing"):
            watch(MePropLinear(5, 9, k=2, selection=selection), Activeness(9))
