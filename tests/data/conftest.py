"""A mirror on this machine that misbehaves on request."""

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from meprop_bench.data.sources import DataFile, Source

Answer = Callable[[BaseHTTPRequestHandler], None]


class Mirror:
    """Publishes one file, `content`, at addresses whose manners the test chooses."""

    content = bytes(i * i % 251 for i in range(300_000))
    packed = gzip.compress(content, mtime=12345)

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and Range of each request
        self.released = threading.Event()

    def url(self, path: str, *answers: Answer) -> str:
        """Answer requests for `path` with `answers` in turn; the last one stays."""
        self.answers[f"/{path}"] = list(answers)
        return f"{self.address}/{path}"

    def source(self, *urls: str) -> Source:
        file = DataFile("numbers", len(self.content), hashlib.sha256(self.content).hexdigest(), urls)
        return Source("toy", "a test", "none", "https://example.org/toy", (file,))

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, status: int, body: bytes, promised: int | None = None, **more: str
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if promised is None else promised))
        for name, value in more.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    def serve(self, body: bytes, cut_after: int | None = None, resume: bool = True) -> Answer:
        """Serve `body`; with `cut_after`, promise all of the rest and hang up after so many bytes."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            start = int(request.headers.get("Range", "bytes=0-")[6:-1]) if resume else 0
            rest = body[start:]
            if start and not rest:
                self.send(request, 416, b"")
            elif start:
                span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.send(request, 206, rest[:cut_after], len(rest), Content_Range=span)
            else:
                self.send(request, 200, rest[:cut_after], len(rest))

        return answer

    def fail(self, status: int) -> Answer:
        return lambda request: self.send(request, status, b"no")

    def redirect(self, target: str) -> Answer:
        return lambda request: self.send(request, 302, b"", Location=target)

    def hang(self, request: BaseHTTPRequestHandler) -> None:
        """Accept the connection and say nothing."""
        self.released.wait(10)

    def drip(self, request: BaseHTTPRequestHandler) -> None:
        """Hold the line with a byte now and then."""
        self.send(request, 200, b"", len(self.content))
        while not self.released.wait(0.02):
            request.wfile.write(b"\0")

    def write_for_ever(self, request: BaseHTTPRequestHandler, first: bytes, again: bytes, pause: float = 0.01) -> None:
        """Write `first`, then `again` without end."""
        request.wfile.write(first)
        while not self.released.wait(pause):
            request.wfile.write(again)

    def drip_head(self, request: BaseHTTPRequestHandler) -> None:
        """Never end the first line of the head."""
        self.write_for_ever(request, b"HTTP/1.1 200 ", b"O")

    def drip_fields(self, request: BaseHTTPRequestHandler) -> None:
        """Never end a field of the head."""
        self.write_for_ever(request, b"HTTP/1.1 200 OK\r\nContent-Type: ", b"x")

    def drip_chunk(self, request: BaseHTTPRequestHandler) -> None:
        """Never end the line that says how long the first piece of the body is."""
        self.write_for_ever(request, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0")

    def trailers(self, request: BaseHTTPRequestHandler) -> None:
        """Never end what follows the body."""
        self.write_for_ever(request, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n")

    def go_on(self, request: BaseHTTPRequestHandler) -> None:
        """Say `100 Continue` without end, as fast as it goes."""
        self.write_for_ever(request, b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause=0)

    def redirect_with_a_long_body(self, request: BaseHTTPRequestHandler) -> None:
        """Redirect, and never stop explaining."""
        self.write_for_ever(request, b"HTTP/1.1 302 Found\r\nLocation: /nowhere\r\n\r\n", bytes(1 << 16), pause=0)

    def trickle(self, request: BaseHTTPRequestHandler) -> None:
        """Send the file faster than what counts as stalled, but not fast enough to be done in time."""
        self.send(request, 200, b"", len(self.content))
        for at in range(0, len(self.content), 100):
            if self.released.wait(0.01):
                break
            request.wfile.write(self.content[at : at + 100])

    def flood(self, request: BaseHTTPRequestHandler) -> None:
        """Never stop sending."""
        request.send_response(200)
        request.end_headers()
        while not self.released.is_set():
            request.wfile.write(bytes(1 << 16))


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append((self.path, self.headers.get("Range")))
            answers = served.answers[self.path]
            with suppress(ConnectionError):  # the client gave up, as it should
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Mirror(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
