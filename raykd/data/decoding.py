"""Encoded images become frames: in this process, or in others that work ahead.

Shapes: B batch, H, W pixels.
"""

import math
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from raykd.data.crop import resized
from raykd.data.encoded import Encoded
from raykd.data.frames import Frames, Key, Wanted, Who
from raykd.data.images import Data
from raykd.data.pictures import Picture, look_at
from raykd.errors import DataError

_AHEAD = 3  # batches that each process has ready


class Decoding:
    """Encoded images, and the processes that decode them."""

    def __init__(
        self, images: Encoded, decoders: int, *, skip_bad: bool = False, pin: bool = False
    ) -> None:
        """`decoders` processes work ahead; with 0, this one decodes when it is asked.

        `skip_bad` shows the next image in place of one that cannot be decoded; `pin` puts frames
        into memory from which a GPU copies by itself.
        """
        self.images = images
        self.bad: set[int] = set()  # rows whose image could not be decoded
        self._decoders = decoders
        self._skip_bad = skip_bad
        self._pin = pin
        self._keys: list[tuple[np.ndarray, int]] = []
        self._loader: tuple[Wanted, Any] | None = None

    def show(self, keys: Iterable[Key], wanted: Wanted) -> Iterator[Frames]:
        """The frames of some batches, in order, in the memory of the CPU."""
        if not self._decoders:
            decoder = Decoder(self.images, wanted, self._skip_bad)
            for ids, view in keys:
                yield self._counted(decoder[ids.cpu().numpy(), view])
            return
        if self._loader is None or self._loader[0] != wanted:
            self._loader = (wanted, self._started(wanted))
        self._keys[:] = [(ids.cpu().numpy(), view) for ids, view in keys]
        try:
            for frames in self._loader[1]:
                yield self._counted(frames)
        except DataError as error:
            # torch's loader puts the other process's traceback into the message.
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None

    def _counted(self, frames: Frames) -> Frames:
        self.bad.update(frames.bad)
        return frames

    def _started(self, wanted: Wanted) -> DataLoader:
        """The processes; they are started with the first batch, and stay."""
        # Not forked: a process that has threads, as this one, may hang in a copy of itself.
        multiprocessing.set_forkserver_preload([__name__])
        return DataLoader(
            Decoder(self.images, wanted, self._skip_bad),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=self._keys,
            num_workers=self._decoders,
            prefetch_factor=_AHEAD,
            persistent_workers=True,
            multiprocessing_context="forkserver",
            pin_memory=self._pin,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # otherwise it draws from the one of dropout
        )


def _end_with_parent(number: int) -> None:
    """Let a process that decodes end when the one that it works for is killed.

    torch watches its parent by the process id, and that one is the server that forked it.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Decoder:
    """What each process does: all frames of one batch."""

    images: Encoded
    wanted: Wanted
    skip_bad: bool = False
    bad: set[int] = field(default_factory=set)

    def __getitem__(self, key: tuple[np.ndarray, int]) -> Frames:
        """The frames of one batch. Raises `DataError`, naming an image that cannot be decoded."""
        ids, view = torch.from_numpy(key[0]), key[1]
        pixels: dict[tuple[Who, int], Tensor] = {}
        shown: dict[Who, Tensor] = {}
        for who, rows in self.wanted.rows((ids, view)).items():
            ways = self.wanted.ways(who)
            frames, shown[who] = self._decoded(rows, view, ways)
            for number, (data, frame) in enumerate(zip(ways, frames, strict=True)):
                moved = data.augment.crop is not None  # flipped, too
                finish = data.augment.changed if moved else data.augment.apply
                pixels[who, number] = finish(frame, rows, view, data.seed)
        return Frames(pixels, shown, tuple(self.bad))

    def _decoded(
        self, ids: Tensor, view: int, ways: tuple[Data, ...]
    ) -> tuple[list[Tensor], Tensor]:
        """Framed images for each of some ways, uint8 [B, size, size, 3], and the rows shown.

        Randomness is that of the `ids`, whose images are shown wherever they can be decoded.
        """
        rows = ids.tolist()
        read = self.images.ranges.read_all(rows)
        pictures = [self._picture(rows, place, data) for place, data in enumerate(read)]
        del read
        framers = [_Framer(data, ids, view, pictures) for data in ways]
        for place in range(len(rows)):
            while True:
                try:
                    for framer in framers:
                        framer.frame(place, pictures[place])
                    break
                except DataError as error:
                    data = self._next(rows, place, int(ids[place]), error)
                    pictures[place] = self._picture(rows, place, data)
                    for framer in framers:
                        framer.look_again(place, pictures[place])
            pictures[place] = _GONE  # its pixels, too
        return [framer.out for framer in framers], torch.tensor(rows, dtype=torch.int64)

    def _picture(self, rows: list[int], place: int, data: bytes) -> Picture:
        """The image at a place of a batch, or the first after it that is one."""
        asked = rows[place]
        while True:
            try:
                return look_at(data, self.images.ranges.origin(rows[place]))
            except DataError as error:
                data = self._next(rows, place, asked, error)

    def _next(self, rows: list[int], place: int, asked: int, error: DataError) -> bytes:
        """The bytes of the image after one that is bad; raises the error where that is wanted."""
        if not self.skip_bad:
            raise error
        self.bad.add(rows[place])
        rows[place] = (rows[place] + 1) % len(self.images)
        if rows[place] == asked:
            raise error  # there is no image at all
        return self.images.ranges.read(rows[place])


_GONE = Picture(0, 0, lambda least: np.empty((0, 0, 3), dtype=np.uint8))


class _Framer:
    """Which part of each image of a batch is shown, and how large."""

    def __init__(self, data: Data, ids: Tensor, view: int, pictures: list[Picture]) -> None:
        assert data.stream is not None
        self._data, self._ids, self._view = data, ids, view
        self._stream, self._crop = data.stream, data.augment.crop
        side = self._stream.size
        self.out = torch.empty(len(pictures), side, side, 3, dtype=torch.uint8)
        self._places = self.out.unbind()
        self._boxes: list[list[int]] = []
        self._flips = [False] * len(pictures)
        if self._crop is not None:
            self._boxes = self._boxed(ids, pictures)
            self._flips = data.augment.geometry(ids, view, data.seed)[2].tolist()

    def look_again(self, place: int, picture: Picture) -> None:
        """Take another picture at one place of the batch."""
        if self._crop is not None:
            self._boxes[place] = self._boxed(self._ids[place : place + 1], [picture])[0]

    def frame(self, place: int, picture: Picture) -> None:
        """Decode a picture, and put its part into the batch."""
        side, draft = self._stream.size, self._stream.draft
        if self._crop is None:
            frame = _centre(picture, self._stream.resize, side, draft=draft)
        else:
            frame = _part(picture, self._boxes[place], side, draft=draft)
        self._places[place].copy_(frame.flip(1) if self._flips[place] else frame)

    def _boxed(self, ids: Tensor, pictures: list[Picture]) -> list[list[int]]:
        assert self._crop is not None
        heights = torch.tensor([picture.height for picture in pictures])
        widths = torch.tensor([picture.width for picture in pictures])
        return self._crop.boxes(self._data.seed, ids, self._view, heights, widths).tolist()


def _part(picture: Picture, box: list[int], side: int, *, draft: bool) -> Tensor:
    """A part of an image (row, column, height, width in its own pixels) at the size of a frame."""
    row, column, height, width = box
    # A draft of the whole image may shrink as long as this part keeps a frame's size.
    factor = min(1.0, max(side / height, side / width))
    least = (math.ceil(picture.height * factor), math.ceil(picture.width * factor))
    if draft and picture.shrinks(least):
        pixels = picture.pixels(least)
        down, across = pixels.shape[0] / picture.height, pixels.shape[1] / picture.width
        height, width = max(1, round(height * down)), max(1, round(width * across))
        row = min(round(row * down), pixels.shape[0] - height)
        column = min(round(column * across), pixels.shape[1] - width)
    else:
        pixels = picture.pixels()
    # Cut with numpy, which is done before torch has begun.
    part = pixels[row : row + height, column : column + width]
    return resized(torch.from_numpy(part), side, side)


def _centre(picture: Picture, resize: int, side: int, *, draft: bool) -> Tensor:
    """The centre of an image whose shorter side is brought to `resize` pixels first."""
    shorter = min(picture.height, picture.width)
    # As torchvision's Resize: the longer side is cut off to whole pixels.
    height = resize if picture.height == shorter else int(resize * picture.height / shorter)
    width = resize if picture.width == shorter else int(resize * picture.width / shorter)
    image = torch.from_numpy(picture.pixels((height, width) if draft else None))
    image = resized(image, height, width)
    row, column = round((height - side) / 2), round((width - side) / 2)
    return image[row : row + side, column : column + side]
