"""One encoded image: its size, which is known before its pixels, and its pixels.

JPEG files go through simplejpeg, which is a fifth faster than Pillow and gives the same pixels;
what it does not take (other formats, CMYK, damaged files) goes through Pillow.

Shapes: H, W pixels.
"""

import contextlib
import functools
from collections.abc import Callable

import numpy as np

from raykd.data.decode import decoded
from raykd.data.trimmed import trimmed
from raykd.errors import DataError

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\x00\x00"  # whose orientation Pillow knows how to follow
_EXIF_WITHIN = 256  # bytes from the start
_LEFT_OVER = "extraneous bytes before marker"  # of which libjpeg complains after its last row
_SMALLEST_STEP = 2  # by which a JPEG file is scaled down while it is decoded


class Picture:
    """An encoded image that was looked at, and is decoded once its pixels are wanted."""

    __slots__ = ("_decode", "_decoded", "height", "width")

    def __init__(
        self,
        height: int,
        width: int,
        decode: Callable[[tuple[int, int] | None, int | None], np.ndarray],
    ) -> None:
        self.height = height
        self.width = width
        self._decode = decode
        self._decoded: tuple[tuple[int, int] | None, int | None, np.ndarray] | None = None

    def shrinks(self, at_least: tuple[int, int]) -> bool:
        """Whether a JPEG file is scaled down where no more than `at_least` (H, W) is wanted."""
        sides = (self.height, self.width)
        return all(
            _SMALLEST_STEP * least <= side + 1 for least, side in zip(at_least, sides, strict=True)
        )

    def pixels(
        self, at_least: tuple[int, int] | None = None, rows: int | None = None
    ) -> np.ndarray:
        """The image as uint8 [H, W, 3].

        With `at_least` (H, W), a JPEG file is scaled down by 2 to 8 as it is decoded, as far as
        both sides stay that long: faster, and not quite the pixels of a later resize. Otherwise,
        where only the first `rows` rows are wanted, those below may be missing. The last answer is
        remembered. Raises `DataError` where the image is damaged.
        """
        if rows is not None and rows >= self.height:
            rows = None
        if self._decoded is None or self._decoded[:2] != (at_least, rows):
            self._decoded = (at_least, rows, self._decode(at_least, rows))
        return self._decoded[2]


def look_at(data: bytes, origin: str) -> Picture:
    """An encoded image. Raises `DataError`, naming its `origin`, where it is none.

    A JPEG file may turn out to be damaged only when it is decoded, which raises the same.
    """
    if simplejpeg is not None and data[:3] == _JPEG and _EXIF not in data[:_EXIF_WITHIN]:
        with contextlib.suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("YCbCr", "RGB", "Gray"):
                decode = functools.partial(_jpeg, data, origin, int(width))
                return Picture(int(height), int(width), decode)
    pixels = decoded(data, origin)
    return Picture(pixels.shape[0], pixels.shape[1], lambda least, rows: pixels)


def _jpeg(
    data: bytes, origin: str, width: int, at_least: tuple[int, int] | None, rows: int | None
) -> np.ndarray:
    """The pixels of a JPEG file; Pillow has the last word about one that is damaged."""
    if at_least is None and rows is not None:
        first = _first_rows(data, width, rows)
        if first is not None:
            return first
    least = at_least or (0, 0)
    try:
        return simplejpeg.decode_jpeg(  # pyright: ignore[reportOptionalMemberAccess]
            data, "RGB", min_height=least[0], min_width=least[1], min_factor=_SMALLEST_STEP
        )
    except ValueError:
        return decoded(data, origin)


def _first_rows(data: bytes, width: int, rows: int) -> np.ndarray | None:
    """The first rows of a JPEG file and a few more; None where it has to be decoded whole."""
    short = trimmed(data, rows)
    if short is None:
        return None
    pixels = np.empty((short[1], width, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(short[0], "RGB", buffer=pixels)  # pyright: ignore[reportOptionalMemberAccess]
    except ValueError as error:
        if _LEFT_OVER not in str(error):  # anything worse is for the whole file to show
            return None
    return pixels


def check(data: bytes, origin: str) -> None:
    """Raise `DataError` where the start of an image says that it cannot be one."""
    if not data:
        raise DataError(f"{origin}: the file is empty; replace or remove it")
    look_at(data, origin)
