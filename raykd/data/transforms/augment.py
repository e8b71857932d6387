"""Augmentation of a sample: a pure function of (seed, sample id, view).

Shapes: B batch, H, W pixels. Pixels are uint8, channels last, until the loader normalises them.
"""

import functools
import math

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.record import Limits, Record
from raykd.data.transforms.colour import Colour
from raykd.data.transforms.crop import Crop, crop_and_resize
from raykd.data.transforms.erase import Erase
from raykd.data.transforms.mixing import Mix
from raykd.data.transforms.strong import Strong

ENDLESS = 1 << 31  # views


class Augment(Record):
    """Augmentation of an image, in the order of the fields; `mix` comes last.

    The CIFAR standard of the field is `pad: 4, flip: true`: 81 crops x 2 = 162 views. ImageNet's
    is `crop: {}, flip: true`. `revision` goes up whenever the same key would show other pixels.
    """

    pad: int = Field(default=0, ge=0, le=Limits.PAD)
    """Black border on each side, in pixels, from which a crop of the full size is drawn."""
    flip: bool = False
    """Mirror half of the views."""
    crop: Crop | None = None
    """Random part, resized to the full size, in place of `pad`; null: none."""
    colour: Colour | None = None
    """Jitter of brightness, contrast, saturation and hue; null: none."""
    strong: Strong | None = None
    """Random operations (RandAugment) and a hole (Cutout); null: none."""
    erase: Erase | None = None
    """Grey box in some images (random erasing); null: none."""
    mix: Mix | None = None
    """Mixture of each sample with another one (mixup, CutMix); null: none."""

    @model_validator(mode="after")
    def _check(self) -> "Augment":
        if self.crop is not None and self.pad:
            raise ValueError("pad and crop both say which part of an image is shown; leave one out")
        return self

    def views(self) -> int:
        """Number of different views of one sample: finite for pad and flip alone."""
        drawn = (self.crop, self.colour, self.strong, self.erase, self.mix)
        finite = all(change is None for change in drawn)
        return self._geometries() if finite else ENDLESS

    def unmixed(self) -> "Augment":
        """The augmentation without mixing."""
        return self.model_copy(update={"mix": None})

    def _geometries(self) -> int:
        """Number of crops and flips."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def geometry(self, ids: Tensor, view: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The crop's row and column (int64 [B], 0 to 2 pad) and the flip (bool [B]).

        The views 0 to count - 1 of a sample show each of its crops and flips once, in an
        order drawn for each sample: the number of the geometry is `step * view + start`, modulo
        their count, with a step that is coprime to it. The next `count` views do so again in
        another order. Every view of a random sample is uniformly distributed.
        """
        count = self._geometries()
        cycle, turn = divmod(view, count)
        steps = _coprime(count, ids.device)
        step = steps[keyed_random.below(seed, ids, cycle, keyed_random.CROP_STEP, len(steps))]
        start = keyed_random.below(seed, ids, cycle, keyed_random.CROP_START, count)
        number = (step * turn + start) % count
        side = 2 * self.pad + 1
        flip = number >= side**2
        return number // side % side, number % side, flip

    def apply(self, pixels: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """The view of each of the images `pixels` (uint8 [B, H, W, 3]) before it is mixed."""
        if self.crop is not None:
            height, width = pixels.shape[1:3]
            sizes = (torch.full_like(ids, height), torch.full_like(ids, width))
            boxes = self.crop.boxes(seed, ids, view, *sizes).tolist()
            shown = [
                crop_and_resize(*pair, (height, width)) for pair in zip(pixels, boxes, strict=True)
            ]
            pixels = torch.stack(shown)
        if self._geometries() > 1:
            pixels = self._moved(pixels, ids, view, seed)
        return self.changed(pixels, ids, view, seed)

    def changed(self, pixels: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """The images (uint8 [B, H, W, 3]) after everything that does not move their pixels."""
        for change in (self.colour, self.strong, self.erase):
            if change is not None:
                pixels = change.apply(pixels, ids, view, seed)
        return pixels

    def _moved(self, pixels: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """The images, cropped and flipped."""
        row, column, flip = self.geometry(ids, view, seed)
        batch, height, width, _ = pixels.shape
        pad = self.pad
        padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
        # One gather does crop and flip: the position of every output pixel among all padded ones.
        y = row[:, None] + torch.arange(height, device=ids.device)
        x = torch.arange(width, device=ids.device)
        x = column[:, None] + torch.where(flip[:, None], width - 1 - x, x)
        image = torch.arange(batch, device=ids.device)[:, None] * (height + 2 * pad)
        position = (image + y)[:, :, None] * (width + 2 * pad) + x[:, None, :]
        gathered = padded.view(-1, 3).index_select(0, position.view(-1))
        return gathered.view(batch, height, width, 3)


@functools.lru_cache
def _coprime(count: int, device: torch.device) -> Tensor:
    """The numbers below `count` that share no factor with it, int64; sent to a device once."""
    numbers = [step for step in range(count) if math.gcd(step, count) == 1]
    return torch.tensor(numbers, device=device)
