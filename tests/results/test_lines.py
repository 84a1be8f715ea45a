"""Files of JSON lines: whole lines are read, a torn one is told apart and cut off, and appending is all or nothing."""

from __future__ import annotations

import errno
import os
from itertools import chain
from pathlib import Path

import pytest

from meprop_bench.errors import UserError
from meprop_bench.results.lines import Lines, append_lines, cut


def test_whole_lines_are_read_and_the_torn_one_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "trainings.jsonl"
    written = [b'{"number": %d}' % number for number in range(1300)]  # more than are read at once
    append_lines(path, written)
    with path.open("ab") as file:
        file.write(b'{"numb')
    found = Lines(path)
    assert list(chain.from_iterable(found)) == [line + b"\n" for line in written]
    assert found.torn == b'{"numb'
    cut(path, found.size)
    append_lines(path, [b"{}"])
    again = Lines(path)
    assert list(chain.from_iterable(again)) == [*(line + b"\n" for line in written), b"{}\n"]
    assert again.torn == b""


def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trainings.jsonl"
    append_lines(path, [b"1"])
    real = os.write

    def full(number: int, data: bytes) -> int:
        if len(data) > 2:
            return real(number, data[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"trainings\.jsonl: No space left on device; free some space"):
        append_lines(path, [b"234"])
    assert path.read_bytes() == b"1\n"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*/gone\.jsonl: No such file"):
        list(Lines(tmp_path / "gone.jsonl"))
