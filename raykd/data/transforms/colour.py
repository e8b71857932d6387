"""Random brightness, contrast, saturation and hue, by the sample's key.

Shapes: B batch, H, W pixels.
"""

from collections.abc import Callable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.record import Record


class Colour(Record):
    """Colour jitter: four changes, each by its factor, in an order drawn for each sample.

    As torchvision's ColorJitter: factors are uniform in [1 - x, 1 + x], not below 0, and the hue
    moves by up to `hue` of the colour circle. It runs on the CPU, one image at a time, so that no
    device changes a pixel.
    """

    brightness: float = Field(default=0.0, ge=0, le=100)
    """Brightness factor's largest distance from 1."""
    contrast: float = Field(default=0.0, ge=0, le=100)
    """Contrast factor's largest distance from 1."""
    saturation: float = Field(default=0.0, ge=0, le=100)
    """Saturation factor's largest distance from 1."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Largest change of hue, as a share of the colour circle."""

    @model_validator(mode="after")
    def _check(self) -> "Colour":
        if not any((self.brightness, self.contrast, self.saturation, self.hue)):
            raise ValueError("it changes nothing; give brightness, contrast, saturation or hue")
        return self

    def apply(self, pixels: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """The images uint8 [B, H, W, 3], each changed by its own key."""
        keys, orders, steps = ids.cpu(), [], []
        for number, (change, bounds) in enumerate(zip(_changes(), self._bounds(), strict=True)):
            if bounds is None:
                continue
            low, high = bounds
            draw = keyed_random.uniform(seed, keys, view, keyed_random.COLOUR + (number << 8))
            steps.append((change, (low + (high - low) * draw).tolist()))
            orders.append(
                keyed_random.draw(seed, keys, view, keyed_random.COLOUR_ORDER + (number << 8))
            )
        turns = torch.stack(orders, dim=1).argsort(dim=1, stable=True).tolist()
        images = []
        for row, image in enumerate(pixels.permute(0, 3, 1, 2).cpu()):
            for turn in turns[row]:
                change, factors = steps[turn]
                image = change(image, factors[row])
            images.append(image.permute(1, 2, 0))
        return torch.stack(images).to(pixels.device)

    def _bounds(self) -> list[tuple[float, float] | None]:
        """The smallest and the largest factor of each change; None for one that is not made."""
        strengths = (self.brightness, self.contrast, self.saturation)
        bounds = [(max(0.0, 1 - x), 1 + x) if x else None for x in strengths]
        return [*bounds, (-self.hue, self.hue) if self.hue else None]


def _changes() -> list[Callable[[Tensor, float], Tensor]]:
    """The changes of an image uint8 [3, H, W] by a factor, in the order of the fields."""
    from torchvision.transforms.v2 import functional as change  # takes seconds to import

    return [
        change.adjust_brightness,
        change.adjust_contrast,
        change.adjust_saturation,
        change.adjust_hue,
    ]
