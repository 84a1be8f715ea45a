"""What another process gets of a function, and what is said of one that it cannot get."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from meprop_bench import pickling
from meprop_bench.errors import UserError
from meprop_bench.pickling import function_name, pickled

_LOCK = threading.Lock()


def _called_elsewhere(pickle: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "function").write_bytes(pickle)
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))())"
    command = [sys.executable, "-P", "-c", program, str(folder / "function")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[ModuleType]:
    """A module that this process has imported by a name that no other finds, as pytest imports test modules."""
    (tmp_path / "lost.py").write_text("THREE = 3\ndef triple(x):\n    return x * THREE\nclass Own:\n    x = 5\n")
    spec = importlib.util.spec_from_file_location("some.lost", tmp_path / "lost.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["some.lost"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["some.lost"]


def test_a_closure_over_what_no_other_process_finds(lost: Any, tmp_path: Path) -> None:
    triple, own, number = lost.triple, lost.Own, 4
    found = _called_elsewhere(pickled(lambda: triple(number) + own().x, {}), tmp_path)
    assert found.stdout == "17\n", found.stderr
    assert cloudpickle.list_registry_pickle_by_value() == set()  # nothing is left behind


def test_what_another_process_finds_travels_by_its_name() -> None:
    assert b"meprop_bench.pickling" in pickled(function_name, {})
    assert len(pickled(function_name, {})) < 200
    assert len(pickled(function_name, {}, [pickling])) > 200  # unless it is asked for


def test_code_keeps_the_name_of_its_file() -> None:
    import pickle

    def boom() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom") as raised:
        pickle.loads(pickled(boom, {}))()
    assert traceback.extract_tb(raised.value.__traceback__)[-1].filename == __file__


class _Parser:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def parse(self) -> None:
        """Do nothing."""


def _uses_a_global() -> bool:
    return _LOCK.locked()


def _closure() -> Callable[[], bool]:
    lock = threading.Lock()
    return lambda: not lock.locked()


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"f": _closure()}, "the variable 'lock' of f, of type lock, cannot be sent to another process (TypeError: "),
        ({"f": _uses_a_global}, "the variable '_LOCK' of f, of type lock, cannot be sent"),
        ({"f": _Parser().parse}, "the object of f, of type _Parser, cannot be sent"),
        ({"f": int, "argument 1 of f": _LOCK}, "argument 1 of f, of type lock, cannot be sent"),
        ({}, "it cannot be sent to another process"),
    ],
)
def test_what_cannot_be_pickled_is_named(parts: dict[str, Any], line: str) -> None:
    whole = list(parts.values()) or _LOCK
    with pytest.raises(UserError) as raised:
        pickled(whole, parts, [sys.modules[__name__]])
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_without_cloudpickle_it_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(UserError, match=r"by cloudpickle, which .*: pip install cloudpickle"):
        pickled(int, {})


def test_names_are_those_that_a_reader_knows() -> None:
    assert function_name(_closure()) == "<lambda>"
    assert function_name(_Parser.parse) == "_Parser.parse"
    assert function_name(partial(len, ())) == "len"
    assert function_name(int) == "int"
    assert function_name(list.sort) == "list.sort"
    assert function_name(np.matmul) == "matmul"
    assert function_name(torch.mm) == "mm"
