import pytest
import torch

from meprop_bench.data import ImagePart, batches, load_images
from meprop_bench.data.sources import VARIABLE
from meprop_bench.errors import UserError


def numbered(n):
    return ImagePart(torch.arange(n).float().reshape(n, 1), torch.arange(n))


def drawn(part, batch, **length):
    return [labels.tolist() for _, labels in batches(part, batch, **length)]


def test_batches_follow_from_the_seed_alone():
    part = numbered(100)
    first = drawn(part, 8, seed=3, steps=30)
    torch.manual_seed(1)
    torch.rand(5)
    state = torch.get_rng_state()
    assert drawn(part, 8, seed=3, steps=30) == first
    assert drawn(part, 8, seed=3, steps=10) == first[:10]
    assert drawn(part, 8, seed=4, steps=30) != first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [1, 3, 10, 25])
def test_every_pass_holds_every_example_once_and_every_batch_is_full(batch):
    groups = drawn(numbered(10), batch, seed=0, epochs=5)
    assert {len(group) for group in groups} == {batch}
    assert len(groups) == 50 // batch
    flat = [label for group in groups for label in group]
    for start in range(0, len(flat) - 9, 10):
        assert sorted(flat[start : start + 10]) == list(range(10))


def test_images_and_labels_stay_together():
    for images, labels in batches(numbered(10), 4, seed=0, steps=5):
        assert images.shape == (4, 1)
        assert torch.equal(images.flatten(), labels.float())


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch": 0, "steps": 1},
        {"batch": 2},
        {"batch": 2, "steps": 1, "epochs": 1},
        {"batch": 2, "steps": 0},
        {"batch": 30, "epochs": 1},
    ],
)
def test_what_gives_no_batches_is_refused_at_once(arguments):
    with pytest.raises(ValueError, match=r"batch|steps"):
        batches(numbered(10), seed=0, **arguments)
    with pytest.raises(ValueError, match="0 examples"):
        batches(numbered(0), 1, seed=0, steps=1)


def test_a_part_holds_pairs():
    with pytest.raises(ValueError, match="do not pair"):
        ImagePart(torch.zeros(3, 2), torch.zeros(2))


def test_auto_takes_the_digits_where_there_is_no_mnist(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert load_images().name == "digits"
    with pytest.raises(UserError, match="choose from auto, mnist, digits"):
        load_images("cifar")
