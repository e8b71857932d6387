"""Normalised batches of the views of a dataset.

Shapes: B batch, H, W pixels.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from raykd.data.images import Data, Images
from raykd.data.mixing import mixed_targets
from raykd.types import Batch, Look


@dataclass(frozen=True)
class Views:
    """Images, the recipe that says which pixels a view of them shows, and other looks at them."""

    images: Images
    data: Data
    looks: Mapping[Look, Data] = field(default_factory=dict)  # besides the given one

    def to(self, device: torch.device) -> "Views":
        """The same views, drawn and normalised on `device`, which then holds the images."""
        return Views(self.images.to(device), self.data, self.looks)

    def batch(self, ids: Tensor, view: int, epoch: int = 0) -> Batch:
        """The samples `ids` (int64 [B]) as they look in one view."""
        ids = ids.to(self.images.pixels.device, non_blocking=True)
        batch = self._batch(self.data, ids, view, epoch)
        return replace(batch, looks=self._looks(ids, view, epoch)) if self.looks else batch

    def _looks(self, ids: Tensor, view: int, epoch: int) -> Mapping[Look, Batch]:
        """The other looks at the same samples."""
        looks: dict[Look, Batch] = {}
        for look, data in self.looks.items():
            rows = ids
            if look == "partner":
                mix = self.data.augment.mix
                assert mix is not None, "samples that are not mixed have no partners"
                rows = mix.partners(ids, view, self.data.seed, len(self.images))
            looks[look] = self._batch(data, rows, view, epoch)
        return looks

    def _batch(self, data: Data, ids: Tensor, view: int, epoch: int) -> Batch:
        """The samples as a recipe shows them."""
        shown, targets = self._shown(data, ids, view), self.images.targets.index_select(0, ids)
        mix, weights = data.augment.mix, None
        if mix is not None:
            partners = mix.partners(ids, view, data.seed, len(self.images))
            other = self._shown(data, partners, view)
            blend = mix.blend(shown, other, ids, view, data.seed)
            shown, weights = blend.pixels, blend.weights
            theirs = self.images.targets.index_select(0, partners)
            targets = mixed_targets(targets, theirs, weights, len(self.images.names))
        return Batch(self._normalised(shown), targets, ids, view, epoch, weights=weights)

    def _shown(self, data: Data, ids: Tensor, view: int) -> Tensor:
        """The augmented pixels of samples before they are mixed, uint8 [B, H, W, 3]."""
        pixels = self.images.pixels.index_select(0, ids)
        return data.augment.apply(pixels, ids, view, data.seed)

    def batches(self, rows: Tensor, view: int, epoch: int) -> Iterator[Batch]:
        """One batch per row of `rows` (int64 [steps, B])."""
        for ids in rows.to(self.images.pixels.device, non_blocking=True):
            yield self.batch(ids, view, epoch)

    def runs(self, rows: Tensor, size: int, view: int = 0) -> Iterator[Batch]:
        """The samples `rows` (int64 [n]) in order, `size` at a time; the last may be fewer."""
        for ids in rows.split(size):
            yield self.batch(ids, view)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """float32 [B, 3, H, W], channels last in memory, from grey levels [B, H, W, 3]."""
        mean, std = self.data.mean, self.data.std
        assert mean is not None and std is not None, "the recipe's data was never read"
        batch, height, width, _ = pixels.shape
        offset, scale = (_levels(values, width, pixels.device) for values in (mean, std))
        rows = pixels.reshape(batch, height, width * 3).to(torch.float32)
        normalised = rows.sub_(offset).div_(scale)
        return normalised.view(batch, height, width, 3).permute(0, 3, 1, 2)


@functools.lru_cache
def _levels(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """Values of the channels, in grey levels, for a row of pixels; sent to a device once.

    A whole row at a time: a broadcast over 3 channels alone is four times slower.
    """
    return torch.tensor(values, device=device).mul_(255).repeat(width)
