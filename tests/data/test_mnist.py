import gzip
import hashlib
import os
import struct
from dataclasses import replace

import pytest
import torch

from meprop_bench.data import load_images, mnist
from meprop_bench.data.mnist import DEV_IMAGES, load_mnist
from meprop_bench.data.sources import SOURCES, VARIABLE
from meprop_bench.errors import UserError

TRAIN, TEST = DEV_IMAGES + 20, DEV_IMAGES + 1


@pytest.fixture(scope="module")
def files():
    """A small MNIST: pixel 0 of image i is i modulo 256, its label i modulo 10."""
    made = {}
    for prefix, n in (("train", TRAIN), ("t10k", TEST)):
        images = torch.zeros(n, 28, 28, dtype=torch.uint8)
        images[:, 0, 0] = torch.arange(n) % 256
        labels = bytes(i % 10 for i in range(n))
        made[f"{prefix}-images-idx3-ubyte.gz"] = struct.pack(">4I", 0x803, n, 28, 28) + images.numpy().tobytes()
        made[f"{prefix}-labels-idx1-ubyte.gz"] = struct.pack(">2I", 0x801, n) + labels
    return {name: gzip.compress(content, 1) for name, content in made.items()}


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for name, content in files.items():
        (tmp_path / "mnist" / name).write_bytes(content)
    return tmp_path / "mnist"


def test_the_first_5000_training_images_are_the_development_set(folder):
    data = load_images("auto")
    assert (data.name, data.features, data.classes) == ("mnist", 784, 10)
    assert [len(part) for part in (data.train, data.dev, data.test)] == [20, 5000, TEST]
    expected = torch.arange(TRAIN)
    assert torch.equal(data.dev.images[:, 0], (expected[:5000] % 256).float() / 255)
    assert torch.equal(data.train.images[:, 0], (expected[5000:] % 256).float() / 255)
    assert torch.equal(data.train.labels, expected[5000:] % 10)


@pytest.fixture
def published(files, monkeypatch):
    """These files, as if they were what LeCun published."""
    source = SOURCES["mnist"]
    sums = {
        name.removesuffix(".gz"): hashlib.sha256(gzip.decompress(packed)).hexdigest() for name, packed in files.items()
    }
    known = replace(source, files=tuple(replace(file, sha256=sums[file.name]) for file in source.files))
    monkeypatch.setattr(mnist, "SOURCES", {"mnist": known})


@pytest.mark.parametrize("form", ["gzip", "plain", "packed anew"])
def test_what_was_published_is_known_by_its_content(folder, files, published, form):
    for name, packed in files.items():
        content = gzip.decompress(packed)
        (folder / name).unlink()
        path = folder / (name.removesuffix(".gz") if form == "plain" else name)
        path.write_bytes(content if form == "plain" else gzip.compress(content, 9))
    data = load_mnist()
    assert (data.published, data.notes) == (True, ())


@pytest.mark.parametrize("form", ["gzip", "plain"])
def test_another_set_in_files_of_the_same_names_is_loaded_and_says_so(folder, files, published, form):
    """As Fashion-MNIST is used: the same sizes, the same names."""
    name = "t10k-images-idx3-ubyte"
    content = bytearray(gzip.decompress(files[f"{name}.gz"]))
    content[-1] ^= 1
    (folder / f"{name}.gz").unlink()
    path = folder / (name if form == "plain" else f"{name}.gz")
    path.write_bytes(content if form == "plain" else gzip.compress(content))
    data = load_images("auto")
    assert (data.name, data.published) == ("mnist", False)
    (note,) = data.notes
    assert note.startswith(f"not the published mnist data: {name} has another SHA-256")
    assert data.to("cpu").notes == data.notes


def test_a_missing_file(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"no t10k-labels-idx1-ubyte.gz in .*; run `meprop-bench data fetch mnist`"):
        load_mnist()


def test_a_damaged_file_is_an_error_and_not_a_reason_to_take_the_digits(folder, files):
    name = "train-images-idx3-ubyte.gz"
    (folder / name).write_bytes(files[name][:-20])
    with pytest.raises(UserError, match=rf"cannot read .*{name}.*run `meprop-bench data fetch mnist`"):
        load_images("auto")


@pytest.mark.parametrize("labels", [bytes(TRAIN - 1), bytes(TRAIN - 1) + b"\x0a"], ids=["too few", "no digit"])
def test_files_that_do_not_belong_together(folder, labels):
    content = struct.pack(">2I", 0x801, len(labels)) + labels
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"are not MNIST's \((images|a label is 10)"):
        load_mnist()


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="MEPROP_BENCH_DATA is not set")
def test_real_mnist():
    data = load_images("auto")
    assert (data.name, data.published, data.notes) == ("mnist", True, ())
    assert [len(part) for part in (data.train, data.dev, data.test)] == [55_000, 5_000, 10_000]
    assert data.dev.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as everybody knows them
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    pixels = torch.cat([data.dev.images, data.train.images])
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)  # the well-known mean
    assert pixels.max() == 1
