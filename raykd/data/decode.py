"""From encoded images to one uint8 array.

Shapes: N images, H, W pixels.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raykd.data.samples import Samples, Triple
from raykd.errors import DataError

# Not all that Pillow knows: for EPS, it runs another program on what the file says.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")


def decode(
    samples: Samples, resize: int | None = None, expected: tuple[int, int] | None = None
) -> np.ndarray:
    """The images of a split as uint8 [N, H, W, 3]; grey ones get three equal channels.

    `resize` brings the shorter side to that many pixels and crops the centre; without it
    every image must have the size of the first one, or the `expected` (H, W). Raises
    `DataError`, naming the file or the row of an image that cannot be decoded or fits not.
    """
    out: np.ndarray | None = None
    for index, image in enumerate(samples.images):
        pixels = _pixels(image, samples.origin(index), resize)
        shape = pixels.shape[:2]
        if expected is None:
            expected = (shape[0], shape[1])
        if shape != expected:
            raise DataError(
                f"{samples.origin(index)}: {shape[1]} x {shape[0]} pixels, but the images before "
                f"have {expected[1]} x {expected[0]}; set run.data.resize to bring all to one size"
            )
        if out is None:
            out = np.empty((len(samples.images), *expected, 3), dtype=np.uint8)
        out[index] = pixels
    assert out is not None, "a source never returns an empty split"
    return out


def _pixels(image: bytes | np.ndarray, origin: str, resize: int | None) -> np.ndarray:
    """One image as uint8 [H, W, 3]."""
    if isinstance(image, np.ndarray) and resize is None:
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    rgb = _rgb(image, origin)
    if resize is not None:
        rgb = ImageOps.fit(rgb, (resize, resize), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def decoded(data: bytes, origin: str) -> np.ndarray:
    """One encoded image as uint8 [H, W, 3], upright. Raises `DataError` that names its origin."""
    return np.asarray(_rgb(data, origin))


def _rgb(image: bytes | np.ndarray, origin: str) -> Image.Image:
    """One image, upright, with three channels of 8 bits."""
    try:
        opened = (
            Image.open(io.BytesIO(image), formats=FORMATS)
            if isinstance(image, bytes)
            else Image.fromarray(image)
        )
        if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
            raise ValueError(f"mode {opened.mode}, more than 8 bits a channel")  # RGB would clip it
        upright = ImageOps.exif_transpose(opened)
        if isinstance(upright.info.get("transparency"), bytes):
            upright = upright.convert("RGBA")  # a palette with transparency warns on RGB
        return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's PNG reader reports a broken chunk as SyntaxError.
        why = "no known kind of image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"{origin}: cannot be decoded as an image ({why}); replace or remove it"
        ) from error


def statistics(pixels: np.ndarray) -> tuple[Triple, Triple]:
    """Mean and std per channel of pixels in 0 to 1, to 4 digits: the same on every machine."""
    counts = [np.bincount(pixels[..., c].reshape(-1), minlength=256) for c in range(3)]
    levels = np.arange(256) / 255
    total = counts[0].sum()
    mean = [float((count * levels).sum() / total) for count in counts]
    square = [float((count * levels**2).sum() / total) for count in counts]
    # A channel that never varies would divide by zero; one grey level is the smallest spread.
    spread = [max(s - m * m, (1 / 255) ** 2) for s, m in zip(square, mean, strict=True)]
    std = [value**0.5 for value in spread]
    return _rounded(mean), _rounded(std)


def _rounded(values: list[float]) -> Triple:
    red, green, blue = (round(value, 4) for value in values)
    return red, green, blue
