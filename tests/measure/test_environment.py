from __future__ import annotations

import getpass
import json
import os
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

import meprop_bench
from meprop_bench.measure import procfs
from meprop_bench.measure.environment import NOT_IN_ID, collect, environment_id, machine_slug


@pytest.fixture(scope="module")
def here():
    return collect("cpu", "default")


@pytest.fixture
def system(system, monkeypatch):
    """On Linux."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    return system


def test_it_is_json_and_says_what_matters(here):
    assert json.loads(json.dumps(here, allow_nan=False)) == here
    assert here["torch"] == torch.__version__
    assert here["python"].endswith(platform.python_version())
    assert here["package_version"] == meprop_bench.__version__
    assert here["allocator"] == "default"
    assert here["torch_threads"] == torch.get_num_threads()
    assert here["cpu_usable_cores"] >= 1


def test_what_is_absent_is_null_with_a_reason(here):
    absent = {name for name, value in here.items() if value is None}
    assert absent == set(here["unavailable"])
    assert "gpu" in absent
    assert all("\n" not in reason for reason in here["unavailable"].values())


def test_nothing_names_the_machine_or_its_owner(here, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/secret/place/libjemalloc.so.2")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/secret/place")
    text = json.dumps(collect("cpu", "custom"))
    secrets = (platform.node(), str(Path.home()), str(Path.cwd()), sys.prefix, "secret", getpass.getuser() + "/")
    for secret in secrets:
        assert len(secret) < 4 or secret not in text
    assert "libjemalloc.so.2" in text


@pytest.mark.parametrize(("name", "value"), [("MEPROP_BENCH_GRADIENTS", "fresh"), ("MEPROP_BENCH_NODE", "python")])
def test_switches_of_the_package_make_another_environment(name, value, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    usual = collect("cpu", "default")
    monkeypatch.setenv(name, value)
    switched = collect("cpu", "default")
    assert name not in usual["variables"]
    assert switched["variables"][name] == value
    assert environment_id(switched) != environment_id(usual)


def test_a_failing_probe_costs_nothing_but_its_field(monkeypatch):
    def broken():
        raise PermissionError("/secret/path")

    monkeypatch.setattr(os, "getloadavg", broken)
    found = collect("cpu", "default")
    assert found["load_average"] is None
    assert found["unavailable"]["load_average"] == "PermissionError while reading it"


def test_the_id_ignores_the_weather_and_nothing_else(here):
    identity = environment_id(here)
    assert re.fullmatch("[0-9a-f]{12}", identity)
    assert environment_id(dict(reversed(here.items()))) == identity
    assert environment_id(json.loads(json.dumps(here))) == identity
    for name in here:
        assert (environment_id({**here, name: "something else"}) == identity) == (name in NOT_IN_ID)


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("AMD EPYC", "amd-epyc-4c"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-4c"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "intel-xeon-platinum-8375c-4c"),
        ("13th Gen Intel(R) Core(TM) i7-1370P", "intel-core-i7-1370p-4c"),
        ("../../etc", "etc-4c"),
    ],
)
def test_a_slug_is_a_safe_folder_name(system, monkeypatch, model, slug):
    monkeypatch.setattr(procfs, "usable_cores", lambda: 4)
    system("proc/cpuinfo", f"processor\t: 0\nmodel\t\t: 1\nmodel name\t: {model}\nflags\t\t: fpu\n")
    assert machine_slug() == slug


def test_a_slug_without_a_model_name_is_the_architecture(system, monkeypatch):
    monkeypatch.setattr(procfs, "usable_cores", lambda: 4)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    system("proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert machine_slug() == "aarch64-4c"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/gone", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        (
            {
                "proc/self/cgroup": "3:memory:/a\n2:cpu,cpuacct:/a\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({}, None),
    ],
)
def test_the_cpu_limit_of_control_groups(system, files, limit):
    for path, text in files.items():
        system(path, text)
    found = collect("cpu", "default")
    assert found["cpu_limit"] == limit
    assert ("cpu_limit" in found["unavailable"]) == (limit is None)


def test_caches_and_governor_are_read_from_the_kernel(system):
    for index, (level, kind, size) in enumerate([(1, "Data", "32K"), (1, "Instruction", "32K"), (2, "Unified", "1M")]):
        for name, text in (("level", str(level)), ("type", kind), ("size", size)):
            system(f"sys/devices/system/cpu/cpu0/cache/index{index}/{name}", text + "\n")
    system("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    found = collect("cpu", "default")
    assert found["cpu_caches"] == {"L1d": "32K", "L1i": "32K", "L2": "1M"}
    assert found["cpu_governor"] == "performance"


def test_the_revision_only_in_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(meprop_bench, "__file__", str(tmp_path / "site-packages/meprop_bench/__init__.py"))
    found = collect("cpu", "default")
    assert found["git_revision"] is None
    assert found["unavailable"]["git_revision"] == "not run from a checkout"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there():
    found = collect("cuda:0", "default")
    assert found["gpu"] is None
    assert found["unavailable"]["gpu"] == "torch finds no CUDA device"
