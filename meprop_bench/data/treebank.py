"""Treebanks: CoNLL-U, read strictly, so that a damaged file is not trained on; UD English EWT; sentences made up.

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

For machines without a treebank, a small grammar makes sentences up from a seed:

    S  → NP V NP . | NP V NP P NP . | NP V .        the verb is the root; subject, object and full stop hang on it
    NP → N | D N | D A N                            the noun is the head; D a determiner, A an adjective

Some words are noun or verb, adjective or noun, so that a tagger has to look around; a phrase with a preposition hangs
on the verb. All trees are projective. What a model reaches on them says that it learns, and nothing of English.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from meprop_bench.data.content import Malformed, digest, numbered_lines
from meprop_bench.data.sources import SOURCES, DataSet, compared, path_of
from meprop_bench.errors import UserError

__all__ = ["SIZES", "Sentence", "Treebank", "Word", "load_treebank", "made_up_treebank", "read_conllu", "read_treebank"]

_FIELDS = 10
_NUMBER = r"(0|[1-9][0-9]{0,8})"  # of no more digits than any sentence has words for: int() refuses thousands
_HEAD, _SPAN, _EMPTY = (re.compile(form) for form in (_NUMBER, f"{_NUMBER}-{_NUMBER}", rf"{_NUMBER}\.{_NUMBER}"))


@dataclass(frozen=True, slots=True)
class Word:
    """One syntactic word: universal part of speech, "NOUN"; that of the language, "NNS", or "_"; "nsubj:pass".

    Its head is the number of the word that it depends on, from 1; 0 for the root.
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
    """Yield the sentences of a file, gzip or plain; of one that is known to be cut off, without the last.

    `UserError`: the file cannot be read, or a line is not CoNLL-U; the message has its number.
    """
    lines: Iterable[tuple[int, str]] = numbered_lines(path, spaces="")
    if cut_off:
        lines = list(lines)
        lines = lines[: max((place for place, (_, line) in enumerate(lines, start=1) if not line), default=0)]
    found: _SentenceLines | None = None
    number = 0
    for number, line in lines:
        if not line:
            if found is not None:
                yield found.sentence(number)
            found = None
            continue
        found = found or _SentenceLines(path, number)
        found.add(number, line)
    if found is not None:
        raise Malformed(path, number, "the file ends without the empty line that ends a sentence: it is cut off")


class _SentenceLines:
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


Treebank: TypeAlias = DataSet[tuple[Sentence, ...]]

_CUT_OFF = "be9c0e5693e9c5ff042f9c2997a7007e54a3327fdc1065c3636db93ac87b5d6c"
"""SHA-256 of the test file that is about, too: cut off in the middle of sentence 2,065 of 2,077 (see `sources`)."""


def load_treebank() -> Treebank:
    """Load UD English EWT from the data folder.

    The copy of the test part that is known to be cut off is read up to its last whole sentence, and a note says so; so
    does one of files that are not those of the release. `UserError`: a file is missing or damaged.
    """
    source = SOURCES["ud-ewt"]
    paths = {name: path_of(source, name) for name in (f"en_ewt-ud-{part}.conllu" for part in ("train", "dev", "test"))}
    digests = {name: digest(path) for name, path in paths.items()}
    cut_off = digests["en_ewt-ud-test.conllu"] == _CUT_OFF
    found = read_treebank("ud-ewt", *paths.values(), test_cut_off=cut_off)
    if cut_off:
        cut = (
            f"the test file is a copy that is cut off: {len(found.test):,} of 2,077 sentences; {source.remedy} for all"
        )
        found = replace(found, notes=(cut,))
    return compared(found, source, digests)


def read_treebank(name: str, train: Path, dev: Path, test: Path, *, test_cut_off: bool = False) -> Treebank:
    """Read a user's own treebank: three CoNLL-U files, each with a sentence at least (`UserError`)."""
    return DataSet(name, _part(train), _part(dev), _part(test, cut_off=test_cut_off))


def _part(path: Path, *, cut_off: bool = False) -> tuple[Sentence, ...]:
    if not (sentences := tuple(read_conllu(path, cut_off=cut_off))):
        raise UserError(f"{path} has no sentence: name a CoNLL-U file with at least one")
    return sentences


SIZES = (400, 80, 80)
"""Sentences to train on, to choose by, to report."""

_SEED = 1711
_WORDS = {
    "DET": ("the", "a", "every", "no", "this"),
    "ADJ": ("red", "old", "heavy", "cold", "light", "clean"),
    "NOUN": ("dog", "cat", "house", "tree", "river", "Bob", "Ann", "B-52", "walks", "plays", "cold", "light"),
    "VERB": ("sees", "hears", "takes", "walks", "plays", "cleans"),
    "ADP": ("in", "near", "with"),
}
_LANGUAGE = {"DET": "DT", "ADJ": "JJ", "NOUN": "NN", "VERB": "VBZ", "ADP": "IN", "PUNCT": "."}


def made_up_treebank() -> Treebank:
    """Return the sentences in three parts, the same at every call."""
    rng = random.Random(_SEED)
    note = "sentences made up by a small grammar: they say nothing of English"
    return DataSet("made-up", *(tuple(_sentence(rng) for _ in range(size)) for size in SIZES), notes=(note,))


def _sentence(rng: random.Random) -> Sentence:
    subject = _phrase(rng, "nsubj")
    verb = len(subject) + 1
    words = [*_placed(subject, 0, verb), Word(rng.choice(_WORDS["VERB"]), "VERB", _LANGUAGE["VERB"], 0, "root")]
    wanted = rng.choice((("obj",), ("obj", "obl"), ()))
    for relation in wanted:
        words += _placed(_phrase(rng, relation), len(words), verb)
    words.append(Word(".", "PUNCT", _LANGUAGE["PUNCT"], verb, "punct"))
    return Sentence(tuple(words), 0)


def _phrase(rng: random.Random, relation: str) -> list[tuple[str, str, str]]:
    """Return (form, tag, relation) of its words, the head last."""
    tags = rng.choice(((), ("DET",), ("DET", "ADJ")))
    before = [("ADP", "case")] if relation == "obl" else []
    before += [(tag, "det" if tag == "DET" else "amod") for tag in tags]
    return [(rng.choice(_WORDS[tag]), tag, own) for tag, own in (*before, ("NOUN", relation))]


def _placed(phrase: list[tuple[str, str, str]], start: int, verb: int) -> list[Word]:
    """Return a phrase's words behind `start` others: its last word hangs on the verb, the others on it."""
    head = start + len(phrase)
    return [
        Word(form, tag, _LANGUAGE[tag], verb if place == len(phrase) - 1 else head, relation)
        for place, (form, tag, relation) in enumerate(phrase)
    ]
