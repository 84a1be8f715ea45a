"""Universal Dependencies English EWT in its three parts: the free stand-in for the papers' Penn Treebank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from meprop_bench.data.conllu import Sentence, read_conllu
from meprop_bench.data.content import digest
from meprop_bench.data.dataset import DataSet, compared
from meprop_bench.data.location import path_of
from meprop_bench.data.sources import SOURCES
from meprop_bench.errors import UserError

__all__ = ["Treebank", "load_treebank", "read_treebank"]

Treebank: TypeAlias = DataSet[tuple[Sentence, ...]]

_CUT_OFF = "be9c0e5693e9c5ff042f9c2997a7007e54a3327fdc1065c3636db93ac87b5d6c"
"""SHA-256 of the test file that is about, too: cut off in the middle of sentence 2,065 of 2,077 (see `sources`)."""


def load_treebank() -> Treebank:
    """Load UD English EWT from the data folder.

    The copy of the test part that is known to be cut off is read up to its last whole sentence, and a note says so; so
    does one of files that are not those of the release.

    Raises:
        UserError: a file is missing or damaged.

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
    """Read a user's own treebank: three CoNLL-U files.

    Raises:
        UserError: a file cannot be read, is not CoNLL-U, or has no sentence.

    """
    return DataSet(name, _part(train), _part(dev), _part(test, cut_off=test_cut_off))


def _part(path: Path, *, cut_off: bool = False) -> tuple[Sentence, ...]:
    if not (sentences := tuple(read_conllu(path, cut_off=cut_off))):
        raise UserError(f"{path} has no sentence: name a CoNLL-U file with at least one")
    return sentences
