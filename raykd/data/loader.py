"""Normalised batches of the views of a dataset.

Shapes: B batch, H, W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raykd.data.images import Data, Images
from raykd.types import Batch


@dataclass(frozen=True)
class Views:
    """Images, and the recipe that says which pixels a view of them shows."""

    images: Images
    data: Data

    def to(self, device: torch.device) -> "Views":
        """The same views, drawn and normalised on `device`, which then holds the images."""
        return Views(self.images.to(device), self.data)

    def batch(self, ids: Tensor, view: int, epoch: int = 0) -> Batch:
        """The samples `ids` (int64 [B]) as they look in one view."""
        images = self.images
        ids = ids.to(images.pixels.device, non_blocking=True)
        shown = images.pixels.index_select(0, ids)
        shown = self.data.augment.apply(shown, ids, view, self.data.seed)
        targets = images.targets.index_select(0, ids)
        return Batch(self._normalised(shown), targets, ids, view, epoch)

    def batches(self, rows: Tensor, view: int, epoch: int) -> Iterator[Batch]:
        """One batch per row of `rows` (int64 [steps, B])."""
        for ids in rows.to(self.images.pixels.device, non_blocking=True):
            yield self.batch(ids, view, epoch)

    def runs(self, rows: Tensor, size: int, view: int = 0) -> Iterator[Batch]:
        """The samples `rows` (int64 [n]) in order, `size` at a time; the last may be fewer."""
        for ids in rows.split(size):
            yield self.batch(ids, view)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """float32 [B, 3, H, W], channels last in memory, from uint8 [B, H, W, 3]."""
        mean, std = self.data.mean, self.data.std
        assert mean is not None and std is not None, "the recipe's data was never read"
        batch, height, width, _ = pixels.shape
        # A whole row of pixels at a time: a broadcast over 3 channels alone is four times slower.
        offset = torch.tensor(mean, device=pixels.device).mul_(255).repeat(width)
        scale = torch.tensor(std, device=pixels.device).mul_(255).repeat(width)
        rows = pixels.reshape(batch, height, width * 3).to(torch.float32)
        normalised = rows.sub_(offset).div_(scale)
        return normalised.view(batch, height, width, 3).permute(0, 3, 1, 2)
