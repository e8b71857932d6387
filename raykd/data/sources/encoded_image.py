"""One encoded image: its size, which is read before its pixels, and its pixels.

Pillow reads every header, so that its rules hold for all: the limit of pixels, the formats, the
orientation. The pixels of an upright JPEG file then come from simplejpeg, which takes two thirds of
Pillow's time and gives the same; what it does not take (damaged files) goes through Pillow, too.

Shapes: H, W pixels.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raykd.core.errors import DataError, WorkFailed
from raykd.data.sources.formats import FORMATS

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

# Where memory is too small for the images that are decoded at a time.
ADVICE = "set fewer scale.decoders or a smaller batch, or give the run more memory"
_UPRIGHT = 1  # in EXIF's numbers
_SMALLEST_STEP = 2  # smallest factor of scaling down a JPEG file while it is decoded


class EncodedImage:
    """An encoded image whose header was read, and which is decoded once its pixels are wanted."""

    __slots__ = ("_decode", "_decoded", "height", "width")

    def __init__(
        self, height: int, width: int, decode: Callable[[tuple[int, int] | None], np.ndarray]
    ) -> None:
        self.height = height
        self.width = width
        self._decode = decode
        self._decoded: tuple[tuple[int, int] | None, np.ndarray] | None = None

    def shrinks(self, at_least: tuple[int, int]) -> bool:
        """True for a JPEG file that is scaled down where `at_least` (H, W) is enough."""
        sides = (self.height, self.width)
        return all(
            _SMALLEST_STEP * least <= side + 1 for least, side in zip(at_least, sides, strict=True)
        )

    def pixels(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The image as uint8 [H, W, 3].

        With `at_least` (H, W), a JPEG file is scaled down by 2 to 8 as it is decoded, as far as
        both sides stay that long: faster, and not quite the pixels of a later resize. The last
        answer is remembered. Raises `DataError` where the image is damaged.
        """
        if self._decoded is None or self._decoded[0] != at_least:
            self._decoded = (at_least, self._decode(at_least))
        return self._decoded[1]


def open_image(data: bytes, origin: str) -> EncodedImage:
    """An encoded image. Raises `DataError`, naming its `origin`, where it is none.

    A JPEG file may turn out to be damaged only when it is decoded, which raises the same.
    """
    image = _opened(data, origin)
    if simplejpeg is not None and _is_plain_jpeg(image):
        return EncodedImage(
            image.height, image.width, functools.partial(_jpeg, data, origin, image.size)
        )
    pixels = decode(data, origin)
    return EncodedImage(pixels.shape[0], pixels.shape[1], lambda least: pixels)


def _is_plain_jpeg(image: Image.Image) -> bool:
    """True if Pillow would show a JPEG file's stored pixels, not turned or converted from CMYK."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    try:
        return image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) == _UPRIGHT
    except Exception:  # EXIF that cannot be read: Pillow has the word about it
        return False


def _jpeg(
    data: bytes, origin: str, size: tuple[int, int], at_least: tuple[int, int] | None
) -> np.ndarray:
    """The pixels of a JPEG file of `size` (W, H); Pillow has the last word where it is damaged."""
    least = at_least or (0, 0)
    with _refusing(origin, size):
        try:
            pixels = simplejpeg.decode_jpeg(  # pyright: ignore[reportOptionalMemberAccess]
                data, "RGB", min_height=least[0], min_width=least[1], min_factor=_SMALLEST_STEP
            )
        except ValueError:
            pixels = None
    if pixels is None or (at_least is None and pixels.shape[:2] != size[::-1]):
        return decode(data, origin)
    return pixels


def fault_in(data: bytes | DataError, origin: str, *, decode: bool = False) -> str | None:
    """The reason why an image cannot be used, as far as its header tells; None if it can.

    With `decode`, its pixels are decoded, too: slow.
    """
    try:
        if isinstance(data, DataError):
            raise data
        if not data:
            raise DataError(f"{origin}: the file is empty; replace or remove it")
        image = open_image(data, origin)
        if decode:
            image.pixels()
    except DataError as error:
        return str(error)
    return None


def decode(data: bytes, origin: str) -> np.ndarray:
    """One encoded image as uint8 [H, W, 3], upright; the first frame of an animated one.

    Raises `DataError`, naming the `origin`, where it cannot be decoded, and `WorkFailed` where its
    pixels do not fit into memory.
    """
    return np.asarray(rgb_image(data, origin))


def _opened(data: bytes, origin: str) -> Image.Image:
    """An image whose header was read, and no pixel yet.

    Raises `DataError`, naming the `origin`, where the format is unknown, where there are more
    pixels than Pillow's limit allows, and where a channel has more than 8 bits.
    """
    with _refusing(origin):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_bits(image)
        return image


def _check_bits(image: Image.Image) -> None:
    """Raise `ValueError` for a channel of more than 8 bits, which RGB would clip."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"mode {image.mode}, more than 8 bits a channel")


def rgb_image(data: bytes, origin: str) -> Image.Image:
    """One image, upright, with three channels of 8 bits; raises as `decode` does."""
    return rgb_of(_opened(data, origin), origin)


def rgb_of(image: Image.Image, origin: str) -> Image.Image:
    """An image of Pillow's, upright, with three channels of 8 bits; raises as `decode` does."""
    with _refusing(origin, image.size):
        _check_bits(image)
        upright = ImageOps.exif_transpose(image)
        if isinstance(upright.info.get("transparency"), bytes):
            upright = upright.convert("RGBA")  # a palette with transparency warns on RGB
        return upright.convert("RGB")


@contextlib.contextmanager
def _refusing(origin: str, size: tuple[int, int] | None = None) -> Iterator[None]:
    """A region that decodes an image, of `size` (W, H), whose failures come out as sentences.

    Whatever a decoder raises on bytes that others wrote is a `DataError`: Pillow's readers end in
    OSError, ValueError and SyntaxError, and on odd EXIF blocks in errors of many more kinds. Too
    little memory is not the image's fault, and so it is `WorkFailed`.
    """
    try:
        yield
    except MemoryError as error:
        pixels = f" its {size[0]} x {size[1]} pixels" if size else ""
        raise WorkFailed(f"{origin}: not enough memory to decode{pixels}; {ADVICE}") from error
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        why = "no known kind of image" if unknown else str(error) or type(error).__name__
        raise DataError(
            f"{origin}: cannot be decoded as an image ({why}); replace or remove it"
        ) from error
