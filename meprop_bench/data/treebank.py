"""Universal Dependencies English EWT in its three parts: the free stand-in for the papers' Penn Treebank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from meprop_bench.data.conllu import Sentence, read_conllu
from meprop_bench.data.content import digest, unpublished
from meprop_bench.data.location import data_folder, locate
from meprop_bench.data.sources import SOURCES
from meprop_bench.errors import UserError

__all__ = ["Treebank", "load_treebank", "read_treebank"]

_REMEDY = "run `meprop-bench data fetch ud-ewt`"
_CUT_OFF = "be9c0e5693e9c5ff042f9c2997a7007e54a3327fdc1065c3636db93ac87b5d6c"
"""SHA-256 of the test file that is about, too: cut off in the middle of sentence 2,065 of 2,077 (see `sources`)."""


@dataclass(frozen=True, eq=False)
class Treebank:
    """Sentences in three parts.

    Attributes:
        name: of the data set.
        train: to learn from.
        dev: to choose by.
        test: to report.
        published: whether the files are those that were published, by their SHA-256; None where none is known.
        notes: what a reader of a result should know of these data.

    """

    name: str
    train: tuple[Sentence, ...]
    dev: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    published: bool | None = None
    notes: tuple[str, ...] = ()


def load_treebank() -> Treebank:
    """Load UD English EWT from the data folder.

    The copy of the test part that is known to be cut off is read up to its last whole sentence, and a note says so; so
    does one of files that are not those of the release.

    Raises:
        UserError: a file is missing or damaged.

    """
    names = [f"en_ewt-ud-{part}.conllu" for part in ("train", "dev", "test")]
    train, dev, test = paths = [_path(name) for name in names]
    digests = dict(zip(names, map(digest, paths), strict=True))
    cut_off = digests[names[-1]] == _CUT_OFF
    found = read_treebank("ud-ewt", train, dev, test, test_cut_off=cut_off)
    notes = unpublished(SOURCES["ud-ewt"], digests)
    if cut_off:
        cut = f"the test file is a copy that is cut off: {len(found.test):,} of 2,077 sentences; {_REMEDY} for all"
        notes = (cut, *notes)
    return replace(found, published=not notes, notes=notes)


def read_treebank(name: str, train: Path, dev: Path, test: Path, *, test_cut_off: bool = False) -> Treebank:
    """Read a user's own treebank: three CoNLL-U files.

    Raises:
        UserError: a file cannot be read, is not CoNLL-U, or has no sentence.

    """
    return Treebank(name, _part(train), _part(dev), _part(test, cut_off=test_cut_off))


def _part(path: Path, *, cut_off: bool = False) -> tuple[Sentence, ...]:
    if not (sentences := tuple(read_conllu(path, cut_off=cut_off))):
        raise UserError(f"{path} has no sentence: name a CoNLL-U file with at least one")
    return sentences


def _path(name: str) -> Path:
    source = SOURCES["ud-ewt"]
    path = locate(data_folder(), source, source.file(name))
    if path is None:
        raise UserError(f"UD English EWT is not complete: no {name}.gz in {data_folder() / 'ud-ewt'}; {_REMEDY}")
    return path
