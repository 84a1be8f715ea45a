"""The C++ node against the Python registration: the same bits, the same errors, and out of the way where it must be."""

import copy
import os
import pickle
import stat
import threading
import time
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meprop_bench.nn import MePropLinear
from meprop_bench.ops import linear, node
from meprop_bench.ops.node import build
from tests.ops.conftest import WILD, Node, arrange, assert_same

registrations = import_module("meprop_bench.ops.linear")  # the function has the same name
NODE = Node(registrations._node, "MePropLinearBackward")
uses_node, in_python, both = NODE.made, NODE.without, NODE.both


@pytest.fixture
def cxx():
    """Skip without the node; with it, every test below starts with it in use."""
    NODE.required()


def tensors(*sizes, seed=0, needs=(True, True, True)):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, generator=generator).requires_grad_(need) for size, need in zip(sizes, needs, strict=True)
    ]


def layer(k=3, **keywords):
    return lambda x, w, b: linear(x, w, b, k=k, **keywords)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.usefixtures("cxx")
def test_the_same_bits(data):
    draw = data.draw
    batch = draw(st.sampled_from([(), (1,), (7,), (50,), (2, 3), (2, 1, 5)]))
    n, m = draw(st.integers(2, 60)), draw(st.integers(1, 60))
    k = draw(st.one_of(st.integers(1, n - 1), st.floats(0.01, 0.34)))
    needs = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    how = {
        "selection": draw(st.sampled_from(["example", "unified"])),
        "sparse": draw(st.booleans()),
        "kernel": "native",
    }
    x, w, b = tensors((*batch, m), (n, m), (n,), seed=draw(st.integers(0, 99)), needs=needs)
    if draw(st.booleans()) and any(needs[:2]):
        b = None
    dy = torch.randn(*batch, n)
    layout = draw(st.sampled_from(["plain", "expanded", "strided", "wild", "unaligned"]))
    if layout == "expanded":
        dy = torch.randn(n).expand(*batch, n)
    elif layout == "strided":
        dy = torch.randn(*batch, 2 * n)[..., ::2]
    elif layout == "unaligned":
        dy, x, w = (arrange(t.detach(), "unaligned").requires_grad_(t.requires_grad) for t in (dy, x, w))
    elif layout == "wild":
        dy = torch.tensor(WILD)[torch.randint(0, len(WILD), dy.shape)]
    inputs = [t for t in (x, w, b) if t is not None and t.requires_grad]

    def gradients():
        y = linear(x, w, b, k=k, **how)
        return y, torch.autograd.grad(y, inputs, dy)

    (y, found), (other, expected) = both(gradients)
    assert torch.equal(y, other)
    assert not uses_node(other)
    assert uses_node(y) == (round(k * n) < n if isinstance(k, float) else True)
    assert_same(found, expected)


@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("cxx")
def test_the_same_bits_of_a_large_layer(selection, sparse, threads):
    inputs = tensors((400, 270), (515, 270), (515,))
    dy = torch.randn(400, 515)
    torch.set_num_threads(threads)
    assert_same(*both(lambda: torch.autograd.grad(layer(30, selection=selection, sparse=sparse)(*inputs), inputs, dy)))


@pytest.mark.usefixtures("cxx")
def test_a_batch_without_any_gradient():
    for selection in ("example", "unified"):
        for sparse in (False, True):
            inputs = tensors((4, 20), (30, 20), (30,))
            y = linear(*inputs, k=5, selection=selection, sparse=sparse)
            assert uses_node(y)
            dx, dw, db = torch.autograd.grad(y, inputs, torch.zeros(4, 30))
            assert not dx.any()
            assert dw.shape == (30, 20)
            assert not dw.to_dense().any()
            assert not db.any()


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("arrange", "keywords"),
    [
        (lambda x, w, b: (x.double(), w.double(), b.double()), {}),
        (lambda x, w, b: (x.bfloat16(), w.bfloat16(), b.bfloat16()), {}),
        (lambda x, w, b: (x.mT.contiguous().mT, w, b), {}),
        (lambda x, w, b: (x, w.mT.contiguous().mT, b), {}),
        (lambda x, w, b: (x.as_subclass(Subclass), w, b), {}),
        (lambda x, w, b: (x, w.as_subclass(Subclass), b), {}),
        (lambda x, w, b: (x[:0], w, b), {}),
        (lambda x, w, b: (x, w, b), {"selection": "random"}),
        (lambda x, w, b: (x, w, b), {"kernel": "masked"}),
        (lambda x, w, b: (x, w, b), {"k": 20}),  # more than a third of the neurons: `auto` takes another kernel
        (lambda x, w, b: (x, w, b), {"k": 30}),
    ],
)
@pytest.mark.usefixtures("cxx")
def test_what_is_not_the_nodes(arrange, keywords):
    def gradients():
        torch.manual_seed(0)
        y = linear(*arrange(*inputs), **{"k": 3, **keywords})
        assert not uses_node(y)
        return torch.autograd.grad(y.float().pow(2).sum(), inputs)

    inputs = tensors((6, 20), (30, 20), (30,))
    assert uses_node(linear(*inputs, k=3))
    assert_same(*both(gradients))


@pytest.mark.usefixtures("cxx")
def test_forward_derivatives_are_not_the_nodes():
    x, w, b = tensors((6, 20), (30, 20), (30,))
    dual, parts = torch.autograd.forward_ad.make_dual, torch.autograd.forward_ad.unpack_dual
    y = linear(x, w, b, k=3)
    with torch.autograd.forward_ad.dual_level():
        found = parts(linear(dual(x.detach(), torch.ones_like(x)), w, b, k=3))
        torch.testing.assert_close(found.tangent, w.sum(1).expand(6, 30))
        dy = torch.eye(30)[:6]
        (db,) = torch.autograd.grad(y, b, dual(dy, 2 * dy))  # of a gradient that came later
        assert torch.equal(parts(db).tangent, 2 * dy.sum(0))


@pytest.mark.parametrize(
    ("shapes", "keywords"),
    [
        (((6, 21), (30, 20), (30,)), {}),
        (((6, 20), (30, 20), (29,)), {}),
        (((6, 20), (20,), (30,)), {}),
        (((), (30, 20), (30,)), {}),
        (((6, 20), (30, 20), (30,)), {"k": 0}),
        (((6, 20), (30, 20), (30,)), {"k": float("nan")}),
        (((6, 20), (30, 20), (30,)), {"k": True}),
        (((6, 20), (30, 20), (30,)), {"k": 10**30, "selection": "no"}),
        (((6, 20), (30, 20), (30,)), {"kernel": "fast"}),
        (((6, 20), (30, 20), (30,)), {"kernel": None}),
        (((6, 20), (30, 20), (30,)), {"selection": 7}),
    ],
)
@pytest.mark.usefixtures("cxx")
def test_misuse_is_the_same(shapes, keywords):
    inputs = tensors(*shapes)

    def error():
        with pytest.raises((ValueError, RuntimeError, IndexError)) as caught:
            linear(*inputs, **{"k": 3, **keywords})
        return caught.type, str(caught.value)

    assert linear(*tensors((6, 20), (30, 20), (30,)), k=3) is not None  # the node is in use from now on
    found, expected = both(error)
    assert found == expected


@pytest.mark.usefixtures("cxx")
def test_double_backward_of_rows():
    x, w, b = tensors((6, 20), (30, 20), (30,))
    dy = torch.randn(6, 30, requires_grad=True)

    def seconds():
        dx, dw, db = torch.autograd.grad(layer(sparse=True)(x, w, b), (x, w, b), dy, create_graph=True)
        rows = dw.coalesce().values()
        return torch.autograd.grad(dx.pow(2).sum() + rows.pow(2).sum() + db.pow(2).sum(), (x, w, dy))

    assert_same(*both(seconds))


@pytest.mark.usefixtures("cxx")
def test_two_uses_and_accumulation():
    def accumulated(sparse):
        x, w, b = tensors((6, 20), (30, 20), (30,))
        for _ in range(3):
            y = linear(x, w, b, k=3, sparse=sparse)
            (y.pow(2).sum() + linear(2 * x, w, b, k=4, sparse=sparse).pow(2).sum()).backward()
        return x.grad, w.grad.to_dense(), b.grad

    for sparse in (False, True):
        assert_same(*both(lambda sparse=sparse: accumulated(sparse)))


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("threads", [(2, 1), (1, 2)])
@pytest.mark.parametrize("k", [3, 0.02])
@pytest.mark.parametrize("selection", ["example", "unified"])
def test_threads_that_change_in_between(selection, k, threads, monkeypatch):
    """A sweep's worker sets a layer up on one thread and times it on several."""
    inputs = tensors((400, 20), (300, 20), (300,))
    dy = torch.randn(400, 300)

    def gradients():
        torch.set_num_threads(threads[0])
        y = linear(*inputs, k=k, selection=selection)
        torch.set_num_threads(threads[1])
        return torch.autograd.grad(y, inputs, dy)

    expected = in_python(gradients)
    monkeypatch.setattr(registrations, "_backward_of_any", None)  # the way through the interpreter
    assert_same(gradients(), expected)


@pytest.mark.usefixtures("cxx")
def test_many_threads_at_once():
    inputs = tensors((50, 784), (500, 784), (500,))
    dy = torch.randn(50, 500)

    def gradients():
        return torch.autograd.grad(linear(*inputs, k=20, sparse=True), inputs, dy)

    expected, wrong = gradients(), []

    def work():
        for _ in range(20):
            found = gradients()
            if not all(
                torch.allclose(f.to_dense(), e.to_dense(), atol=1e-5) for f, e in zip(found, expected, strict=True)
            ):
                wrong.append(found)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.usefixtures("cxx")
def test_k_follows_its_schedule_and_modules_copy():
    module = MePropLinear(20, 30, k=3, selection="unified", sparse=True)
    x = torch.randn(6, 20)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for k, rows in ((1, 1), (0.2, 6), (5, 5), (0.5, 15)):
            twin.k = k
            twin.zero_grad()
            y = twin(x)
            assert uses_node(y)
            y.pow(2).sum().backward()
            assert twin.weight.grad._nnz() == rows
        twin.k = 30
        assert not uses_node(twin(x))


def test_the_switch(monkeypatch):
    monkeypatch.setenv(node.SWITCH, "python")
    assert node.unavailable_reason() == "it is switched off (MEPROP_BENCH_NODE=python)"
    monkeypatch.setattr(registrations._node, "call", registrations._node.first)
    assert not uses_node(linear(*tensors((6, 20), (30, 20), (30,)), k=3))
    monkeypatch.setenv(node.SWITCH, "on")
    assert 'its values are "cxx" and "python"' in node.unavailable_reason()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a compiler to be written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(node.SWITCH, raising=False)
    compiler = tmp_path / "my compiler"
    monkeypatch.setenv("CXX", f"'{compiler}'")

    def write(script):
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)

    return write


WRITES = 'while [ "$1" != -o ]; do shift; done; echo part > "$2"; sleep 0.2; echo whole > "$2"'


def test_without_a_build_layers_run_in_python(cache, monkeypatch):
    pytest.importorskip("numba")
    assert "it is not built yet: `python -m meprop_bench.ops.kernels.native` builds it" in node.unavailable_reason()
    monkeypatch.setattr(registrations._node, "call", registrations._node.first)
    y = linear(*tensors((6, 20), (30, 20), (30,)), k=3)
    assert y.grad_fn is not None
    assert not uses_node(y)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'module.cpp:1: fatal error: no torch' >&2; exit 1", "failed: module.cpp:1: fatal error: no torch"),
        ("exit 3", "failed: exit code 3"),
        ("exit 0", "failed: exit code 0, nothing written"),
        (None, "cannot be run (No such file or directory)"),
    ],
)
def test_a_build_that_fails_says_why_now_and_later(cache, script, reason):
    pytest.importorskip("numba")
    if script is not None:
        cache(script)
    assert reason in build.build()
    assert build.built() is None
    assert reason in node.unavailable_reason()
    cache(WRITES)  # the compiler is put right
    assert build.build() is None
    assert build.unbuilt_reason() is None


def test_no_compiler(cache, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler is installed" in build.build()


def test_a_compiler_that_hangs(cache, monkeypatch):
    monkeypatch.setattr(build, "_PATIENCE", 0.1)
    cache("exec sleep 5")
    assert "took more than 0.1 s" in build.build()


def test_a_cache_that_cannot_be_written(cache, monkeypatch, tmp_path):
    cache(WRITES)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert "no cache folder can be written: set XDG_CACHE_HOME" in build.build()
    assert "not built yet" in build.unbuilt_reason()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert build.build() is None
    assert build.built().parents[1].parent == tmp_path


def test_builds_at_once_leave_one_whole_file(cache):
    cache(WRITES)
    results = []
    workers = [threading.Thread(target=lambda: results.append(build.build())) for _ in range(3)]
    for worker in workers:
        worker.start()
    while not (file := build.built()):
        time.sleep(0.002)
    assert file.read_bytes().startswith(b"whole\n")  # never a part of it
    for worker in workers:
        worker.join()
    assert results == [None] * 3
    assert os.listdir(file.parent) == [file.name]


def test_a_file_that_is_no_extension_is_not_fatal(cache):
    pytest.importorskip("numba")
    cache(WRITES)
    build.build()
    assert "cannot be loaded" in node.unavailable_reason()


def test_a_file_that_is_not_whole_is_as_good_as_none(cache):
    """The loader would map it, and the process die of reading past its end."""
    cache(WRITES)
    build.build()
    file, content = build.built(), build.built().read_bytes()
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        bytes(len(content)),
        content[:3] + b"?" + content[4:],
    ):
        file.write_bytes(damaged)
        assert build.built() is None
        assert "it is not built yet" in build.unbuilt_reason()
    assert build.build() is None
    assert build.built() == file


def test_another_torch_has_another_file(cache, monkeypatch):
    cache(WRITES)
    build.build()
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert build.built() is None
