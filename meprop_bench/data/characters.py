"""Running text in three parts, each one string: what a model of characters learns, its lines with their ends.

multi30k    English captions of photographs, 29,000 to train on         "A dog runs .\nTwo children laugh .\n"
ud-ewt      English from the web, the words of a treebank with spaces between them
made up     sentences of the grammar in `data.treebank`, for machines without any of these
your own    three files in UTF-8, plain or gzip
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from meprop_bench.data.content import digest, numbered_lines
from meprop_bench.data.sources import SOURCES, DataSet, compared, data_folder, locate, path_of
from meprop_bench.data.treebank import Sentence, Treebank, load_treebank, made_up_treebank
from meprop_bench.errors import UserError, one_of

__all__ = ["TEXTS", "Text", "auto_text", "load_text", "made_up_text", "read_text"]

Text: TypeAlias = DataSet[str]

TEXTS = ("multi30k", "ud-ewt")
"""Names that `load_text` knows."""

_CAPTIONS = ("train.en", "val.en", "test_2016_flickr.en")


def auto_text() -> str:
    """Return the text that "auto" stands for: the captions when their files are here, else "made-up"."""
    source, folder = SOURCES["multi30k"], data_folder()
    return "multi30k" if all(locate(folder, source, source.file(name)) for name in _CAPTIONS) else "made-up"


def load_text(name: str) -> Text:
    """Load one of `TEXTS` from the data folder; `UserError` where it is not there, or damaged."""
    one_of("data", name, TEXTS)
    if name == "ud-ewt":
        return _words(load_treebank())
    source = SOURCES["multi30k"]
    paths = {file: path_of(source, file) for file in _CAPTIONS}
    found = read_text("multi30k", *paths.values())
    return compared(found, source, {file: digest(path) for file, path in paths.items()})


def made_up_text() -> Text:
    """Return sentences that a small grammar makes up, the same at every call."""
    return _words(made_up_treebank())


def read_text(name: str, train: Path, dev: Path, test: Path) -> Text:
    """Read a user's own text; spaces at the end of a line are no part of it.

    `UserError`: a file cannot be read, is no text in UTF-8, or is empty.
    """
    return DataSet(name, *(_read(path) for path in (train, dev, test)))


def _read(path: Path) -> str:
    if not (text := _joined(line.rstrip() for _, line in numbered_lines(path))).strip():
        raise UserError(f"{path} has no text: name a file with some")
    return text


def _words(bank: Treebank) -> Text:
    def text(part: Iterable[Sentence]) -> str:
        return _joined(" ".join(word.form for word in sentence.words) for sentence in part)

    parts = text(bank.train), text(bank.dev), text(bank.test)
    return DataSet(bank.name, *parts, published=bank.published, notes=bank.notes)


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
