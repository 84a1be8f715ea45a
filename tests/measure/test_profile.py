from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import pytest
import torch

from meprop_bench.measure import profile as profile_module
from meprop_bench.measure.profile import Node, Range, profile_ranges


def _find(node, name):
    return next(child for child in node.children if child.name == name)


def test_operators_below_their_ranges():
    a = torch.ones(64, 64, requires_grad=True)
    loss = (a @ a).sum()
    ranges = [
        Range("first", lambda: torch.linalg.norm(a.detach() @ a.detach())),
        Range("second", lambda: loss.backward(retain_graph=True)),
    ]
    first, second = profile_ranges(ranges, "cpu", rounds=3)
    assert (first.name, first.calls, second.name, second.calls) == ("first", 1, "second", 1)
    assert _find(first, "aten::matmul").calls == 1
    assert "aten::linalg_norm" not in [child.name for child in second.children]
    node = _find(second, "MmBackward0")  # the engine's call of it and the node itself are one
    assert _find(node, "aten::mm").calls == 2
    for tree in (first, second):
        assert 0 < sum(child.seconds for child in tree.children) <= tree.seconds


def test_what_comes_before_is_not_profiled():
    a, calls = torch.ones(8), []
    (tree,) = profile_ranges([Range("r", a.exp, lambda: calls.append(a.log()))], "cpu", rounds=2)
    assert [child.name for child in tree.children] == ["aten::exp"]
    assert len(calls) == 3  # one for the profiler that starts the library


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_the_trace_holds_the_ranges(tmp_path, suffix):
    trace = tmp_path / f"t{suffix}"
    profile_ranges([Range("dense backward", lambda: torch.ones(3).exp())], "cpu", rounds=2, trace=trace)
    data = gzip.decompress(trace.read_bytes()) if suffix.endswith("gz") else trace.read_bytes()
    names = [event.get("name") for event in json.loads(data)["traceEvents"]]
    assert names.count("dense backward") == 2
    assert "aten::exp" in names


def test_at_least_one_round():
    with pytest.raises(ValueError, match="at least 1"):
        profile_ranges([], "cpu", rounds=0)


def _event(name, start, end, *, own, parent=None, kernels=(), device="CPU"):
    """What torch.profiler gives for an event, as far as it is read; times in microseconds."""
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(
        name=name, time_range=span, self_cpu_time_total=own, cpu_parent=parent,
        device_type=SimpleNamespace(name=device),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
    )  # fmt: skip


def test_a_gpus_kernels_and_its_backward_thread():
    """On a GPU, autograd's thread is another one: its events have no parent, and belong to the range by their time."""
    phase = _event("step", 0, 100, own=10)
    top = _event("autograd::engine::evaluate_function: MmBackward0", 10, 90, own=5)
    node = _event("MmBackward0", 11, 89, own=5, parent=top)
    product = _event("aten::mm", 20, 80, own=60, parent=node, kernels=[("gemm", 300.0), ("gemm", 100.0)])
    outside = _event("aten::mm", 200, 300, own=100, kernels=[("gemm", 9.0)])
    mirrored = _event("step", 0, 400, own=0, device="CUDA")
    tree = profile_module._tree("step", [phase, top, node, product, outside, mirrored])
    assert (tree.seconds, tree.device_s) == (pytest.approx(100e-6), pytest.approx(400e-6))
    found = _find(tree, "MmBackward0")
    assert (found.calls, found.seconds) == (1, pytest.approx(70e-6))
    kernel = _find(_find(found, "aten::mm"), "kernel gemm")
    assert (kernel.calls, kernel.device_s, kernel.seconds) == (2, pytest.approx(400e-6), 0)


def test_small_operators_are_told_together_and_calls_are_means():
    events = []
    for round_ in range(2):
        start = 1000 * round_
        phase = _event("r", start, start + 500, own=0)
        names = ["aten::big", *[f"aten::small{i}" for i in range(3 + round_)]]
        events += [phase]
        events += [
            _event(n, start + i, start + i + 1, own=400 if i == 0 else 1, parent=phase) for i, n in enumerate(names)
        ]
    tree = profile_module._tree("r", events)
    assert [child.name for child in tree.children] == ["aten::big", "4 others"]
    others = tree.children[1]
    assert (others.calls, others.seconds) == (3.5, pytest.approx(3.5e-6))


def test_a_range_that_never_ran_is_empty():
    assert profile_module._tree("r", []) == Node("r", 0.0, 0.0)


def test_trees_survive_json():
    tree = Node("a", 1.0, 2.0, 0.5, (Node("b", 0.5, 1.0), Node("c", 0.25, 1.0, 0.1)))
    assert Node.from_json(json.loads(json.dumps(tree.to_json()))) == tree
