"""The CoNLL-U reader: what it leaves out, and what it refuses, with the line."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meprop_bench.data.treebank import Sentence, Word, read_conllu
from meprop_bench.errors import UserError

TEXT = """\
# sent_id = 1
# text = They don't.
1\tThey\tthey\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
2\tdo\tdo\tVERB\tVBP\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\t_
3.1\tleft\tleave\tVERB\t_\t_\t_\t_\t2:conj\t_
4\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_

1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_

"""


def row(number, head, form="x"):
    return f"{number}\t{form}\t_\tX\tX\t_\t{head}\tdep\t_\t_\n"


def chain(length):
    """Words that hang each on the one before it."""
    return "".join(row(number, number - 1) for number in range(1, length + 1))


MANY = "9" * 5000


@pytest.fixture
def read(tmp_path):
    def read(text, **how):
        path = tmp_path / "trees.conllu"
        path.write_text(text, encoding="utf-8", newline="")
        return list(read_conllu(path, **how))

    return read


def test_words_without_multiword_tokens_and_empty_nodes(read):
    first, second = read(TEXT)
    assert [word.form for word in first.words] == ["They", "do", "n't", "."]
    assert [word.head for word in first.words] == [2, 0, 2, 2]
    assert (first.words[0].upos, first.words[0].xpos, first.words[0].relation) == ("PRON", "PRP", "nsubj")
    assert (first.line, second.line, len(second)) == (1, 10, 1)


def test_gzip_byte_order_mark_and_crlf(tmp_path, read):
    path = tmp_path / "trees.conllu.gz"
    path.write_bytes(gzip.compress(("\ufeff" + TEXT.replace("\n", "\r\n")).encode()))
    assert list(read_conllu(path)) == read(TEXT)


def test_a_form_may_hold_a_space_and_a_strange_line_separator(read):
    ((sentence),) = read(row(1, 0, "a b\u2028c") + "\n")
    assert sentence.words[0].form == "a b\u2028c"


@pytest.mark.parametrize(
    ("heads", "projective"),
    [
        ((0,), True),
        ((2, 0, 2), True),
        ((3, 4, 0, 3), False),
        ((0, 4, 1, 1), False),
        ((2, 3, 0), True),
        ((3, 0, 2), False),
    ],
)
def test_projective(read, heads, projective):
    (sentence,) = read("".join(row(i, head) for i, head in enumerate(heads, start=1)) + "\n")
    assert sentence.projective is projective


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (row(1, 0) + "2\ttwo\n\n", 2, "2 fields instead of 10"),
        (row(1, 0).replace("x", "") + "\n", 1, "field 2 is empty"),
        (row(2, 0) + "\n", 1, "number is '2' where 1 is next"),
        (row(1, 0) + row(1, 1) + "\n", 2, "number is '1' where 2 is next"),
        (row(1, "_") + "\n", 1, "head is '_'"),
        (row(1, "²") + "\n", 1, "head is '²'"),
        (row(1, 0) + row("3-4", "_") + "\n", 2, "does not begin at the next word, 2"),
        (row("1-3", "_") + chain(2) + "\n", 1, "multiword token goes to word 3 of 2"),
        (row(1, 0) + row(f"2-{MANY}", "_") + row(2, 1) + "\n", 2, "the word's number is '2-9999"),
        (row(f"{MANY}-{MANY}", "_") + row(1, 0) + "\n", 1, "where 1 is next"),
        (row("1-2", "_") + row(1, 0) + row("2-3", "_") + row(2, 1) + row(3, 1) + "\n", 3, "of the one in line 1, too"),
        (row("1-2", "_") * 2 + chain(2) + "\n", 2, "of the one in line 1, too"),
        (row("1-3", "_") + row("1-2", "_") + chain(3) + "\n", 2, "of the one in line 1, too"),
        (chain(1) + row("3-2", "_") + row(2, 1) + "\n", 2, "3-2 does not go from a word to a later one"),
        (row("1-1", "_") + chain(1) + "\n", 1, "1-1 does not go from a word to a later one"),
        (row("0-1", "_") + chain(1) + "\n", 1, "0-1 does not begin at the next word, 1"),
        (row("-1-2", "_") + chain(2) + "\n", 1, "number is '-1-2' where 1 is next"),
        (chain(2) + row("1-2", "_") + "\n", 3, "1-2 does not begin at the next word, 3"),
        (chain(1) + row("2.1", "_") + row(2, 1) + "\n", 2, r"empty node 2\.1 stands where 1\.1 is next"),
        (chain(2) + row("1.1", "_") + "\n", 3, r"empty node 1\.1 stands where 2\.1 is next"),
        (chain(1) + row("1.1", "_") * 2 + "\n", 3, r"empty node 1\.1 stands where 1\.2 is next"),
        (chain(1) + row("1.2", "_") + "\n", 2, r"empty node 1\.2 stands where 1\.1 is next"),
        (chain(1) + row("1.0", "_") + "\n", 2, r"empty node 1\.0 stands where 1\.1 is next"),
        (chain(1) + row("2-3", "_") + row("1.1", "_") + row(2, 1) + row(3, 1) + "\n", 3, "stands where word 2"),
        (chain(1) + row(f"1.{MANY}", "_") + "\n", 2, "where 2 is next"),
        (row("0.1", "_") + "\n", 2, "no words"),
        (row("0.1", "_") + "# too late\n", 2, "1 fields"),
        (row(MANY, 0) + "\n", 1, "where 1 is next"),
        (row("01", 0) + "\n", 1, "where 1 is next"),
        (row(1, MANY) + "\n", 1, "head is '9999"),
        (row(1, 0) + row(2, -1) + "\n", 2, "head is '-1'"),
        (row(1, 0, "a\0b") + "\n", 1, r"control character U\+0000"),
        ("# a \x1b[31mcomment\n" + row(1, 0) + "\n", 1, r"control character U\+001B"),
        (row(1, 0, "a\x85b") + "\n", 1, r"control character U\+0085"),
        (row(1, 0).replace("\n", "\r") + "\n", 1, r"9 fields|control character|cut off"),
        (row(1, 0) + row(2, 5) + "\n", 1, "a head is 5 of 2 words"),
        (row(1, 0) + row(2, 0) + "\n", 1, "2 roots"),
        (row(1, 2) + row(2, 1) + "\n", 1, "0 roots"),
        (row(1, 0) + row(2, 3) + row(3, 2) + "\n", 1, "its own ancestor"),
        ("# a comment\n\n", 2, "no words"),
        (row(1, 0) + "# too late\n\n", 2, "fields"),
        (row(1, 0), 1, "cut off"),
        (row(1, 0)[:-3], 1, "9 fields"),
    ],
)
def test_malformed(read, text, line, reason):
    with pytest.raises(UserError, match=rf"trees\.conllu, line {line}: .*{reason}"):
        read(text)


def test_empty_nodes_and_multiword_tokens_in_their_places(read):
    lines = [row("0.1", "_"), row("0.2", "_"), row("1-2", "_"), row(1, 0), row("1.1", "_"), row(2, 1), row("2.1", "_")]
    (sentence,) = read("".join([*lines, row("3-4", "_"), row(3, 1), row(4, 1), "\n"]))
    assert [word.head for word in sentence.words] == [0, 1, 1, 1]


def test_a_long_chain_is_a_tree_and_takes_no_time_to_see(read):
    (sentence,) = read(chain(100_000) + "\n")
    assert sentence.projective
    with pytest.raises(UserError, match="word 99999 is its own ancestor"):
        read(chain(99_998) + row(99_999, 100_000) + row(100_000, 99_999) + "\n")


@given(st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_projective_by_the_definition(heads):
    """No arc begins within another one and ends outside of it."""
    words = tuple(Word("x", "X", "X", head, "dep") for head in heads)
    arcs = [tuple(sorted((head, number))) for number, head in enumerate(heads, start=1)]
    assert Sentence(words, 1).projective is not any(a < c < b < d for a, b in arcs for c, d in arcs)


@pytest.mark.parametrize("end", [len(TEXT) - 1, len(TEXT) - 3, len(TEXT) - 20])
def test_a_copy_known_to_be_cut_off_loses_its_last_sentence(read, end):
    assert read(TEXT[:end], cut_off=True) == read(TEXT)[:1]


def test_not_text(tmp_path):
    path = tmp_path / "trees.conllu"
    path.write_bytes(b"1\t\xff\n")
    with pytest.raises(UserError, match="line 1: it is not UTF-8"):
        list(read_conllu(path))
    path.write_bytes(b"\0" * (1 << 21))
    with pytest.raises(UserError, match="longer than a mebibyte"):
        list(read_conllu(path))
    path.write_bytes(gzip.compress(TEXT.encode())[:-9])
    with pytest.raises(UserError, match="cannot read"):
        list(read_conllu(path))
    with pytest.raises(UserError, match="No such file"):
        list(read_conllu(tmp_path / "none"))
