"""Parallel text: pairs by line number, and whatever could shift it is refused, with file and line."""

import gzip
import os

import pytest

from meprop_bench.data.parallel import SentencePair, load_multi30k, made_up_corpus, read_corpus, read_parallel
from meprop_bench.errors import UserError


@pytest.fixture
def read(tmp_path):
    def read(left, right):
        paths = tmp_path / "text.de", tmp_path / "text.en"
        for path, content in zip(paths, (left, right), strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_parallel(*paths))

    return read


PAIRS = [SentencePair("Ein Hund .", "A dog ."), SentencePair("Größe", "size")]


def test_pairs(read):
    assert read("Ein Hund .\nGröße\n", "A dog .\nsize\n") == PAIRS


def test_without_a_last_line_end_and_with_spaces_around(read):
    assert read("Ein Hund .\n  Größe", "A dog .  \nsize\n") == PAIRS


def test_gzip_byte_order_mark_and_crlf_on_one_side_alone(read):
    packed = gzip.compress("\ufeffEin Hund .\r\nGröße\r\n".encode())
    assert read(packed, "A dog .\nsize\n") == PAIRS


def test_what_unicode_calls_a_line_end_ends_no_line(read):
    assert read("a\u2028b\x0cc\n", "d\x85e\n") == [SentencePair("a\u2028b\x0cc", "d\x85e")]


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ("a\nb\n", "a\n", r"text\.de, line 2: it has no partner: \S*text\.en ends after line 1"),
        ("a\n", "a\nb\nc\n", r"text\.en, line 2: it has no partner: \S*text\.de ends after line 1"),
        ("", "a\n", r"text\.en, line 1: it has no partner: \S*text\.de ends after line 0"),
        ("a\n\nc\n", "a\nb\nc\n", r"text\.de, line 2: it is empty"),
        ("a\nb\n", "a\n \t\n", r"text\.en, line 2: it is empty"),
        ("a\n\n", "a\n\n", r"text\.de, line 2: it is empty"),
        ("a\nb\n", b"a\n\xe4\n", r"text\.en, line 2: it is not UTF-8"),
        ("a\nb\0\n", "a\nb\n", r"text\.de, line 2: it holds the control character U\+0000"),
        ("a\nb\n", "a\n\x1b[2Jb\n", r"text\.en, line 2: it holds the control character U\+001B"),
        ("a\rb\r", "a\rb\r", r"text\.de, line 1: it holds the control character U\+000D"),
        (gzip.compress(b"a\n" * 9000)[:-20], "a\n" * 9000, r"cannot read \S*text\.de, after line \d+"),
    ],
    ids=[
        "short target",
        "short source",
        "no source",
        "no text",
        "blank",
        "both empty",
        "latin-1",
        "NUL",
        "ESC",
        "CR alone",
        "cut-off gzip",
    ],
)
def test_malformed(read, left, right, message):
    with pytest.raises(UserError, match=message):
        read(left, right)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        list(read_parallel(tmp_path / "a", tmp_path / "b"))


def test_corpus(tmp_path):
    paths = [tmp_path / f"{part}.{side}" for part in ("train", "dev", "test") for side in ("de", "en")]
    for path in paths:
        path.write_text(f"{path.name}\n")
    found = read_corpus("mine", *paths)
    assert (found.name, found.dev) == ("mine", (SentencePair("dev.de", "dev.en"),))
    for path in paths[4:]:
        path.write_text("")
    with pytest.raises(UserError, match=r"test\.de has no sentence"):
        read_corpus("mine", *paths)


def test_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"no train\.de\.gz in .*data fetch multi30k"):
        load_multi30k()


def test_another_text_in_files_of_the_same_names_is_loaded_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    (tmp_path / "multi30k").mkdir()
    for part in ("train", "val", "test_2016_flickr"):
        for side in ("de", "en"):
            (tmp_path / "multi30k" / f"{part}.{side}").write_text("a\n")
    found = load_multi30k()
    assert found.published is False
    assert found.notes[0].startswith("not the published multi30k data: train.de, train.en, val.de")


def test_made_up_sentences_end_on_the_verb_and_are_spelt_backwards():
    corpus = made_up_corpus()
    assert made_up_corpus().train == corpus.train
    for source, target in corpus.test:
        *words, verb, stop = source.split()
        back = [word[::-1] for word in words]
        assert stop == "."
        assert any([*back[:i], verb[::-1], *back[i:], stop] == target.split() for i in range(len(words) + 1))


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="needs MEPROP_BENCH_DATA")
def test_real_corpus():
    found = load_multi30k()
    assert (found.published, found.notes) == (True, ())
    assert (len(found.train), len(found.dev), len(found.test)) == (29_000, 1_014, 1_000)
    assert found.test[0].source == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."
    assert found.test[0].target == "A man in an orange hat starring at something."
