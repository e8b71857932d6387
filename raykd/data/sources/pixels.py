"""Images that are arrays of pixels, handed on as PNG files.

Shapes: N images, H, W pixels.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from raykd.core.errors import DataError
from raykd.data.sources.splits import About, Dataset, Images, Samples, row_ranges

_STORED = 65535  # bytes of a block of DEFLATE, at most


def of_pixels(
    title: str,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    names: tuple[str, ...],
    *,
    declared: bool = False,
) -> Dataset:
    """A dataset of pixels uint8 [N, H, W] or [N, H, W, 3] and labels int64 [N] of each split.

    `declared`: see `About`.
    """
    stamp = hashlib.sha256()
    for pixels, _ in splits.values():
        stamp.update(np.ascontiguousarray(pixels).data)
    samples = {
        split: Samples(Pixels(pixels, f"{title} {split}"), labels)
        for split, (pixels, labels) in splits.items()
    }
    return Dataset(samples, names, stamp.hexdigest(), about=About(declared=declared))


class Pixels(Images):
    """Images that are uint8 pixels [N, H, W] or [N, H, W, 3], each as a PNG file."""

    def __init__(self, pixels: np.ndarray, title: str) -> None:
        self.pixels = pixels
        self._title = title

    def __len__(self) -> int:
        return len(self.pixels)

    def lengths(self) -> np.ndarray:
        """Approximate bytes of each image, int64 [N]."""
        return np.full(len(self), self.pixels[0].nbytes, dtype=np.int64)

    def blocks(self, start: int, stop: int) -> Iterator[Sequence[bytes | DataError]]:
        """The images from `start` to `stop`, some at a time."""
        for low, high in row_ranges(self.lengths()[start:stop]):
            yield [png(pixels) for pixels in self.pixels[start + low : start + high]]

    def origin(self, row: int) -> str:
        """The dataset and the row."""
        return f"{self._title}, row {row}"


def png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [H, W] or [H, W, 3] as a PNG file, not compressed.

    So its bytes, which identify an image, depend on no library (RFC 1951, section 3.2.4).
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
