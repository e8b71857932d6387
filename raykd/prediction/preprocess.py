"""The steps from an image file to a network's input: those of a run's test images.

Shapes: B batch, H, W pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from raykd.core.errors import DataError
from raykd.core.safe_names import printable
from raykd.data.loading.decode_workers import centre
from raykd.data.loading.loader import normalised
from raykd.data.recipe import ResolvedData
from raykd.data.sources.encoded_image import EncodedImage, open_image, rgb_image, rgb_of

Picture = str | Path | Image.Image  # an image file, or an image of Pillow's


@dataclass(frozen=True)
class Preprocess:
    """A function from an image to normalised pixels, as evaluation on a run's test images has it.

    Images of a stream are brought to its `resize`, and the centre is cut out. Those that are
    decoded into memory have one size: an image of another size is scaled until it covers that,
    and its centre is cut out.
    """

    data: ResolvedData

    def __call__(self, picture: Picture) -> Tensor:
        """Normalised pixels float32 [3, H, W] of an image file, or of an image of Pillow's.

        Raises `DataError`, naming the file, where it cannot be decoded.
        """
        return self.normalised(self.pixels(picture)[None])[0]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalised pixels float32 [B, 3, H, W] from grey levels uint8 [B, H, W, 3]."""
        return normalised(pixels, self.data.mean, self.data.std)

    def grey_levels(self, normalised: Tensor) -> Tensor:
        """The uint8 pixels [B, 3, H, W] that became these normalised ones."""
        colours = (self.data.mean, self.data.std)
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in colours)
        return (255 * (normalised * std + mean)).round().to(torch.uint8).contiguous()

    def pixels(self, picture: Picture) -> Tensor:
        """Grey levels uint8 [H, W, 3] of the part that the network sees; raises as a call does."""
        stream, origin = self.data.stream, printable(name_of(picture))
        if stream is not None:
            if isinstance(picture, Image.Image):
                array = np.asarray(rgb_of(picture, origin))
                height, width, _ = array.shape
                encoded = EncodedImage(height, width, lambda least: array)
            else:
                encoded = open_image(_read(picture), origin)
            return centre(encoded, stream).contiguous()
        if isinstance(picture, Image.Image):
            image = rgb_of(picture, origin)
        else:
            image = rgb_image(_read(picture), origin)
        height, width = self.data.size
        # At the right size already, `fit` changes nothing.
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image))


def name_of(picture: Picture) -> str:
    """The path of an image file; that of an image of Pillow's, or "an image" where it has none."""
    if isinstance(picture, Image.Image):
        return str(getattr(picture, "filename", "") or "an image")
    return str(picture)


def _read(path: str | Path) -> bytes:
    """The bytes of a file. Raises `DataError` that names it."""
    shown = printable(str(path))
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{shown}: cannot be read ({error.strerror or error})") from error
    if not data:
        raise DataError(f"{shown}: the file is empty; replace or remove it")
    return data
