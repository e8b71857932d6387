"""A server between a client and another one, which counts requests and may answer late or never."""

import contextlib
import re
import socket
import threading
import time
from urllib.parse import urlsplit

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) ([^ ]+) HTTP")


class Proxy:
    """Passes what comes on to `address`, each request after `delay` seconds."""

    def __init__(self, address: str, delay: float = 0.0) -> None:
        target = urlsplit(address)
        self._target = (target.hostname, target.port)
        self.delay = delay
        self.requests: list[str] = []  # "GET /bucket/key"
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections, and end those that there are."""
        self._server.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                self._ends += [client, server]
                for ends in ((client, server, True), (server, client, False)):
                    thread = threading.Thread(target=self._pass_on, args=ends, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, requests: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                found = _REQUEST.match(data) if requests else None
                if found:
                    self.requests.append(b" ".join(found.groups()).decode())
                    until = time.monotonic() + self.delay
                    while self.delay and time.monotonic() < until:
                        time.sleep(0.05)  # a delay that is set to 0 ends at once
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
