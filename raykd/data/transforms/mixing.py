"""Two samples blended into one: partner and weight are functions of the sample's key.

So a mixed sample is a view like any other, and what a teacher says about it can be cached.

Shapes: B batch, C classes, H, W pixels.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.core.record import Limits, Record
from raykd.data.transforms.crop import random_masks

LEVELS = 256  # weights are multiples of 1 / 256, so that blends of grey levels are exact


class Mix(Record):
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899).

    The partner is any training row, in its own rendering of the same view. The weight of the
    sample itself follows Beta(alpha, alpha), drawn for each sample (the reference code of mixup
    draws one for a batch). CutMix pastes a box of the partner, of the area 1 - weight before it
    is cut off at the border; the weight is then the share of pixels that stay.
    """

    kind: Literal["mixup", "cutmix"] = "mixup"
    """Blend of two images (mixup), or a box of the partner (CutMix)."""
    alpha: float = Field(default=1.0, gt=0, le=Limits.TEMPERATURE)
    """Parameter of Beta(alpha, alpha), which draws the sample's own weight; 1 is uniform."""

    def partners(self, ids: Tensor, view: int, seed: int, size: int) -> Tensor:
        """The rows (int64 [B], 0 to size - 1) that samples are mixed with."""
        return keyed_random.below(seed, ids, view, keyed_random.PARTNER, size)

    def blend(self, sample: Tensor, partner: Tensor, ids: Tensor, view: int, seed: int) -> "Blend":
        """The mixed images of uint8 [B, H, W, 3] and uint8 [B, H, W, 3]."""
        edges = _edges(self.alpha, ids.device)
        level = torch.bucketize(
            keyed_random.uniform(seed, ids, view, keyed_random.WEIGHT), edges, right=True
        )
        if self.kind == "mixup":
            weight = level.to(torch.int32).view(-1, 1, 1, 1)
            # Exact: at most 255 * 256, and a division by a power of two.
            sums = sample.to(torch.int32) * weight + partner.to(torch.int32) * (LEVELS - weight)
            return Blend(sums.to(torch.float32) / LEVELS, level.to(torch.float32) / LEVELS)
        size = sample.shape[1], sample.shape[2]
        lengths = [_lengths(side, ids.device)[level] for side in size]
        inside = random_masks(
            seed, ids, view, (keyed_random.BOX_ROW, keyed_random.BOX_COLUMN), lengths, size
        )
        pixels = torch.where(inside[..., None], partner, sample)
        kept = (~inside).flatten(1).sum(1).to(torch.float32)
        return Blend(pixels, kept / inside[0].numel())


@dataclass(frozen=True)
class Blend:
    """Mixed images."""

    pixels: Tensor  # uint8, or float32 in multiples of 1 / 256 [B, H, W, 3], 0 to 255
    weights: Tensor  # float32 [B], of the sample itself


def mixed_targets(sample: Tensor, partner: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Target distributions float32 [B, C] of labels int64 [B] and int64 [B]; [B, 0] without."""
    targets = torch.zeros(len(sample), classes, device=sample.device)
    if not classes:
        return targets
    targets.scatter_add_(1, sample[:, None], weights[:, None])
    return targets.scatter_add_(1, partner[:, None], 1 - weights[:, None])


@functools.lru_cache
def _edges(alpha: float, device: torch.device) -> Tensor:
    """Edges in [0, 1] between the weights of uniform numbers: float32 [256], rising.

    P(weight = k / 256) is that of Beta(alpha, alpha) being rounded to k / 256. The edges are
    multiples of 2**-24, as the uniform numbers are, so that libraries which differ in a last
    digit still agree.
    """
    middles = [(level + 0.5) / LEVELS for level in range(LEVELS)]
    if alpha != 1.0:
        try:
            from scipy.special import betainc
        except ImportError:
            raise ConfigError(
                f"mixing with alpha {alpha:g} needs scipy; install it, or use alpha 1"
            ) from None
        middles = [float(betainc(alpha, alpha, middle)) for middle in middles]
    rounded = [round(middle * 2**24) / 2**24 for middle in middles]
    return torch.tensor(rounded, device=device)


@functools.lru_cache
def _lengths(side: int, device: torch.device) -> Tensor:
    """The side of the box for each weight of the image around it, int64 [257]."""
    shares = [math.sqrt(1 - weight / LEVELS) for weight in range(LEVELS + 1)]
    return torch.tensor([int(side * share) for share in shares], device=device)
