"""Strong augmentation: a few random operations on an image, and a grey hole in it.

Shapes: B batch, H, W pixels.
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.record import Record
from raykd.data.transforms.crop import random_masks

GREY = 127  # colour of the hole
_SIGN = 1 << 7  # added to the stream of a strength, for its sign


class Strong(Record):
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719) and Cutout (arXiv 1708.04552).

    The second view of multi-level logit distillation, whose released code says RandAugment(2, 10)
    and Cutout. Each operation is one of 14, its strength uniform up to `magnitude` of the largest
    (FixMatch's variant, arXiv 2001.07685); that reading, and the hole of half the side, are
    decisions taken here. Operations run on the CPU, one image at a time, so that no device
    changes a pixel.
    """

    operations: int = Field(default=2, ge=0, le=100)
    """Random operations on each image."""
    magnitude: float = Field(default=1.0, gt=0, le=1)
    """Largest strength of an operation, as a share of the strongest there is."""
    hole: float = Field(default=0.5, ge=0, le=1)
    """Side of the hole, as a share of the image's; cut off at the border. 0: none."""

    def apply(self, pixels: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """The images uint8 [B, H, W, 3], each changed by its own key."""
        images = pixels.permute(0, 3, 1, 2).cpu().contiguous()
        keys = ids.cpu()
        table = _operations(images.shape[-1])
        for turn in range(self.operations):
            kinds = keyed_random.below(
                seed, keys, view, keyed_random.OPERATION + (turn << 8), len(table)
            )
            strengths = keyed_random.uniform(seed, keys, view, keyed_random.STRENGTH + (turn << 8))
            signs = keyed_random.below(
                seed, keys, view, keyed_random.STRENGTH + (turn << 8) + _SIGN, 2
            )
            choices = zip(kinds.tolist(), strengths.tolist(), signs.tolist(), strict=True)
            images = torch.stack(
                [
                    table[kind](image, self.magnitude * strength, 1 - 2 * sign)
                    for image, (kind, strength, sign) in zip(images, choices, strict=True)
                ]
            )
        size = images.shape[2], images.shape[3]
        lengths = [torch.full_like(keys, int(self.hole * side)) for side in size]
        streams = (keyed_random.HOLE, keyed_random.HOLE + (1 << 8))
        hole = random_masks(seed, keys, view, streams, lengths, size)
        images = images.masked_fill(hole[:, None], GREY)
        return images.permute(0, 2, 3, 1).to(pixels.device)


Operation = Callable[[Tensor, float, int], Tensor]  # uint8 [3, H, W], strength 0 to 1, sign


def _operations(side: int) -> list[Operation]:
    """The 14 operations, with the largest strengths of torchvision's RandAugment."""
    from torchvision.transforms.v2 import functional as change  # takes seconds to import

    def affine(image: Tensor, shift: tuple[int, int], shear: tuple[float, float]) -> Tensor:
        return change.affine(
            image, angle=0.0, translate=list(shift), scale=1.0, shear=list(shear), center=[0, 0]
        )

    def degrees(strength: float, sign: int) -> float:
        return sign * strength * 16.7  # atan(0.3)

    def pixels(strength: float, sign: int) -> int:
        return round(sign * strength * side * 150 / 331)

    return [
        lambda image, strength, sign: image,
        lambda image, strength, sign: change.autocontrast(image),
        lambda image, strength, sign: change.equalize(image),
        lambda image, strength, sign: change.rotate(image, sign * 30.0 * strength),
        lambda image, strength, sign: change.solarize(image, round(255 * (1 - strength))),
        lambda image, strength, sign: change.posterize(image, 8 - round(4 * strength)),
        lambda image, strength, sign: change.adjust_saturation(image, 1 + sign * 0.9 * strength),
        lambda image, strength, sign: change.adjust_contrast(image, 1 + sign * 0.9 * strength),
        lambda image, strength, sign: change.adjust_brightness(image, 1 + sign * 0.9 * strength),
        lambda image, strength, sign: change.adjust_sharpness(image, 1 + sign * 0.9 * strength),
        lambda image, strength, sign: affine(image, (0, 0), (degrees(strength, sign), 0.0)),
        lambda image, strength, sign: affine(image, (0, 0), (0.0, degrees(strength, sign))),
        lambda image, strength, sign: affine(image, (pixels(strength, sign), 0), (0.0, 0.0)),
        lambda image, strength, sign: affine(image, (0, pixels(strength, sign)), (0.0, 0.0)),
    ]
