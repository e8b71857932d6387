"""Small image files, and a server of files on this machine."""

import hashlib
import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from raykd.core.errors import DataError
from raykd.data.in_memory import decode_all
from raykd.data.sources import SOURCES
from raykd.data.sources.splits import Dataset


def picture(seed: int = 0, height: int = 6, width: int = 8) -> Image.Image:
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def names(dataset: Dataset, split: str) -> list[str]:
    """The names of the image files of a split, in order."""
    images = dataset.splits[split].images
    return [Path(images.origin(row)).name for row in range(len(images))]


def put(path: Path, data: bytes | str | None = None) -> Path:
    """A file with these bytes, this text, or a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = encoded(picture()) if data is None else data
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pixels(dataset: Dataset, split: str = "train", resize: int | None = None) -> np.ndarray:
    return decode_all(dataset.splits[split].images, resize=resize)


def refusal(name: str, path: Path | None) -> str:
    """What is said of the dataset at `path`, once it is read and decoded."""

    def use() -> None:
        dataset = SOURCES[name](path)
        for split in dataset.splits:
            pixels(dataset, split)

    with pytest.raises(DataError) as error:
        use()
    return str(error.value)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves the files of a folder, and counts what it was asked for."""

    def __init__(self, folder: Path) -> None:
        requests = self.requests = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args) -> None:
                requests.append(self.path)

        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def closed_port() -> Iterator[str]:
    """The address of a port that is held but not listened at: a connection is refused at once."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
