"""Decoding of images into one uint8 array.

Shapes: N images, H, W pixels.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raykd.core.errors import DataError, WorkFailed
from raykd.data.sources.formats import FORMATS
from raykd.data.sources.splits import Images

# Where memory is too small for the images that are decoded at a time.
ADVICE = "set fewer scale.decoders or a smaller batch, or give the run more memory"


def decode(
    images: Images,
    rows: np.ndarray | None = None,
    resize: int | None = None,
    expected: tuple[int, int] | None = None,
    faults: dict[int, str] | None = None,
) -> np.ndarray:
    """Images as uint8 [N, H, W, 3], all or those at `rows`, which rise; grey ones become RGB.

    `resize` brings the shorter side to that many pixels and crops the centre; without it
    every image must have the size of the first one, or the `expected` (H, W). Raises
    `DataError`, naming the file or the row of an image that cannot be decoded or fits not. With
    `faults`, why one cannot be decoded is put there by its place among the rows, and its pixels are
    left open.
    """
    out: np.ndarray | None = None
    rows = np.arange(len(images)) if rows is None else rows
    index, wanted = -1, set(rows.tolist())
    for row, image in enumerate(images):
        if row not in wanted:
            continue
        index += 1
        try:
            pixels = _pixels(image, images.origin(row), resize)
        except DataError as error:
            if faults is None:
                raise
            faults[index] = str(error)
            continue
        shape = pixels.shape[:2]
        if expected is None:
            expected = (shape[0], shape[1])
        if shape != expected:
            raise DataError(
                f"{images.origin(row)}: {shape[1]} x {shape[0]} pixels, but the images before "
                f"have {expected[1]} x {expected[0]}; set run.data.resize to bring all to one size"
            )
        if out is None:
            out = np.empty((len(rows), *expected, 3), dtype=np.uint8)
        out[index] = pixels
    return np.empty((len(rows), 0, 0, 3), np.uint8) if out is None else out


def _pixels(image: bytes | DataError, origin: str, resize: int | None) -> np.ndarray:
    """One image as uint8 [H, W, 3]."""
    if isinstance(image, DataError):
        raise image
    rgb = _rgb(image, origin)
    if resize is not None:
        rgb = ImageOps.fit(rgb, (resize, resize), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def decoded(data: bytes, origin: str) -> np.ndarray:
    """One encoded image as uint8 [H, W, 3], upright; the first frame of an animated one.

    Raises `DataError`, naming the `origin`, where it cannot be decoded, and `WorkFailed` where its
    pixels do not fit into memory.
    """
    return np.asarray(_rgb(data, origin))


def opened(data: bytes, origin: str) -> Image.Image:
    """An image whose header was read, and no pixel yet.

    Raises `DataError`, naming the `origin`, where the format is unknown, where there are more
    pixels than Pillow's limit allows, and where a channel has more than 8 bits.
    """
    with refusing(origin):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise ValueError(f"mode {image.mode}, more than 8 bits a channel")  # RGB would clip it
        return image


def _rgb(data: bytes, origin: str) -> Image.Image:
    """One image, upright, with three channels of 8 bits."""
    image = opened(data, origin)
    with refusing(origin, image.size):
        upright = ImageOps.exif_transpose(image)
        if isinstance(upright.info.get("transparency"), bytes):
            upright = upright.convert("RGBA")  # a palette with transparency warns on RGB
        return upright.convert("RGB")


@contextlib.contextmanager
def refusing(origin: str, size: tuple[int, int] | None = None) -> Iterator[None]:
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
