import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.files import read_file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "results.json is empty"),
        (b"   \n ", "results.json is empty"),
        (b"[]", "not JSON, or was cut off: '\\[' is not expected"),
        (b"hello", "'h' is not expected at character 0"),
        (b'{"benchmarks": [', "it ends too early"),
        (b'{"benchmarks": [{"fullname": "a", "sta', "it ends too early"),
        (b'{"benchmarks": [{"fullname": "a", "stats": {"median": 1.0}}', "it ends too early"),
        (b'{"benchmarks": [{"fullname": "a", "stats": {"median": 1.0}} 3', "'3' is not expected"),
        (b'{"benchmarks": [], "machine_info": {}', "it ends too early"),
        (b'{"benchmarks": [] "machine_info": {}}', "is not expected"),
        (b'{"a" 1}', "'1' is not expected"),
        (b'{"machine_info": {}, "benchmarks": [], "benchmarks": []}', "has 'benchmarks' twice"),
        (b'{"version": 2, "results": {"t": [[null]], "t": [[1.0]]}}', "results.json: it has the key 't' twice"),
        (b'{"schema": "meprop-bench/1", "rows": [{"error": "killed", "error": null}]}', "it has the key 'error' twice"),
        (b'{"machine_info": {}, "benchmarks": [{"\\ud800": 1}]}', "row 1 is not one of a result"),
        (b"{1: 1}", "'1' is not expected"),
        (b'{"a": tru}', "it ends too early|expecting value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "holds an integer of 5000 digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply|ends too early"),
        (b"\xff\xfe\x7b\x00", "not a text in UTF-8"),
        ('{"machine_info": "ü"}'.encode("latin-1"), "not a text in UTF-8"),
        (b"{}", "its keys are none"),
        (b'{"context": {}, "numbers": []}', "is none of .*: its keys are context, numbers"),
        (b'{"benchmarks": []}', "is none of"),
        (b'{"benchmarks": {}, "machine_info": {}}', "is none of"),
        (b'{"machine_info": {}, "benchmarks": []} {"more": 1}', "goes on after its first object"),
        (b'{"schema": "meprop-bench/9", "rows": []}', "'meprop-bench/9' cannot be read"),
        (b'{"schema": "meprop-bench/1", "rows": 3}', "no list of rows"),
        (b'{"version": 1, "results": {}, "commit_hash": "a"}', "asv result of version 1, and this reads 2"),
        (b'{"version": 2, "results": {}, "commit_hash": "a"}', "asv result without usable columns"),
    ],
)
def test_what_is_no_result_is_one_line_and_exit_code_2(tmp_path, content, message):
    (path := tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_file(path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)


def test_any_cut_of_a_good_file_is_one_line(tmp_path, write, bench):
    whole = write("whole.json", bench("test_a", data=False), bench("test_b", data=False)).read_bytes()
    (path := tmp_path / "cut.json").write_bytes(whole)
    assert len(read_file(path)) == 2
    for end in range(0, len(whole) - 1, 23):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut off|is empty"):
            read_file(path)


def test_a_cut_in_every_chunk_is_found_however_long_the_rows(write, bench, monkeypatch):
    monkeypatch.setattr("meprop_bench.gate.files.stream._CHUNK", 64)
    path = write("whole.json", *(bench(f"test_{n}") for n in range(20)))
    assert len(read_file(path)) == 20


def test_a_byte_order_mark_is_passed_over(write, bench):
    path = write("marked.json", bench("test_a"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_file(path)) == 1


def test_paths_that_lead_nowhere(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path, message in (
        (tmp_path / "none.json", "does not exist"),
        (tmp_path, "a folder without measurements.jsonl"),
        (tmp_path / "pipe.json", "is a pipe or a device"),  # and nobody waits for a writer
        (Path("/dev/zero"), "is a pipe or a device"),
        (tmp_path / ("x" * 300), "cannot read .*: File name too long"),
        (tmp_path / "pipe.json" / "below.json", "does not exist"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_file(path)
        assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_one_line(tmp_path):
    (path := tmp_path / "secret.json").write_text("{}")
    path.chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
        read_file(path)


def test_a_folder_on_the_way_that_may_not_be_searched_is_one_line(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", denied)
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
        read_file(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("pack", "hint"), [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")]
)
def test_a_compressed_file_is_told_how_to_be_unpacked(tmp_path, pack, hint):
    (path := tmp_path / "results.json.gz").write_bytes(pack(b'{"benchmarks": []}' * 20))
    with pytest.raises(UserError, match=rf"is compressed: unpack it first \({hint}\)"):
        read_file(path)


@pytest.mark.parametrize("newline", [b"\r\n", b"\r"])
def test_other_ends_of_lines_are_read(write, bench, newline):
    path = write("windows.json", bench("test_a"), bench("test_b"))
    path.write_bytes(path.read_bytes().replace(b"\n", newline))
    assert len(read_file(path)) == 2
