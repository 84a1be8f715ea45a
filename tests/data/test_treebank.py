"""UD English EWT from the data folder, and a user's own treebank."""

import os

import pytest

from meprop_bench.data.treebank import load_treebank, read_treebank
from meprop_bench.errors import UserError

TREE = "1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_\n\n"


@pytest.fixture
def parts(tmp_path):
    paths = [tmp_path / f"{part}.conllu" for part in ("train", "dev", "test")]
    for path in paths:
        path.write_text(TREE)
    return paths


def test_own_files(parts):
    found = read_treebank("mine", *parts)
    assert (found.name, len(found.train), len(found.dev), len(found.test), found.notes) == ("mine", 1, 1, 1, ())
    assert found.published is None


def test_a_part_without_a_sentence(parts):
    parts[1].write_text("")
    with pytest.raises(UserError, match=r"dev\.conllu has no sentence"):
        read_treebank("mine", *parts)


def test_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match="data fetch ud-ewt"):
        load_treebank()


def test_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    (tmp_path / "ud-ewt").mkdir()
    for part in ("train", "dev", "test"):
        (tmp_path / "ud-ewt" / f"en_ewt-ud-{part}.conllu.gz").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(UserError, match="cannot read"):
        load_treebank()


def test_another_treebank_in_files_of_the_same_names_is_loaded_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    (tmp_path / "ud-ewt").mkdir()
    for part in ("train", "dev", "test"):
        (tmp_path / "ud-ewt" / f"en_ewt-ud-{part}.conllu").write_text(TREE)
    found = load_treebank()
    assert found.published is False
    assert "not the published ud-ewt data: en_ewt-ud-train.conllu, en_ewt-ud-dev.conllu" in found.notes[0]


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="needs MEPROP_BENCH_DATA")
def test_real_treebank():
    found = load_treebank()
    assert (len(found.train), len(found.dev)) == (12_544, 2_001)
    assert len(found.test) == (2_077 if found.published else 2_064)
    assert sum(len(sentence) for sentence in found.train) == 204_577
    assert sum(not sentence.projective for sentence in found.dev) > 0
