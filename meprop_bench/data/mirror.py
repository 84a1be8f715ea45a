"""Asking a mirror for a file, from some byte on, without trusting it.

Only https is spoken (http to this machine alone), after redirects too; ftp, file and data addresses cannot be opened
at all. A server that is silent, or drips a byte now and then to hold the line, is given up; one that hangs up early is
told apart from one that will not serve, because what it sent is worth keeping.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.request
from collections.abc import Iterator
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from meprop_bench.data.content import PIECE, ContentError

__all__ = ["Interrupted", "Refused", "body", "range_start", "request"]

_LEAST_RATE = 1024  # bytes per second, over one timeout; a slower mirror counts as stalled
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Interrupted(Exception):
    """The transfer stopped early; what came so far is worth keeping."""


class Refused(Exception):
    """This mirror will not serve the file."""


def range_start(response: http.client.HTTPResponse) -> int | None:
    """Return the offset at which a partial answer begins; None for an answer that is not partial."""
    if response.status != http.client.PARTIAL_CONTENT:
        return None
    stated = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
    return int(stated[1]) if stated else None


def body(response: http.client.HTTPResponse, timeout: float) -> Iterator[bytes]:
    """Yield what the server sends; `Interrupted` when it ends early or comes too slowly."""
    stated = response.headers.get("Content-Length", "")
    length = int(stated) if re.fullmatch(r"\d{1,18}", stated) else None
    received = window = 0
    since = time.monotonic()
    while True:
        try:
            piece = response.read1(PIECE)
        except (OSError, http.client.HTTPException) as error:
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


def _allowed(url: str) -> bool:
    """Return whether `url` may be opened: https, or http on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to https, or from this machine to this machine; others stay the error that they are."""

    max_redirections = 5

    def redirect_request(  # urllib's signature
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request to go on with, or None."""
        if not _allowed(newurl) or (req.type == "https" and urlsplit(newurl).scheme != "https"):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def request(url: str, offset: int, timeout: float) -> http.client.HTTPResponse:
    """Ask for `url` from byte `offset` on.

    Raises:
        Refused: not an address to open, no connection, or an answer that is not the file.
        ContentError: the mirror's file ends before `offset`, so what we hold is not a part of it.

    """
    if not _allowed(url):
        raise Refused("not an https address")
    # Built by hand: urllib's own opener also speaks ftp, file and data. This machine is never asked through a proxy.
    opener = urllib.request.OpenerDirector()
    local = urlsplit(url).hostname in _LOOPBACK
    for handler in (
        urllib.request.ProxyHandler({} if local else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    headers = {"User-Agent": "meprop-bench", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if offset and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ContentError("shorter than what was received before") from None
        redirect = ", a redirect that is not followed" if 300 <= error.code < 400 else ""
        raise Refused(f"HTTP {error.code}{redirect}") from None
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        raise Refused(_reason(error)) from None
    assert isinstance(response, http.client.HTTPResponse)
    return response
