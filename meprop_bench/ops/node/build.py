"""Compile the node, once, at installation: one C++ file, by whatever compiler there is, into a cache.

    $XDG_CACHE_HOME/meprop-bench/node-<digest>/meprop_bench_node.so       the extension, and its own SHA-256 at the end
                                              /failure.txt                why there is none

The digest is of the source, the flags, torch's build and the interpreter, so an extension is only ever loaded into what
it was compiled for. It is written beside its place and then moved there: who reads finds all of it or nothing, however
many processes build at once. A file that a crash or a copy has left in part would end the process that maps it, hence
the sum at the end, which loaders do not look at; such a file is as good as none. Nothing but
`python -m meprop_bench.ops.kernels.native` builds: a compilation of half a minute in the middle of an import, or of a
measurement, would be worse than no node.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from meprop_bench.cache import places, writable

__all__ = ["MODULE", "build", "built", "compiler_command", "unbuilt_reason"]

MODULE = "meprop_bench_node"
_SOURCE = Path(__file__).with_name("module.cpp")
_HEADERS = tuple(sorted(_SOURCE.parent.glob("*.h")))
_FLAGS = ("-shared", "-fPIC", "-O2", "-std=c++20", "-w")
_LIBRARIES = ("torch_python", "torch", "torch_cpu", "c10")
_COMPILERS = ("c++", "g++", "clang++")
_PATIENCE = 600
"""Seconds that a compiler may take: half a minute on a machine that does nothing else."""
_HOW = "`python -m meprop_bench.ops.kernels.native` builds it"


def built() -> Path | None:
    """Return where the extension for this torch and this interpreter is, or None."""
    return next((file for folder in places(_name()) if _is_whole(file := folder / f"{MODULE}.so")), None)


def unbuilt_reason() -> str | None:
    """Say in one line why there is no extension, or None when there is one."""
    if built() is not None:
        return None
    for folder in places(_name()):
        with suppress(OSError, UnicodeError):
            return f"{(folder / 'failure.txt').read_text()}; {_HOW}"
    return f"it is not built yet: {_HOW}"


def compiler_command() -> list[str]:
    """Return the words that start the C++ compiler: CXX of the environment, or one that is installed, or none."""
    wanted = os.environ.get("CXX")
    if not wanted:
        return [name for name in _COMPILERS if shutil.which(name)][:1]
    try:
        return shlex.split(wanted)
    except ValueError:  # a quotation mark too few: no program has that name
        return [wanted]


def build() -> str | None:
    """Compile the extension unless it is there; return in one line why that failed, or None."""
    if built() is not None:
        return None
    folder = writable(_name())
    if folder is None:
        return "no cache folder can be written: set XDG_CACHE_HOME to one that can"
    try:
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            target = Path(beside) / f"{MODULE}.so"
            reason = _compile(target)
            if reason is None:
                content = target.read_bytes()
                target.write_bytes(content + hashlib.sha256(content).digest())
                os.replace(target, folder / target.name)
                return None
            note = Path(beside) / "failure.txt"
            note.write_text(reason)
            os.replace(note, folder / note.name)
            return reason
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"


def _is_whole(file: Path) -> bool:
    """Whether the extension is there as it was built."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


def _name() -> str:
    """Return the name of the folder that the extension for this torch and this interpreter belongs into."""
    parts = (torch.__version__, torch.version.git_version, sys.version, sysconfig.get_platform(), *_FLAGS, *_LIBRARIES)
    digest = hashlib.sha256("\0".join(map(str, parts)).encode())
    for file in (_SOURCE, *_HEADERS):
        digest.update(file.read_bytes())
    return f"node-{digest.hexdigest()[:16]}"


def _obstacle(compiler: list[str], headers: Path) -> str | None:
    """Say what there is to compile without, or None."""
    if sys.platform != "linux":
        return f"it is built on Linux, not on {sys.platform}"
    if not compiler:
        return f"no C++ compiler is installed ({', '.join(_COMPILERS)})"
    if not (headers / "Python.h").is_file():
        return f"Python's headers are not installed ({headers / 'Python.h'})"
    return None


def _compile(target: Path) -> str | None:
    """Compile to `target`; return why that failed, or None."""
    compiler = compiler_command()
    torch_root, headers = Path(torch.__file__).parent, Path(sysconfig.get_path("include"))
    if (reason := _obstacle(compiler, headers)) is not None:
        return reason
    command = [
        *compiler,
        *_FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-I{place}" for place in (torch_root / "include", torch_root / "include/torch/csrc/api/include", headers)),
        str(_SOURCE),
        *("-o", str(target)),
        f"-L{torch_root / 'lib'}",
        *(f"-l{library}" for library in _LIBRARIES),
    ]
    own = {**os.environ, "TMPDIR": str(target.parent)}  # a place that can be written, which /tmp need not be
    try:
        done = subprocess.run(
            command, env=own, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
    except OSError as error:
        return f"the C++ compiler {compiler[0]} cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"the C++ compiler {compiler[0]} took more than {_PATIENCE} s"
    if done.returncode == 0 and target.is_file():
        return None
    lines = done.stderr.splitlines() or [f"exit code {done.returncode}, nothing written"]
    return f"{compiler[0]} failed: {next((line for line in lines if 'error' in line), lines[0]).strip()}"
