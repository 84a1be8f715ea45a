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
its own ancestor. A multiword token stands before the first of its words, which are two or more, all there and in no
other; empty nodes follow their word (0: none) and are numbered 1, 2, …. Whatever breaks one of these is an error with
its file and line: a line that was lost or doubled shows in nothing else.

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
_NUMBER = r"(0|[1-9][0-9]{0,8})"  # of no more digits than any sentence has words for: int() refuses thousands
_HEAD, _SPAN, _EMPTY = (re.compile(form) for form in (_NUMBER, f"{_NUMBER}-{_NUMBER}", rf"{_NUMBER}\.{_NUMBER}"))


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
        arcs = (sorted((word.head, number)) for number, word in enumerate(self.words, start=1))
        around: list[int] = []  # right ends of the arcs that the next one begins in, the innermost last
        for left, right in sorted(arcs, key=lambda arc: (arc[0], -arc[1])):
            while around and around[-1] <= left:
                around.pop()
            if around and around[-1] < right:
                return False
            around.append(right)
        return True


def read_conllu(path: Path, *, cut_off: bool = False) -> Iterator[Sentence]:
    """Yield the sentences of a file, gzip or plain.

    Args:
        path: the file.
        cut_off: the file is known to end in the middle of a sentence, which is then left out.

    Raises:
        UserError: the file cannot be read, or a line is not CoNLL-U; the message has its number.

    """
    lines: Iterable[tuple[int, str]] = numbered_lines(path, spaces="")
    if cut_off:
        lines = list(lines)
        lines = lines[: max((place for place, (_, line) in enumerate(lines, start=1) if not line), default=0)]
    found: _Lines | None = None
    number = 0
    for number, line in lines:
        if not line:
            if found is not None:
                yield found.sentence(number)
            found = None
            continue
        found = found or _Lines(path, number)
        found.add(number, line)
    if found is not None:
        raise Malformed(path, number, "the file ends without the empty line that ends a sentence: it is cut off")


class _Lines:
    """The lines of one sentence so far."""

    def __init__(self, path: Path, begun: int) -> None:
        self._path, self._begun = path, begun
        self._words: list[Word] = []
        self._empty_nodes = 0  # behind the last word
        self._span_begin = self._span_end = self._span_line = 0  # of the last multiword token

    def add(self, number: int, line: str) -> None:
        """Take the next line; `Malformed` if it cannot follow those before it."""
        if line.startswith("#") and not (self._words or self._empty_nodes or self._span_end):
            return
        fields = line.split("\t")
        if len(fields) != _FIELDS:
            raise Malformed(self._path, number, f"{len(fields)} fields instead of {_FIELDS}, separated by tabs")
        if blank := next((i for i, field in enumerate(fields, start=1) if not field.strip()), None):
            raise Malformed(self._path, number, f"field {blank} is empty; '_' stands for nothing")
        if empty := _EMPTY.fullmatch(fields[0]):
            self._add_empty_node(number, int(empty[1]), int(empty[2]))
        elif span := _SPAN.fullmatch(fields[0]):
            self._add_span(number, int(span[1]), int(span[2]))
        else:
            self._add_word(number, fields)

    def _add_empty_node(self, number: int, word: int, place: int) -> None:
        before = len(self._words)
        in_token = self._span_begin == before + 1
        expected = f"word {before + 1}" if in_token else f"{before}.{self._empty_nodes + 1}"
        if f"{word}.{place}" != expected:
            raise Malformed(self._path, number, f"the empty node {word}.{place} stands where {expected} is next")
        self._empty_nodes = place

    def _add_span(self, number: int, first: int, last: int) -> None:
        name, expected = f"the multiword token {first}-{last}", len(self._words) + 1
        if last <= first:
            raise Malformed(self._path, number, f"{name} does not go from a word to a later one")
        if 0 < first <= self._span_end:
            raise Malformed(self._path, number, f"{name} has words of the one in line {self._span_line}, too")
        if first != expected:
            raise Malformed(self._path, number, f"{name} does not begin at the next word, {expected}")
        self._span_begin, self._span_end, self._span_line = first, last, number

    def _add_word(self, number: int, fields: list[str]) -> None:
        if fields[0] != str(expected := len(self._words) + 1):
            raise Malformed(self._path, number, f"the word's number is {_short(fields[0])} where {expected} is next")
        if not _HEAD.fullmatch(fields[6]):
            raise Malformed(self._path, number, f"its head is {_short(fields[6])}, not the number of a word")
        self._words.append(Word(fields[1], fields[3], fields[4], int(fields[6]), fields[7]))
        self._empty_nodes = 0

    def sentence(self, number: int) -> Sentence:
        """Return the sentence that the empty line `number` ends, once its arcs are known to be a tree."""
        words, here = self._words, "the sentence that begins here"
        if not words:
            raise Malformed(self._path, number, "the sentence that ends here has no words")
        if self._span_end > len(words):
            reason = f"the multiword token goes to word {self._span_end} of {len(words)}"
            raise Malformed(self._path, self._span_line, reason)
        heads = [0, *(word.head for word in words)]
        if (highest := max(heads)) > len(words):
            raise Malformed(self._path, self._begun, f"in {here}, a head is {highest} of {len(words)} words")
        if (roots := heads.count(0) - 1) != 1:
            raise Malformed(self._path, self._begun, f"{here} has {roots} roots instead of 1")
        seen_from = [0] * len(heads)  # the word from which the way up first came by; each is walked over once
        for first in range(1, len(heads)):
            above = first
            while above and not seen_from[above]:
                seen_from[above] = first
                above = heads[above]
            if above and seen_from[above] == first:
                raise Malformed(self._path, self._begun, f"in {here}, word {above} is its own ancestor")
        return Sentence(tuple(words), self._begun)


def _short(text: str) -> str:
    return repr(text if len(text) <= 20 else f"{text[:20]}…")
