"""Index of encoded images in the store: their digest, and the byte range of each.

    root/images/<digest>/   byte range of each image, and images.json, which names their root
    root/images/stamps/     results of reading files, valid until they change
    root/images/contents/   hashes of the images of a digest, a file per split

The digest is of what the images are: the class names and, for each split, labels and bytes in their
order. A folder, its tar shards and its Arrow shards have the same one, if their order is the same,
and it does not matter whether they are decoded into memory, streamed or packed.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import ConfigDict, ValidationError

from raykd.core.errors import CacheCorrupt, DataError
from raykd.core.record import Record
from raykd.core.safe_names import is_below, text
from raykd.data.sources.byte_ranges import Encoded, Ranges, index_names, read_index, write_index
from raykd.data.sources.encoded_image import fault_in
from raykd.data.sources.splits import (
    NAMED,
    Dataset,
    Images,
    check_filled,
    empty_classes,
    is_numbered,
    unusable_of,
)
from raykd.storage import arrow
from raykd.storage.atomic import write_atomic
from raykd.storage.store import Store, read_json, write_json

MARKER = "images.json"
CONTENT_BYTES = 16  # length of an image's BLAKE2b hash
DIGEST_DIGITS = 20
STAMPS = 2  # revision of the summaries; increase it when their meaning changes
_BYTES = "bytes:"  # before the hex digits of a path that is not UTF-8
_SAY_SECONDS = 10.0

Say = Callable[[str], None]
MoreFaults = Callable[
    [Dataset, Mapping[str, np.ndarray]], list[str]
]  # faults of the rows of each split
AnyRecord = TypeVar("AnyRecord", bound=Record)


class Facts(Record):
    """The content of images.json for encoded images."""

    model_config = ConfigDict(extra="ignore")  # earlier versions wrote more

    digest: str
    root: str  # folder or URL of the files, as `_written` has it
    names: tuple[str, ...]  # class names; none without labels
    stamp: str = ""  # hash of that of the files; empty in indexes of earlier versions
    splits: dict[str, dict[str, str]]  # checksums of each split's index files by their names

    @property
    def location(self) -> str:
        """Path or URL of the root."""
        if not self.root.startswith(_BYTES):
            return self.root
        try:
            return os.fsdecode(bytes.fromhex(self.root.removeprefix(_BYTES)))
        except ValueError:
            return self.root


def _encode_root(root: str) -> str:
    """A path in a form that JSON can hold: bytes that are not UTF-8 become hex digits."""
    return root if root == text(root) else _BYTES + os.fsencode(root).hex()


class Summary(Record):
    """A summary of one reading of all images."""

    digest: str
    counts: dict[str, int]  # usable images of each split
    empty: tuple[str, ...] = ()  # classes without a training image
    skipped: int = 0  # images that cannot be used
    bad: tuple[str, ...] = ()  # reasons, for some of them


@dataclass(frozen=True)
class Reading:
    """The contents of images, and which of them can be used."""

    summary: Summary
    rows: Mapping[str, np.ndarray]  # int64 [n] of each split, rising
    contents: Mapping[str, np.ndarray] = field(default_factory=dict)  # uint8 [n, 16], where known


def read_record(kind: type[AnyRecord], path: Path) -> AnyRecord:
    """A record that a file of the store holds. Raises `CacheCorrupt`, naming the file."""
    value = read_json(path)
    try:
        return kind.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join([*(str(part) for part in first["loc"][:1]), first["msg"]])
        raise CacheCorrupt(
            f"{path}: is not what raykd writes there ({what}); remove it and run again"
        ) from error


def content_hash(data: bytes) -> bytes:
    """Hash of the bytes of an image."""
    return hashlib.blake2b(data, digest_size=CONTENT_BYTES).digest()


def digest_of(names: Sequence[str], splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """20 hex digits of class names, labels int64 [N] and contents uint8 [N, 16] of each split."""
    hasher = hashlib.sha256(json.dumps(["encoded", *names]).encode())
    for split, (labels, contents) in sorted(splits.items()):
        hasher.update(f"{split} {len(labels)}".encode())
        hasher.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
        hasher.update(np.ascontiguousarray(contents).tobytes())
    return hasher.hexdigest()[:DIGEST_DIGITS]


def find_summary(store: Store, name: str, dataset: Dataset, *, skip_bad: bool) -> Summary | None:
    """The summary of an earlier reading of files that have not changed; None without one."""
    digest = dataset.digest
    if not digest and dataset.contents:  # a pack has them, also where its labels were taken
        columns = {
            split: (dataset.labels[split], dataset.contents[split]) for split in dataset.splits
        }
        digest = digest_of(dataset.names, columns)
    if digest:
        counts = {split: len(labels) for split, labels in dataset.labels.items()}
        empty = empty_classes(dataset.names, dataset.labels["train"])
        return Summary(digest=digest, counts=counts, empty=tuple(empty))
    path = _summary_path(store, name, dataset, skip_bad=skip_bad)
    return read_record(Summary, path) if dataset.stamp and path.is_file() else None


def save_summary(
    store: Store, name: str, dataset: Dataset, summary: Summary, *, skip_bad: bool
) -> None:
    """Keep the summary of files until their stamp changes."""
    path = _summary_path(store, name, dataset, skip_bad=skip_bad)
    if dataset.stamp and not path.is_file():  # a store may be read alone
        write_json(path, summary.plain())


def is_index_of(store: Store, folder: Path, dataset: Dataset) -> bool:
    """True for an index of the dataset's files, not of other files with the same images.

    Those may lie below the same root, once files or folders have other names.
    """
    if not store.whole(folder, MARKER):
        return False
    facts = read_record(Facts, folder / MARKER)
    return (facts.location, facts.stamp) == (root_of(dataset), _hash(dataset.stamp))


def _hash(stamp: str) -> str:
    return hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:20]


def ranges_of(dataset: Dataset) -> dict[str, Ranges]:
    """The splits of a dataset whose images are ranges of files; empty for another one."""
    images = {split: samples.images for split, samples in dataset.splits.items()}
    ranges = {split: part for split, part in images.items() if isinstance(part, Ranges)}
    return ranges if len(ranges) == len(images) else {}


def root_of(dataset: Dataset) -> str:
    """The root of the files that images are ranges of; empty for other images."""
    return next((part.files.root for part in ranges_of(dataset).values()), "")


def _summary_path(store: Store, name: str, dataset: Dataset, *, skip_bad: bool) -> Path:
    location = root_of(dataset) or name
    identity = json.dumps([STAMPS, location, skip_bad, dataset.stamp])
    key = hashlib.sha256(identity.encode())
    return store.root / "images" / "stamps" / key.hexdigest()[:20]


def read_images(
    dataset: Dataset, say: Say, *, skip_bad: bool, more: MoreFaults | None = None
) -> Reading:
    """Read every image once, for what identifies it.

    Raises `DataError` that names those that cannot be images, all of them at once, together with
    what is wrong with `more` of them. With `skip_bad` they are left out.
    """
    rows: dict[str, np.ndarray] = {}
    contents: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    faults: list[str] = []
    for split, (images, labels) in dataset.splits.items():
        codes, bad = _read_split(split, images, say)
        faults += bad.values()
        good = np.ones(len(labels), dtype=bool)
        good[[*bad]] = False
        rows[split] = np.flatnonzero(good)
        contents[split] = (labels[good], codes[good])
    if faults and not skip_bad:
        faults += more(dataset, rows) if more is not None else []
        raise unusable_of(faults, dataset.about)
    labels = {split: column for split, (column, _) in contents.items()}
    check_filled(dataset.names, labels, dataset.about)
    summary = Summary(
        digest=digest_of(dataset.names, contents),
        counts={split: len(column) for split, column in rows.items()},
        empty=tuple(empty_classes(dataset.names, labels["train"])),
        skipped=len(faults),
        bad=tuple(faults[:NAMED]),
    )
    return Reading(summary, rows, {split: codes for split, (_, codes) in contents.items()})


def save_contents(store: Store, digest: str, contents: Mapping[str, np.ndarray]) -> None:
    """Keep the hashes uint8 [N, 16] of the images of each split, in files named by checksums."""
    for split, codes in contents.items():
        data = arrow.pack({"contents": torch.from_numpy(codes)})
        path = contents_folder(store) / f"{digest}-{split}-{arrow.checksum(data)}.arrow"
        if not path.is_file():  # equal bytes, should another node have written it
            write_atomic(path, data)
            store.push(path)


def load_contents(
    store: Store, digest: str, names: Sequence[str], labels: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """The hashes uint8 [N, 16] of the images of each split, whose labels are int64 [N].

    None where they were not kept, or where some of the images were left out since. Raises
    `CacheCorrupt` where they are not those of the digest.
    """
    folder, contents = contents_folder(store), dict[str, np.ndarray]()
    for split in labels:
        store.pull_all(folder, f"{digest}-{split}-")
        path = next(folder.glob(f"{digest}-{split}-*.arrow"), None)
        if path is None:
            return None
        contents[split] = arrow.read(path)["contents"].numpy()
    if any(len(contents[split]) != len(column) for split, column in labels.items()):
        return None
    if digest_of(names, {split: (labels[split], contents[split]) for split in labels}) != digest:
        raise CacheCorrupt(
            f"{folder}: the hashes of the images {digest} were altered; remove them and run again"
        )
    return contents


def contents_folder(store: Store) -> Path:
    """The folder of hashes of images."""
    return store.root / "images" / "contents"


def usable_rows(dataset: Dataset, summary: Summary, say: Say, *, skip_bad: bool) -> Reading:
    """Rows of usable images in files that were read before; read again only if some are not."""
    if summary.skipped:
        return read_images(dataset, say, skip_bad=skip_bad)
    rows = {split: np.arange(len(labels)) for split, (_, labels) in dataset.splits.items()}
    return Reading(summary, rows)


def write(store: Store, dataset: Dataset, reading: Reading) -> str:
    """Write the byte ranges of usable images into the store; returns their digest."""
    digest = reading.summary.digest
    folder, checksums = folder_of(store, digest), {}
    for split, ranges in ranges_of(dataset).items():
        rows, labels = reading.rows[split], dataset.splits[split].labels
        usable = ranges.take(torch.from_numpy(rows))
        checksums[split] = write_index(folder, split, usable, torch.from_numpy(labels[rows]))
    facts = Facts(
        digest=digest,
        root=_encode_root(root_of(dataset)),
        names=dataset.names,
        stamp=_hash(dataset.stamp),
        splits=checksums,
    )
    write_json(folder / MARKER, facts.plain())
    return digest


def folder_of(store: Store, digest: str) -> Path:
    """The folder of the index of encoded images in the store."""
    return store.root / "images" / digest


@functools.lru_cache(maxsize=64)
def checked(path: Path, checksum: str) -> Path:
    """The path of a file whose checksum matches; computed once a process."""
    if not path.is_file() or arrow.file_checksum(path) != checksum:
        raise CacheCorrupt(
            f"{path}: the file is missing or was altered; remove {path.parent} and run again"
        )
    return path


def open_splits(store: Store, folder: Path) -> tuple[Facts, dict[str, Encoded]]:
    """The splits of encoded images whose index lies in a folder of the store, and their facts."""
    facts, splits = read_record(Facts, folder / MARKER), {}
    check_folder(folder, facts.digest, facts.splits)
    for split, checksums in facts.splits.items():
        if set(checksums) != set(index_names(split)):
            raise CacheCorrupt(
                f"{folder / MARKER}: the index of {split!r} lies in {sorted(checksums)}; remove "
                f"{folder} and run again"
            )
        for name, checksum in checksums.items():
            checked(store.pull(folder / name), checksum)
        splits[split] = read_index(folder, split, facts.location, facts.names)
        check_labels(folder, splits[split].targets, facts.names)
    return facts, splits


def check_folder(folder: Path, digest: str, splits: Mapping[str, object]) -> None:
    """Raise `CacheCorrupt` where a folder of images is of others, or has splits of other names."""
    if folder.name.partition("-")[0] != digest:
        raise CacheCorrupt(
            f"{folder / MARKER}: is of the images {digest!r}; remove {folder} and run again"
        )
    if "train" not in splits or not all(is_below(split) and "/" not in split for split in splits):
        raise CacheCorrupt(
            f"{folder / MARKER}: the splits are called {sorted(splits)}; remove {folder} and run "
            "again"
        )


def check_labels(folder: Path, labels: torch.Tensor, names: Sequence[str]) -> None:
    """Raise `CacheCorrupt` where labels int64 [N] are of other classes than the names."""
    if not is_numbered(labels.numpy(), names):
        raise CacheCorrupt(
            f"{folder / MARKER}: names {len(names)} classes, but the labels beside it are of "
            f"others; remove {folder} and run again"
        )


def _read_split(split: str, images: Images, say: Say) -> tuple[np.ndarray, dict[int, str]]:
    """Contents uint8 [N, 16] of a split's images, and by row why some cannot be images."""
    codes = np.zeros((len(images), CONTENT_BYTES), dtype=np.uint8)
    bad: dict[int, str] = {}

    def look(row: int, data: bytes | DataError) -> str | None:
        if isinstance(data, bytes):
            codes[row] = np.frombuffer(content_hash(data), dtype=np.uint8)
        return fault_in(data, images.origin(row))

    started = spoken = time.monotonic()
    volume = 0
    for row, data, fault in images.mapped(look, 0, len(images)):
        if fault is not None:
            bad[row] = fault
        volume += len(data) if isinstance(data, bytes) else 0
        now = time.monotonic()
        if now - spoken > _SAY_SECONDS:
            spoken, seconds, done = now, now - started, row + 1
            left = seconds / done * (len(images) - done) / 60
            say(
                f"reading {split} images once: {done:,} of {len(images):,}, "
                f"{volume / seconds / 1e6:.0f} MB/s, about {left:.0f} min left"
            )
    return codes, bad
