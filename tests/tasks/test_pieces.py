"""Pieces of words: they spell a text and join it again."""

import sys

import pytest

from meprop_bench.errors import UserError
from meprop_bench.tasks.translation import BOS, EOS, PAD, Pieces

pytest.importorskip("sentencepiece")

TEXT = ["Der Hund sieht die Katze .", "Die Katze sieht den Hundekuchen ."] * 3


@pytest.fixture(scope="module")
def pieces():
    return Pieces("source", TEXT, 60)


@pytest.mark.parametrize("sentence", [*TEXT[:2], "Die Hunde .", "KuchenHund(Hund", "den"])
def test_what_is_spelt_is_joined_again(pieces, sentence):
    known = "".join(c for c in sentence if c in "".join(TEXT))
    numbers = pieces.encode(known)
    assert pieces.decode(numbers) == known
    assert all(EOS < number < len(pieces) for number in numbers)


def test_frequent_words_are_one_piece_and_the_same_text_gives_the_same_pieces(pieces):
    assert len(pieces.encode("sieht")) == 1
    again = Pieces("target", iter(TEXT), 60)
    assert len(again) == len(pieces)
    assert [again.encode(sentence) for sentence in TEXT] == [pieces.encode(sentence) for sentence in TEXT]


def test_runs_of_spaces_count_as_one(pieces):
    assert pieces.decode(pieces.encode("  Der   Hund ")) == "Der Hund"


def test_a_character_that_the_text_has_not(pieces):
    assert pieces.decode(pieces.encode("Der ☃")).split() == ["Der", "⁇"]


@pytest.mark.parametrize("sentence", ["", " ", "\u2581"])
def test_a_model_always_gets_something_to_read(pieces, sentence):
    assert len(pieces.encode(sentence)) == 1


def test_special_pieces_say_nothing(pieces):
    assert pieces.decode([BOS, *pieces.encode("Katze"), EOS, PAD]) == "Katze"


def test_a_small_text_has_fewer_pieces_and_a_long_line_is_not_left_out(pieces):
    assert len(Pieces("source", TEXT, 4000)) < 200
    assert "⁇" not in Pieces("source", ["ab " * 3000], 20).decode([4, 5])


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (TEXT, 10, "a vocabulary of 10 for the target sentences is smaller than its characters: take a larger one"),
        (TEXT, 1, "a vocabulary of 1 for the target"),
    ],
)
def test_too_small(texts, size, message, capfd):
    with pytest.raises(UserError, match=message) as raised:
        Pieces("target", texts, size)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_without_sentencepiece(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"needs sentencepiece.*meprop-bench\[translation\]"):
        Pieces("source", TEXT, 60)
