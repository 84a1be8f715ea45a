"""The CoNLL-U reader: what it leaves out, and what it refuses, with the line."""

import gzip

import pytest

from meprop_bench.data.conllu import read_conllu
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
        (row(1, 0) + "3-4\tx\t_\t_\t_\t_\t_\t_\t_\t_\n\n", 2, "does not begin at the next word, 2"),
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
