"""CoNLL-U, the format of the Universal Dependencies treebanks: strict, so that a damaged file is not trained on.

    # comments before a sentence
    1      They    they    PRON  PRP  …  2   nsubj  …  _        ten fields, separated by tabs: ID FORM LEMMA UPOS XPOS
    2-3    don't   _       _     _    …  _   _      …  _        FEATS HEAD DEPREL DEPS MISC
    2      do      …
    3      n't     …
    3.1    left    …                                            an empty line ends the sentence

A *multiword token* (ID `2-3`) is spelling: its words follow, and the trees are over words, so it is left out. An
*empty node* (ID `3.1`) belongs to the enhanced graph and is left out, too. Heads refer to words; 0 is the root. The
words of a sentence are numbered 1, 2, … without a gap, every head exists, exactly one word is the root, and no word is
its own ancestor: whatever breaks one of these is an error with its file and line.

Source: https://universaldependencies.org/format.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meprop_bench.data.lines import Malformed, numbered_lines

__all__ = ["Sentence", "Word", "read_conllu"]

_FIELDS = 10
_SPAN = re.compile(r"([1-9][0-9]*)-([1-9][0-9]*)")
_EMPTY = re.compile(r"[0-9]+\.[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class Word:
    """One syntactic word.

    Attributes:
        form: as it is written.
        upos: universal part of speech, "NOUN".
        xpos: that of the language, "NNS"; "_" where there is none.
        head: number of the word it depends on, from 1; 0 for the root.
        relation: to the head, "nsubj:pass".

    """

    form: str
    upos: str
    xpos: str
    head: int
    relation: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """The words of a sentence, the i-th of which has the number i + 1, and the line that the sentence begins in."""

    words: tuple[Word, ...]
    line: int

    def __len__(self) -> int:
        return len(self.words)

    @property
    def projective(self) -> bool:
        """Whether no two arcs cross, the one from the root (left of all words) included."""
        arcs = [tuple(sorted((word.head, number))) for number, word in enumerate(self.words, start=1)]
        return not any(a < c < b < d for a, b in arcs for c, d in arcs)


def read_conllu(path: Path, *, cut_off: bool = False) -> Iterator[Sentence]:
    """Yield the sentences of a file, gzip or plain.

    Args:
        path: the file.
        cut_off: the file is known to end in the middle of a sentence, which is then left out.

    Raises:
        UserError: the file cannot be read, or a line is not CoNLL-U; the message has its number.

    """
    lines: Iterable[tuple[int, str]] = numbered_lines(path)
    if cut_off:
        lines = list(lines)
        lines = lines[: max((place for place, (_, line) in enumerate(lines, start=1) if not line), default=0)]
    words: list[Word] = []
    begun = number = 0
    for number, line in lines:
        if not line:
            if words:
                yield _sentence(path, words, begun)
            elif begun:
                raise Malformed(path, number, "the sentence that ends here has no words")
            words, begun = [], 0
            continue
        begun = begun or number
        if line.startswith("#") and not words:
            continue
        if (word := _word(path, number, line, len(words) + 1)) is not None:
            words.append(word)
    if begun:
        raise Malformed(path, number, "the file ends without the empty line that ends a sentence: it is cut off")


def _word(path: Path, number: int, line: str, expected: int) -> Word | None:
    """Return the word of a line, or None for a multiword token or an empty node."""
    fields = line.split("\t")
    if len(fields) != _FIELDS:
        raise Malformed(path, number, f"{len(fields)} fields instead of {_FIELDS}, separated by tabs")
    if blank := next((i for i, field in enumerate(fields, start=1) if not field.strip()), None):
        raise Malformed(path, number, f"field {blank} is empty; '_' stands for nothing")
    if _EMPTY.fullmatch(fields[0]):
        return None
    if span := _SPAN.fullmatch(fields[0]):
        if int(span[1]) != expected or int(span[2]) <= int(span[1]):
            raise Malformed(path, number, f"multiword token {fields[0]} does not begin at the next word, {expected}")
        return None
    if fields[0] != str(expected):
        raise Malformed(path, number, f"the word's number is {fields[0]!r} where {expected} is next")
    if not (fields[6].isascii() and fields[6].isdigit()):
        raise Malformed(path, number, f"its head is {fields[6]!r}, not the number of a word")
    return Word(fields[1], fields[3], fields[4], int(fields[6]), fields[7])


def _sentence(path: Path, words: list[Word], begun: int) -> Sentence:
    """Return the sentence, once its arcs are known to be a tree."""
    heads = [word.head for word in words]
    if beyond := [head for head in heads if head > len(words)]:
        raise Malformed(path, begun, f"in the sentence that begins here, a head is {beyond[0]} of {len(words)} words")
    if (roots := heads.count(0)) != 1:
        raise Malformed(path, begun, f"the sentence that begins here has {roots} roots instead of 1")
    below_root = {0}
    for number in range(1, len(words) + 1):
        way: list[int] = []
        above = number
        while above not in below_root:
            if above in way:
                raise Malformed(path, begun, f"in the sentence that begins here, word {above} is its own ancestor")
            way.append(above)
            above = heads[above - 1]
        below_root.update(way)
    return Sentence(tuple(words), begun)
