"""Encoded images as byte ranges of files, read when they are needed.

An image is a range of bytes of a file: a whole file of a folder, a member of a tar shard, a value
of an Arrow shard. The ranges are columns of a memory-mapped index, so a worker's memory does not
grow with the number of images, nor with epochs.

Shapes: N images, B batch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raykd.core.errors import DataError
from raykd.data.sources.files import Files
from raykd.data.sources.splits import Images, row_ranges
from raykd.storage import arrow

_THREADS = 16  # read at the same time, each of which may wait for a network


class Names:
    """Many short texts in two flat arrays."""

    def __init__(self, text: Tensor, stops: Tensor) -> None:
        """`text` is uint8 [characters], `stops` int64 [n], where each of them ends."""
        self._text = text
        self._stops = stops

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """Texts packed into two arrays."""
        encoded = [os.fsencode(name) for name in names]
        text = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
        stops = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(torch.from_numpy(text), torch.from_numpy(stops))

    def __len__(self) -> int:
        return len(self._stops)

    def __getitem__(self, number: int) -> str:
        start = int(self._stops[number - 1]) if number else 0
        return os.fsdecode(self._text[start : int(self._stops[number])].numpy().tobytes())

    def columns(self) -> dict[str, Tensor]:
        """The two arrays."""
        return {"text": self._text, "stops": self._stops}


class FileRanges(NamedTuple):
    """The byte ranges of the images in one file."""

    name: str  # below the root
    offset: np.ndarray  # int64 [n], in bytes
    length: np.ndarray  # int64 [n], in bytes
    lacking: Mapping[int, DataError] = {}  # images that are missing
    elsewhere: Mapping[int, str] = {}  # images that are ranges of other files: their names


@dataclass(frozen=True)
class Ranges(Images):
    """The bytes of some images, in files below one root."""

    files: Files
    names: Names  # file names below the root
    file: Tensor  # int64 [N], indices into `names`
    offset: Tensor  # int64 [N], in bytes
    length: Tensor  # int64 [N], in bytes
    lacking: Mapping[int, DataError] = field(default_factory=dict)  # images that are missing

    @classmethod
    def joined(cls, files: Files, parts: Sequence[FileRanges]) -> "Ranges":
        """The images of some files, one file after the other."""
        names, first, lacking = [part.name for part in parts], 0, {}
        counts = torch.tensor([len(part.offset) for part in parts], dtype=torch.int64)
        file = torch.arange(len(parts)).repeat_interleave(counts)
        for part in parts:
            lacking |= {first + row: error for row, error in part.lacking.items()}
            for row, name in part.elsewhere.items():
                file[first + row] = len(names)
                names.append(name)
            first += len(part.offset)
        return cls(
            files,
            Names.of(names),
            file,
            joined([part.offset for part in parts]),
            joined([part.length for part in parts]),
            lacking,
        )

    def __len__(self) -> int:
        return len(self.file)

    def lengths(self) -> np.ndarray:
        """Bytes of each image, int64 [N]."""
        return self.length.numpy()

    def blocks(self, start: int, stop: int) -> Iterator[Sequence[bytes | DataError]]:
        """The images from `start` to `stop`; those of the next block are read meanwhile."""
        with ThreadPoolExecutor(_THREADS) as pool:
            ahead = None
            for low, high in row_ranges(self.lengths()[start:stop]):
                after = pool.map(self.attempt, range(start + low, start + high))
                if ahead is not None:
                    yield list(ahead)
                ahead = after
            if ahead is not None:
                yield list(ahead)

    def origin(self, row: int) -> str:
        """File and byte of an image, for messages."""
        name = self.files.describe(self.names[int(self.file[row])])
        offset = int(self.offset[row])
        return f"{name}, byte {offset}" if offset else name

    def read(self, row: int) -> bytes:
        """The bytes of one image. Raises `DataError`, naming the file, if they are missing."""
        if row in self.lacking:
            raise self.lacking[row]
        name, length = self.names[int(self.file[row])], int(self.length[row])
        data = self.files.read(name, int(self.offset[row]), length)
        if len(data) != length:
            raise DataError(
                f"{self.origin(row)}: expected {length} bytes, found {len(data)}; the file has "
                "changed since it was read first; restore it, or run again with the new one"
            )
        return data

    def attempt(self, row: int) -> bytes | DataError:
        """The bytes of one image, or the error that names its file."""
        try:
            return self.read(row)
        except DataError as error:
            return error

    def read_all(self, rows: Sequence[int]) -> list[bytes]:
        """The bytes of some images; from a remote file system many at a time."""
        if not self.files.remote:
            return [self.read(row) for row in rows]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.read, rows))

    def take(self, rows: Tensor) -> "Ranges":
        """The images at `rows` (int64 [n]), renumbered from 0."""
        columns = {name: getattr(self, name)[rows] for name in ("file", "offset", "length")}
        indices = {int(row): index for index, row in enumerate(rows)} if self.lacking else {}
        lacking = {indices[row]: error for row, error in self.lacking.items() if row in indices}
        return replace(self, **columns, lacking=lacking)


@dataclass(frozen=True)
class Encoded:
    """Encoded images and their labels; the counterpart of `in_memory.Images`."""

    ranges: Ranges
    targets: Tensor  # int64 [N]
    names: tuple[str, ...]  # class names

    def __len__(self) -> int:
        return len(self.targets)

    def index_bytes(self) -> int:
        """Bytes of the index, which every process that decodes has in shared memory."""
        ranges = self.ranges
        columns = (ranges.file, ranges.offset, ranges.length, self.targets)
        return sum(one.nbytes for one in (*columns, *ranges.names.columns().values()))

    def take(self, rows: Tensor) -> "Encoded":
        """The images at `rows` (int64 [n]), renumbered from 0."""
        return Encoded(self.ranges.take(rows), self.targets[rows], self.names)


def joined(parts: Sequence[np.ndarray]) -> Tensor:
    """Columns int64 [n] of some files, one after the other: int64 [N]."""
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))


def write_index(folder: Path, split: str, ranges: Ranges, targets: Tensor) -> dict[str, str]:
    """Write the index of a split's images; returns the checksums of its files by their names."""
    rows = {"file": ranges.file, "offset": ranges.offset, "length": ranges.length}
    tables = {"index": rows | {"targets": targets}}
    tables |= {name: {name: column} for name, column in ranges.names.columns().items()}
    names = {f"{split}-{table}.arrow": columns for table, columns in tables.items()}
    return {name: arrow.write(folder / name, columns) for name, columns in names.items()}


def index_names(split: str) -> list[str]:
    """The names of the files that `write_index` writes of a split."""
    return [f"{split}-{table}.arrow" for table in ("index", "text", "stops")]


def read_index(folder: Path, split: str, root: str, names: tuple[str, ...]) -> Encoded:
    """The encoded images of a split whose index lies in `folder` and whose files below `root`."""
    columns: dict[str, Any] = arrow.read(folder / f"{split}-index.arrow")
    targets = columns.pop("targets")
    parts = {part: arrow.read(folder / f"{split}-{part}.arrow")[part] for part in ("text", "stops")}
    files = Names(**parts)
    return Encoded(Ranges(Files.at(root), files, **columns), targets, names)
