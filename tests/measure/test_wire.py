"""What sockets have sent, asked of the kernel: of this process alone, payload alone."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from meprop_bench.measure import wire
from meprop_bench.measure.procfs import Unavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            yield one, other


def test_each_byte_that_is_sent_counts_once(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    before = wire.sent_bytes()
    one.sendall(b"x" * 100_000)
    got = 0
    while got < 100_000:
        got += len(other.recv(1 << 16))
    assert wire.sent_bytes() - before == 100_000
    other.sendall(b"y" * 7)
    assert one.recv(16) == b"y" * 7
    assert wire.sent_bytes() - before == 100_007


def test_looking_closes_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    wire.sent_bytes()
    one.sendall(b"still")
    assert other.recv(16) == b"still"


def test_a_limit_is_the_kernel_s_pacing_of_each_connection(ends: tuple[socket.socket, socket.socket]) -> None:
    assert wire.limit(125e6) >= 2
    for end in ends:
        rate = end.getsockopt(socket.SOL_SOCKET, wire._MAX_PACING_RATE, 8)
        assert struct.unpack("=Q", rate)[0] == 125_000_000


def test_a_kernel_that_does_not_tell_is_said_to(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr(wire, "_INFO_BYTES", 104)
    with pytest.raises(Unavailable, match="does not tell"):
        wire.sent_bytes()
