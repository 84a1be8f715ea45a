"""The order of examples: passes, batches that straddle them, and going on anywhere."""

import itertools

import pytest
import torch

from meprop_bench.data.order import example_numbers


def _all(*args, **more):
    return torch.cat(list(example_numbers(*args, **more))).tolist()


def test_each_pass_has_every_example_once_and_batches_are_full():
    found = list(example_numbers(10, 4, seed=1, steps=5))
    assert [len(numbers) for numbers in found] == [4] * 5
    order = torch.cat(found).tolist()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_how_many_come_together_is_of_no_matter():
    one = _all(7, 3, seed=2, steps=11)
    chunks = list(example_numbers(7, 3, seed=2, steps=11, together=4))
    assert [len(chunk) for chunk in chunks] == [12, 12, 9]
    assert torch.cat(chunks).tolist() == one


@pytest.mark.parametrize("start", [0, 1, 2, 9])
def test_it_goes_on_anywhere(start):
    assert _all(7, 3, seed=2, steps=4, start=start) == _all(7, 3, seed=2, steps=20)[3 * start : 3 * (start + 4)]


def test_it_depends_on_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (_all(20, 5, seed=seed, steps=4) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again != other


@pytest.mark.parametrize(("count", "batch", "steps"), [(0, 1, 1), (3, 0, 1), (3, 1, 0)])
def test_nothing_to_take_is_refused_at_once(count, batch, steps):
    with pytest.raises(ValueError, match=f"{steps} batches of {batch} from {count} examples"):
        example_numbers(count, batch, seed=1, steps=steps)


def test_a_batch_larger_than_the_data():
    assert [sorted(n.tolist()) for n in itertools.islice(example_numbers(2, 4, seed=0, steps=2), 2)] == [
        [0, 0, 1, 1]
    ] * 2
