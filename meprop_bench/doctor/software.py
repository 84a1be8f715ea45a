"""What is installed, what is missing and which extra brings it; compiled kernels; devices and meters; data sets.

Versions come from the installed distributions and extras from this package's own metadata, so that nothing here can
disagree with pyproject.toml. Devices are asked as a measurement asks them (`measure.sampler`), for a tenth of a second:
what is not there has its reason, and none of it is needed.

    C++ node         of a layer in autograd's graph: built once by a compiler, else Python's slower one is used
    kernels' cache   Numba compiles for half a minute once; every later process loads the code from the cache. A
                     measuring process that had to write files into it found it cold.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from meprop_bench.cache import places, user_cache, writable
from meprop_bench.data.content import condition
from meprop_bench.data.sources import SOURCES, data_folder
from meprop_bench.doctor.check_result import CheckResult, State
from meprop_bench.errors import UserError
from meprop_bench.measure.host import Rapl
from meprop_bench.measure.nvml import Nvml
from meprop_bench.measure.sampler import Sampler, SampleSource, SampleSummary
from meprop_bench.optional import installed

__all__ = ["compiled", "data_sets", "devices", "kernels", "node", "software"]

_OPTIONAL = {
    "kernels": ("numba",),
    "report": ("matplotlib", "jinja2"),
    "digits": ("scikit-learn",),
    "GPU kernels": ("triton",),
    "suites": ("asv", "pytest-benchmark"),
    "export": ("onnx",),
}
"""What is optional, by what it is for -> the distributions."""

_found = partial(CheckResult, "software")

_ANSWER_S = 10.0
"""Seconds for a compiler to say which one it is."""

_COMPILE = "run `python -m meprop_bench.ops.kernels.native` once (about half a minute)"


def software(environment: Mapping[str, Any]) -> list[CheckResult]:
    """Say which torch this is, by `measure.environment.collect`, and which optional parts are here."""
    if environment["torch"] is None:
        reason = environment["unavailable"].get("torch", "it cannot be imported")
        found = [_found("torch", "problem", reason, "reinstall torch: pip install 'torch>=2.11'")]
    else:
        parts = [environment[name] for name in ("torch", "blas", "cpu_capability") if environment[name]]
        openmp = f"OpenMP {environment['openmp']}" if environment["openmp"] else "no OpenMP"
        found = [_found("torch", "ok", ", ".join([*parts, openmp]))]
    return found + [_optional(check, names) for check, names in _OPTIONAL.items()]


def node() -> list[CheckResult]:
    """Say whether layers use autograd's node in C++, or why not, and which compiler could build it."""
    try:
        from meprop_bench.ops.node import unavailable_reason
        from meprop_bench.ops.node.build import compiler_command
    except ImportError:  # torch; `software` says so
        return []
    if (reason := unavailable_reason()) is None:
        found = _found(
            "C++ node", "ok", "in use: linear and convolutional layers bypass Python, as an LSTM's forward pass does"
        )
    else:
        found = _found("C++ node", "note", f"not in use, Python's is: {' '.join(reason.split())}")
    return [found, _compiler(compiler_command())]


def _compiler(command: Sequence[str]) -> CheckResult:
    if not command:
        return _found("compiler", "note", "no C++ compiler: it is needed for the C++ node, and only once")
    name = " ".join(command)
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "it does not answer"
        return _found("compiler", "warning", f"{name} cannot be run: {reason}", "set CXX, or unset it")
    first = next((line.strip() for line in done.stdout.splitlines() if line.strip()), f"exit code {done.returncode}")
    return _found("compiler", "ok" if done.returncode == 0 else "warning", f"{name}: {first}")


def compiled() -> frozenset[str]:
    """Return the names of the compiled kernels in the cache, of all versions of the sources."""
    return frozenset(str(file) for folder in places() for file in folder.glob("numba-*/**/*.nb?"))


def kernels(before: frozenset[str], after: frozenset[str], *, loaded: bool) -> CheckResult | None:
    """Judge the compiled kernels and their cache; None without Numba, which compiles them.

    `before` and `after` a measuring process was started, which `loaded` all kernels, or not.
    """
    try:
        from meprop_bench.ops.kernels.compiled import load, unavailable_reason
    except ImportError:  # torch; `software` says so
        reason = ""
    else:
        if loaded:  # what is in the cache then is tried
            load("meprop_bench.ops.kernels.native")
        reason = unavailable_reason() or ""
    if reason and "is not installed" not in reason:
        text = f"{reason}; layers run on torch's operators, several times slower"
        advice = "" if "unset" in reason else "pip install --force-reinstall 'meprop-bench[cpu]'"
        return _found("native kernels", "warning", text, advice)
    return None if installed("numba") is None else _found("kernel cache", *_cache(before, after, loaded))


def _cache(before: frozenset[str], after: frozenset[str], loaded: bool) -> tuple[State, str, str]:
    """Return state, text and advice."""
    folder, user = writable(), user_cache()
    if folder is None:
        advice = "set XDG_CACHE_HOME to a folder that can be written: every process compiles for half a minute now"
        return "warning", f"{user or 'no folder'} cannot be written", advice
    if folder != user:
        text = f"{user} cannot be written" if user else "there is no home directory"
        advice = "set XDG_CACHE_HOME to a folder that can be written and that lasts"
        return "warning", f"{text}, so it is in {folder}", advice
    if not after:
        return "warning", f"nothing is compiled yet in {folder}", _COMPILE
    if fresh := len(after - before):
        return "warning", f"was cold: {fresh} files were written now", _COMPILE
    tried = f"warm: nothing had to be compiled, in {folder}" if loaded else f"{len(after)} files in {folder}, not tried"
    return "ok", tried, ""


def devices() -> list[CheckResult]:
    """Say which devices and meters there are, and why the others are not."""
    cuda = _cuda()
    there = cuda.state == "ok"
    # Without CUDA there is no properties of torch's to find a card by: what is left is whether NVML answers.
    sources: list[SampleSource] = [Rapl(), Nvml("cuda:0", properties=None if there else object())]
    with Sampler(sources) as sampler:
        time.sleep(0.1)
    found = sampler.summary
    return [
        cuda,
        _meter("NVML", found, Nvml.fields[0], "utilisation, clocks and power of the GPU"),
        _meter("GPM", found, "sm_utilization", "the GPU's own counters of utilisation"),
        _meter("RAPL", found, "cpu_energy_j", "the CPU's energy"),
    ]


def _cuda() -> CheckResult:
    found = partial(CheckResult, "devices", "CUDA")
    try:
        import torch
    except ImportError:
        return found("note", "torch cannot be imported")
    release = torch.version.cuda
    if release is None:
        return found("note", "absent: this torch is built without CUDA")
    if not torch.cuda.is_available():
        return found("note", f"absent: torch, built for CUDA {release}, finds no device")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found("ok", f"CUDA {release}: {', '.join(names)}")


def _meter(check: str, found: SampleSummary, field: str, what: str) -> CheckResult:
    if field in found.values:
        return CheckResult("devices", check, "ok", what)
    return CheckResult("devices", check, "note", f"absent: {found.unavailable.get(field, 'not read')}")


def data_sets(*, thorough: bool) -> list[CheckResult]:
    """Look at every data set; `thorough` hashes every file (half a second for MNIST), else sizes are compared.

    One that is not here is a note: the digits of scikit-learn stand in for it. One that is damaged is a problem, since
    a sweep over it is refused (`sweep.feasible`), and better now than then.
    """
    try:
        folder = data_folder()
    except UserError as error:
        return [CheckResult("data", "folder", "problem", str(error))]
    findings = []
    for source in SOURCES.values():
        state, lines = condition(folder, source, thorough=thorough)
        how = "verified by SHA-256" if thorough else "of the published size"
        graded: dict[str, tuple[State, str]] = {
            "present": ("ok", f"{how}, {source.size / 1e6:.1f} MB in {folder / source.name}"),
            "damaged": ("problem", "; ".join(lines)),
            "incomplete": ("warning", f"{'; '.join(lines)}; so it is not used"),
            "missing": ("note", f"not here ({folder})"),
        }
        advice = "" if state == "present" else f"meprop-bench data fetch {source.name}"
        findings.append(CheckResult("data", source.name, *graded[state], advice))
    return findings


def _optional(check: str, names: Sequence[str]) -> CheckResult:
    releases = {name: installed(name) for name in names}
    text = ", ".join(f"{name} {release or 'not installed'}" for name, release in releases.items())
    if not (missing := [name for name, release in releases.items() if release is None]):
        return _found(check, "ok", text)
    extras = list(dict.fromkeys(_extras().get(name, "") for name in missing))
    wanted = [f"'meprop-bench[{','.join(extras)}]'"] if all(extras) else missing
    return _found(check, "note", text, f"pip install {' '.join(wanted)}")


@cache
def _extras() -> dict[str, str]:
    """Return distribution -> the extra of this package that brings it."""
    try:
        lines = requires("meprop-bench") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
        return {}
    pairs = (re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line) for line in lines)
    found = [(pair[1].lower(), pair[2]) for pair in pairs if pair is not None]
    return dict(reversed(found))  # the first extra that names it is the narrowest
