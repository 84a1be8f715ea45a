"""The whole suite may run in several processes at once (pytest-xdist), and none waits for another.

A run of ours waits for the lock of its device, of which there is one on a machine: so each process has a folder for
its own. Tests assert no timing, so that nothing is gained by waiting for the run of another test, or for that of
somebody else on this machine.

Where there is no GPU, Triton interprets its kernels. That has to be said before it is imported, which torch.compile
does, too; nothing else that runs on a CPU asks it for anything.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import struct
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_ROOT = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Give this process a temporary folder of its own; pytest's own stay where they are looked for."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    config.stash[_ROOT] = tempfile.mkdtemp(prefix="meprop-bench-tests-")
    os.environ["TMPDIR"] = os.environ["MEPROP_BENCH_LOCKS"] = tempfile.tempdir = config.stash[_ROOT]
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_sessionstart() -> None:
    """Processes that a test starts are no workers of xdist: pytest-benchmark would refuse to time in one. And they can
    be interrupted, also where a shell that started this one in its background had it ignore that.
    """
    os.environ.pop("PYTEST_XDIST_WORKER", None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` has it ignored


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder."""
    shutil.rmtree(config.stash[_ROOT], ignore_errors=True)


@pytest.fixture
def other_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with something else in the files of MNIST: 5,020 and 5,001 images without anything on them."""
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    for prefix, n in (("train", 5020), ("t10k", 5001)):
        files = {f"{prefix}-images-idx3": (n, 28, 28), f"{prefix}-labels-idx1": (n,)}
        for name, shape in files.items():
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            (tmp_path / "data" / "mnist" / f"{name}-ubyte").write_bytes(header + bytes(math.prod(shape)))
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def threads_are_put_back() -> Iterator[None]:
    """Leave torch's threads as a test found them, whatever it sets."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> None:
    """Small models on several threads wait more than they compute, above all while the machine is busy."""
    import torch

    torch.set_num_threads(1)


_MODEL = """
import dataclasses
import os

import torch
from torch import nn
from torch.nn import functional as F

import meprop_bench as mb

X = torch.randn(24, 12, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 4


def perceptron(*between):
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), *between, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def batches():
    return list(zip(X.split(6), Y.split(6)))


def accuracy(model):
    return 100.0 * (model(X).argmax(1) == Y).float().mean()


def training(**options):
    return mb.Training(**{"model": perceptron(), "loss": loss, "batches": batches(), **options})


def build():
    return training()
"""
"""A user's file, whose `build` tests replace: 24 examples of 12 numbers and 4 classes, in batches of 6."""


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Give a function that writes a user's file, with these lines at its end, and returns the name of its `build`."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(lines: str = "", name: str = "my_model.py") -> str:
        path = tmp_path / name
        for module in [key for key, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]:
            del sys.modules[module]  # as it was before
        path.write_text(_MODEL + textwrap.dedent(lines), encoding="utf-8")
        return f"{path}:build"

    return write
