"""Encoded images as part of the store: read once, for what identifies them, and found again.

    root/images/<digest>/   where each image lies, and images.json, which says below which root
    root/images/stamps/     digests of files that have not changed since they were read

The digest is of what the images are: the class names and, for each split, labels and bytes in their
order. A folder, its tar shards and its Arrow shards have the same one, if their order is the same.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raykd import arrow
from raykd.data.encoded import Encoded, Ranges, index_names, read_index, write_index
from raykd.data.located import Located
from raykd.data.pictures import check
from raykd.errors import CacheCorrupt, DataError
from raykd.names import is_below
from raykd.store import Store, read_json, write_json

MARKER = "images.json"
CONTENT_BYTES = 16  # of the BLAKE2b of an image's bytes
DIGEST_DIGITS = 20
# The field's constants for photographs: ImageNet's mean and std.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_THREADS = 16  # that read files
_BLOCK = 2048  # images between two looks at the clock
_SAY_SECONDS = 10.0

Say = Callable[[str], None]


def content(data: bytes) -> bytes:
    """What identifies the bytes of an image."""
    return hashlib.blake2b(data, digest_size=CONTENT_BYTES).digest()


def digest_of(names: Sequence[str], splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """20 hex digits of class names, labels int64 [N] and contents uint8 [N, 16] of each split."""
    hasher = hashlib.sha256(json.dumps(["encoded", *names]).encode())
    for split, (labels, contents) in sorted(splits.items()):
        hasher.update(f"{split} {len(labels)}".encode())
        hasher.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
        hasher.update(np.ascontiguousarray(contents).tobytes())
    return hasher.hexdigest()[:DIGEST_DIGITS]


def known(store: Store, found: Located, *, skip_bad: bool) -> str | None:
    """The digest of files that were read before and are as they were then."""
    path = _stamp(store, found, skip_bad=skip_bad)
    return read_json(path)["digest"] if found.stamp and path.is_file() else None


def is_at(store: Store, folder: Path, found: Located) -> bool:
    """Whether an index in the store is of these files, and not of others with the same images."""
    return store.whole(folder, MARKER) and read_json(folder / MARKER)["root"] == _root(found)


def _root(found: Located) -> str:
    ranges, _ = next(iter(found.splits.values()))
    return ranges.files.root


def _stamp(store: Store, found: Located, *, skip_bad: bool) -> Path:
    text = f"{_root(found)} {skip_bad} {found.stamp}"
    return store.root / "images" / "stamps" / hashlib.sha256(text.encode()).hexdigest()[:20]


def take_in(store: Store, found: Located, say: Say, *, skip_bad: bool) -> str:
    """Read every image once and write where they lie; returns the digest.

    Where that is known, no image is read. Raises `DataError` for the first file that cannot be
    an image; with `skip_bad` such files are left out, and `say` is told how many.
    """
    splits, contents, skipped = {}, {}, 0
    for split, (ranges, labels) in found.splits.items():
        if found.digest:
            splits[split] = (ranges, labels)
            continue
        codes, good = _read_through(split, ranges, say, skip_bad=skip_bad)
        skipped += int((~good).sum())
        rows = torch.from_numpy(np.flatnonzero(good))
        splits[split] = (ranges.take(rows), labels[good])
        contents[split] = (labels[good], codes[good])
    empty = sorted(set(range(len(found.names))) - set(splits["train"][1].tolist()))
    if empty:
        raise DataError(f"class {found.names[empty[0]]!r} has no training image; remove it")
    if skipped:
        say(f"{skipped} files that cannot be images are left out")
    digest = found.digest or digest_of(found.names, contents)
    folder = store.root / "images" / digest
    checksums = {
        split: write_index(folder, split, ranges, torch.from_numpy(labels))
        for split, (ranges, labels) in splits.items()
    }
    write_facts(folder, digest, _root(found), found.names, checksums)
    store.share(folder, MARKER)
    if found.stamp:
        write_json(_stamp(store, found, skip_bad=skip_bad), {"digest": digest})
    return digest


def write_facts(
    folder: Path,
    digest: str,
    root: str,
    names: Sequence[str],
    splits: dict[str, dict[str, str]],
) -> None:
    """Write what the store says of some encoded images, which makes them complete.

    `splits` are the checksums of each split's index files by their names.
    """
    facts: dict[str, Any] = {"digest": digest, "root": root, "splits": splits}
    facts |= {"names": list(names), "classes": len(names), "mean": MEAN, "std": STD}
    write_json(folder / MARKER, facts)


@functools.lru_cache(maxsize=64)
def whole(path: Path, checksum: str) -> Path:
    """The path, once its bytes are seen to be as they were written; looked at once a process."""
    if not path.is_file() or arrow.file_checksum(path) != checksum:
        raise CacheCorrupt(
            f"{path}: the file is missing or was altered; remove {path.parent} and run again"
        )
    return path


def opened(store: Store, folder: Path, facts: dict[str, Any]) -> dict[str, Encoded]:
    """The splits of encoded images whose index lies in a folder of the store."""
    splits = {}
    for split, checksums in facts["splits"].items():
        if not is_below(split) or not set(checksums) <= set(index_names(split)):
            raise CacheCorrupt(
                f"{folder / MARKER}: the index of {split!r} lies in {sorted(checksums)}; remove "
                f"{folder} and run again"
            )
        for name, checksum in checksums.items():
            whole(store.pull(folder / name), checksum)
        splits[split] = read_index(folder, split, facts["root"], tuple(facts["names"]))
    return splits


def _read_through(
    split: str, ranges: Ranges, say: Say, *, skip_bad: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Contents uint8 [N, 16] of a split's images, and which of them can be images, bool [N]."""
    codes = np.zeros((len(ranges), CONTENT_BYTES), dtype=np.uint8)
    good = np.ones(len(ranges), dtype=bool)

    def read(row: int) -> int:
        data = ranges.read(row)
        try:
            check(data, ranges.origin(row))
        except DataError:
            if not skip_bad:
                raise
            good[row] = False
        codes[row] = np.frombuffer(content(data), dtype=np.uint8)
        return len(data)

    started = spoken = time.monotonic()
    volume = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(ranges), _BLOCK):
            stop = min(start + _BLOCK, len(ranges))
            volume += sum(pool.map(read, range(start, stop)))
            now = time.monotonic()
            if now - spoken > _SAY_SECONDS:
                spoken, seconds = now, now - started
                left = seconds / stop * (len(ranges) - stop) / 60
                say(
                    f"reading {split} images once: {stop:,} of {len(ranges):,}, "
                    f"{volume / seconds / 1e6:.0f} MB/s, about {left:.0f} min left"
                )
    return codes, good
