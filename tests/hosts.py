"""A web server on this machine that serves one file, and can be told to misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK_BYTES = 2**14  # served at once


@dataclass
class Host:
    """What is served and how: with ranges or not, all of it or the first bytes, with a pause after each chunk; what was asked."""

    body: bytes
    ranges: bool = True
    cut_after: int | None = None
    status: int | None = None
    pause: float = 0.0
    asked: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ml-100k.zip"


@contextmanager
def served(host: Host) -> Iterator[Host]:
    """Serve it at ``host.url`` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            host.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and host.ranges else 0
            size = len(host.body)
            if host.status or start >= size:
                self.send_response(host.status or 416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            end = host.cut_after or size
            with suppress(ConnectionError):  # who asked may hang up
                for begin in range(start, end, CHUNK_BYTES):
                    self.wfile.write(host.body[begin : min(end, begin + CHUNK_BYTES)])
                    time.sleep(host.pause)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
