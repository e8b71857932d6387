"""Pixels of a batch before they are mixed and normalised.

For every look (a teacher at another resolution is one): the pixels of the samples and, if mixing is
on, of their mixing partners.

Shapes: B batch, H, W pixels.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raykd.data.in_memory import Images
from raykd.data.recipe import Data
from raykd.data.transforms.mixing import Mix

Role = Literal["sample", "partner"]
Key = tuple[Tensor, int]  # ids int64 [B], view


@dataclass(frozen=True)
class Frames:
    """The pixels of one batch, of samples and of their mixing partners."""

    pixels: Mapping[
        tuple[Role, int], Tensor
    ]  # uint8 [B, H, W, 3], by kind of row and number of the way
    rows: Mapping[Role, Tensor]  # int64 [B]: dataset rows of the pixels, whose labels count
    bad: tuple[int, ...] = ()  # rows whose image cannot be decoded; the next one is shown

    def to(self, device: torch.device) -> "Frames":
        """A copy on `device`, without waiting for it."""

        def moved(tensors: Mapping) -> dict:
            return {k: v.to(device, non_blocking=True) for k, v in tensors.items()}

        return Frames(moved(self.pixels), moved(self.rows), self.bad)

    def share_memory(self) -> None:
        """Move it to where other processes can read it. Raises RuntimeError where that is full."""
        for tensor in (*self.pixels.values(), *self.rows.values()):
            tensor.share_memory_()

    def pin_memory(self) -> "Frames":
        """A copy in pinned memory; called by torch's loader."""
        pixels = {k: v.pin_memory() for k, v in self.pixels.items()}
        return Frames(pixels, {k: v.pin_memory() for k, v in self.rows.items()}, self.bad)


@dataclass(frozen=True)
class FrameRequest:
    """The frames that a batch is made of."""

    sample: tuple[Data, ...]  # the ways in which samples are shown
    partner: tuple[Data, ...] = ()  # the ways in which mixing partners are shown
    mix: Mix | None = None  # draws the partners
    size: int = 0  # training rows, from which partners are drawn

    def rows(self, key: Key) -> dict[Role, Tensor]:
        """Dataset rows of samples and partners, int64 [B] each."""
        ids, view = key
        rows: dict[Role, Tensor] = {"sample": ids} if self.sample else {}
        if self.partner:
            rows["partner"] = self.partners(ids, view, self.partner[0].seed_of_views())
        return rows

    def partners(self, ids: Tensor, view: int, seed: int) -> Tensor:
        """The rows int64 [B] that samples are mixed with."""
        assert self.mix is not None, "samples that are not mixed have no partners"
        return self.mix.partners(ids, view, seed, self.size)

    def pixel_bytes(self) -> int:
        """Bytes of all frames of one sample."""
        streams = [data.stream for data in (*self.sample, *self.partner)]
        return sum(3 * stream.size**2 for stream in streams if stream is not None)

    def ways(self, role: Role) -> tuple[Data, ...]:
        """The ways in which samples or partners are shown."""
        return self.sample if role == "sample" else self.partner


@dataclass(frozen=True)
class MemoryFrames:
    """Decoded images, on the device where they lie."""

    images: Images

    def show(self, keys: Iterable[Key], wanted: FrameRequest) -> Iterator[Frames]:
        """The frames of some batches, in order."""
        for key in keys:
            rows = wanted.rows(key)
            pixels: dict[tuple[Role, int], Tensor] = {
                (role, number): self._shown(data, shown, key[1])
                for role, shown in rows.items()
                for number, data in enumerate(wanted.ways(role))
            }
            yield Frames(pixels, rows)

    def _shown(self, data: Data, rows: Tensor, view: int) -> Tensor:
        """The augmented pixels of samples, uint8 [B, H, W, 3]."""
        pixels = self.images.pixels.index_select(0, rows)
        return data.augment.apply(pixels, rows, view, data.seed_of_views())
