"""The environment that a revision of a project runs in: made by the project's own commands, kept by its lock files.

    install   makes an environment, a fresh one of this interpreter: what the project depends on
    build     builds and installs the revision itself in it, each time

    ~/.cache/meprop-bench/environments/1a2b3c4d5e6f     kept while the command, the interpreter and the files of `lock`
                                                        are the same: base and head then mostly share it
    ~/.cache/meprop-bench/gate/slot-0/base-environment  this run's alone, removed with its revision

What is shared must not hold the revision itself, or base and head would be one code (`revisions` refuses that). Hence
two commands. `build` installs into an environment of its own, which lies over the shared one:
what it does not have is found there. Without `lock` nothing is known of what a command depends on, so `install` runs
each time, and may install anything. Without `install`, `build` lies over the gate's own environment.

A command is a line for `sh`, in the revision's folder, with the environment's programs first on the path. That it fails
is a result: in the head alone it has broken something.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import meprop_bench
from meprop_bench.cache import writable
from meprop_bench.errors import UserError
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.worktree import Checkout, Project
from meprop_bench.results.redact import one_line
from meprop_bench.sweep.project import BORROWED

__all__ = ["InstallError", "installed", "kept_folder", "worker_environment"]

_KEPT_S = 30 * 24 * 3600
"""Seconds after which an environment that nobody used is removed."""
_COMPLETE = "complete"


_OF_ANOTHER = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_TARGET", "PIP_PREFIX",
               "PIP_USER")  # fmt: skip
"""Variables by which a command would install elsewhere, or find what is not in its environment."""

_ERROR = re.compile(r"(?i)error: ")
_LAST = 12
"""Lines of what a command that failed printed, which are shown."""


class InstallError(Exception):
    """A revision cannot be installed: why, in one line, and the end of what the command printed."""

    def __init__(self, reason: str, tail: str = "") -> None:
        super().__init__(reason)
        self.tail = tail


def installed(checkout: Checkout, settings: Settings, *, cache: Path | None = None) -> Checkout:
    """Return a revision of a project with the interpreter of its environment.

    Environments that are kept are in `cache`, by default the user's.

    Raises:
        InstallError: a command failed.
        UserError: `lock` without `install`, or no environment can be made here at all.

    """
    assert checkout.project is not None
    path = tuple(str(folder) for name in settings.path if (folder := checkout.folder / name).is_dir())
    project = replace(checkout.project, path=path)
    if settings.lock and not settings.install:
        raise UserError("lock in [tool.meprop-bench.gate] is of what install works from: name that command")
    if not (settings.install or settings.build):
        return replace(checkout, project=project)
    shared: Path | None = None
    if settings.install and settings.lock:
        shared = _kept(checkout, settings, cache or kept_folder())
    elif settings.install:
        shared = project.slot / f"{checkout.side}-environment"
        _make(shared, pip=True)
        _run(settings.install, "install", checkout.folder, [shared])
    environment = shared
    if settings.build:
        environment = project.slot / f"{checkout.side}-build"
        _make(environment, pip=False)
        _lay_over(environment, _packages_of_gate() if shared is None else [_packages_of(shared)])
        _run(settings.build, "build", checkout.folder, [environment, *([shared] if shared else [])])
    assert environment is not None
    return replace(checkout, project=replace(project, python=environment / "bin/python"))


def worker_environment(project: Project, *, borrows: bool) -> dict[str, str | None]:
    """Return the variables of a process in a project's own environment.

    It finds this package, and nothing else of the gate's; a process that `borrows` finds there what the environment
    has not, as it needs torch, NumPy and so on of this package's own.
    """
    assert project.python is not None
    folder = project.slot / "package"
    folder.mkdir(exist_ok=True)
    link = folder / "meprop_bench"
    if not link.is_symlink():
        link.symlink_to(Path(meprop_bench.__file__).parent)
    environment = project.python.parents[1]
    return {
        **dict.fromkeys(_OF_ANOTHER),
        "PATH": os.pathsep.join([str(project.python.parent), os.environ.get("PATH", "")]),
        "VIRTUAL_ENV": str(environment),
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": str(folder),
        BORROWED: os.pathsep.join(_packages_of_gate()) if borrows else None,
    }


def kept_folder() -> Path:
    """Return where environments are kept."""
    folder = writable("environments")
    if folder is None:
        raise UserError("no folder can be written for the environments: set XDG_CACHE_HOME to one that can")
    return folder


def _kept(checkout: Checkout, settings: Settings, cache: Path) -> Path:
    """Return the environment of these lock files; make it where there is none."""
    _forget(cache)
    files = [(name, _digest(checkout.folder / name)) for name in settings.lock]
    if not any(digest for _, digest in files):
        raise InstallError(f"there is no {' or '.join(settings.lock)}, which lock in [tool.meprop-bench.gate] names")
    what = [settings.install, sys.version, os.path.realpath(sys.executable), platform.machine(), files]
    folder = cache / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    complete = folder / _COMPLETE
    with _alone(cache / f"{folder.name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                _make(folder, pip=True)
                _run(settings.install, "install", checkout.folder, [folder])
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        complete.touch()  # and so it is known when it was used last
    return folder


def _forget(cache: Path) -> None:
    """Remove environments that nobody has used for long, and what is left of one that was never completed."""
    for lock in cache.glob("*.lock"):
        folder = lock.with_suffix("")
        complete = folder / _COMPLETE
        with suppress(OSError), _alone(lock, wait=False):
            if not complete.exists() or time.time() - complete.stat().st_mtime > _KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)


@contextmanager
def _alone(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file; `OSError` where it is held by another process and not waited for."""
    import fcntl  # this instrument measures on POSIX systems only

    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if lock.exists() and os.path.samestat(os.fstat(file), os.stat(lock)):  # nobody removed it meanwhile
                yield
                return
        finally:
            os.close(file)


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _make(folder: Path, *, pip: bool) -> None:
    """Make an empty environment of this interpreter."""
    command = [sys.executable, "-m", "venv", *([] if pip else ["--without-pip"]), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = _lines(done.stdout + done.stderr)[-1:] or [f"status {done.returncode}"]
        raise UserError(f"python -m venv cannot make an environment: {one_line(last[0])}")
    # What a process borrows comes behind all else: a line for `site`, which reads these files last of all.
    line = f"import os, sys; sys.path.extend(filter(None, os.environ.get('{BORROWED}', '').split(os.pathsep)))\n"
    (Path(_packages_of(folder)) / "zz-meprop-bench.pth").write_text(line)


def _lay_over(folder: Path, packages: Sequence[str]) -> None:
    """Have an environment find what it has not in these folders; `pip` without one of its own is theirs."""
    lines = "".join(f"import site; site.addsitedir({place!r})\n" for place in packages)
    (Path(_packages_of(folder)) / "under-meprop-bench.pth").write_text(lines)
    for name in ("pip", "pip3"):
        script = folder / "bin" / name
        # The program of the environment below would install there, which both revisions may share.
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m pip "$@"\n')
        script.chmod(0o755)


def _packages_of(environment: Path) -> str:
    return sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)})


def _packages_of_gate() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _run(command: str, key: str, folder: Path, environments: Sequence[Path]) -> None:
    """Run a command of the settings, with the first of these environments active."""
    programs = [str(environment / "bin") for environment in environments]
    active = {
        "VIRTUAL_ENV": str(environments[0]),
        "PATH": os.pathsep.join([*programs, os.environ.get("PATH", "")]),
        "PYTHONNOUSERSITE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in _OF_ANOTHER} | active,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate()
    except BaseException:  # Ctrl-C, which does not reach a session of its own
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        lines = _lines(printed)
        # A compiler's last lines are a picture of the place.
        told = next((line for line in reversed(lines) if _ERROR.search(line)), lines[-1] if lines else "")
        said = f": {one_line(told)}" if told else ""
        ended = f"{key} ({command}) ended with status {process.returncode}{said}"
        raise InstallError(ended, "\n".join(lines[-_LAST:]))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]
