"""Random parts of images, resized: a function of the sample's key and of the image's own size.

So a teacher that wants another resolution sees the same part of the picture.

Shapes: B batch, H, W pixels of an image.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.record import Record

TRIES = 10  # draws of an area and an aspect ratio, until one fits into the image
_STEPS = 1 << 20  # ratios are multiples of 1 / this, so that a last digit of exp changes nothing

_Bound = Annotated[float, Field(gt=0, le=1000)]
Interpolation = Literal["bilinear", "bicubic"]
Range = tuple[_Bound, _Bound]


class Crop(Record):
    """A part of random area and aspect ratio, resized to the full size.

    Szegedy et al. 2014, arXiv 1409.4842, section 6, with the defaults and the distribution of
    torchvision's RandomResizedCrop: the ratio is uniform in its logarithm, and where none of ten
    draws fits, the largest central part is taken whose ratio is allowed.
    """

    scale: Range = (0.08, 1.0)
    """[least, largest] share of the image's area."""
    ratio: Range = (3 / 4, 4 / 3)
    """[least, largest] width over height."""

    @model_validator(mode="after")
    def _check(self) -> "Crop":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: two rising shares of the area up to 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: two rising numbers above 0, got {self.ratio}")
        return self

    def boxes(self, seed: int, ids: Tensor, view: int, heights: Tensor, widths: Tensor) -> Tensor:
        """Row, column, height and width of each sample's part: int64 [B, 4].

        `heights` and `widths` are the sizes of the images in pixels, int64 [B].
        """
        streams = (
            keyed_random.CROP_AREA,
            keyed_random.CROP_RATIO,
            keyed_random.CROP_ROW,
            keyed_random.CROP_COLUMN,
        )
        boxes, fits = random_boxes(
            seed, ids, view, streams, self.scale, self.ratio, heights, widths
        )
        return torch.where(fits[:, None], boxes, self._central(heights, widths))

    def _central(self, heights: Tensor, widths: Tensor) -> Tensor:
        """The largest part around the centre whose ratio is allowed, int64 [B, 4]."""
        low, high = self.ratio
        tall, wide = heights.double(), widths.double()
        height = torch.where(wide / tall < low, (wide / low).round(), tall)
        width = torch.where(wide / tall > high, (tall * high).round(), wide)
        rows, columns = (heights - height.long()) // 2, (widths - width.long()) // 2
        return torch.stack([rows, columns, height.long(), width.long()], dim=1)


def random_boxes(
    seed: int,
    ids: Tensor,
    view: int,
    streams: tuple[int, int, int, int],
    scale: Range,
    ratio: Range,
    heights: Tensor,
    widths: Tensor,
) -> tuple[Tensor, Tensor]:
    """Parts of images with a random area and aspect ratio, anywhere in them.

    Row, column, height and width int64 [B, 4], and whether one of ten draws fitted into the image
    (of the size `heights` x `widths`, int64 [B]), bool [B]. `streams` are those of area, ratio,
    row and column; `scale` bounds the share of the area, `ratio` width over height.
    """
    low, high = (math.log(value) for value in ratio)
    turns = [stream + (turn << 8) for stream in streams[:2] for turn in range(TRIES)]
    drawn = keyed_random.uniforms(seed, ids, view, turns).double()  # all at once: it costs no more
    share, power = drawn.view(2, TRIES, len(ids))
    wanted = heights.double() * widths.double() * (scale[0] + (scale[1] - scale[0]) * share)
    aspect = ((low + (high - low) * power).exp() * _STEPS).round() / _STEPS
    wide, tall = (wanted * aspect).sqrt().round(), (wanted / aspect).sqrt().round()
    good = (wide >= 1) & (tall >= 1) & (wide <= widths) & (tall <= heights)
    fits, first = good.any(dim=0), good.int().argmax(dim=0, keepdim=True)
    height, width = (torch.where(fits, side.gather(0, first)[0].long(), 1) for side in (tall, wide))
    row = _below(seed, ids, view, streams[2], heights - height + 1)
    column = _below(seed, ids, view, streams[3], widths - width + 1)
    return torch.stack([row, column, height, width], dim=1), fits


def _below(seed: int, ids: Tensor, view: int, stream: int, counts: Tensor) -> Tensor:
    """int64 [B] in [0, counts), for counts int64 [B] up to 2**24."""
    return (keyed_random.uniform(seed, ids, view, stream).double() * counts).long()


def random_masks(
    seed: int,
    ids: Tensor,
    view: int,
    streams: tuple[int, int],
    lengths: Sequence[Tensor],
    size: tuple[int, int],
) -> Tensor:
    """Mask of the pixels in each sample's random box, bool [B, H, W].

    Its centre is uniform in the image, of `size` (H, W), row and column from a stream each; what
    reaches over the border is cut off. `lengths` are its height and width, int64 [B] each.
    """
    rows, columns = (
        keyed_random.below(seed, ids, view, stream, side) - length // 2
        for stream, length, side in zip(streams, lengths, size, strict=True)
    )
    return mask(torch.stack([rows, columns, *lengths], dim=1), size)


def mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of images of `size` (H, W) that lie in a box each, bool [B, H, W].

    `boxes` are row, column, height and width, int64 [B, 4]; they may reach over the border.
    """
    inside = []
    for axis, side in enumerate(size):
        start, length = boxes[:, axis, None], boxes[:, axis + 2, None]
        pixel = torch.arange(side, device=boxes.device)
        inside.append((pixel >= start) & (pixel < start + length))
    return inside[0][:, :, None] & inside[1][:, None, :]


def resize(image: Tensor, height: int, width: int, mode: Interpolation = "bilinear") -> Tensor:
    """An image uint8 [H, W, 3] at another size, interpolated with antialiasing: the same layout."""
    if image.shape[:2] == (height, width):
        return image
    # With the batch's axis put in front of [H, W, 3], torch sees that channels come last, and what
    # it returns needs not be turned over.
    planes = image[None].permute(0, 3, 1, 2)
    scaled = F.interpolate(planes, (height, width), mode=mode, antialias=True)
    return scaled.permute(0, 2, 3, 1)[0]


def crop_and_resize(image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """A box (row, column, height, width) of an image uint8 [H, W, 3], resized to `size` (H, W)."""
    row, column, height, width = box
    return resize(image[row : row + height, column : column + width], *size)
