import sys

import pytest
import torch

from meprop_bench.data.images import load_digits
from meprop_bench.errors import UserError


def test_parts_share_out_all_images():
    datasets = pytest.importorskip("sklearn.datasets")
    data = load_digits()
    assert (data.name, data.features, data.classes) == ("digits", 64, 10)
    assert [len(part) for part in (data.train, data.dev, data.test)] == [797, 750, 250]
    images = torch.cat([data.train.images, data.dev.images, data.test.images])
    labels = torch.cat([data.train.labels, data.dev.labels, data.test.labels])
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.min() == 0
    assert images.max() == 1
    published = datasets.load_digits()
    ours = sorted(zip((images * 16).tolist(), labels.tolist(), strict=True))
    assert ours == sorted(zip(published.data.tolist(), published.target.tolist(), strict=True))


def test_parts_hold_for_good():
    """Other parts would mean other accuracies, so these are written down."""
    pytest.importorskip("sklearn")
    data = load_digits()
    assert data.dev.labels[:10].tolist() == [2, 7, 2, 9, 9, 5, 0, 4, 4, 3]
    assert data.dev.labels.bincount().aminmax() == (67, 89)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'meprop-bench\[digits\]'"):
        load_digits()
