"""Making a pack: shard by shard, by any number of processes, gone on with where it was left.

A shard is a stretch of a split's images in their order. How a dataset is cut follows from the
lengths of its images and the size of shards alone, and a shard's bytes from its images alone, so
whoever makes a shard makes the same one.

Shapes: N images.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.core.errors import DataError
from raykd.data.image_index import CONTENT_BYTES, content, digest_of
from raykd.data.packing.pack_sources import Stock, cuts
from raykd.data.packing.pack_target import claim, settle
from raykd.data.sources import pack_shards
from raykd.data.sources.encoded_image import check, look_at
from raykd.data.sources.files import Files
from raykd.data.sources.pack_shards import Shard
from raykd.data.sources.raw_split import NAMED, check_filled, unusable

SHARD_MB = 256
_THREADS = 16  # that look at images


@dataclass(frozen=True, order=True)
class Part:
    """The images of one shard: the rows [start, stop) of a split."""

    split: str
    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Packed:
    """A part that lies in a shard."""

    part: Part
    shard: Shard
    contents: np.ndarray  # uint8 [N, 16]
    bad: tuple[str, ...] = ()  # why images were left out, some of them
    adopted: bool = False  # it was there already

    @property
    def skipped(self) -> int:
        """How many images were left out."""
        return len(self.part) - len(self.shard.labels)


@dataclass(frozen=True)
class Packing:
    """What is packed, where, and how."""

    stock: Stock
    source: str  # where the images come from, for people
    files: Files  # of the pack
    shard_mb: float = SHARD_MB  # of a shard's images, about; a process holds one shard in memory
    skip_bad: bool = False  # leave out what is no image; else it is an error
    decode: bool = False  # to find damaged images, too: slow

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The shards to be made."""
        return tuple(
            Part(split, number, *rows)
            for split, (images, _) in sorted(self.stock.splits.items())
            for number, rows in enumerate(cuts(images.lengths(), int(self.shard_mb * 1e6)))
        )

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(part) for part in self.parts)

    @property
    def volume(self) -> int:
        """About how many bytes the images have."""
        return sum(int(images.lengths().sum()) for images, _ in self.stock.splits.values())

    def begin(self) -> dict[Part, tuple[str, ...]]:
        """Say in the folder what is being made; for each part, files that may be its shard.

        Raises `DataError` where the folder holds something else, `NoRoom` where the disk cannot
        hold the shards.
        """
        there = claim(self.files, self._plan(), self.volume)
        return {part: tuple(there.get((part.split, part.number), ())) for part in self.parts}

    def make(self, part: Part, there: Sequence[str] = ()) -> Packed:
        """One shard: one of `there` if that is whole, else a new one.

        Images that cannot be used are not in it; `finish` says what becomes of that.
        """
        for name in there:
            found = self._adopted(part, name)
            if found is not None:
                return found
        images, labels = self.stock.splits[part.split]
        writer, bad, row = pack_shards.Writer(self.stock.names), [], part.start

        def look(number: int, data: bytes | DataError) -> str | None:
            return self._fault(data, images.origin(number))

        with ThreadPoolExecutor(_THREADS) as pool:
            for block in images.blocks(part.start, part.stop):
                numbers = range(row, row + len(block))
                for data, number, fault in zip(
                    block, numbers, pool.map(look, numbers, block), strict=True
                ):
                    if fault is None:
                        assert isinstance(data, bytes)
                        writer.add(data, int(labels[number]))
                    elif len(bad) < NAMED:
                        bad.append(fault)
                row = numbers.stop
        data = writer.finish()
        packed = _read(part, pack_shards.checksum_of(data), data)
        self.files.put(packed.shard.name, memoryview(data))
        return replace(packed, bad=tuple(bad))

    def make_all(self, there: Mapping[Part, Sequence[str]]) -> Iterator[Packed]:
        """Every shard, one after another, in this process."""
        for part in self.parts:
            yield self.make(part, there.get(part, ()))

    def finish(self, made: Iterable[Packed]) -> dict[str, Any]:
        """Write the index and, last of all, the marker, whose value comes back.

        Raises `DataError` for images that cannot be used, unless such are left out: for all of them
        at once. Their shards are kept for a command that leaves them out.
        """
        made = sorted(made, key=lambda packed: packed.part)
        skipped = sum(packed.skipped for packed in made)
        if skipped and not self.skip_bad:
            raise unusable([fault for packed in made for fault in packed.bad], skipped)
        columns: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for packed in made:
            columns.setdefault(packed.part.split, []).append((packed.shard.labels, packed.contents))
        contents = {
            split: (np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
            for split, parts in columns.items()
        }
        check_filled(self.stock.names, contents["train"][0], self.stock.about)
        facts = {
            "format": pack_shards.FORMAT,
            "plan": self._plan(),
            "digest": digest_of(self.stock.names, contents),
            "classes": list(self.stock.names),
            "skipped": skipped,
            "splits": pack_shards.write_splits(self.files, [packed.shard for packed in made]),
        }
        settle(self.files, facts, {packed.shard.name for packed in made})
        return facts

    def _fault(self, data: bytes | DataError, origin: str) -> str | None:
        """Why an image cannot be used; None where it can."""
        if isinstance(data, DataError):
            return str(data)
        try:
            check(data, origin)
            if self.decode:
                look_at(data, origin).pixels()
        except DataError as error:
            return str(error)
        return None

    def _adopted(self, part: Part, name: str) -> Packed | None:
        """A shard that was made before; None, and the file is gone, where it cannot be used.

        It is damaged, or lacks images that are not to be left out now.
        """
        found = pack_shards.numbered(name)
        assert found is not None
        try:
            data = self.files.load(name)
            if pack_shards.checksum_of(data) == found[2]:
                packed = replace(_read(part, found[2], data), adopted=True)
                if self.skip_bad or not packed.skipped:
                    return packed
        except DataError:
            pass  # it cannot be read: it is made again
        self.files.remove(name)
        return None

    def _plan(self) -> dict[str, Any]:
        """What is being made, in a form that can be compared."""
        hasher = hashlib.sha256(json.dumps([self.stock.names, self.stock.stamp]).encode())
        for split, (images, labels) in sorted(self.stock.splits.items()):
            hasher.update(f"{split} {len(images)}".encode())
            hasher.update(images.lengths().astype("<i8").tobytes())
            hasher.update(labels.astype("<i8").tobytes())
        return {
            "format": pack_shards.FORMAT,
            "source": self.source,
            "images": self.images,
            "files": hasher.hexdigest()[:20],
            "shard_mb": self.shard_mb,
            "decode": self.decode,
        }


def _read(part: Part, checksum: str, data: pa.Buffer) -> Packed:
    """The shard whose file's bytes are `data`, and the contents of its images."""
    shard = pack_shards.look_into(part.split, part.number, checksum, data)
    view = memoryview(data)

    def hashed(start: int, length: int) -> bytes:
        return content(bytes(view[start : start + length]))

    with ThreadPoolExecutor(_THREADS) as pool:
        codes = b"".join(pool.map(hashed, shard.offset.tolist(), shard.length.tolist()))
    contents = np.frombuffer(codes, dtype=np.uint8).reshape(-1, CONTENT_BYTES)
    return Packed(part, shard, contents)
