"""Files as damage makes them: whatever a reader is given, it reads it or says in one line what is wrong."""

import gzip
import random

import pytest

from meprop_bench.data.mnist import read_idx
from meprop_bench.data.parallel import read_parallel
from meprop_bench.data.treebank import read_conllu
from meprop_bench.errors import UserError

_WHOLE = {
    "conllu": (
        b"# text = They don't.\n1\tThey\tthey\tPRON\tPRP\t_\t2\tnsubj\t_\t_\n2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n"
        b"2\tdo\tdo\tVERB\tVBP\t_\t0\troot\t_\t_\n3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\t_\n"
        b"3.1\tgo\tgo\tVERB\t_\t_\t_\t_\t2:conj\t_\n4\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_\n\n"
    ),
    "parallel": "Ein Hund rennt .\nGröße\nzwei\n".encode(),
    "idx": bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)]),
}
_SPLINTERS = (
    b"\t",
    b"\n",
    b"\r",
    b"\0",
    b"-",
    b".",
    b"0",
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"2-3",
    b"1.1",
)


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Change, add, drop, double or cut off something, a few times; pack it, and damage the package."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        start, end = sorted(rng.randrange(len(damaged) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0:
                damaged[start : start + 1] = rng.randbytes(1)
            case 1:
                damaged[start:start] = rng.choice(_SPLINTERS)
            case 2:
                del damaged[start:end]
            case 3:
                damaged[end:end] = damaged[start:end]
            case 4:
                del damaged[start:]
            case _:
                lines = damaged.split(b"\n")
                rng.shuffle(lines)
                damaged = bytearray(b"\n".join(lines))
    if rng.random() < 0.2:
        return _damaged(gzip.compress(damaged), rng)
    return bytes(damaged)


@pytest.mark.parametrize("kind", _WHOLE)
def test_a_damaged_file_is_read_or_refused_in_a_line_with_its_name(tmp_path, kind):
    rng = random.Random(22)
    path, whole = tmp_path / "file", tmp_path / "whole"
    whole.write_bytes(_WHOLE[kind])
    said = []
    for _ in range(500):
        path.write_bytes(_damaged(_WHOLE[kind], rng))
        try:
            if kind == "idx":
                read_idx(path, 2)
            else:
                list(read_conllu(path) if kind == "conllu" else read_parallel(path, whole))
        except UserError as error:
            said.append(str(error))
    assert len(said) > 200
    assert all(str(path) in line and line.isprintable() and len(line) < 300 + len(str(path)) for line in said)
