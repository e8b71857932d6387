"""What can be packed: encoded images with labels, which can be read from any row on.

Shapes: N images, H, W pixels.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from raykd.core.errors import DataError
from raykd.data.sources import SOURCES
from raykd.data.sources.byte_ranges import LOCATED, Located, of_files
from raykd.data.sources.encoded import Ranges
from raykd.data.sources.files import Files
from raykd.data.sources.formats import is_image
from raykd.data.sources.raw_split import About, Found
from raykd.data.sources.tables import Rows, Tables, is_table, open_tables
from raykd.data.sources.tars import is_packed_tar, is_tar
from raykd.storage.filesystem import is_url

_THREADS = 16  # that read files
_BLOCK_BYTES = 1 << 24  # that are read ahead
_STORED = 65535  # bytes of a block of DEFLATE, at most


class Readable(Protocol):
    """The encoded images of one split."""

    def __len__(self) -> int: ...

    def lengths(self) -> np.ndarray:
        """How many bytes each image has, or about how many, int64 [N]."""
        ...

    def blocks(self, start: int, stop: int) -> Iterator[Sequence[bytes | DataError]]:
        """The images from `start` to `stop`, some at a time; an error for one that is not there."""
        ...

    def origin(self, row: int) -> str:
        """Where an image lies, for people."""
        ...


@dataclass(frozen=True)
class Stock:
    """The splits of a dataset, labels int64 [N] with each, and its class names."""

    splits: Mapping[str, tuple[Readable, np.ndarray]]
    names: tuple[str, ...]
    stamp: str  # what changes when files are changed
    about: About = field(default_factory=About)


class InFiles:
    """Images that are ranges of files, read by many threads."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def __len__(self) -> int:
        return len(self._ranges)

    def lengths(self) -> np.ndarray:
        """How many bytes each image has, int64 [N]."""
        return self._ranges.length.numpy()

    def blocks(self, start: int, stop: int) -> Iterator[Sequence[bytes | DataError]]:
        """The images from `start` to `stop`; those of the next block are read meanwhile."""
        with ThreadPoolExecutor(_THREADS) as pool:
            ahead = None
            for low, high in cuts(self.lengths()[start:stop], _BLOCK_BYTES):
                after = pool.map(self._ranges.attempt, range(start + low, start + high))
                if ahead is not None:
                    yield list(ahead)
                ahead = after
            if ahead is not None:
                yield list(ahead)

    def origin(self, row: int) -> str:
        """Where an image lies."""
        return self._ranges.origin(row)


class Pixels:
    """Images that are uint8 pixels [N, H, W] or [N, H, W, 3], each as a PNG file."""

    def __init__(self, pixels: np.ndarray, title: str) -> None:
        self._pixels = pixels
        self._title = title

    def __len__(self) -> int:
        return len(self._pixels)

    def lengths(self) -> np.ndarray:
        """About how many bytes each image has, int64 [N]."""
        return np.full(len(self), self._pixels[0].nbytes, dtype=np.int64)

    def blocks(self, start: int, stop: int) -> Iterator[Sequence[bytes | DataError]]:
        """The images from `start` to `stop`, some at a time."""
        for low, high in cuts(self.lengths()[start:stop], _BLOCK_BYTES):
            yield [png(pixels) for pixels in self._pixels[start + low : start + high]]

    def origin(self, row: int) -> str:
        """The dataset and the row."""
        return f"{self._title}, row {row}"


def cuts(lengths: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Ranges of rows of about `size` bytes each, at most one image more."""
    if not len(lengths):
        return []
    number = (np.cumsum(lengths) - lengths) // size
    edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(lengths)]
    return [*pairwise(edges)]


def stock_of(name: str, root: str | None) -> Stock | Located:
    """A dataset of `raykd show datasets` at a path or URL; `Located` where it lies in files."""
    if root is not None:
        check_there(root)
    if root is not None and name in LOCATED:
        located = LOCATED[name](root)
        if located is not None:
            return located
    if root is not None and name == "table":
        return of_tables(open_tables(root))
    if root is not None and is_url(root):
        raise DataError(
            f"{root}: {name!r} is read from files of this machine; at a URL there can be "
            f"{', '.join(sorted(LOCATED))}"
        )
    return of_found(SOURCES[name](None if root is None else Path(root)), name)


def kind_of(place: str) -> str:
    """The name of the source that reads what lies at a path or URL, as its files look."""
    check_there(place)
    path = place.partition("?")[0] if is_url(place) else place
    for name in (path, *Files.at(place).names()):
        if is_tar(name) or is_packed_tar(name):
            return "webdataset"
        if is_table(name):
            return "table"
        if is_image(name):
            return "folder"
    raise DataError(f"{place}: found no images, tables or tar shards; look at the path")


def check_there(place: str) -> None:
    """Raise `DataError` where nothing is at a path of this machine, as for any kind of source.

    A pattern with braces stands for many paths, each of which is looked for by its reader.
    """
    if not (is_url(place) or "{" in place or Path(place).expanduser().exists()):
        raise DataError(f"{place}: there is no such file or folder")


def of_located(found: Located) -> Stock:
    """The same images, to be packed."""
    splits = {split: (InFiles(ranges), labels) for split, (ranges, labels) in found.splits.items()}
    return Stock(splits, found.names, found.stamp, found.about)


def of_tables(tables: Tables) -> Stock:
    """The images of tables, to be packed."""
    return Stock(tables.splits, tables.names, tables.stamp, tables.about)


def of_found(found: Found, title: str) -> Stock | Located:
    """The images of any source; `Located` where they are whole files."""
    if all(isinstance(samples.images, Ranges) for samples in found.splits.values()):
        return of_files(found)
    splits: dict[str, tuple[Readable, np.ndarray]] = {}
    stamp = hashlib.sha256()
    for split, samples in found.splits.items():
        images = samples.images
        if isinstance(images, np.ndarray):
            stamp.update(np.ascontiguousarray(images).data)
            images = Pixels(images, f"{title} {split}")
        elif isinstance(images, Rows):
            stamp.update(repr([file.files.find(file.name) for file in images.files]).encode())
        else:
            raise DataError(f"the images of {title!r} cannot be packed")
        splits[split] = (images, samples.labels)
    return Stock(splits, found.names, stamp.hexdigest(), found.about)


def png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [H, W] or [H, W, 3] as a PNG file, not compressed.

    So its bytes, by which images are told apart, depend on no library (RFC 1951, section 3.2.4).
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each after the number of its filter: none
    data = b"\x78\x01"
    for start in range(0, len(lines), _STORED):
        part = lines[start : start + _STORED]
        last = start + _STORED >= len(lines)
        data += struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF) + part
    data += struct.pack(">I", zlib.adler32(lines))
    colours = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND")


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
