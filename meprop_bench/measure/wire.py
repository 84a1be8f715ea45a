"""Bytes on the wire: what the sockets of this process have sent, asked of the kernel; and how fast they may.

    sent_bytes()   payload of all TCP connections of this process, sent so far: `TCP_INFO` of each (tcp(7)), so that
                   nobody else's traffic counts, headers do not, and no privilege is needed
    limit(rate)    paces each connection (`SO_MAX_PACING_RATE`, socket(7)): a slow network on one machine, likewise
                   without a privilege

gloo has a connection for each pair of ranks. In a ring each rank sends to one neighbour, so that a limit of each
connection is the bandwidth of its link; a rank that sends to all others at once has the limits of all of them. NCCL
moves data past the sockets: there is nothing to count here.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from meprop_bench.measure.procfs import Unavailable

__all__ = ["limit", "sent_bytes"]

_SENT, _RETRANSMITTED = 200, 208
"""Places of `tcpi_bytes_sent` and `tcpi_bytes_retrans` in the kernel's `struct tcp_info` (since Linux 4.19)."""
_INFO_BYTES = 256

_MAX_PACING_RATE = getattr(socket, "SO_MAX_PACING_RATE", 47)
"""Bytes per second, 64 bits (Linux's asm-generic/socket.h); Python has no name for it."""


def sent_bytes() -> int:
    """Return the bytes that this process's open TCP connections have sent so far, each once.

    Raises:
        Unavailable: this system does not tell.

    """
    if not hasattr(socket, "TCP_INFO"):
        raise Unavailable("this system does not tell what a socket has sent")
    total = 0
    for own in _connections():
        info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if len(info) < _RETRANSMITTED + 8:
            raise Unavailable("this kernel does not tell what a socket has sent")
        sent, again = (struct.unpack_from("=Q", info, place)[0] for place in (_SENT, _RETRANSMITTED))
        total += sent - again
    return total


def limit(bytes_per_s: float) -> int:
    """Let each open TCP connection of this process send no faster; return how many there are."""
    rate = struct.pack("=Q", round(bytes_per_s))
    count = 0
    for own in _connections():
        own.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, rate)
        count += 1
    return count


def _connections() -> Iterator[socket.socket]:
    """Yield this process's TCP connections, each open for as long as it is looked at."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        raise Unavailable("this system does not show a process's sockets") from None
    for name in names:
        with suppress(OSError):  # closed meanwhile, or no socket
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as own:
                if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM:
                    own.getpeername()  # OSError of one that listens
                    yield own
