"""Decoding of encoded images into frames, in this process or in workers that prefetch.

Shapes: B batch, H, W pixels.
"""

import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from multiprocessing import connection, util
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from raykd.core.errors import DataError, NoRoom, RaykdError, WorkFailed
from raykd.core.futures import begun
from raykd.data.loading.raw_batches import FrameRequest, Frames, Key, Role
from raykd.data.recipe import Data, Stream
from raykd.data.sources.byte_ranges import Encoded
from raykd.data.sources.encoded_image import ADVICE, EncodedImage, open_image
from raykd.data.transforms.crop import resize

SHARED = Path("/dev/shm")  # where Linux keeps the memory that processes share
POLL_SECONDS = 1.0  # polling interval
TIMEOUT_SECONDS = 600.0  # longest wait for a batch while the processes are alive
_PREFETCHED = 3  # prefetched batches of each process
_LONGEST_FOLDER = 70  # bytes, below which sockets have a path of 37 more
_UNKNOWN = 255  # the status of a process whose server was killed
_NO_MEMORY = "can't allocate memory"  # torch says so in a RuntimeError
_MORE_SHARED = (
    "start the container with more (--shm-size=8g), or set fewer scale.decoders or a smaller batch"
)
_SHARED_FULL = f"{SHARED} is full, where decoding processes put their batches; {_MORE_SHARED}"
_RESUME = "the same command goes on"


class DecodedFrames:
    """Encoded images, and the processes that decode them."""

    def __init__(
        self, images: Encoded, decoders: int, *, skip_bad: bool = False, pin: bool = False
    ) -> None:
        """`decoders` processes work ahead; with 0, this process decodes on demand.

        `skip_bad` shows the next image in place of one that cannot be decoded; `pin` puts frames
        into memory from which a GPU copies by itself.
        """
        self.images = images
        self.bad: set[int] = set()  # rows whose image could not be decoded
        self._decoders = decoders
        self._skip_bad = skip_bad
        self._pin = pin
        self._processes: _WorkerPool | None = None

    def show(self, keys: Iterable[Key], wanted: FrameRequest) -> Iterator[Frames]:
        """The frames of some batches, in order, in the memory of the CPU.

        Raises `DataError`, naming an image that cannot be decoded, `NoRoom` where shared memory is
        too small, and `WorkFailed` where a process that decodes is gone or gives no sign of life.
        """
        requests = [(ids.cpu().numpy(), view) for ids, view in keys]
        if not self._decoders:
            decoder = Decoder(self.images, wanted, self._skip_bad)
            for request in requests:
                yield self._counted(decoder[request])
            return
        ready = self._processes
        if ready is None or ready.ended or ready.decoder.wanted != wanted:
            decoder = Decoder(self.images, wanted, self._skip_bad)
            ready = self._processes = _WorkerPool(decoder, self._decoders, pin=self._pin)
        for frames in ready.show(requests):
            yield self._counted(frames)

    def _counted(self, frames: Frames) -> Frames:
        self.bad.update(frames.bad)
        return frames


class _Context(ForkServerContext):
    """A multiprocessing context that lists the processes started with it.

    Not forked from this process: one that has threads may hang in a copy of itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: list[BaseProcess] = []

    def Process(self, *args: Any, **options: Any) -> BaseProcess:  # noqa: N802
        """A new process, which is also added to `started`."""
        self.started.append(super().Process(*args, **options))
        return self.started[-1]


class _WorkerPool:
    """Worker processes that prefetch batches; started for the first batch and kept.

    Every wait for them ends: their state is polled meanwhile.
    """

    def __init__(self, decoder: "Decoder", count: int, *, pin: bool) -> None:
        self.decoder = decoder
        self.ended = False
        self._count = count
        self._needs = 0  # bytes of shared memory that the last check covered
        self._keys: list[_BatchKey] = []
        _shorten_sockets()
        self._context = _Context()
        self._context.set_forkserver_preload(["raykd.data.loading.decode_forkserver"])
        self._loader = DataLoader(
            _SharedFrames(decoder),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=self._keys,
            num_workers=count,
            prefetch_factor=_PREFETCHED,
            persistent_workers=True,
            multiprocessing_context=self._context,
            pin_memory=pin,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # otherwise it draws from the one of dropout
        )
        # Also when this process ends, which would wait for one that hangs.
        weakref.finalize(self, _kill, self._context.started)

    def show(self, keys: Sequence["_BatchKey"]) -> Iterator[Frames]:
        """The frames of some batches, in order."""
        self._check_room(keys)
        self._keys[:] = keys
        batches = self._in_time(lambda: iter(self._loader))
        for _ in keys:
            frames = self._in_time(lambda: next(batches))
            if isinstance(frames, RaykdError):
                raise frames
            yield frames

    def _check_room(self, keys: Sequence["_BatchKey"]) -> None:
        """Raise `NoRoom` where shared memory does not hold the batches that will be ready."""
        largest = max((len(ids) for ids, _ in keys), default=0)
        frames = largest * self.decoder.wanted.pixel_bytes()
        needs = (
            frames * min(self._count * _PREFETCHED + 1, len(keys))
            + self.decoder.images.index_bytes()
        )
        if needs > self._needs:
            check_shared_memory(needs, self._count)
            self._needs = needs

    def _in_time(self, call: Callable[[], Any]) -> Any:
        """The value of a call that waits for the processes; they are killed where it fails."""
        value, until = begun(call), time.monotonic() + TIMEOUT_SECONDS
        try:
            while not wait([value], POLL_SECONDS).done:
                if self._gone(0):
                    raise self._why()
                if time.monotonic() > until:
                    raise WorkFailed(
                        f"no batch came from {self._count} decoding processes for "
                        f"{TIMEOUT_SECONDS / 60:.0f} minutes, though they are there; see whether "
                        f"{self.decoder.images.ranges.origin(0)} can be read; {_RESUME}"
                    )
            return value.result()
        except BaseException as error:
            # What goes wrong between two processes comes out in many ways where one of them died.
            reason = self._explained(error)
            self.ended = True
            _kill(self._context.started)
            if reason is None:
                raise
            raise reason from error

    def _gone(self, seconds: float) -> bool:
        """True if one of the processes has ended, or ends within some seconds."""
        ends = [one.sentinel for one in self._context.started if one.pid is not None]
        return bool(ends and connection.wait(ends, seconds))

    def _explained(self, error: BaseException) -> RaykdError | None:
        """The reason of a failure; None where the error itself says it."""
        text = str(error)
        if isinstance(error, RaykdError) or not isinstance(error, Exception):
            return None
        if self._gone(POLL_SECONDS):
            return self._why()
        if isinstance(error, MemoryError) or _NO_MEMORY in text:
            return WorkFailed(f"not enough memory to decode a batch; {ADVICE}; {_RESUME}")
        if "shared memory" in text:
            return NoRoom(f"{_SHARED_FULL} ({text.splitlines()[0]})")
        if isinstance(error, OSError | EOFError) or "open files" in text or "ancdata" in text:
            return WorkFailed(
                f"this process cannot speak to those that decode ({text or type(error).__name__}): "
                "either one of them was killed, or the limit of open files (ulimit -n) is too low; "
                f"{_RESUME}"
            )
        return None

    def _why(self) -> RaykdError:
        """The error of a process that decodes and has ended: its reason, and what to do."""
        ended = {process.exitcode for process in self._context.started if process.exitcode}
        if -signal.SIGBUS in ended:
            return NoRoom(_SHARED_FULL)
        if ended & {-signal.SIGKILL, _UNKNOWN} or not ended:
            return WorkFailed(
                "a decoding process was killed, most likely since memory ran out: each of "
                f"{self._count} has {_PREFETCHED} batches ready; {ADVICE}; {_RESUME}"
            )
        status = min(ended)
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return WorkFailed(
            f"a decoding process ended {how}; it may have said above why; set scale.decoders=0 to "
            f"decode in the process that trains; {_RESUME}"
        )


def _shorten_sockets() -> None:
    """Put the sockets of processes below /tmp where TMPDIR is too long for their paths.

    A socket's path has 107 bytes at most. Python looks after it from 3.14 on.
    """
    before = tempfile.gettempdir()
    if len(os.fsencode(before)) > _LONGEST_FOLDER and os.access("/tmp", os.W_OK):
        tempfile.tempdir = "/tmp"
        try:
            util.get_temp_dir()  # which stays
        finally:
            tempfile.tempdir = before


_BatchKey = tuple[np.ndarray, int]  # ids int64 [B], view


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None:
            process.kill()


def check_shared_memory(needs: int, decoders: int) -> None:
    """Raise `NoRoom` where /dev/shm has fewer bytes free than decoded batches need."""
    if not SHARED.is_dir():
        return
    status = os.statvfs(SHARED)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and needs > free:
        raise NoRoom(
            f"{SHARED} has {free / 1e6:,.1f} MB free, and the batches that {decoders} decoding "
            f"processes have ready need {needs / 1e6:,.1f} MB of it; {_MORE_SHARED}"
        )


@dataclass(frozen=True)
class _SharedFrames:
    """The dataset of torch's loader: frames in shared memory, or the error that is to be raised.

    Left to torch, frames are shared in a thread of the queue, whose errors are lost.
    """

    decoder: "Decoder"

    def __getitem__(self, key: _BatchKey) -> Frames | RaykdError:
        try:
            frames = self.decoder[key]
        except RaykdError as error:
            return error
        try:
            frames.share_memory()
        except (RuntimeError, OSError) as error:
            return NoRoom(f"{_SHARED_FULL} ({str(error).splitlines()[0]})")
        return frames


def _end_with_parent(number: int) -> None:
    """End a decoding process when its parent ends, and not before.

    torch watches the parent's process id, which is that of the fork server, and ends at a SIGTERM
    (see `decode_forkserver`).
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Decoder:
    """The decoder of one process: all frames of one batch."""

    images: Encoded
    wanted: FrameRequest
    skip_bad: bool = False
    bad: set[int] = field(default_factory=set)

    def __getitem__(self, key: tuple[np.ndarray, int]) -> Frames:
        """The frames of one batch. Raises `DataError`, naming an image that cannot be decoded."""
        ids, view = torch.from_numpy(key[0]), key[1]
        pixels: dict[tuple[Role, int], Tensor] = {}
        shown: dict[Role, Tensor] = {}
        for role, rows in self.wanted.rows((ids, view)).items():
            ways = self.wanted.ways(role)
            frames, shown[role] = self._decoded(rows, view, ways)
            for number, (data, frame) in enumerate(zip(ways, frames, strict=True)):
                moved = data.augment.crop is not None  # flipped, too
                finish = data.augment.changed if moved else data.augment.apply
                pixels[role, number] = finish(frame, rows, view, data.seed_of_views())
        return Frames(pixels, shown, tuple(self.bad))

    def _decoded(
        self, ids: Tensor, view: int, ways: tuple[Data, ...]
    ) -> tuple[list[Tensor], Tensor]:
        """Framed images for each of some ways, uint8 [B, size, size, 3], and the rows shown.

        Random draws use `ids` even where a bad image was replaced by the next one.
        """
        rows = ids.tolist()
        read = self.images.ranges.read_all(rows)
        pictures = [self._picture(rows, index, data) for index, data in enumerate(read)]
        del read
        framers = [_Framer(data, ids, view, pictures) for data in ways]
        for index in range(len(rows)):
            while True:
                try:
                    for framer in framers:
                        framer.frame(index, pictures[index])
                    break
                except DataError as error:
                    data = self._next(rows, index, int(ids[index]), error)
                    pictures[index] = self._picture(rows, index, data)
                    for framer in framers:
                        framer.replace(index, pictures[index])
            pictures[index] = _EMPTY  # its pixels, too
        return [framer.out for framer in framers], torch.tensor(rows, dtype=torch.int64)

    def _picture(self, rows: list[int], index: int, data: bytes) -> EncodedImage:
        """The image at an index of a batch, or the next usable image of the data set."""
        first = rows[index]
        while True:
            try:
                return open_image(data, self.images.ranges.origin(rows[index]))
            except DataError as error:
                data = self._next(rows, index, first, error)

    def _next(self, rows: list[int], index: int, first: int, error: DataError) -> bytes:
        """The bytes of the image after one that is bad; raises its error unless `skip_bad`."""
        if not self.skip_bad:
            raise error
        self.bad.add(rows[index])
        rows[index] = (rows[index] + 1) % len(self.images)
        if rows[index] == first:
            raise error  # there is no image at all
        return self.images.ranges.read(rows[index])


_EMPTY = EncodedImage(0, 0, lambda least: np.empty((0, 0, 3), dtype=np.uint8))


class _Framer:
    """Cuts one part out of each image of a batch and resizes it."""

    def __init__(self, data: Data, ids: Tensor, view: int, pictures: list[EncodedImage]) -> None:
        assert data.stream is not None
        self._data, self._ids, self._view = data, ids, view
        self._stream, self._crop = data.stream, data.augment.crop
        side = self._stream.size
        self.out = torch.empty(len(pictures), side, side, 3, dtype=torch.uint8)
        self._frames = self.out.unbind()
        self._boxes: list[list[int]] = []
        self._flips = [False] * len(pictures)
        if self._crop is not None:
            self._boxes = self._boxed(ids, pictures)
            self._flips = data.augment.geometry(ids, view, data.seed_of_views())[2].tolist()

    def replace(self, index: int, picture: EncodedImage) -> None:
        """Draw the box of the picture that replaces the one at an index of the batch."""
        if self._crop is not None:
            self._boxes[index] = self._boxed(self._ids[index : index + 1], [picture])[0]

    def frame(self, index: int, picture: EncodedImage) -> None:
        """Decode a picture, and put its part into the batch."""
        if self._crop is None:
            frame = centre(picture, self._stream)
        else:
            frame = _part(picture, self._boxes[index], self._stream)
        self._frames[index].copy_(frame.flip(1) if self._flips[index] else frame)

    def _boxed(self, ids: Tensor, pictures: list[EncodedImage]) -> list[list[int]]:
        assert self._crop is not None
        heights = torch.tensor([picture.height for picture in pictures])
        widths = torch.tensor([picture.width for picture in pictures])
        seed = self._data.seed_of_views()
        return self._crop.boxes(seed, ids, self._view, heights, widths).tolist()


def _part(picture: EncodedImage, box: list[int], stream: Stream) -> Tensor:
    """A part of an image (row, column, height, width in its pixels) at the size of a frame."""
    (row, column, height, width), side = box, stream.size
    # A draft of the whole image may shrink as long as this part keeps a frame's size.
    factor = min(1.0, max(side / height, side / width))
    least = (math.ceil(picture.height * factor), math.ceil(picture.width * factor))
    if stream.draft and picture.shrinks(least):
        pixels = picture.pixels(least)
        down, across = pixels.shape[0] / picture.height, pixels.shape[1] / picture.width
        height, width = max(1, round(height * down)), max(1, round(width * across))
        row = min(round(row * down), pixels.shape[0] - height)
        column = min(round(column * across), pixels.shape[1] - width)
    else:
        pixels = picture.pixels()
    # Cut with numpy, which is done before torch has begun.
    part = pixels[row : row + height, column : column + width]
    return resize(torch.from_numpy(part), side, side, stream.interpolation)


def centre(picture: EncodedImage, stream: Stream) -> Tensor:
    """The centre of an image whose shorter side is brought to `stream.resize` pixels first."""
    side = stream.size
    shorter = min(picture.height, picture.width)
    # As torchvision's Resize: the longer side is cut off to whole pixels.
    height, width = (
        stream.resize if length == shorter else int(stream.resize * length / shorter)
        for length in (picture.height, picture.width)
    )
    image = torch.from_numpy(picture.pixels((height, width) if stream.draft else None))
    image = resize(image, height, width, stream.interpolation)
    row, column = round((height - side) / 2), round((width - side) / 2)
    return image[row : row + side, column : column + side]
