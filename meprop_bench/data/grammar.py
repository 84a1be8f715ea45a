"""Sentences of a small grammar, made up from a seed: a treebank for machines that have none.

    S  → NP V NP . | NP V NP P NP . | NP V .        the verb is the root; subject, object and full stop hang on it
    NP → N | D N | D A N                            the noun is the head; D a determiner, A an adjective

Some words are noun or verb, adjective or noun, so that a tagger has to look around; a phrase with a preposition hangs
on the verb. All trees are projective. What a model reaches on them says that it learns, and nothing of English: smoke
runs and tests use them, so that these need no file and no network.
"""

from __future__ import annotations

import random

from meprop_bench.data.conllu import Sentence, Word
from meprop_bench.data.dataset import DataSet
from meprop_bench.data.treebank import Treebank

__all__ = ["SIZES", "made_up_treebank"]

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
    words = [*_placed(subject, 0, verb), _word(rng, "VERB", 0, "root")]
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


def _word(rng: random.Random, tag: str, head: int, relation: str) -> Word:
    return Word(rng.choice(_WORDS[tag]), tag, _LANGUAGE[tag], head, relation)
