"""Boxes at random places of an image, for what is pasted or cut out.

Shapes: B batch, H, W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from raykd.core import keyed_random


def boxes(
    seed: int,
    ids: Tensor,
    view: int,
    streams: tuple[int, int],
    lengths: Sequence[Tensor],
    size: tuple[int, int],
) -> Tensor:
    """Which pixels lie in each sample's box, bool [B, H, W].

    Its centre is uniform in the image, of `size` (H, W), row and column from a stream each; what
    reaches over the border is cut off. `lengths` are its height and width, int64 [B] each.
    """
    inside = []
    for stream, length, side in zip(streams, lengths, size, strict=True):
        start = (keyed_random.below(seed, ids, view, stream, side) - length // 2)[:, None]
        place = torch.arange(side, device=ids.device)
        inside.append((place >= start) & (place < start + length[:, None]))
    rows, columns = inside
    return rows[:, :, None] & columns[:, None, :]
