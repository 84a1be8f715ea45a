from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure import allocator

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

# Allocates, touches and frees 64 MiB twice, and prints the page faults of the second round.
_FAULTS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
round()
print(round())
"""


def started_with(name: str, threads: int = 1) -> dict[str, str]:
    merged = {**os.environ, **allocator.environment_of(name, threads)}
    return {key: value for key, value in merged.items() if value is not None}


@glibc
def test_kept_memory_is_handed_out_again_without_page_faults():
    def faults(name):
        output = subprocess.run(
            [sys.executable, "-c", _FAULTS], env=started_with(name), capture_output=True, text=True, check=True
        )
        return int(output.stdout)

    assert faults("kept") < 100
    assert faults("default") > 10  # 16384 of 4 KiB, or 32 where the system always gives huge pages


@glibc
@pytest.mark.parametrize("name", ["default", "kept"])
def test_a_process_knows_what_it_was_started_with(name, monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")  # left over from elsewhere: replaced, or removed
    assert allocator.current() == "custom"
    environment = started_with(name)
    for key in [key for key in os.environ if key.startswith("MALLOC_")]:
        monkeypatch.delenv(key)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert allocator.current() == name


def test_threads_reach_every_library():
    environment = allocator.environment_of("default", 2)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "2"
    assert environment["MALLOC_MMAP_MAX_"] is None
    with pytest.raises(ValueError, match="0"):
        allocator.environment_of("default", 0)


def test_an_unknown_allocator_lists_the_choices():
    with pytest.raises(UserError, match=r"'jemalloc'.*default, kept, huge-pages"):
        allocator.environment_of("jemalloc", 1)


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_kept_needs_glibc(monkeypatch, error):
    def confstr(name):
        raise error(name)

    monkeypatch.setattr(os, "confstr", confstr)
    with pytest.raises(UserError, match=r"'kept' is not available.*another C library"):
        allocator.environment_of("kept", 1)
    allocator.environment_of("default", 1)


def test_kept_needs_glibcs_own_malloc(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/opt/lib/libjemalloc.so.2 /opt/lib/other.so")
    assert allocator.current() == "custom"
    with pytest.raises(UserError, match=r"by libjemalloc\.so\.2;"):
        allocator.environment_of("kept", 1)


@pytest.mark.parametrize(
    ("choices", "available"), [("always [madvise] never", True), ("always madvise [never]", False)]
)
def test_huge_pages_ask_the_kernel(monkeypatch, tmp_path, choices, available):
    file = tmp_path / "enabled"
    file.write_text(choices)
    monkeypatch.setattr(allocator, "_HUGE_PAGES", file)
    assert (allocator.unavailable_reason("huge-pages") is None) == available
    monkeypatch.setattr(allocator, "_HUGE_PAGES", tmp_path / "absent")
    assert allocator.unavailable_reason("huge-pages") is not None
