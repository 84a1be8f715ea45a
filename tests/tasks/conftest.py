"""A small treebank that can be learnt: article, noun, verb, full stop, in random order and number."""

import random

import pytest


@pytest.fixture(autouse=True)
def _small_models(one_thread):
    """All that is trained here is small."""


@pytest.fixture
def treebank_files(tmp_path):
    """Write three CoNLL-U files and return them as the option `files` takes them."""
    rng = random.Random(0)
    paths = []
    for part, count in (("train", 60), ("dev", 12), ("test", 12)):
        path = tmp_path / f"{part}.conllu"
        path.write_text("".join(_sentence(rng) for _ in range(count)), encoding="utf-8")
        paths.append(str(path))
    return ",".join(paths)


def _sentence(rng):
    # verb is the root; nouns hang on it, an article on its noun.
    phrases = [_phrase(rng) for _ in range(rng.choice((1, 2)))]
    rows, verb = [], len(phrases[0]) + 1
    for place, phrase in enumerate(phrases):
        start = 0 if place == 0 else verb
        noun = start + len(phrase)
        for offset, (form, tag) in enumerate(phrase, start=1):
            head = verb if tag == "NOUN" else noun
            rows.append(
                (
                    start + offset,
                    form,
                    tag,
                    head,
                    "obj" if place and tag == "NOUN" else "nsubj" if tag == "NOUN" else "det",
                )
            )
        if place == 0:
            rows.append((verb, rng.choice(("sees", "hears", "takes")), "VERB", 0, "root"))
    rows.append((len(rows) + 1, ".", "PUNCT", verb, "punct"))
    lines = [f"{i}\t{form}\t_\t{tag}\t{tag[:2]}\t_\t{head}\t{rel}\t_\t_" for i, form, tag, head, rel in rows]
    return "\n".join(lines) + "\n\n"


def _phrase(rng):
    noun = (rng.choice(("dog", "cat", "house", "tree", "Bob-7")), "NOUN")
    return [(rng.choice(("the", "a")), "DET"), noun] if rng.random() < 0.6 else [noun]
