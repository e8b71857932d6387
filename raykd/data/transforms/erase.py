"""Random boxes that are painted over, by the sample's key.

Shapes: B batch, H, W pixels.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.record import Record
from raykd.data.transforms.crop import Range, mask, random_boxes

GREY = 127  # colour of the box


class Erase(Record):
    """Random erasing (Zhong et al. 2017, arXiv 1708.04896): a box of some images turns grey.

    Area and aspect ratio are drawn as torchvision's RandomErasing does. The paper fills the box
    with noise or the data's mean; grey, which is near that mean, is a decision taken here, so that
    pixels do not depend on how they are normalised.
    """

    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the images that get a box."""
    scale: Range = (0.02, 0.33)
    """[least, largest] share of the image's area."""
    ratio: Range = (0.3, 3.3)
    """[least, largest] width over height of the box."""

    @model_validator(mode="after")
    def _check(self) -> "Erase":
        if not 0 < self.scale[0] <= self.scale[1] < 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                "scale: two rising shares of the area below 1; ratio: two rising numbers above 0; "
                f"got {self.scale} and {self.ratio}"
            )
        return self

    def apply(self, pixels: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """The images uint8 [B, H, W, 3], of which some have a grey box."""
        height, width = pixels.shape[1:3]
        sizes = (torch.full_like(ids, height), torch.full_like(ids, width))
        streams = (
            keyed_random.ERASED_AREA,
            keyed_random.ERASED_RATIO,
            keyed_random.ERASED_ROW,
            keyed_random.ERASED_COLUMN,
        )
        box, fits = random_boxes(seed, ids, view, streams, self.scale, self.ratio, *sizes)
        chosen = fits & (
            keyed_random.uniform(seed, ids, view, keyed_random.ERASED) < self.probability
        )
        inside = chosen[:, None, None] & mask(box, (height, width))
        return pixels.masked_fill(inside[..., None], GREY)
