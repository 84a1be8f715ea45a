"""Requests of a file from a mirror, from some byte on, without trusting it.

Only https is spoken (http to this machine alone), after redirects too; ftp, file and data addresses cannot be opened
at all. What a server does takes no more than the time that it is given, whatever that is: the connection has a thread
of its own, and who waits for it waits on a queue, with a limit.

    look-up, connection, redirects, head    `timeout` seconds in all: a head that comes byte by byte, `100 Continue`
                                            without end, a name server that is silent
    between two pieces of the body          `timeout` seconds, and a rate over as long: a byte now and then
    all of it                               until the deadline: a body that trickles

Then its connection is shut, and its thread ends, or, where even that does not help, goes with the process. A server
that hangs up early is told apart from one that will not serve, because what it sent is worth keeping.
"""

from __future__ import annotations

import http.client
import queue
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from meprop_bench.data.content import PIECE, ContentError

__all__ = ["Interrupted", "Refused", "TooLate", "transfer"]

_LEAST_RATE = 1024  # bytes per second, over one timeout; a slower mirror counts as stalled
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_REDIRECTS = 5
_AHEAD = 16  # pieces that wait for who reads them


class Interrupted(Exception):
    """The transfer stopped early; what came so far is worth keeping."""


class Refused(Exception):
    """This mirror will not serve the file."""


class TooLate(Exception):
    """The deadline came before the end of the file."""

    def __init__(self) -> None:
        super().__init__("too slow for the time that is left")


class _Closed(Exception):
    """Nobody reads any more."""


@contextmanager
def transfer(url: str, offset: int, *, timeout: float, deadline: float) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Give what a mirror sends of a file: the byte that it begins with, and the bytes from there on.

    That is `offset`, or 0 of a mirror that does not resume. The bytes raise `Interrupted` when they end early or come
    too slowly. At the end of the block the connection is shut, whatever is going on there. `timeout`: seconds, see the
    module; `deadline`: when it has to be over, on the clock `time.monotonic`.

    Raises:
        Refused: not an address to open, no connection, or an answer that is not the file.
        ContentError: the mirror's file ends before `offset`, so what we hold is not a part of it.
        TooLate: the deadline has come.

    """
    items: queue.Queue[Any] = queue.Queue(_AHEAD)  # the byte that it begins with, then pieces; or an error
    connections: list[http.client.HTTPConnection] = []
    closed = threading.Event()

    def put(item: object) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                return items.put(item, timeout=0.2)
        raise _Closed

    def run() -> None:
        try:
            with _request(url, offset, timeout, connections) as response:
                put(_start(response, offset))
                for piece in _body(response, timeout):
                    put(piece)
                put(b"")
        except _Closed:
            pass
        except Exception as error:  # noqa: BLE001  it is raised again by who waits
            with suppress(_Closed):
                put(error)

    def take(silence: Exception) -> Any:
        left = deadline - time.monotonic()
        try:
            # A hair more than the socket waits, whose own error says more.
            item = items.get(timeout=max(0.0, min(left, timeout + 0.1)))
        except queue.Empty:
            raise TooLate if left < timeout else silence from None
        if isinstance(item, Exception):
            raise item
        if time.monotonic() > deadline:
            raise TooLate
        return item

    threading.Thread(target=run, daemon=True).start()
    try:
        yield take(Refused("no answer in time")), iter(lambda: take(Interrupted("no answer in time")), b"")
    finally:
        closed.set()
        for connection in connections:
            if connection.sock is not None:
                with suppress(OSError):
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # not TLS's: nobody is to be waited for


def _start(response: http.client.HTTPResponse, offset: int) -> int:
    """Return the byte that an answer begins with; one that is not partial is whole."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    stated = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
    return int(stated[1]) if stated and int(stated[1]) == offset else 0


def _body(response: http.client.HTTPResponse, timeout: float) -> Iterator[bytes]:
    """Yield what the server sends; `Interrupted` when it ends early or comes too slowly."""
    stated = response.headers.get("Content-Length", "")
    length = int(stated) if re.fullmatch(r"\d{1,18}", stated) else None
    received = window = 0
    since = time.monotonic()
    while True:
        try:
            piece = response.read1(PIECE)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Interrupted(_reason(error)) from None
        if not piece:
            break
        received += len(piece)
        window += len(piece)
        yield piece
        if (now := time.monotonic()) - since > timeout:
            if window < _LEAST_RATE * (now - since):
                raise Interrupted("too slow")
            window, since = 0, now
    if length is not None and received < length:
        raise Interrupted(f"the connection ended after {received:,} of {length:,} bytes")


def _reason(error: Exception) -> str:
    """Return what went wrong, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    inner = getattr(error, "reason", None)
    if isinstance(inner, Exception):
        return _reason(inner)
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def _allowed(url: str, before: str) -> bool:
    """Return whether `url` may be opened: https, or http on this machine, unless it was https before."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in _LOOPBACK
    return parts.scheme == "https" or (local and urlsplit(before).scheme != "https")


def _target(url: str, location: str | None) -> str | None:
    """Return where a redirect of `url` goes, if it may go there."""
    with suppress(ValueError):
        if location and _allowed(target := urljoin(url, location), url):
            return target
    return None


def _request(
    url: str, offset: int, timeout: float, connections: list[http.client.HTTPConnection]
) -> http.client.HTTPResponse:
    """Ask for `url` from byte `offset` on; every connection is added to `connections` before it is opened."""
    if not _allowed(url, url):
        raise Refused("not an https address")
    headers = {"User-Agent": "meprop-bench", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    for _ in range(1 + _REDIRECTS):
        try:
            response = _opener(url, connections).open(urllib.request.Request(url, headers=headers), timeout=timeout)
        except HTTPError as error:
            error.close()  # unread: its body may have no end
            if offset and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise ContentError("shorter than what was received before") from None
            if not 300 <= error.code < 400:
                raise Refused(f"HTTP {error.code}") from None
            target = _target(url, error.headers.get("Location"))
            if target is None:
                raise Refused(f"HTTP {error.code}, a redirect that is not followed") from None
            url = target
        except (URLError, OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(_reason(error)) from None
        else:
            assert isinstance(response, http.client.HTTPResponse)
            return response
    raise Refused(f"more than {_REDIRECTS} redirects")


def _opener(url: str, connections: list[http.client.HTTPConnection]) -> urllib.request.OpenerDirector:
    """Return what opens an address: urllib's own opener also speaks ftp, file and data, and reads what redirects say.

    This machine is never asked through a proxy.
    """

    def noted(kind: type[http.client.HTTPConnection], *args: Any, **keywords: Any) -> http.client.HTTPConnection:
        connections.append(kind(*args, **keywords))
        return connections[-1]

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(partial(noted, http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(partial(noted, http.client.HTTPSConnection), req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if urlsplit(url).hostname in _LOOPBACK else None),
        Http(),
        Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
