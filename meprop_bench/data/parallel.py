"""Parallel text: two files of sentences, plain or gzip, where each line of the one translates that line of the other.

    train.de   Ein Hund rennt .          train.en   A dog runs .
               Zwei Kinder lachen .                 Two children laugh .

The number of a line is all that holds a pair together, so whatever could shift it is an error, with file and line: a
side that is empty, a file that ends before the other, a line that is not UTF-8. Spaces around a sentence are no part of
it; what is within is left as it is.

Multi30k, German to English, stands in for the papers' NIST Chinese-English and IWSLT English-Vietnamese.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, TypeAlias

from meprop_bench.data.content import Malformed, digest, numbered_lines
from meprop_bench.data.sources import SOURCES, DataSet, compared, path_of
from meprop_bench.data.treebank import Sentence, made_up_treebank
from meprop_bench.errors import UserError

__all__ = ["Corpus", "SentencePair", "load_multi30k", "made_up_corpus", "read_corpus", "read_parallel"]

_PARTS = ("train", "val", "test_2016_flickr")


class SentencePair(NamedTuple):
    """A sentence and its translation, neither of them empty."""

    source: str
    target: str


Corpus: TypeAlias = DataSet[tuple[SentencePair, ...]]


def read_parallel(source: Path, target: Path) -> Iterator[SentencePair]:
    """Yield the pairs of two files, in their order.

    `UserError`: a file cannot be read, or a line has no partner, no text, or is not UTF-8; the message has its number.
    """
    number = 0
    for left, right in zip_longest(numbered_lines(source), numbered_lines(target)):
        if left is None or right is None:
            short, long = (source, target) if left is None else (target, source)
            raise Malformed(long, number + 1, f"it has no partner: {short} ends after line {number}")
        number = left[0]
        pair = SentencePair(left[1].strip(), right[1].strip())
        for path, text in zip((source, target), pair, strict=True):
            if not text:
                raise Malformed(path, number, "it is empty: delete the line from both files")
        yield pair


def load_multi30k() -> Corpus:
    """Load Multi30k, German to English: 29,000 captions to train on, "val" as dev, and the test set of 2016."""
    source = SOURCES["multi30k"]
    paths = {name: path_of(source, name) for name in (f"{part}.{side}" for part in _PARTS for side in ("de", "en"))}
    found = read_corpus("multi30k", *paths.values())
    return compared(found, source, {name: digest(path) for name, path in paths.items()})


def made_up_corpus() -> Corpus:
    """Return the sentences of `data.treebank`, translated from a language that spells backwards and ends on the verb.

    "the dog hears a red cat ." is "eht god a der tac sraeh .": for smoke runs and tests, which say nothing of German.
    """
    bank = made_up_treebank()
    return DataSet("made-up", *(tuple(map(_made_up, part)) for part in (bank.train, bank.dev, bank.test)))


def _made_up(sentence: Sentence) -> SentencePair:
    words = [word.form for word in sentence.words]
    verb = next(place for place, word in enumerate(sentence.words) if word.head == 0)
    source = [*words[:verb], *words[verb + 1 : -1], words[verb]]
    return SentencePair(" ".join([*(word[::-1] for word in source), words[-1]]), " ".join(words))


def read_corpus(name: str, *paths: Path) -> Corpus:
    """Read a user's own parallel text: six files, the source and the target of train, of dev and of test.

    `UserError`: as for `read_parallel`, or a part has no line.
    """
    parts = []
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        if not (pairs := tuple(read_parallel(source, target))):
            raise UserError(f"{source} has no sentence: name a file with at least one, a line each")
        parts.append(pairs)
    return DataSet(name, *parts)
