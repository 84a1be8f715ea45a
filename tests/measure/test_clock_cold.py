from __future__ import annotations

import os

import pytest
import torch

from meprop_bench.measure import procfs
from meprop_bench.measure.clock import ColdClock, evictor


def test_each_call_is_preceded_by_an_eviction_that_is_not_timed(clock):
    order = []

    def evict():
        order.append("evict")
        clock.advance(100.0)

    def fn():
        order.append("call")
        clock.advance(0.25)

    cold = ColdClock(clock, evict)
    assert cold.time(fn, 3) == 0.25
    assert order == ["evict", "call"] * 3
    assert cold.now() == clock.now()
    cold.synchronize()


def test_a_round_of_phases_begins_cold_and_goes_on_warm(clock):
    order = []

    def phase(name, seconds):
        return lambda: (order.append(name), clock.advance(seconds))

    cold = ColdClock(clock, phase("evict", 8.0))
    assert cold.time_phases({"forward": phase("f", 1.0), "backward": phase("b", 2.0)}, 2) == {
        "forward": 1.0,
        "backward": 2.0,
    }
    assert order == ["evict", "f", "b"] * 2
    with pytest.raises(ValueError, match="loops"):
        cold.time(lambda: None, 0)


def _cache(root, core, index, level, kind, size, shared):
    folder = root / f"devices/system/cpu/cpu{core}/cache/index{index}"
    folder.mkdir(parents=True)
    for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
        (folder / name).write_text(f"{text}\n")


def test_the_buffer_is_larger_than_all_last_level_caches(monkeypatch, tmp_path):
    """Four cores, two complexes with a cache of 128 KiB each."""
    monkeypatch.setattr(procfs, "SYS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for core in range(4):
        _cache(tmp_path, core, 0, 1, "Data", "32K", core)
        _cache(tmp_path, core, 1, 2, "Unified", "128K", "0-1" if core < 2 else "2-3")
    assert procfs.last_level_cache() == (128 * 1024, 2)
    before = torch.ones(1)
    swept = evictor("cpu")()
    assert swept.numel() * swept.element_size() == 4 * 2 * 128 * 1024
    assert torch.equal(before, torch.ones(1))


def test_a_buffer_without_knowledge_of_the_caches(monkeypatch, tmp_path):
    monkeypatch.setattr(procfs, "SYS", tmp_path)
    assert evictor("cpu")().nbytes == 128 << 20


def test_the_gpu_s_buffer_has_twice_its_cache(monkeypatch):
    class Properties:
        L2_cache_size = 1 << 20

    real = torch.empty
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: real(size, dtype=dtype))
    assert evictor("cuda:0")().nbytes == 2 << 20
