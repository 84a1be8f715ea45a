"""Revisions of a repository side by side, each in a folder of its own; the user's tree is only ever read.

    with work_trees(repository, base="origin/main", head=None) as (base, head):
        base.folder / "meprop_bench"        the package as that revision has it
        head.folder / "meprop_bench"        a snapshot of the user's own files, uncommitted ones included

`git worktree add` writes into the repository (a registration, a lock, perhaps a hook's doings), which fails in a
read-only one and stays behind when it is killed. Here git reads the revision into an index of ours and writes that
index's files into a folder of ours (`read-tree`, `checkout-index`), in a read-only, shallow, bare, detached or dirty
repository alike. Of this package's own repository only the package is written out, of any other project all that git
has; submodules are not, and files of Git LFS stay pointers, which a note says.

Uncommitted changes as the head are *copied* first, tracked files and new ones that git does not ignore: an editor may
save while the gate measures, and a process that starts later must find the same code.

The folders lie in numbered slots of the user's cache:

    ~/.cache/meprop-bench/gate/slot-0.lock    locked while a gate uses the slot; the kernel lets go when it is killed
    ~/.cache/meprop-bench/gate/slot-0/base    a slot that nobody locks is stale, and is removed at the next start

Why not a new random name each time: Numba finds compiled code again by the source's path and time, and compiling takes
half a minute for each side. So the paths are the same in each run, and all files get the same time of change.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from meprop_bench.cache import writable
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.interrupt import interruptible

__all__ = ["PACKAGE", "Checkout", "Project", "cache_folder", "linked", "repository_of", "work_trees"]

PACKAGE = "meprop_bench"
"""What is taken from a revision."""

_WORKER = f"{PACKAGE}/sweep/worker.py"
_MTIME = 1_000_000_000
"""Time of change of all files, in seconds: any constant will do."""
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH

_OF_ONE_REPOSITORY = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
)
"""Set in a hook that calls us, for the repository that it is a hook of."""

_FILTERED = b"filter=lfs"

_SLOTS = 64
_PATIENCE_S = 300


@dataclass(frozen=True)
class Checkout:
    """One revision, ready to be run."""

    side: str  # "base" or "head"
    name: str  # as the user said it, with its hash: "main (1a2b3c4d5e6f)"; a snapshot says so
    commit: str | None  # the full hash; of a snapshot, of the commit that it stands on, None before the first one
    folder: Path  # holds the package; of a project of its own, the folder in which the gate was started
    notes: tuple[str, ...] = ()  # what a reader should know, one line each
    changed: bool = False  # its files are not those of the commit alone
    project: Project | None = None  # of a project of its own
    draw: int = 0  # of Python's hashes and of addresses in its processes, from 0 to 2**32 - 1

    @property
    def modules(self) -> list[str]:
        """Names that a project's modules are imported by, as far as its folders show them."""
        assert self.project is not None
        names = set()
        for folder in {self.folder, self.folder / "src", *map(Path, self.project.path)}:
            for entry in folder.iterdir() if folder.is_dir() else ():
                if (entry / "__init__.py").is_file() or entry.suffix in (".py", ".so", ".pyd"):
                    names.add(entry.name.partition(".")[0])
        return sorted(names - sys.stdlib_module_names)

    def owns(self, file: Path) -> bool:
        """Whether a file is this revision's: of its checkout, or of an environment that was made for it alone."""
        assert self.project is not None
        slot = self.project.slot.resolve()
        return file.resolve().is_relative_to(slot) and file.resolve().relative_to(slot).parts[0] in (
            self.side,
            *(f"{self.side}-{kind}" for kind in ("environment", "build")),
        )


@dataclass(frozen=True)
class Project:
    """A project of its own, as one revision of it is run."""

    source: Path  # the user's own folder, which nothing may be imported from
    slot: Path  # folder of this run: what begins with the side's name in it is this revision's alone
    path: tuple[str, ...] = ()  # folders of the checkout that its modules are found in
    python: Path | None = None  # the interpreter of its own environment; None: the gate's


def repository_of(folder: Path) -> Path:
    """Return the root of the work tree that a folder lies in; `UserError` without git, or a repository."""
    found = _git(folder, "rev-parse", "--show-toplevel", check=False)
    if found.returncode == 0 and (root := found.stdout.rstrip("\n")):
        return Path(root)
    reason = _last_line(found.stderr)
    if "not a git repository" in reason:
        raise UserError(f"{folder} is not in a git repository: run this inside one, or compare files with --baseline")
    raise UserError(f"git cannot read the repository of {folder}: {reason or 'it has no work tree'}")


@contextmanager
def work_trees(
    repository: Path, base: str, head: str | None, *, project: Path | None = None, cache: Path | None = None
) -> Iterator[tuple[Checkout, Checkout]]:
    """Write both revisions out, and remove them whatever happens: an error, Ctrl-C or SIGTERM.

    Without a `head` it is the work tree as it is now, uncommitted changes included. `project` is the folder in the
    repository of a project of its own, all of which is written out; None: the package alone. The slots are in `cache`,
    by default the user's.

    Raises:
        UserError: an unknown revision (exit code 2), or one without the package (3 for the base, 2 for the head).

    """
    within = None if project is None else project.resolve().relative_to(repository.resolve())
    commits = [_commit(repository, revision) for revision in (base, head) if revision is not None]
    with interruptible(), _slot(cache or cache_folder()) as slot:
        first = _checkout(repository, "base", base, commits[0], slot, within)
        if head is None:
            yield first, _snapshot(repository, slot, within)
        else:
            yield first, _checkout(repository, "head", head, commits[1], slot, within)


def cache_folder() -> Path:
    """Return where the slots are: in the user's cache, or among the temporary files where none can be written."""
    folder = writable("gate")
    if folder is None:
        raise UserError("no folder can be written for the revisions: set XDG_CACHE_HOME to one that can")
    return folder


def _commit(repository: Path, revision: str) -> str:
    """Return the hash of a revision."""
    if revision.startswith("-") or not revision.strip():
        raise UserError(f"unknown revision {revision!r}: name a branch, a tag or a commit")
    found = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False)
    if found.returncode == 0:
        return found.stdout.strip()
    if _git(repository, "rev-parse", "--is-shallow-repository", check=False).stdout.strip() == "true":
        raise UserError(
            f"the revision {revision!r} is not in this shallow clone: {_deepen(revision)}"
            " (actions/checkout: fetch-depth: 0)"
        )
    refs = _git(repository, "for-each-ref", "--format=%(refname:short)", check=False).stdout.split()
    close = difflib.get_close_matches(revision, refs, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "name a branch, a tag or a commit of this repository"
    raise UserError(f"unknown revision {revision!r}: {hint}")


def _deepen(revision: str) -> str:
    """Say how a shallow clone gets a revision."""
    if steps := re.fullmatch(r"(?:HEAD|@)((?:~\d*|\^)+)", revision):
        depth = 1 + sum(int(count or 1) for count in re.findall(r"[~^](\d*)", steps[1]))
        return f"git fetch --depth={depth}"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return f"git fetch --depth=1 origin {revision}"
    name = re.sub(r"^(refs/)?(remotes/)?origin/", "", revision)
    if re.fullmatch(r"[0-9a-f]{7,39}", revision) or re.search(r"[~^@:]", name):
        return "git fetch --unshallow"
    return f"git fetch --depth=1 origin {name}:refs/remotes/origin/{name}, and then --base origin/{name}"


def _checkout(repository: Path, side: str, revision: str, commit: str, slot: Path, within: Path | None) -> Checkout:
    folder = slot / side
    folder.mkdir()
    own = {
        "GIT_DIR": _git(repository, "rev-parse", "--absolute-git-dir").stdout.rstrip("\n"),
        "GIT_WORK_TREE": str(folder),
        "GIT_INDEX_FILE": str(slot / f"{side}.index"),
    }
    _git(folder, "read-tree", commit, env=own)
    files = _git(folder, "ls-files", "-z", "--", *_taken(within), env=own).stdout
    _git(folder, "checkout-index", "--force", "-z", "--stdin", env=own, stdin=files)
    name = f"{revision} ({commit[:12]})"
    notes = _settle(folder, side, name, within)
    return _as_project(Checkout(side, name, commit, folder, notes), repository, within)


def _taken(within: Path | None) -> tuple[str, ...]:
    """Return what is taken from a revision: the package, or all."""
    return (PACKAGE,) if within is None else (".",)


def _as_project(checkout: Checkout, repository: Path, within: Path | None) -> Checkout:
    if within is None:
        return checkout
    folder = checkout.folder / within
    folder.mkdir(parents=True, exist_ok=True)  # the project may be younger than the base
    return replace(checkout, folder=folder, project=Project(repository / within, checkout.folder.parent))


def _snapshot(repository: Path, slot: Path, within: Path | None) -> Checkout:
    """Copy the files of the work tree that git knows, or would if they were added."""
    folder = slot / "head"
    folder.mkdir()
    what = _taken(within)
    listed = _git(
        repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", *what
    ).stdout
    plain = {repository, *repository.parents}  # folders that are no links, or above the repository
    for name in filter(None, listed.split("\0")):
        source, target = repository / name, folder / name
        if any(parent.is_symlink() for parent in source.parents if parent not in plain):
            continue  # its folder has become a link, which git has in its place
        plain.update(source.parents)
        if source.is_symlink() or source.is_file():  # neither deleted, nor a submodule
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # deleted right now
                shutil.copyfile(source, target, follow_symlinks=False)
                if not source.is_symlink() and source.stat().st_mode & stat.S_IXUSR:  # all that git keeps of a mode
                    target.chmod(target.stat().st_mode | _EXECUTABLE)
    known = _settle(folder, "head", "the work tree", within)
    found = _git(repository, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False)
    commit = found.stdout.strip() or None
    changed = _git(repository, "status", "--porcelain", "--untracked-files=all", "--", *what, check=False).stdout
    count = len(changed.splitlines())
    where = f"the work tree at {commit[:12]}" if commit else "the work tree"
    notes = (f"the head is a snapshot of the work tree with {count} uncommitted files",) if count else ()
    head = Checkout("head", where, commit, folder, (*notes, *known), changed=count > 0)
    return _as_project(head, repository, within)


def _settle(folder: Path, side: str, name: str, within: Path | None) -> tuple[str, ...]:
    """Give all files one time of change, for Numba finds compiled code again by it; refuse a side without a worker.

    Returns what a reader should know of the files, one line each.
    """
    if within is None and not (folder / _WORKER).is_file():
        raise UserError(
            f"the {side}, {name}, has no {_WORKER}, so it cannot be measured: choose a later revision, or name models"
            " or functions in [tool.meprop-bench.gate] of pyproject.toml, which any project can have measured",
            ExitCode.NOT_COMPARABLE if side == "base" else ExitCode.USAGE,
        )
    for path in folder.rglob("*"):
        if not path.is_dir():
            os.utime(path, (_MTIME, _MTIME), follow_symlinks=False)
    if within is None:
        return ()
    lacks = ["its submodules are not checked out"] if (folder / ".gitmodules").exists() else []
    if any(_FILTERED in path.read_bytes() for path in folder.rglob(".gitattributes") if path.is_file()):
        lacks.append("its files of Git LFS are pointers")
    return tuple(f"the {side}, {name}: {what}" for what in lacks)


def linked(checkout: Checkout, names: Sequence[str]) -> None:
    """Have a revision find files or folders of the user's that git does not have, such as data, where they were.

    `UserError`: there is none.
    """
    assert checkout.project is not None
    for name in names:
        source, target = checkout.project.source / name, checkout.folder / name
        if not source.exists():
            raise UserError(f"there is no {name} to link from: leave it out of link in [tool.meprop-bench.gate]")
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())


@contextmanager
def _slot(cache: Path) -> Iterator[Path]:
    """Lock a free slot and empty it at both ends; remove what killed runs left in other slots."""
    import fcntl  # this instrument measures on POSIX systems only

    with ExitStack() as stack:
        mine: Path | None = None
        for number in range(_SLOTS):
            folder, lock = cache / f"slot-{number}", cache / f"slot-{number}.lock"
            if mine is not None and not lock.exists():
                break
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            _remove(folder)
            if mine is None:
                mine = folder
                stack.callback(os.close, descriptor)
                stack.callback(_remove, folder)
                folder.mkdir()
            else:
                os.close(descriptor)
        if mine is None:
            raise UserError(f"{_SLOTS} gates run at once in {cache}: wait for one of them to end")
        yield mine


def _remove(folder: Path) -> None:
    """Remove a folder with all that is in it; twice, for a process that is being killed may still write a file."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)


def _git(
    folder: Path, *words: str, env: Mapping[str, str] | None = None, stdin: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, without hooks, questions, or what a hook that called us has in its environment.

    Raises `UserError` where git is missing or hangs, or fails although `check` says that it must not.
    """
    outer = {name: value for name, value in os.environ.items() if name not in _OF_ONE_REPOSITORY}
    settings: Sequence[str] = ("-c", "core.hooksPath=/dev/null", "-c", "core.sparseCheckout=false", "-c", "gc.auto=0")
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
    try:
        found = subprocess.run(
            ["git", *settings, *words],
            cwd=folder,
            env={**outer, **quiet, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=_PATIENCE_S,
            check=False,
        )
    except FileNotFoundError:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder") from None
        raise UserError(
            "git is not installed, or not on the PATH: install it, or compare files with --baseline"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"git {words[0]} does not answer within {_PATIENCE_S} s in {folder}") from None
    if check and found.returncode != 0:
        raise UserError(f"git {words[0]} failed: {_last_line(found.stderr) or f'status {found.returncode}'}")
    return found


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
