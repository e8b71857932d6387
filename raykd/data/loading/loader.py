"""Normalised batches of the views of a dataset.

Shapes: B batch, H, W pixels.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from raykd.core.types import Batch, Look
from raykd.data.dataset import AnyImages, Images
from raykd.data.loading.decode_workers import DecodedFrames
from raykd.data.loading.raw_batches import FrameRequest, Frames, Key, MemoryFrames, Role
from raykd.data.recipe import Data
from raykd.data.sources import Triple
from raykd.data.transforms.mixing import mixed_targets

_GIVEN: Look = "given"
_PIXELS = 512 * 64 * 64  # most pixels of a batch without gradients
_GPU_PIXELS = 8 * _PIXELS


def _frames_of(looks: Mapping[Look, Data], size: int) -> FrameRequest:
    """The ways in which samples and their partners are shown for some looks, each way once.

    `size` is the number of rows.
    """
    sample, partner, mixes = [], [], []
    for look, data in looks.items():
        mixes += [data.augment.mix] if data.augment.mix is not None else []
        if look != "partner":
            sample.append(_unmixed(data))
        if look == "partner" or data.augment.mix is not None:
            partner.append(_unmixed(data))
    mix = mixes[0] if mixes else None
    return FrameRequest(tuple(dict.fromkeys(sample)), tuple(dict.fromkeys(partner)), mix, size)


def _unmixed(data: Data) -> Data:
    return data.model_copy(update={"augment": data.augment.unmixed()})


def images_at_once(most: int, sizes: Iterable[tuple[int, int]], device: torch.device) -> int:
    """Number of images that a network sees at a time without gradients: `most`, or fewer.

    `sizes` are the (H, W) in which it sees them; the pixels of a batch are bounded.
    """
    room = _GPU_PIXELS if device.type == "cuda" else _PIXELS
    return max(1, min(most, room // max(height * width for height, width in sizes)))


class Views:
    """Batches of images as a recipe's views show them, with other looks at the same samples."""

    def __init__(
        self,
        images: AnyImages,
        data: Data,
        looks: Mapping[Look, Data] | None = None,
        *,
        device: torch.device | str = "cpu",
        decoders: int = 0,
        skip_bad: bool = False,
    ) -> None:
        """`looks` are those besides `data`; batches are made on `device`.

        Decoded images are moved there, too. Encoded ones are decoded by `decoders` processes that
        work ahead, or by this process if that is 0; with `skip_bad`, the next image is shown in
        place of one that cannot be decoded.
        """
        self.data = data.resolved()
        self.looks = looks or {}
        self.device = torch.device(device)
        self._wanted = _frames_of({_GIVEN: data, **self.looks}, len(images))
        if isinstance(images, Images):
            images = images.to(self.device)
            self._shower: MemoryFrames | DecodedFrames = MemoryFrames(images)
            self._targets = images.targets
        else:
            pin = self.device.type == "cuda"
            self._shower = DecodedFrames(images, decoders, skip_bad=skip_bad, pin=pin)
            self._targets = images.targets.to(self.device)
        self.images = images
        self._decoders, self._skip_bad = decoders, skip_bad

    def to(self, device: torch.device) -> "Views":
        """A copy of the views on another device."""
        return Views(
            self.images,
            self.data,
            self.looks,
            device=device,
            decoders=self._decoders,
            skip_bad=self._skip_bad,
        )

    @property
    def bad(self) -> int:
        """Number of images so far that could not be decoded and were replaced by others."""
        return len(self._shower.bad) if isinstance(self._shower, DecodedFrames) else 0

    def batch(self, ids: Tensor, view: int, epoch: int = 0) -> Batch:
        """The samples `ids` (int64 [B]) as they look in one view."""
        return next(self._batches([(ids, view)], epoch))

    def batches(self, rows: Tensor, view: int, epoch: int) -> Iterator[Batch]:
        """One batch per row of `rows` (int64 [steps, B])."""
        yield from self._batches([(ids, view) for ids in self._moved(rows)], epoch)

    def at_once(self, most: int, side: int | None = None) -> int:
        """Number of images that a network sees at a time without gradients: `most`, or fewer.

        The pixels of a batch are bounded, so that large images of a large network fit in memory.
        `side`: the network enlarges them to a square of that side.
        """
        sizes = [data.resolved().size for data in (self.data, *self.looks.values())]
        sizes += [(side, side)] if side else []
        return images_at_once(most, sizes, self.device)

    def runs(self, rows: Tensor, size: int, view: int = 0) -> Iterator[Batch]:
        """The samples `rows` (int64 [n]) in order, `size` at a time; the last may be fewer."""
        yield from self._batches([(ids, view) for ids in self._moved(rows).split(size)], 0)

    def unseen(self, rows: Tensor, size: int, view: int = 0) -> Iterator[Batch]:
        """The same as `runs` without pixels, for reading a cache by ids: no image is decoded.

        Labels are those of the samples themselves, mixed or not.
        """

        def batch(ids: Tensor) -> Batch:
            targets = self._targets.index_select(0, ids)
            return Batch(ids.new_empty(len(ids), 3, 0, 0), targets, ids, view, 0)

        for part in rows.to(self.device).split(size):
            looks = dict.fromkeys(self.looks, batch(part))
            if "partner" in looks:
                seed = self.looks["partner"].seed_of_views()
                looks["partner"] = batch(self._wanted.partners(part, view, seed))
            yield replace(batch(part), looks=looks)

    def _moved(self, rows: Tensor) -> Tensor:
        """Rows where the decoded images are; those of encoded ones stay on the CPU."""
        if isinstance(self._shower, DecodedFrames):
            return rows.cpu()
        return rows.to(self.device, non_blocking=True)

    def _batches(self, keys: list[Key], epoch: int) -> Iterator[Batch]:
        keys = [(self._moved(ids), view) for ids, view in keys]
        frames = self._shower.show(keys, self._wanted)
        if isinstance(self._shower, DecodedFrames) and self.device.type == "cuda":
            frames = _ahead(frames, self.device)
        for (ids, view), shown in zip(keys, frames, strict=True):
            yield self._assembled(ids.to(self.device, non_blocking=True), view, epoch, shown)

    def _assembled(self, ids: Tensor, view: int, epoch: int, frames: Frames) -> Batch:
        """The batch of some frames, with all looks at it."""
        batch = self._look(_GIVEN, self.data, ids, view, epoch, frames)
        looks = {
            look: self._look(look, data, ids, view, epoch, frames)
            for look, data in self.looks.items()
        }
        return replace(batch, looks=looks) if looks else batch

    def _look(
        self, look: Look, data: Data, ids: Tensor, view: int, epoch: int, frames: Frames
    ) -> Batch:
        """The samples as one look shows them."""
        plain, mix, weights = _unmixed(data), data.augment.mix, None
        if look == "partner":
            ids = self._wanted.partners(ids, view, data.seed_of_views())
            pixels, targets = self._shown("partner", plain, frames)
            return Batch(self._normalised(pixels), targets, ids, view, epoch)
        pixels, targets = self._shown("sample", plain, frames)
        if mix is not None:
            other, theirs = self._shown("partner", plain, frames)
            blend = mix.blend(pixels, other, ids, view, data.seed_of_views())
            pixels, weights = blend.pixels, blend.weights
            targets = mixed_targets(targets, theirs, weights, len(self.images.names))
        return Batch(self._normalised(pixels), targets, ids, view, epoch, weights=weights)

    def _shown(self, role: Role, data: Data, frames: Frames) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [B, H, W, 3] that are shown in a way, and their labels int64 [B]."""
        pixels = frames.pixels[role, self._wanted.ways(role).index(data)]
        return pixels, self._targets.index_select(0, frames.rows[role])

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalised(pixels, self.data.mean, self.data.std)


def normalised(pixels: Tensor, mean: Triple, std: Triple) -> Tensor:
    """float32 [B, 3, H, W], channels last in memory, from grey levels [B, H, W, 3].

    `mean` and `std` are those of pixels in 0 to 1.
    """
    batch, height, width, _ = pixels.shape
    # A whole row of pixels at a time: a broadcast over 3 channels alone is four times slower.
    offset, scale = (_row(values, width, pixels.device) for values in (mean, std))
    rows = pixels.reshape(batch, height, width * 3).to(torch.float32)
    scaled = rows.sub_(offset).div_(scale)
    return scaled.view(batch, height, width, 3).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _row(values: Triple, width: int, device: torch.device) -> Tensor:
    """Three channels' values in 0 to 1 as grey levels for a row of pixels: [3 width]."""
    return torch.tensor(values, device=device).mul_(255).repeat(width)


def _ahead(frames: Iterable[Frames], device: torch.device) -> Iterator[Frames]:
    """The frames on a GPU, which copies the next ones while it works on the current ones."""
    copying = torch.cuda.Stream(device)
    current: Frames | None = None
    for following in frames:
        with torch.cuda.stream(copying):
            upcoming = following.to(device)
        if current is not None:
            yield current
        working = torch.cuda.current_stream(device)
        working.wait_stream(copying)
        for tensor in (*upcoming.pixels.values(), *upcoming.rows.values()):
            tensor.record_stream(working)
        current = upcoming
    if current is not None:
        yield current
