"""Where numbers come from: everything that makes two results incomparable, and nothing that names a machine's owner.

Results of different environments are never compared silently, so each row carries an `environment_id`: the first 12 hex
digits of a SHA-256 over the fields below, except those in `NOT_IN_ID`, which may differ between comparable results (the
revision of this project is what a comparison is *about*; the load and the clock's own cost are weather). Fields that
are null are left out of it, too, so that a probe which is added later leaves the ids of machines alone that do not have
what it looks for.

Reports are committed, so there is no host name, no user name, no path, no serial number in it. A field that cannot be
read is null, and `unavailable` says why, field by field. Collect in the worker process itself: the allocator and the
threads are properties of its environment. Files of the kernel are read directly (Linux); one subprocess, git, tells
the revision, and only in a checkout.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import meprop_bench
from meprop_bench.measure import affinity, procfs
from meprop_bench.measure.allocator import libc, preloaded
from meprop_bench.measure.clock import clock_for, overhead
from meprop_bench.measure.procfs import Unavailable, known, search
from meprop_bench.optional import installed

__all__ = [
    "NOT_IN_ID", "Unavailable", "collect", "environment_id", "git_revision", "hardware", "machine_of", "machine_slug",
]  # fmt: skip

NOT_IN_ID = frozenset({"package_version", "git_revision", "load_average", "clock_overhead_s", "unavailable"})

# Environment variables that change how fast things run; none of them holds a path.
_VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "OMP_SCHEDULE"),
    *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    *("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_CPU_NAME", "NUMBA_DISABLE_JIT"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "PYTHONMALLOC"),
    *("CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    *("MEPROP_BENCH_GRADIENTS", "MEPROP_BENCH_NODE"),
)


_OF_TORCH = frozenset({"cpu_capability", "torch", "blas", "openmp", "torch_threads"})
"""Fields that load it."""


def collect(device: str, allocator: str, *, torch: bool = True) -> dict[str, Any]:
    """Describe this process and its machine, as JSON values; the fields of a GPU are null for the device "cpu".

    Without `torch` what only that tells is left out, and it is not loaded.
    """
    probes: dict[str, Callable[[], Any]] = {
        "cpu_model": cpu_model,
        "cpu_physical_cores": lambda: known(
            import_module("psutil").cpu_count(logical=False), "the system does not tell"
        ),
        "cpu_logical_cores": lambda: known(os.cpu_count(), "the system does not tell"),
        "cpu_usable_cores": lambda: len(affinity.allowed()),
        "pinned_cores": affinity.bound,
        "cpu_limit": procfs.cpu_limit,
        "cpu_governor": procfs.governor,
        "cpu_boost": procfs.boost,
        "cpu_caches": procfs.caches,
        "cpu_capability": lambda: str(import_module("torch").backends.cpu.get_cpu_capability()),
        "memory_gib": _memory_gib,
        "transparent_huge_pages": lambda: search(
            r"\[(\w+)\]", procfs.read(procfs.SYS / "kernel/mm/transparent_hugepage/enabled")
        ),
        "os": lambda: f"{platform.system()} {platform.release()}",
        "architecture": platform.machine,
        "libc": lambda: known(libc(), "not glibc"),
        "python": lambda: f"{platform.python_implementation()} {platform.python_version()}",
        "torch": lambda: str(import_module("torch").__version__),
        **{name: partial(_version, name) for name in ("numpy", "numba", "triton")},
        "blas": _blas,
        "openmp": lambda: search(
            r"OpenMP \d+ \(a\.k\.a\. OpenMP ([\d.]+)\)",
            import_module("torch").__config__.show(),
            "torch is built without it",
        ),
        "variables": lambda: {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "preloaded_allocators": preloaded,
        "torch_threads": lambda: import_module("torch").get_num_threads(),
        "gpu": lambda: _gpu(device),
        "gpu_driver": lambda: _driver(device),
        "clock_source": lambda: procfs.read(procfs.SYS / "devices/system/clocksource/clocksource0/current_clocksource"),
        "clock_overhead_s": lambda: overhead(clock_for(device)),
        "load_average": lambda: [round(load, 2) for load in os.getloadavg()],
        "package_version": lambda: meprop_bench.__version__,
        "git_revision": git_revision,
    }
    if not torch:
        probes = {name: probe for name, probe in probes.items() if name not in _OF_TORCH}
    found, reasons = procfs.ask(probes)
    return {"device": device, "allocator": allocator, **found, "unavailable": reasons}


def environment_id(environment: Mapping[str, Any]) -> str:
    """Return 12 hex digits that are equal exactly for comparable environments."""
    relevant = {name: value for name, value in environment.items() if name not in NOT_IN_ID and value is not None}
    canonical = json.dumps(relevant, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def machine_slug(device: str = "cpu") -> str:
    """Return a name for folders, from the CPU and its usable cores or from the GPU: "amd-epyc-2c", "nvidia-h200"."""
    if device != "cpu":
        return _slug(str(_gpu(device)["name"]))
    try:
        model = cpu_model()
    except Unavailable:
        model = platform.machine() or "cpu"
    return f"{_slug(model)}-{procfs.usable_cores()}c"


def hardware() -> dict[str, Any]:
    """Return what tells this machine from others whose processor has the same name, as its caches; without torch."""

    def flags() -> str:
        found = search(r"^(?:flags|Features)\s*:\s*(.+)$", procfs.read(procfs.PROC / "cpuinfo"))
        return hashlib.sha256(" ".join(sorted(found.split())).encode()).hexdigest()[:12]

    probes: dict[str, Callable[[], Any]] = {
        "cpu_model": cpu_model,
        "cpu_usable_cores": procfs.usable_cores,
        "cpu_caches": procfs.caches,
        "cpu_flags": flags,
        "memory_gib": _memory_gib,
        "architecture": platform.machine,
    }
    return procfs.ask(probes)[0]


def machine_of(environment: Mapping[str, Any]) -> str:
    """Return what `machine_slug()` gave on the machine that an environment of `collect` describes."""
    model = environment.get("cpu_model") or environment.get("architecture") or "cpu"
    return f"{_slug(str(model))}-{environment.get('cpu_usable_cores') or 0}c"


def cpu_model() -> str:
    """Return the processor's name as the kernel or the system gives it."""
    if platform.system() == "Linux":
        text = procfs.read(procfs.PROC / "cpuinfo")
        for key in ("model name", "Model", "cpu model", "cpu"):
            with suppress(Unavailable):
                return search(rf"^{key}\s*:\s*(.+)$", text).strip()
        raise Unavailable("the kernel gives no model name")
    return known(platform.processor() or None, "the system gives no processor name")


def _memory_gib() -> float:
    """Return the memory; in bytes it changes with each start of the system."""
    return round(float(import_module("psutil").virtual_memory().total) / 2**30, 1)


def _slug(name: str) -> str:
    name = re.sub(r"\((R|TM|C)\)|@.*|\b\d+th Gen\b|\b(\w+-Core|CPU|Processor)\b", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "machine"


def _version(package: str) -> str:
    return known(installed(package), "not installed")


def _blas() -> str:
    text = import_module("torch").__config__.show()
    name = search(r"BLAS_INFO=(\w+)", text, "torch does not tell")
    release = re.search(r"Math Kernel Library Version ([\w.-]+)", text)
    return f"{name} {release[1]}" if release else name


def _gpu(device: str) -> dict[str, Any]:
    """Return the GPU's model and software; nothing that identifies the one card."""
    if device == "cpu":
        raise Unavailable("the device is the CPU")
    import torch

    if not torch.cuda.is_available():
        raise Unavailable("torch finds no CUDA device")
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _driver(device: str) -> str:
    if device == "cpu":
        raise Unavailable("the device is the CPU")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML: {error}") from None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def git_revision() -> str:
    """Return the checkout's commit, with "-dirty" when a tracked file differs from it."""
    root = Path(meprop_bench.__file__).resolve().parent.parent
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        raise Unavailable("not run from a checkout")
    command = ["git", "--no-optional-locks", "-C", str(root), "describe"]
    command += ["--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        raise Unavailable("git does not answer") from None
    if done.returncode != 0:
        raise Unavailable("git refuses to read the checkout")
    return done.stdout.strip()
