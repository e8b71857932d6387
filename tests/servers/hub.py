"""The part of a server of the Hugging Face Hub that all of its stand-ins on loopback share."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(http.server.ThreadingHTTPServer):
    """A server on a free port of loopback, with repositories by owner/name."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Any], answer: type["HubAnswer"]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []  # paths, in the order of the requests
        super().__init__(("127.0.0.1", 0), answer)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["HubServer"]:
        """A region in which it answers."""
        with self:
            threading.Thread(target=self.serve_forever, daemon=True).start()
            try:
                yield self
            finally:
                self.shutdown()


class HubAnswer(http.server.BaseHTTPRequestHandler):
    """One answer; subclasses define `answer`."""

    server: HubServer

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        """Answer the request, with its content or without."""
        raise NotImplementedError

    def send(self, status: int, headers: dict, content: bytes = b"", *, body: bool = True) -> None:
        """Send a status, headers and, with `body`, the content."""
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""
