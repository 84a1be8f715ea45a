import gzip
import hashlib
import struct
import tracemalloc

import pytest
import torch

from meprop_bench.data.mnist import digest, read_idx
from meprop_bench.errors import UserError


def idx(shape, entries, dtype=0x08):
    return bytes([0, 0, dtype, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + entries


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(6,), (1, 2, 3), (0,), (0, 28, 28)])
def test_reads_what_was_written(tmp_path, pack, shape):
    entries = bytes(range(torch.Size(shape).numel()))
    path = tmp_path / "file"
    path.write_bytes(pack(idx(shape, entries)))
    read = read_idx(path, len(shape))
    assert read.dtype == torch.uint8
    assert read.shape == shape
    assert read.flatten().tolist() == list(entries)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"<html>not found</html>", "not an IDX file"),
        (idx((2, 3), bytes(24), dtype=0x0D), "data type is 0x0D, not unsigned bytes"),
        (idx((6,), bytes(6)), "has 1 dimensions, not 2"),
        (idx((2, 3), b"")[:-1], "truncated in its header"),
        (idx((2, 3), bytes(5)), "truncated: 5 of the 6 entries"),
        (idx((2, 3), bytes(7)), "data follow the 6 entries"),
        (idx((2**31, 2**31), b""), "which cannot be right"),
        (idx((2**32 - 1, 1), b""), "which cannot be right"),
        (idx((0, 2**32 - 1), b"\0"), "data follow the 0 entries"),
    ],
)
def test_a_damaged_file_is_one_line_with_its_name_and_a_remedy(tmp_path, pack, content, words):
    path = tmp_path / "numbers-idx2-ubyte"
    path.write_bytes(pack(content))
    with pytest.raises(UserError, match=words) as caught:
        read_idx(path, 2, "run this")
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; run this")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_memory_follows_what_is_there_and_not_what_a_header_states(tmp_path, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(idx((2**14, 2**14), bytes(1000))))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"truncated: 1,000 of the 268,435,456 entries"):
        read_idx(path, 2)
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(6,), (2, 3), (0, 28, 28)])
def test_the_digest_is_that_of_the_plain_file(tmp_path, shape):
    content = idx(shape, bytes(range(torch.Size(shape).numel())))
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content))
    assert digest(read_idx(path, len(shape))) == hashlib.sha256(content).hexdigest()


def test_damaged_gzip_and_unreadable_files(tmp_path):
    path = tmp_path / "file"
    whole = gzip.compress(idx((600,), bytes(i * i % 256 for i in range(600))))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[:-9], whole[:5], bytes(flipped), whole + b"more", whole[:-1], b"\x1f\x8b"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot read"):
            read_idx(path, 1)
    with pytest.raises(UserError, match="No such file"):
        read_idx(tmp_path / "none", 1)
    with pytest.raises(UserError, match="Is a directory"):
        read_idx(tmp_path, 1)
