"""Results as one file to hand on: what is in it, and what is refused of one that comes from somebody."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from contextlib import suppress

import pytest

import meprop_bench as mb
from meprop_bench.errors import UserError
from meprop_bench.paper.folder import load
from meprop_bench.report.bundle import MANIFEST, SCHEMA, is_bundle, opened, write_bundle
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store


@pytest.fixture
def bundle(folder, tmp_path):
    (folder / "trainings.jsonl").write_text('{"a": 1}\n')
    (folder / "README.md").write_text("a page that is made anew")
    (folder / "secret.key").write_text("not ours")
    return write_bundle(folder, tmp_path / "out.zip").path


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, target, changes=None, manifest=True, **kinds):
    """A copy of a bundle with other files, its manifest made to fit."""
    files = {**contents(path), **(changes or {})}
    files = {name: data for name, data in files.items() if data is not None}
    if manifest:
        record = json.loads(files[MANIFEST])
        record["files"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
            if name != MANIFEST
        }
        files[MANIFEST] = json.dumps(record).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(kinds.get("info", {}).get(name, name), data)
    return target


def test_it_holds_rows_environment_command_and_constraints(bundle, folder):
    found = contents(bundle)
    assert set(found) == {
        MEASUREMENTS, ENVIRONMENT, "trainings.jsonl", "constraints.txt", "README.md", MANIFEST
    }  # fmt: skip
    assert found[MEASUREMENTS] == (folder / MEASUREMENTS).read_bytes()
    record = json.loads(found[MANIFEST])
    assert record["schema"] == SCHEMA
    assert record["name"] == folder.name
    assert b"torch==2.13.0\n" in found["constraints.txt"]
    assert b"meprop-bench speedup --preset quick" in found["README.md"]
    assert b"--replay" in found["README.md"]


def test_the_same_folder_gives_the_same_bytes(bundle, folder, tmp_path):
    assert write_bundle(folder, tmp_path / "again.zip").path.read_bytes() == bundle.read_bytes()


def test_it_is_read_as_the_folder_is(bundle, folder):
    assert is_bundle(bundle)
    document, store = load(bundle)
    assert store is None
    assert document.title == folder.name
    assert document.rows == load(folder)[0].rows
    found = mb.load(bundle)
    assert len(found.rows) == len(document.rows)
    with pytest.raises(UserError, match="copy that file"):
        found.save(folder.parent / "new")


def test_several_versions_are_no_constraint(make_folder, make_row, tmp_path):
    folder = make_folder([make_row("a")])
    with Store.open(folder, write=True) as store:
        store.write_environment({"other": {"torch": "2.14.0+cu130", "numpy": "2.4.6; import os", "numba": "0.68.1"}})
    text = contents(write_bundle(folder, tmp_path / "b.zip").path)["constraints.txt"].decode()
    assert "# torch: " in text
    assert "numba==0.68.1" in text
    assert "import os" not in text


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/etc/evil.json", "a/b.json", "..", "evil.py", "C:\\evil.json", ".hidden.json", "a\nb.json"],
)
def test_a_name_that_leads_elsewhere_is_refused(bundle, tmp_path, name):
    bad = rewritten(bundle, tmp_path / "bad.zip", {name: b"x"})
    with pytest.raises(UserError, match="no file of a bundle"), opened(bad):
        pass
    assert not list(tmp_path.parent.glob("evil*"))


def test_a_link_is_refused(bundle, tmp_path):
    info = zipfile.ZipInfo("link.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    bad = rewritten(bundle, tmp_path / "bad.zip", {"link.json": b"/etc/passwd"}, info={"link.json": info})
    with pytest.raises(UserError, match="no file of a bundle"), opened(bad):
        pass


def test_what_unpacks_to_too_much_is_refused_before_it_is(bundle, tmp_path):
    bad = rewritten(bundle, tmp_path / "bad.zip", {"zeros.json": b"0" * (64 << 20)})
    assert bad.stat().st_size < 1 << 20
    with pytest.raises(UserError, match="more than a bundle of its size holds"), opened(bad):
        pass


def test_sizes_are_counted_and_not_believed(bundle, tmp_path):
    files = contents(bundle)
    record = json.loads(files[MANIFEST])
    record["files"][MEASUREMENTS]["size"] -= 1
    bad = rewritten(bundle, tmp_path / "bad.zip", {MANIFEST: json.dumps(record).encode()}, manifest=False)
    with pytest.raises(UserError, match="longer than"), opened(bad):
        pass


def test_a_file_that_was_changed_is_refused(bundle, tmp_path):
    changed = contents(bundle)[MEASUREMENTS].replace(b"passed", b"passes")
    bad = rewritten(bundle, tmp_path / "bad.zip", {MEASUREMENTS: changed}, manifest=False)
    with pytest.raises(UserError, match=r"measurements.jsonl is not what its bundle.json says"), opened(bad):
        pass


@pytest.mark.parametrize("missing", [MANIFEST, MEASUREMENTS, ENVIRONMENT])
def test_a_part_that_is_missing_is_named(bundle, tmp_path, missing):
    bad = rewritten(bundle, tmp_path / "bad.zip", {missing: None}, manifest=missing != MANIFEST)
    with pytest.raises(UserError, match=r"bundle\.json"), opened(bad):
        pass


@pytest.mark.parametrize(
    "change", [{"schema": "meprop-bench-bundle/9"}, {"schema": None}, {"name": "../up"}, {"name": ""}, {"files": 3}]
)
def test_another_schema_or_a_wrong_manifest_is_refused(bundle, tmp_path, change):
    record = {**json.loads(contents(bundle)[MANIFEST]), **change}
    bad = rewritten(bundle, tmp_path / "bad.zip", {MANIFEST: json.dumps(record).encode()}, manifest=False)
    with pytest.raises(UserError) as raised, opened(bad):
        pass
    if change.get("schema"):
        assert "'meprop-bench-bundle/9' cannot be read: this version reads 'meprop-bench-bundle/1'" in str(raised.value)


def test_rows_of_another_schema_are_refused_by_name(bundle, tmp_path):
    rows = contents(bundle)[MEASUREMENTS].replace(b'"meprop-bench/1"', b'"meprop-bench/7"')
    bad = rewritten(bundle, tmp_path / "bad.zip", {MEASUREMENTS: rows})
    with pytest.raises(UserError, match="'meprop-bench/7' cannot be read: this version reads 'meprop-bench/1'"):
        load(bad)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"PK\x03\x04" + b"\x00" * 200])
def test_what_is_no_archive_is_one_line(tmp_path, damage):
    path = tmp_path / "x.zip"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"x\.zip"):
        load(path)


@pytest.mark.parametrize("place", range(0, 4000, 97))
def test_any_damage_is_an_error_of_the_user_or_none(bundle, tmp_path, place):
    data = bytearray(bundle.read_bytes())
    data[place % len(data)] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(data)
    with suppress(UserError), opened(tmp_path / "x.zip") as inside:
        Store.open(inside)


def test_many_files_are_refused(bundle, tmp_path):
    bad = rewritten(bundle, tmp_path / "bad.zip", {f"f{n}.json": b"{}" for n in range(100)})
    with pytest.raises(UserError, match="are the most"), opened(bad):
        pass


def test_no_results_and_no_place_are_one_line(tmp_path, folder):
    with pytest.raises(UserError, match="not a results folder"):
        write_bundle(tmp_path, tmp_path / "out.zip")
    with pytest.raises(UserError, match="cannot write"):
        write_bundle(folder, tmp_path / "absent" / "out.zip")
