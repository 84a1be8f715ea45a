"""Running text: what is read, and what is refused."""

import gzip
import os

import pytest

from meprop_bench.data.characters import TEXTS, load_text, made_up_text, read_text
from meprop_bench.data.treebank import SIZES
from meprop_bench.errors import UserError

_DATA = pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="MEPROP_BENCH_DATA is not set")


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{part}.txt" for part in ("train", "dev", "test")]
    for path in paths:
        path.write_text(f"{path.stem} one .\n\nÄ two .", encoding="utf-8")
    return paths


def test_a_text_of_ones_own_keeps_its_lines(files):
    files[0].write_bytes(gzip.compress("A dog .  \r\n\r\nÄ cat .".encode()))
    found = read_text("mine", *files)
    assert (found.train, found.dev) == ("A dog .\n\nÄ cat .\n", "dev one .\n\nÄ two .\n")
    assert (found.name, found.published) == ("mine", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n  \n", "dev.txt has no text: name a file with some"),
        (b"a\n\xff\n", "dev.txt, line 2: it is not UTF-8"),
        (b"a\0b\n", r"dev.txt, line 1: it holds the control character U\+0000"),
    ],
)
def test_what_is_no_text_is_refused(files, content, message):
    files[1].write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text("mine", *files)


def test_a_file_that_is_not_there_is_named(files):
    files[2].unlink()
    with pytest.raises(UserError, match=r"cannot read \S*test\.txt"):
        read_text("mine", *files)


def test_made_up_sentences_are_the_same_each_time():
    found = made_up_text()
    assert (found.train, found.test) == (made_up_text().train, made_up_text().test)
    assert tuple(part.count("\n") for part in (found.train, found.dev, found.test)) == SIZES
    assert all(line.endswith(" .") for line in found.dev.splitlines())
    assert "say nothing of English" in found.notes[0]


def test_another_name_is_refused():
    with pytest.raises(UserError, match="unknown data 'mnist': choose from multi30k, ud-ewt"):
        load_text("mnist")


def test_data_that_are_not_there_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    for name in TEXTS:
        with pytest.raises(UserError, match=f"meprop-bench data fetch {name}"):
            load_text(name)


@_DATA
def test_real_text():
    captions, web = load_text("multi30k"), load_text("ud-ewt")
    assert captions.published is True
    assert captions.train.startswith("Two young, White males are outside near many bushes.\n")
    assert captions.train.count("\n") == 29_000
    assert captions.dev.count("\n") == 1_014
    assert web.train.startswith("Al - Zaman : American forces killed Shaikh Abdullah al - Ani ,")
    assert len(web.train) > 900_000
