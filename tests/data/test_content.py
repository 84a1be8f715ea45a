import gzip
import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meprop_bench.data.content import ContentError, State, inspect, published
from meprop_bench.data.sources import DataFile, Source


def file_of(content):
    return DataFile("f", len(content), hashlib.sha256(content).hexdigest(), ())


def in_pieces(raw, size):
    return (raw[i : i + size] for i in range(0, len(raw), size))


@given(content=st.binary(max_size=2000), size=st.integers(1, 300), members=st.integers(0, 3))
def test_content_comes_out_however_it_is_packed_and_cut(content, size, members):
    if members == 0 and content.startswith(b"\x1f\x8b"):
        return  # would be taken for gzip; no published file begins so
    cuts = [content[i * len(content) // members : (i + 1) * len(content) // members] for i in range(members)]
    raw = b"".join(gzip.compress(cut) for cut in cuts) if members else content
    assert b"".join(published(in_pieces(raw, size), file_of(content))) == content


@given(content=st.binary(min_size=1, max_size=500), data=st.data())
def test_every_cut_and_every_flipped_bit_of_a_gzip_is_noticed_or_harmless(content, data):
    raw = bytearray(gzip.compress(content))
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[at:]
    else:
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(ContentError):
        assert b"".join(published([bytes(raw)], file_of(content))) == content


def test_what_is_wrong_is_said():
    file = file_of(b"hello")
    for raw, words in [
        (b"hell", "4 bytes instead of the published 5"),
        (b"hello!", "longer than the published 5 bytes"),
        (b"hallo", "SHA-256"),
        (b"", "0 bytes"),
        (gzip.compress(b"hello")[:-3], "cut off"),
        (gzip.compress(b"hello") + b"xx", "not a sound gzip"),
    ]:
        with pytest.raises(ContentError, match=words):
            list(published([raw], file))


def test_states(tmp_path):
    file = file_of(b"hello")
    source = Source("s", "", "", "", (file,))
    (tmp_path / "s").mkdir()
    plain, packed = tmp_path / "s/f", tmp_path / "s/f.gz"

    def states():
        return tuple(inspect(tmp_path, source, file, thorough=thorough)[0] for thorough in (False, True))

    assert states() == (State.MISSING, State.MISSING)
    plain.write_bytes(b"hello")
    assert states() == (State.PRESENT, State.VERIFIED)
    plain.write_bytes(b"hallo")
    assert states() == (State.PRESENT, State.CORRUPT)
    packed.write_bytes(gzip.compress(b"hello"))  # comes before the plain file
    assert states() == (State.PRESENT, State.VERIFIED)
    packed.write_bytes(gzip.compress(b"hello!"))
    assert states() == (State.WRONG_SIZE, State.CORRUPT)
    packed.write_bytes(b"\x1f\x8b")
    assert states() == (State.CORRUPT, State.CORRUPT)
