"""A `build` on its way to the measuring processes: by name, or pickled for as long as it is needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.tasks.build import find, named


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "meprop-bench" / "models"


def _elsewhere(name: str) -> str:
    """Call it in another process, and return what it returns."""
    program = f"from meprop_bench.tasks.build import find; print(find({name!r})())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_name_stays_what_it_is() -> None:
    for name in ("my_model.py:build", Path("my_model.py"), "mnist"):
        with named(name) as found:
            assert found == str(name)


def test_closures_lambdas_and_modules_from_here_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "only_here.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path / "beside"))
    import only_here  # type: ignore[import-not-found]

    three, by_value = 3, lambda x: x + 1

    def build() -> int:
        return int(only_here.double(by_value(three)))

    with named(build) as name:
        assert name.startswith("build@")
        assert _elsewhere(name) == "8"
    with named(lambda: by_value(7)) as name:
        assert _elsewhere(name) == "8"
    assert list(cache.iterdir()) == []


def test_a_pickle_stays_while_somebody_else_needs_it(cache: Path) -> None:
    def build() -> int:
        return 5

    with named(build) as first:
        with named(build) as second:
            assert first == second
        assert len(list(cache.iterdir())) == 1
        assert _elsewhere(first) == "5"
    assert list(cache.iterdir()) == []
    with pytest.raises(UserError, match="does not exist any more: measure it from its notebook again"):
        find(first)


def test_what_has_no_pickle_is_named_in_one_line() -> None:
    handle = threading.Lock()

    def build() -> Any:
        return handle

    with pytest.raises(UserError) as caught, named(build):
        pass
    assert "'handle'" in str(caught.value)
    assert "make it in the function" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("build", [3, None, ["my_model.py:build"]])
def test_what_is_no_function_is_refused(build: Any) -> None:
    with pytest.raises(UserError, match="a model is given by a function, or its name"), named(build):
        pass


def test_a_model_in_place_of_its_function_is_refused() -> None:
    from torch import nn

    model: Callable[[], Any] = nn.Linear(2, 2)
    with pytest.raises(UserError, match="give build itself"), named(model):
        pass
