"""One encoded image: its size, which is known before its pixels, and its pixels.

JPEG files go through simplejpeg, which is a fifth faster than Pillow and gives the same pixels;
what it does not take (other formats, CMYK, damaged files) goes through Pillow.

Shapes: H, W pixels.
"""

import contextlib
from collections.abc import Callable

import numpy as np

from raykd.data.decode import decoded
from raykd.errors import DataError

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\x00\x00"  # whose orientation Pillow knows how to follow
_EXIF_WITHIN = 256  # bytes from the start
_SMALLEST_STEP = 2  # by which a JPEG file is scaled down while it is decoded


class Picture:
    """An encoded image that was looked at, and is decoded once its pixels are wanted."""

    __slots__ = ("_decode", "_decoded", "height", "width")

    def __init__(
        self, height: int, width: int, decode: Callable[[tuple[int, int] | None], np.ndarray]
    ) -> None:
        self.height = height
        self.width = width
        self._decode = decode
        self._decoded: tuple[tuple[int, int] | None, np.ndarray] | None = None

    def pixels(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The image as uint8 [H, W, 3].

        With `at_least` (H, W), a JPEG file is scaled down by 2 to 8 as it is decoded, as far as
        both sides stay that long: faster, and not quite the pixels of a later resize. The last
        answer is remembered. Raises `DataError` where the image is damaged.
        """
        if self._decoded is None or self._decoded[0] != at_least:
            self._decoded = (at_least, self._decode(at_least))
        return self._decoded[1]


def look_at(data: bytes, origin: str) -> Picture:
    """An encoded image. Raises `DataError`, naming its `origin`, where it is none.

    A JPEG file may turn out to be damaged only when it is decoded, which raises the same.
    """
    if simplejpeg is not None and data[:3] == _JPEG and _EXIF not in data[:_EXIF_WITHIN]:
        with contextlib.suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("YCbCr", "RGB", "Gray"):
                return Picture(int(height), int(width), lambda least: _jpeg(data, origin, least))
    pixels = decoded(data, origin)
    return Picture(pixels.shape[0], pixels.shape[1], lambda least: pixels)


def _jpeg(data: bytes, origin: str, at_least: tuple[int, int] | None) -> np.ndarray:
    """The pixels of a JPEG file; Pillow has the last word about one that is damaged."""
    height, width = at_least or (0, 0)
    try:
        return simplejpeg.decode_jpeg(  # pyright: ignore[reportOptionalMemberAccess]
            data, "RGB", min_height=height, min_width=width, min_factor=_SMALLEST_STEP
        )
    except ValueError:
        return decoded(data, origin)


def check(data: bytes, origin: str) -> None:
    """Raise `DataError` where the start of an image says that it cannot be one."""
    if not data:
        raise DataError(f"{origin}: the file is empty; replace or remove it")
    look_at(data, origin)
