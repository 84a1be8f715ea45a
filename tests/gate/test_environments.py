"""Environments by a project's own commands: which are made anew, which are kept, and what runs in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from meprop_bench.errors import UserError
from meprop_bench.gate.environments import InstallError, installed, kept_folder, worker_environment
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.worktree import Checkout, Project

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a shell, and locks that end with their process")

_COPY = 'cp {} "$(python -c "import sysconfig; print(sysconfig.get_path(\'purelib\'))")"'
"""Installs a module as pip would, without pip."""
_INSTALL, _BUILD = _COPY.format("dependency.py"), _COPY.format("own.py")


@pytest.fixture(autouse=True)
def _without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments without pip take a tenth of a second, with it three."""
    from meprop_bench.gate import environments

    make = environments._make
    monkeypatch.setattr(environments, "_make", lambda folder, *, pip: make(folder, pip=False))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def _checkout(slot: Path, side: str, own: str = "") -> Checkout:
    folder = slot / side
    folder.mkdir(parents=True)
    (folder / "dependency.py").write_text("import os\n")
    (folder / "own.py").write_text(f"whose = {own or side!r}\n")
    (folder / "requirements.lock").write_text("dependency==1\n")
    return Checkout(side, side, None, folder, (), project=Project(slot / "elsewhere", slot))


def _runs(checkout: Checkout, program: str, *, borrows: bool = False) -> str:
    assert checkout.project is not None
    assert checkout.project.python is not None
    env = {**os.environ, **worker_environment(checkout.project, borrows=borrows)}
    return subprocess.run(
        [checkout.project.python, "-P", "-c", program],
        env={name: value for name, value in env.items() if value is not None},
        cwd=checkout.folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_without_commands_there_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "slot/base/src").mkdir(parents=True)
    checkout = Checkout("base", "base", None, tmp_path / "slot/base", (), project=Project(tmp_path, tmp_path / "slot"))
    project = installed(checkout, Settings()).project
    assert project is not None
    assert project.python is None
    assert project.path == (str(checkout.folder), str(checkout.folder / "src"))


def test_each_side_has_what_its_command_installs(tmp_path: Path, cache: Path) -> None:
    sides = [
        installed(_checkout(tmp_path / "slot", side), Settings(install=_BUILD), cache=cache)
        for side in ("base", "head")
    ]
    assert [_runs(side, "import own; print(own.whose)") for side in sides] == ["base", "head"]
    assert all(side.owns(Path(_runs(side, "import own; print(own.__file__)"))) for side in sides)
    assert list(cache.iterdir()) == []
    assert "meprop_bench" in _runs(sides[0], "import meprop_bench; print(meprop_bench.__name__)")


def test_lock_files_keep_an_environment_and_build_lies_over_it(tmp_path: Path, cache: Path) -> None:
    settings = Settings(install=f"{_INSTALL} && echo x >> {tmp_path}/made", build=_BUILD, lock=("requirements.lock",))
    sides = [installed(_checkout(tmp_path / "slot", side), settings, cache=cache) for side in ("base", "head")]
    assert (tmp_path / "made").read_text() == "x\n"  # once for both
    program = "import dependency, own; print(own.whose, dependency.__file__)"
    found = [_runs(side, program).split() for side in sides]
    assert [whose for whose, _ in found] == ["base", "head"]
    assert found[0][1] == found[1][1]
    assert not sides[0].owns(Path(found[0][1]))
    assert Path(found[0][1]).is_relative_to(cache)
    # Again, by another run; and once more when the lock file is another.
    other = _checkout(tmp_path / "again", "base")
    installed(other, settings, cache=cache)
    assert (tmp_path / "made").read_text() == "x\n"
    (other.folder / "requirements.lock").write_text("dependency==2\n")
    shutil.rmtree(tmp_path / "again/base-build")
    installed(other, settings, cache=cache)
    assert (tmp_path / "made").read_text() == "x\nx\n"


def test_build_alone_lies_over_the_gates_own_environment(tmp_path: Path, cache: Path) -> None:
    checkout = installed(_checkout(tmp_path / "slot", "base"), Settings(build=_BUILD), cache=cache)
    assert _runs(checkout, "import own, msgspec; print(own.whose)") == "base"


def test_a_process_borrows_only_what_its_environment_has_not(tmp_path: Path, cache: Path) -> None:
    checkout = _checkout(tmp_path / "slot", "base")
    (checkout.folder / "own.py").rename(checkout.folder / "msgspec.py")
    settings = Settings(install=_BUILD.replace("own.py", "msgspec.py"))
    checkout = installed(checkout, settings, cache=cache)
    assert _runs(checkout, "import msgspec, numpy; print(msgspec.whose)", borrows=True) == "base"
    with pytest.raises(subprocess.CalledProcessError):
        _runs(checkout, "import numpy")


def test_an_environment_knows_nothing_of_the_gates(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    said = tmp_path / "said"
    command = f'echo "$PYTHONPATH|$PIP_TARGET|$VIRTUAL_ENV|$(command -v python)" > {said}'
    installed(_checkout(tmp_path / "slot", "base"), Settings(install=command), cache=cache)
    mine = tmp_path / "slot/base-environment"
    assert said.read_text().strip() == f"||{mine}|{mine}/bin/python"


@pytest.mark.parametrize("settings", [Settings(install="echo no; exit 3"), Settings(build="echo no; exit 3")])
def test_a_command_that_fails_says_so(settings: Settings, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InstallError) as caught:
        installed(_checkout(tmp_path / "slot", "base"), settings, cache=cache)
    key = "install" if settings.install else "build"
    assert str(caught.value) == f"{key} (echo no; exit 3) ended with status 3: no"
    assert caught.value.tail == "no"


def test_of_a_compilers_picture_the_error_is_told(tmp_path: Path, cache: Path) -> None:
    printed = ("fast.c:6:11: error: expected ; before return", "    6 | broken return", "      | ;")
    failing = Settings(install="; ".join(f"echo '{line}'" for line in printed) + "; exit 1")
    with pytest.raises(InstallError) as caught:
        installed(_checkout(tmp_path / "slot", "base"), failing, cache=cache)
    assert str(caught.value).endswith(f"ended with status 1: {printed[0]}")


def test_one_that_failed_is_not_kept(tmp_path: Path, cache: Path) -> None:
    failing = Settings(install=f"test -e {tmp_path}/there", lock=("requirements.lock",))
    checkout = _checkout(tmp_path / "slot", "base")
    with pytest.raises(InstallError, match="ended with status 1"):
        installed(checkout, failing, cache=cache)
    (tmp_path / "there").write_text("")
    assert installed(checkout, failing, cache=cache).project is not None


def test_a_lock_file_that_is_not_there(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InstallError, match=r"there is no poetry\.lock"):
        installed(_checkout(tmp_path / "slot", "base"), Settings(install="true", lock=("poetry.lock",)), cache=cache)
    with pytest.raises(UserError, match="name that command"):
        installed(_checkout(tmp_path / "slot", "head"), Settings(lock=("poetry.lock",)), cache=cache)


def test_what_nobody_used_for_long_is_removed(tmp_path: Path, cache: Path) -> None:
    settings = Settings(install="true", lock=("requirements.lock",))
    checkout = _checkout(tmp_path / "slot", "base")
    first = installed(checkout, settings, cache=cache).project
    assert first is not None
    assert first.python is not None
    folder = first.python.parents[1]
    (cache / "0123456789ab").mkdir()  # of a run that was killed
    (cache / "0123456789ab.lock").write_text("")
    (checkout.folder / "requirements.lock").write_text("dependency==2\n")
    installed(checkout, settings, cache=cache)
    assert folder.exists()
    assert not (cache / "0123456789ab").exists()
    old = time.time() - 40 * 24 * 3600
    os.utime(folder / "complete", (old, old))
    installed(checkout, settings, cache=cache)
    assert not folder.exists()


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_folder() == tmp_path / "meprop-bench/environments"
