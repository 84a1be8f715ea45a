"""The data sets as data: files, mirrors, checksums; where they lie; and what a set is once it is read.

A checksum is that of the *decompressed* content: two mirrors may pack the same bytes differently (one serves the file
plain, another with its own gzip), and both are then the same file. Only single files are listed. Archives (tar, zip)
are not used at all, so no file name ever comes from the network.

The licensed corpora of the papers have free stand-ins: UD English EWT for the Penn Treebank (part-of-speech tags,
parsing), Multi30k for NIST Chinese-English and IWSLT English-Vietnamese (translation). Numbers from a stand-in are
comparable with the papers' in their ratios only.

All lie in one folder, `NAME/FILE.gz` in it: `MEPROP_BENCH_DATA`, else one in the user's cache (`meprop_bench.cache`). A
plain `NAME/FILE`, unpacked by hand, is read, too; `FILE.gz` comes first when both are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from meprop_bench.cache import places
from meprop_bench.errors import UserError, one_of

__all__ = [
    "SOURCES", "VARIABLE", "DataFile", "DataSet", "Source", "compared", "data_folder", "find_source", "is_here",
    "locate", "path_of",
]  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """One published file: its name without `.gz`, the size in bytes and the SHA-256 of its decompressed content.

    `urls` are where it is published, best first; each serves the content plain or as gzip.
    """

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...]

    @property
    def stored_name(self) -> str:
        """Its name in a data folder, where every file lies as gzip."""
        return f"{self.name}.gz"


@dataclass(frozen=True)
class Source:
    """One data set: its files, what it is for and under which licence it comes."""

    name: str
    purpose: str
    licence: str
    homepage: str
    files: tuple[DataFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files, decompressed."""
        return sum(file.size for file in self.files)

    @property
    def remedy(self) -> str:
        """What gets it, for the end of an error message."""
        return f"run `meprop-bench data fetch {self.name}`"

    def file(self, name: str) -> DataFile:
        """Return the file called `name` (without `.gz`); `KeyError` when there is none."""
        return {file.name: file for file in self.files}[name]


def _files(mirrors: tuple[str, ...], *contents: tuple[str, int, str]) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(name, size, sha256, tuple(mirror.format(name) for mirror in mirrors))
        for name, size, sha256 in contents
    )


_MNIST = Source(
    name="mnist",
    purpose="MLP, CNN: images of digits",
    licence="CC BY-SA 3.0",
    homepage="http://yann.lecun.com/exdb/mnist/",
    files=_files(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/{}.gz",
            "https://raw.githubusercontent.com/fgnt/mnist/master/{}.gz",
            "https://storage.googleapis.com/cvdf-datasets/mnist/{}.gz",
        ),
        ("train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1-ubyte", 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1-ubyte", 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
)

_UD_EWT = Source(
    name="ud-ewt",
    purpose="tagger, parser, GPT: English trees",
    licence="CC BY-SA 4.0",
    homepage="https://github.com/UniversalDependencies/UD_English-EWT",
    files=_files(
        (
            # Release 2.16: the treebank is corrected twice a year, so only a tag has a checksum.
            "https://raw.githubusercontent.com/UniversalDependencies/UD_English-EWT/r2.16/{}",
            "https://github.com/UniversalDependencies/UD_English-EWT/raw/r2.16/{}",
        ),
        ("en_ewt-ud-train.conllu", 14_203_025, "3fb78e2b55482c8ee00caa653af436c88c9e5bc9a73ce26e4ae3ddc79d2b7e7b"),
        ("en_ewt-ud-dev.conllu", 1_805_545, "531a54ff90d6ab12201c5a50c3e78e6ddac4de69abc4bce5d275d3cd29efe2b6"),
        # As in the tag (git blob c59667960ae967636606f47bc35f132a5557ad39), with all 2,077 sentences. A copy cut off
        # after 1,795,072 bytes, in the middle of sentence 2,065, is about (SHA-256 be9c0e56…): it is not this file.
        ("en_ewt-ud-test.conllu", 1_804_515, "e266e515a0a7547657ed3d90d9ba46487d6bd251f27ad4269d4e8a427c8555cd"),
    ),
)

_MULTI30K = Source(
    name="multi30k",
    purpose="translator, GPT: English-German",
    licence="non-commercial, see source",
    homepage="https://github.com/multi30k/dataset",
    files=_files(
        (
            "https://raw.githubusercontent.com/multi30k/dataset/2cc0f2d7c615b60e07e2d51bb5edc004444d7e0e/data/task1/raw/{}.gz",
            "https://cdn.jsdelivr.net/gh/multi30k/dataset@2cc0f2d7c615b60e07e2d51bb5edc004444d7e0e/data/task1/raw/{}.gz",
        ),
        ("train.en", 1_801_238, "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6"),
        ("train.de", 2_110_398, "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72"),
        ("val.en", 63_297, "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227"),
        ("val.de", 75_981, "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660"),
        ("test_2016_flickr.en", 62_076, "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182"),
        ("test_2016_flickr.de", 70_649, "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16"),
        ("test_2017_flickr.en", 55_242, "ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98"),
        ("test_2017_flickr.de", 64_059, "c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081"),
    ),
)

SOURCES: Mapping[str, Source] = {source.name: source for source in (_MNIST, _UD_EWT, _MULTI30K)}
"""Every data set that can be fetched, by name."""


def find_source(name: str) -> Source:
    """Return the data set called `name`; `UserError`, with a suggestion, when there is none."""
    return SOURCES[one_of("data set", name, SOURCES)]


VARIABLE = "MEPROP_BENCH_DATA"


def data_folder() -> Path:
    """Return the folder of all data sets; the default one need not exist yet.

    `UserError`: `MEPROP_BENCH_DATA` names no folder, or there is no home directory to keep a cache in.
    """
    if chosen := os.environ.get(VARIABLE):
        folder = Path(os.path.expanduser(chosen))
        if not folder.is_dir():
            raise UserError(f"{VARIABLE}={chosen} is not a folder: create it, or unset the variable to use the cache")
        return folder
    if not (found := places()):
        raise UserError(f"there is no home directory to keep data in: set {VARIABLE} to a folder")
    return found[0]


def locate(folder: Path, source: Source, file: DataFile) -> Path | None:
    """Return where `file` lies in `folder` (the gzip, else the plain file), or None."""
    for name in (file.stored_name, file.name):
        path = folder / source.name / name
        if path.is_file():
            return path
    return None


def is_here(source: Source) -> bool:
    """Whether all files of a data set lie in the data folder."""
    folder = data_folder()
    return all(locate(folder, source, file) for file in source.files)


def path_of(source: Source, name: str) -> Path:
    """Return where the file called `name` (without `.gz`) lies; `UserError` when it is not here."""
    folder, file = data_folder(), source.file(name)
    if (path := locate(folder, source, file)) is None:
        what = "not complete" if any(locate(folder, source, each) for each in source.files) else "not here"
        where = folder / source.name
        raise UserError(f"{source.name} is {what}: no {file.stored_name} in {where}; {source.remedy}")
    return path


P = TypeVar("P")
S = TypeVar("S", bound="DataSet[Any]")


@dataclass(frozen=True, eq=False)
class DataSet(Generic[P]):
    """A data set in three parts: to learn from, to choose by, to report. What it is a part of depends on the data.

    `published`: whether the files are those that were published, by their SHA-256; None where none is known. `notes`:
    what a reader of a result should know of these data.
    """

    name: str
    train: P
    dev: P
    test: P
    published: bool | None = field(default=None, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)


def compared(found: S, source: Source, digests: Mapping[str, str]) -> S:
    """Return what was read so that it says whether it is the published set, with a note of the files that are not.

    `digests`: name of a file -> the SHA-256 of what was read.
    """
    others = [name for name, digest in digests.items() if digest != source.file(name).sha256]
    if not others:
        return replace(found, published=True)
    note = (
        f"not the published {source.name} data: {', '.join(others)} {'has' if len(others) == 1 else 'have'} another "
        f"SHA-256; `meprop-bench data fetch {source.name}` gets those that were published"
    )
    return replace(found, published=False, notes=(*found.notes, note))
