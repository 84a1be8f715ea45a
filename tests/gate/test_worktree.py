"""Revisions in folders of their own, from repositories in every state a user's may be in; the user's tree untouched."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.worktree import cache_folder, repository_of, work_trees

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs locks that end with their process")

_WORKER = "meprop_bench/sweep/worker.py"


def _git(folder: Path, *words: str) -> str:
    own = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "a path with späces"
    root.mkdir()
    _git(root, "init", "-q")
    _write(root, {"README": "none of the package", "meprop_bench/__init__.py": "one"})
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "no worker yet")
    _write(root, {_WORKER: "first", "meprop_bench/é ü.txt": "x"})
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "first")
    _write(root, {_WORKER: "second", ".gitignore": "*.ignored\n"})
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "second")
    return root


def _state(root: Path) -> tuple[str, str, dict[str, float]]:
    times = {str(path): path.stat().st_mtime for path in root.rglob("*") if ".git" not in path.parts}
    return _git(root, "status", "--porcelain"), _git(root, "rev-parse", "HEAD"), times


def test_each_side_holds_its_own_revision_and_nothing_else(repository: Path, cache: Path) -> None:
    before = _state(repository)
    with work_trees(repository, "HEAD~1", "HEAD", cache=cache) as (base, head):
        assert (base.folder / _WORKER).read_text() == "first"
        assert (head.folder / _WORKER).read_text() == "second"
        assert (base.folder / "meprop_bench/é ü.txt").is_file()
        assert not (base.folder / "README").exists()
        assert (base.side, head.side) == ("base", "head")
        assert base.name == f"HEAD~1 ({base.commit[:12]})"
        folders = base.folder, head.folder
    assert not any(folder.exists() for folder in folders)
    assert [path.name for path in cache.iterdir()] == ["slot-0.lock"]
    assert _state(repository) == before
    assert "worktree" not in os.listdir(repository / ".git")


def test_paths_and_times_are_the_same_in_each_run(repository: Path, cache: Path) -> None:
    """Or compiled code would never be found again."""

    def look() -> tuple[Path, float]:
        with work_trees(repository, "HEAD~1", "HEAD", cache=cache) as (base, _):
            return base.folder, (base.folder / _WORKER).stat().st_mtime

    first = look()
    time.sleep(0.01)
    assert look() == first


def test_uncommitted_changes_are_the_head(repository: Path, cache: Path) -> None:
    _write(repository, {_WORKER: "third", "meprop_bench/new.py": "new", "meprop_bench/a.ignored": "no"})
    (repository / "meprop_bench/é ü.txt").unlink()
    _git(repository, "add", _WORKER)  # staged, then changed again
    _write(repository, {_WORKER: "fourth"})
    before = _state(repository)
    with work_trees(repository, "HEAD", None, cache=cache) as (base, head):
        _write(repository, {_WORKER: "saved while measuring"})
        assert (base.folder / _WORKER).read_text() == "second"
        assert (head.folder / _WORKER).read_text() == "fourth"
        assert (head.folder / "meprop_bench/new.py").read_text() == "new"
        assert not (head.folder / "meprop_bench/a.ignored").exists()
        assert not (head.folder / "meprop_bench/é ü.txt").exists()
        assert head.notes == ("the head is a snapshot of the work tree with 3 uncommitted files",)
    _write(repository, {_WORKER: "fourth"})
    assert _state(repository)[:2] == before[:2]


def test_a_clean_work_tree_is_a_head_without_remarks(repository: Path, cache: Path) -> None:
    with work_trees(repository, "HEAD", None, cache=cache) as (_, head):
        assert head.notes == ()
        assert head.name.startswith("the work tree at ")


def test_a_detached_head(repository: Path, cache: Path) -> None:
    _git(repository, "checkout", "-q", "--detach", "HEAD~1")
    with work_trees(repository, "main", None, cache=cache) as (base, head):
        assert (base.folder / _WORKER).read_text() == "second"
        assert (head.folder / _WORKER).read_text() == "first"


def test_a_linked_work_tree_and_a_folder_within(repository: Path, cache: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    _git(repository, "worktree", "add", "-q", "--detach", str(linked), "HEAD~1")
    assert repository_of(linked / "meprop_bench") == linked
    with work_trees(linked, "main", "HEAD", cache=cache) as (base, head):
        assert (base.folder / _WORKER).read_text() == "second"
        assert (head.folder / _WORKER).read_text() == "first"


def test_a_read_only_checkout(repository: Path, cache: Path) -> None:
    """root may write anyhow, so the proof is that nothing in the repository changes, .git included."""

    def everything() -> dict[str, tuple[float, int]]:
        return {str(path): (path.stat().st_mtime, path.stat().st_size) for path in repository.rglob("*")}

    modes = {path: path.stat().st_mode for path in [repository, *repository.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = everything()
    try:
        for head in ("HEAD", None):
            with work_trees(repository, "HEAD~1", head, cache=cache) as (base, second):
                assert (base.folder / _WORKER).read_text() == "first"
                assert (second.folder / _WORKER).read_text() == "second"
                (second.folder / _WORKER).write_text("a worker may write where it is")
        assert everything() == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_submodules_are_left_out(repository: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _git(other, "init", "-q")
    _write(other, {"file": "x"})
    _git(other, "add", ".")
    _git(other, "commit", "-q", "-m", "x")
    _git(repository, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "meprop_bench/sub")
    _git(repository, "commit", "-q", "-m", "with a submodule")
    for head in ("HEAD", None):
        with work_trees(repository, "HEAD~1", head, cache=cache) as (_, second):
            assert (second.folder / _WORKER).is_file()
            assert not (second.folder / "meprop_bench/sub/file").exists()


def test_no_hook_runs_and_a_hooks_environment_does_not_matter(
    repository: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = repository / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    with work_trees(repository, "HEAD~1", "HEAD", cache=cache) as (base, _):
        assert (base.folder / _WORKER).read_text() == "first"
    assert not (tmp_path / "ran").exists()


# What a user can do wrong.


def _error(action: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value


def _open(repository: Path, base: str, head: str | None, cache: Path) -> None:
    with work_trees(repository, base, head, cache=cache):
        raise AssertionError("it must not get here")


@pytest.mark.parametrize(
    ("revision", "hint"),
    [("mian", "did you mean 'main'?"), ("nothing-like-it", "name a branch"), ("--all", "name a branch"), ("", "name")],
)
def test_an_unknown_revision(repository: Path, cache: Path, revision: str, hint: str) -> None:
    error = _error(lambda: _open(repository, revision, None, cache))
    assert error.exit_code == ExitCode.USAGE
    assert f"unknown revision {revision!r}: " in str(error)
    assert hint in str(error)
    assert list(cache.iterdir()) == []


def test_an_unknown_head(repository: Path, cache: Path) -> None:
    assert "unknown revision 'topic'" in str(_error(lambda: _open(repository, "HEAD", "topic", cache)))


@pytest.mark.parametrize(
    ("revision", "advice"),
    [
        ("HEAD~2", "git fetch --depth=3"),
        ("HEAD^^", "git fetch --depth=3"),
        ("origin/dev", "git fetch --depth=1 origin dev:refs/remotes/origin/dev"),
        ("a" * 40, "git fetch --depth=1 origin " + "a" * 40),
        ("abcdef1", "git fetch --unshallow"),
    ],
)
def test_a_shallow_clone(repository: Path, cache: Path, tmp_path: Path, revision: str, advice: str) -> None:
    shallow = tmp_path / "shallow"
    _git(tmp_path, "clone", "-q", "--depth=1", repository.as_uri(), str(shallow))
    error = _error(lambda: _open(shallow, revision, None, cache))
    assert error.exit_code == ExitCode.USAGE
    assert "is not in this shallow clone" in str(error)
    assert advice in str(error)
    with work_trees(shallow, "HEAD", None, cache=cache) as (base, _):  # what it has, it can measure
        assert (base.folder / _WORKER).read_text() == "second"


def test_a_revision_without_the_package(repository: Path, cache: Path) -> None:
    error = _error(lambda: _open(repository, "HEAD~2", None, cache))
    assert (error.exit_code, "has no meprop_bench/sweep/worker.py" in str(error)) == (ExitCode.NOT_COMPARABLE, True)
    assert _error(lambda: _open(repository, "HEAD", "HEAD~2", cache)).exit_code == ExitCode.USAGE
    assert [path.name for path in cache.iterdir()] == ["slot-0.lock"]


def test_no_repository_no_folder_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not in a git repository" in str(_error(lambda: repository_of(tmp_path)))
    assert "is not a folder" in str(_error(lambda: repository_of(tmp_path / "gone")))
    monkeypatch.setenv("PATH", str(tmp_path))
    error = _error(lambda: repository_of(tmp_path))
    assert (error.exit_code, "git is not installed" in str(error)) == (ExitCode.USAGE, True)


# What is left behind: nothing.


def test_it_is_removed_after_an_error(repository: Path, cache: Path) -> None:
    with pytest.raises(RuntimeError), work_trees(repository, "HEAD~1", None, cache=cache):
        raise RuntimeError
    assert [path.name for path in cache.iterdir()] == ["slot-0.lock"]


_HOLDER = """
import sys, time
from pathlib import Path
from meprop_bench.gate.worktree import work_trees
try:
    with work_trees(Path(sys.argv[1]), "HEAD~1", None, cache=Path(sys.argv[2])):
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def _hold(repository: Path, cache: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", textwrap.dedent(_HOLDER), str(repository), str(cache)]
    holder = subprocess.Popen(program, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    return holder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_is_removed_by_signals(repository: Path, cache: Path, number: signal.Signals) -> None:
    with _hold(repository, cache) as holder:
        holder.send_signal(number)
        assert holder.wait(30) == ExitCode.INTERRUPTED
    assert [path.name for path in cache.iterdir()] == ["slot-0.lock"]


def test_what_a_killed_run_left_is_removed_at_the_next_start_and_a_live_one_is_left_alone(
    repository: Path, cache: Path
) -> None:
    with _hold(repository, cache) as killed, _hold(repository, cache) as alive:
        killed.kill()
        killed.wait()
        assert (cache / "slot-0/base" / _WORKER).is_file()
        with work_trees(repository, "HEAD", None, cache=cache) as (base, _):
            assert base.folder == cache / "slot-0/base"
            assert (base.folder / _WORKER).read_text() == "second"
            assert (cache / "slot-1/base" / _WORKER).read_text() == "first"
        alive.kill()
        alive.wait()
    with _hold(repository, cache) as third:  # it takes slot 0 and clears slot 1
        assert not (cache / "slot-1").exists()
        third.terminate()


def test_the_cache_is_the_users_or_a_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "meprop-bench/gate"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in it
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().parents[1] == tmp_path
    assert cache_folder().parent.stat().st_mode & 0o777 == 0o700


# A project of its own: all of it is written out.


def test_a_project_is_written_out_whole(repository: Path, cache: Path) -> None:
    _write(repository, {"tools/new.py": "new", "kept.ignored": "no"})
    before = _state(repository)
    with work_trees(repository, "HEAD~2", None, project=repository, cache=cache) as (base, head):
        assert (base.folder / "README").read_text() == "none of the package"
        assert not (base.folder / _WORKER).exists()
        assert (head.folder / "tools/new.py").read_text() == "new"
        assert not (head.folder / "kept.ignored").exists()
        assert head.notes == ("the head is a snapshot of the work tree with 1 uncommitted files",)
        assert base.project is not None
        assert (base.project.source, base.project.slot) == (repository, cache / "slot-0")
    assert _state(repository) == before
    assert [path.name for path in cache.iterdir()] == ["slot-0.lock"]


def test_a_program_of_a_project_can_be_run_in_both(repository: Path, cache: Path) -> None:
    _write(repository, {"build.sh": "#!/bin/sh\n", "data.txt": "x"})
    (repository / "build.sh").chmod(0o755)
    (repository / "link").symlink_to("build.sh")
    _git(repository, "add", ".")
    _git(repository, "commit", "-q", "-m", "with a program")
    with work_trees(repository, "HEAD", None, project=repository, cache=cache) as sides:
        for side in sides:
            assert os.access(side.folder / "build.sh", os.X_OK)
            assert not (side.folder / "data.txt").stat().st_mode & 0o111
            assert os.readlink(side.folder / "link") == "build.sh"


def test_a_folder_that_has_become_a_link_is_one_in_the_snapshot(repository: Path, cache: Path, tmp_path: Path) -> None:
    _write(repository, {"data/one.txt": "x"})
    _git(repository, "add", ".")
    _git(repository, "commit", "-q", "-m", "with data")
    (repository / "data").rename(tmp_path / "elsewhere")
    (repository / "data").symlink_to(tmp_path / "elsewhere")
    with work_trees(repository, "HEAD", None, project=repository, cache=cache) as (base, head):
        assert not (base.folder / "data").is_symlink()
        assert os.readlink(head.folder / "data") == str(tmp_path / "elsewhere")
        assert (head.folder / "data/one.txt").read_text() == "x"


def test_a_project_in_a_folder_that_the_base_did_not_have(repository: Path, cache: Path) -> None:
    _write(repository, {"packages/one/bench.py": "x"})
    with work_trees(repository, "HEAD", None, project=repository / "packages/one", cache=cache) as (base, head):
        assert head.folder == cache / "slot-0/head/packages/one"
        assert (head.folder / "bench.py").is_file()
        assert list(base.folder.iterdir()) == []


def test_what_is_not_written_out_of_a_project_is_noted(repository: Path, cache: Path) -> None:
    _write(repository, {".gitmodules": "", "data/.gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    with work_trees(repository, "HEAD", None, project=repository, cache=cache) as (base, head):
        assert base.notes == ()
        assert head.notes[1:] == (
            "the head, the work tree: its submodules are not checked out",
            "the head, the work tree: its files of Git LFS are pointers",
        )


def test_which_modules_are_a_projects_and_which_files_are_a_revisions(repository: Path, cache: Path) -> None:
    files = ("flat.py", "src/inner/__init__.py", "src/fast.cpython-311-x86_64-linux-gnu.so", "types.py", "docs/conf.py")
    _write(repository, dict.fromkeys(files, ""))
    with work_trees(repository, "HEAD", None, project=repository, cache=cache) as (base, head):
        assert head.modules == ["fast", "flat", "inner", "meprop_bench"]
        slot = cache / "slot-0"
        assert head.owns(slot / "head/src/inner/__init__.py")
        assert head.owns(slot / "head-build/lib/inner.py")
        assert not head.owns(slot / "base/src/inner/__init__.py")
        assert not head.owns(repository / "flat.py")
        assert base.owns(slot / "base-environment/lib/inner.py")


def test_a_repository_without_the_package_is_shown_the_way(repository: Path, cache: Path) -> None:
    assert "or name models or functions in [tool.meprop-bench.gate]" in str(
        _error(lambda: _open(repository, "HEAD~2", None, cache))
    )
