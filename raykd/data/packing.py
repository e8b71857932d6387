"""Packing: images of any source into Arrow shards, by any number of processes; resumable.

A shard is a stretch of a split's images in their order. How a dataset is cut follows from the
lengths of its images and the size of shards alone, and a shard's bytes from its images alone, so
every process makes the same one.

Shapes: N images.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.core.errors import DataError, NoRoom
from raykd.data.image_index import CONTENT_BYTES, Say, content_hash, digest_of, ranges_of
from raykd.data.sources import SOURCES, check_exists, pack_format
from raykd.data.sources.encoded_image import fault_in
from raykd.data.sources.files import Files, join_path
from raykd.data.sources.formats import is_image
from raykd.data.sources.hub_datasets import is_on_hub
from raykd.data.sources.hugging_face import is_saved
from raykd.data.sources.pack_format import MARKER, PLAN, Shard
from raykd.data.sources.splits import (
    NAMED,
    Dataset,
    check_filled,
    count_of,
    list_faults,
    row_ranges,
    unusable_error,
)
from raykd.data.sources.tables import is_table
from raykd.data.sources.tars import is_packed_tar, is_tar
from raykd.storage import arrow
from raykd.storage.filesystem import is_url
from raykd.storage.store import Store

SHARD_MB = 256
_THREADS = 16  # that hash images
_SAY_SECONDS = 10.0


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
    bad: tuple[str, ...] = ()  # reasons why images were left out, some of them
    adopted: bool = False  # the folder had the shard before

    @property
    def skipped(self) -> int:
        """Number of images left out."""
        return len(self.part) - len(self.shard.labels)


@dataclass(frozen=True)
class Packing:
    """A dataset to be packed, its destination, and options."""

    dataset: Dataset
    source: str  # origin of the images, for messages
    files: Files  # destination
    shard_mb: float = SHARD_MB  # approximate size of a shard, which a process holds in memory
    skip_bad: bool = False  # leave out what is no image; else it is an error
    decode: bool = False  # to find damaged images, too: slow

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The shards to be made."""
        return tuple(
            Part(split, number, *rows)
            for split, (images, _) in sorted(self.dataset.splits.items())
            for number, rows in enumerate(row_ranges(images.lengths(), int(self.shard_mb * 1e6)))
        )

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(part) for part in self.parts)

    @property
    def volume(self) -> int:
        """Approximate bytes of all images."""
        return sum(int(images.lengths().sum()) for images, _ in self.dataset.splits.values())

    def begin(self) -> dict[Part, tuple[str, ...]]:
        """Write the plan into the folder; returns, for each part, files that may be its shard.

        Raises `DataError` where the folder holds something else, `NoRoom` where the disk cannot
        hold the shards.
        """
        shards = _claim(self.files, self._plan(), self.volume)
        return {part: tuple(shards.get((part.split, part.number), ())) for part in self.parts}

    def make(self, part: Part, candidates: Sequence[str] = ()) -> Packed:
        """One shard: the first of `candidates` that is whole, else a new one.

        Images that cannot be used are left out; `finish` raises unless `skip_bad`.
        """
        for name in candidates:
            packed = self._adopted(part, name)
            if packed is not None:
                return packed
        images, labels = self.dataset.splits[part.split]
        writer, bad = pack_format.Writer(self.dataset.names), []

        def look(row: int, data: bytes | DataError) -> str | None:
            return fault_in(data, images.origin(row), decode=self.decode)

        for row, data, fault in images.mapped(look, part.start, part.stop):
            if fault is None:
                assert isinstance(data, bytes)
                writer.add(data, int(labels[row]))
            elif len(bad) < NAMED:
                bad.append(fault)
        data = writer.finish()
        packed = _read(part, arrow.checksum(data), data)
        self.files.put(packed.shard.name, memoryview(data))
        return replace(packed, bad=tuple(bad))

    def make_all(self, candidates: Mapping[Part, Sequence[str]]) -> Iterator[Packed]:
        """Every shard, one after another, in this process."""
        for part in self.parts:
            yield self.make(part, candidates.get(part, ()))

    def finish(self, made: Iterable[Packed]) -> dict[str, Any]:
        """Write the index and, last of all, the marker, whose value comes back.

        Raises `DataError` for images that cannot be used, unless such are left out: for all of them
        at once. Their shards are kept for a command that leaves them out.
        """
        made = sorted(made, key=lambda packed: packed.part)
        skipped = sum(packed.skipped for packed in made)
        if skipped and not self.skip_bad:
            raise unusable_error([fault for packed in made for fault in packed.bad], skipped)
        columns: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for packed in made:
            columns.setdefault(packed.part.split, []).append((packed.shard.labels, packed.contents))
        contents = {
            split: (np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
            for split, parts in columns.items()
        }
        labels = {split: column for split, (column, _) in contents.items()}
        check_filled(self.dataset.names, labels, self.dataset.about)
        shards = [packed.shard for packed in made]
        hashes = {split: column for split, (_, column) in contents.items()}
        facts = {
            "format": pack_format.FORMAT,
            "plan": self._plan(),
            "digest": digest_of(self.dataset.names, contents),
            "classes": list(self.dataset.names),
            "skipped": skipped,
            "splits": pack_format.write_splits(self.files, shards, hashes),
        }
        # The marker makes a pack complete; what is no part of it goes then.
        self.files.put(MARKER, _as_json(pack_format.sealed(facts)))
        kept = {packed.shard.name for packed in made}
        for entry in self.files.walk():
            name = entry.name
            if name == PLAN or (pack_format.parse_name(name) and name not in kept):
                self.files.remove(name)
        return facts

    def _adopted(self, part: Part, name: str) -> Packed | None:
        """A shard that was made before; None, and the file is gone, where it cannot be used.

        It is damaged, or lacks images that are not to be left out now.
        """
        fields = pack_format.parse_name(name)
        assert fields is not None
        try:
            data = self.files.load(name)
            if arrow.checksum(data) == fields[2]:
                packed = replace(_read(part, fields[2], data), adopted=True)
                if self.skip_bad or not packed.skipped:
                    return packed
        except DataError:
            pass  # it cannot be read: a new one replaces it
        self.files.remove(name)
        return None

    def _plan(self) -> dict[str, Any]:
        """The plan of the pack, in a form that can be compared."""
        hasher = hashlib.sha256(json.dumps([self.dataset.names, self.dataset.stamp]).encode())
        for split, (images, labels) in sorted(self.dataset.splits.items()):
            hasher.update(f"{split} {len(images)}".encode())
            hasher.update(images.lengths().astype("<i8").tobytes())
            hasher.update(labels.astype("<i8").tobytes())
        return {
            "format": pack_format.FORMAT,
            "source": self.source,
            "images": self.images,
            "files": hasher.hexdigest()[:20],
            "shard_mb": self.shard_mb,
            "decode": self.decode,
        }


def _read(part: Part, checksum: str, data: pa.Buffer) -> Packed:
    """The shard whose file's bytes are `data`, and the contents of its images."""
    shard = pack_format.read_shard(part.split, part.number, checksum, data)
    view = memoryview(data)

    def hashed(start: int, length: int) -> bytes:
        return content_hash(bytes(view[start : start + length]))

    with ThreadPoolExecutor(_THREADS) as pool:
        codes = b"".join(pool.map(hashed, shard.offset.tolist(), shard.length.tolist()))
    contents = np.frombuffer(codes, dtype=np.uint8).reshape(-1, CONTENT_BYTES)
    return Packed(part, shard, contents)


def _claim(files: Files, plan: dict[str, Any], size: int) -> dict[tuple[str, int], list[str]]:
    """Write the plan of a pack of about `size` bytes into its folder, unless it has that plan.

    Returns the names of the shards in the folder, by split and number. Those of an unfinished pack
    are removed if its source files have changed since. Raises `DataError` where the folder holds
    something else, `NoRoom` where the disk cannot hold the shards.
    """
    sizes = {entry.name: entry.size for entry in files.walk()}
    record = next((name for name in (MARKER, PLAN) if name in sizes), None)
    if record is not None:
        facts = pack_format.read_json(files, record)
        if record == PLAN and _is_outdated(facts, plan):
            for name in [*filter(pack_format.parse_name, sizes)]:
                files.remove(name)
                del sizes[name]
            record = None
        else:
            _check_plan(files, facts.get("plan", facts), plan)
    elif sizes:
        raise DataError(
            f"{files.describe('')}: the folder is not empty, and holds no pack; choose another one"
        )
    shards: dict[tuple[str, int], list[str]] = {}
    for name, present in sizes.items():
        fields = pack_format.parse_name(name)
        if fields is not None:
            shards.setdefault(fields[:2], []).append(name)
            size -= present
    _check_room(files, size)
    if record is None:
        files.put(PLAN, _as_json(plan))
    return shards


def _is_outdated(earlier: dict[str, Any], plan: dict[str, Any]) -> bool:
    """True if an earlier plan differs from `plan` in the source files alone."""
    other = [key for key, value in plan.items() if earlier.get(key) != value]
    return bool(other) and {*other} <= {"files", "images"}


def _check_plan(files: Files, earlier: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raise `DataError` where the earlier plan of a folder differs from `plan`."""
    names = {"files": "its files have changed since"}
    other = [
        names.get(key, f"{key} was {earlier.get(key)}, now {value}")
        for key, value in plan.items()
        if key != "source" and earlier.get(key) != value
    ]
    if other:
        raise DataError(
            f"{files.describe('')}: holds a pack of {earlier.get('source')} that was made of other "
            f"images or in another way ({'; '.join(other)}); remove it, or choose another folder"
        )


def _check_room(files: Files, wanted: int) -> None:
    """Raise `NoRoom` if the disk of this machine has fewer than `wanted` bytes free."""
    if files.remote is not None:
        return
    folder = Path(files.root)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise NoRoom(
            f"{files.root}: the pack needs {wanted / 1e6:.0f} MB more, the disk has "
            f"{free / 1e6:.0f} MB; make room, or choose another disk"
        )


def _as_json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def into_store(
    store: Store,
    name: str,
    root: str | None,
    say: Say,
    *,
    labels: bool = True,
    skip_bad: bool = False,
) -> Dataset:
    """Byte ranges of a dataset's images; one without files is packed into the store first.

    `root` is a path, a URL, or None for a dataset with a downloader. An unfinished pack is
    resumed. Raises `DataError` for what cannot be an image, which `skip_bad` leaves out.
    """
    dataset = SOURCES[name](root, labels=labels)
    if ranges_of(dataset):
        return dataset
    text = json.dumps([name, root, dataset.stamp, skip_bad])
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    files = Files.at(join_path(store.url, f"images/packs/{key}"))
    source = name if root is None else Files.at(root).describe("")
    packing = Packing(dataset, source, files, skip_bad=skip_bad)
    if not _is_finished(files):
        say(f"packing {packing.images:,} images of {name!r} into {files.describe('')}")
        packing.finish(_with_progress(packing, say))
    return replace(pack_format.read_pack(files.root), about=dataset.about)


def _is_finished(files: Files) -> bool:
    try:
        return pack_format.is_pack(files)
    except DataError:
        return False  # it was begun


def _with_progress(packing: Packing, say: Say) -> Iterator[Packed]:
    """Every shard once it is written; reports progress from time to time."""
    started = spoken = time.monotonic()
    done = 0
    for packed in packing.make_all(packing.begin()):
        done += len(packed.part)
        if packed.skipped:
            left = count_of(packed.skipped, "image")
            say(f"{left} that cannot be used, left out:\n{list_faults(packed.bad, packed.skipped)}")
        now = time.monotonic()
        if now - spoken > _SAY_SECONDS:
            spoken, left = now, (now - started) / done * (packing.images - done) / 60
            say(f"packing: {done:,} of {packing.images:,} images, about {left:.0f} min left")
        yield packed


def source_of(location: str) -> str:
    """The name of the source that reads a path, a URL or hf:owner/name, by its files' names."""
    if is_on_hub(location):
        return "hf"
    check_exists(location)
    path = location.partition("?")[0] if is_url(location) else location
    if is_saved(Files.at(location)):
        return "hf"
    for name in (path, *Files.at(location).names()):
        if is_tar(name) or is_packed_tar(name):
            return "webdataset"
        if is_table(name):
            return "table"
        if is_image(name):
            return "folder"
    raise DataError(f"{location}: found no images, tables or tar shards; look at the path")
