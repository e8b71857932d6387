"""Samples in uncompressed tar shards, as the WebDataset convention lays them out.

A sample is all members whose path is the same up to the first dot of the file's name, its key:
`a/0001.jpg` and `a/0001.cls` are one. The reader records the byte range of each image and leaves
it in the shard, from which any one can be read later.

Shapes: n samples of a shard.
"""

import io
import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from raykd.core.errors import DataError, RaykdError
from raykd.data.sources import foreign_text
from raykd.data.sources.byte_ranges import FileRanges, Ranges
from raykd.data.sources.class_labels import number_labels, parse_names
from raykd.data.sources.files import Entry, Files, is_visible
from raykd.data.sources.formats import SUFFIXES
from raykd.data.sources.splits import (
    NO_SUFFIX,
    UNLABELLED,
    About,
    Dataset,
    Samples,
    count_unread,
    group_by_split,
)
from raykd.storage.filesystem import is_url

# What follows the first dot of an image's name. Where a sample has one of the usual kinds, the
# others beside it are no images of it: a mask, a map of depths.
_USUAL = ("jpg", "jpeg", "png", "webp", "ppm")
IMAGES = (*_USUAL, *sorted({suffix[1:] for suffix in SUFFIXES} - {*_USUAL}))
PACKED = (".tgz", ".tbz2", ".txz", *(f".tar.{end}" for end in ("gz", "bz2", "xz", "zst", "lz4")))
MOST_LABEL = 1 << 24  # bytes of a label's member
_REMOTE_BLOCK = 1 << 16  # bytes of a tar file that are read at a time over a network
_OPENED = 16  # files at a time, each of which may wait for a network
BLOCK = 1 << 13  # bytes read at once: headers and labels of one sample lie close together
MOST_NAMES = 1_000_000  # limit for one pattern
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarSamples(NamedTuple):
    """The samples of one shard, in the order in which they begin."""

    offsets: np.ndarray  # int64 [n]: where the image begins, in bytes
    lengths: np.ndarray  # int64 [n]: bytes of the image
    labels: list[int | str | None]
    keys: list[str]
    lacking: dict[int, DataError]  # samples with a label and no image
    unread: dict[str, int]  # files that are of no sample, by their ending


@dataclass
class _Sample:
    """The members of one sample, by the end of their names."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset and length
    labels: dict[str, bytes] = field(default_factory=dict)  # contents
    others: list[str] = field(default_factory=list)

    @property
    def ends(self) -> list[str]:
        """The ends of its members' names."""
        return [*self.images, *self.labels, *self.others]


def read_webdataset(root: str, labels: bool = True) -> Dataset:
    """Tar shards of images and labels: a folder of them, one, or a pattern with braces.

    In a pattern {000..146} counts and {train,val} lists. Words of the names say train, test or
    validation; one file alone is all data. Labels that are texts are classes in sorted order; the
    names of those that are numbers may lie beside the shards, in classes.json or classes.txt.
    Where `labels` is False, none is needed or read.
    """
    files, entries, alone = _tar_files(root)
    archives = [entry for entry in entries if is_tar(entry.name)]
    if not archives:
        for entry in entries:
            if is_packed_tar(entry.name):
                raise _compressed(files.describe(entry.name))
        raise DataError(f"{root}: expected .tar files of images and labels, found none")
    chosen = group_by_split(root, archives, "tar files", alone=alone)
    splits, written, passed = {}, {}, Counter(count_unread(entries, chosen))
    with ThreadPoolExecutor(_OPENED) as pool:
        for split, split_entries in chosen.items():
            parts = [*pool.map(lambda entry: _tar(files, entry.name, labels), split_entries)]
            images = [
                FileRanges(entry.name, part.offsets, part.lengths, part.lacking)
                for entry, part in zip(split_entries, parts, strict=True)
            ]
            ranges = splits[split] = Ranges.joined(files, images)
            written[split] = ([label for part in parts for label in part.labels], ranges.origin)
            for part in parts:
                passed.update(part.unread)
    declared = _names_beside(files) if labels else ()
    names, classes = number_labels(written, declared)
    splits = {split: Samples(ranges, classes[split]) for split, ranges in splits.items()}
    about = About(unread=passed, declared=bool(declared))
    return Dataset(splits, names, repr(archives), about=about)


def _tar_files(root: str) -> tuple[Files, list[Entry], bool]:
    """The tar files at a path, URL or pattern, and whether it is that of a single one."""
    path, mark, options = root.partition("?") if is_url(root) else (root, "", "")
    if not (is_tar(path) or is_packed_tar(path)) or Path(path).expanduser().is_dir():
        files = Files.at(root)
        return files, files.walk(), False
    folder = path.partition("{")[0].rpartition("/")[0]
    files = Files.at((folder or ("/" if path[:1] == "/" else ".")) + mark + options)
    names = expanded(path[len(folder) :].lstrip("/"))
    entries = []
    for name in names:
        entry = files.find(name)
        if entry is None:
            raise DataError(f"{files.describe(name)}: there is no such file")
        entries.append(entry)
    return files, entries, "{" not in path


def _tar(files: Files, name: str, labels: bool) -> TarSamples:
    """The samples of one tar file."""
    block = _REMOTE_BLOCK if files.remote is not None else BLOCK
    with files.open(name) as file:
        return tar_samples(file, files.describe(name), block, labels=labels)


def _names_beside(files: Files) -> tuple[str, ...]:
    """Class names from classes.json or classes.txt in a folder; none where there is neither."""
    if files.has("classes.txt"):
        path = files.describe("classes.txt")
        lines = foreign_text.decode_text(files.load("classes.txt").to_pybytes(), path).splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if not files.has("classes.json"):
        return ()
    path = files.describe("classes.json")
    value = foreign_text.parse_json(files.load("classes.json").to_pybytes(), path)
    return parse_names(value, path)


def is_tar(name: str) -> bool:
    """True for a file that is called like a tar archive that is not compressed."""
    return name.lower().endswith(".tar")


def is_packed_tar(name: str) -> bool:
    """True for a file that is called like a tar archive that is compressed."""
    return name.lower().endswith(PACKED)


def _compressed(origin: str, how: str = "") -> DataError:
    return DataError(
        f"{origin}: is compressed{how}, so that no single image can be taken from it; unpack it to "
        "a plain .tar, which is hardly larger"
    )


def tar_samples(
    file: IO[bytes], name: str, block: int = BLOCK, *, labels: bool = True
) -> TarSamples:
    """The samples of a shard: a seekable file, such as an open one or pyarrow's `NativeFile`.

    Reads headers and labels, and of the images only what lies in the same `block` of bytes; where
    every read is a request over a network, a large one is faster. A label is the integer in `.cls`,
    "label" in `.json`, or the text in `.txt`. Files that are neither image nor label of a sample
    are counted. Where `labels` is False, members with labels are such files, and a label is None.
    `name` is for messages. The file stays open.

    Raises `DataError`, naming shard and member, where the archive is compressed, cut short or
    damaged, and where a sample has no label or two images.
    """
    # tarfile asks for 512 bytes at a time, which must not be a request each.
    buffered = io.BufferedReader(file, block)  # pyright: ignore[reportArgumentType]
    try:
        samples, unread = _samples(buffered, name, labels)
    except RaykdError:
        raise
    # tarfile lets through what int() and the decoding of a header say of bytes that are no header.
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{name}: cannot be read as a tar archive ({error})") from error
    finally:
        buffered.detach()
    spans, written, keys, lacking = [], [], [], {}
    for key, sample in samples.items():
        origin = f"{name}, sample {key!r}"
        label = _label(sample, origin)
        span = _image(sample, origin)
        if label is None and span is None:
            unread.update(f".{ending}" for ending in sample.ends)
            continue
        if label is None and labels:
            raise DataError(
                f"{origin}: no label; expected a member .cls with a number, .json with a key "
                f'"label", or .txt with a class; {UNLABELLED}'
            )
        if span is None:
            lacking[len(keys)] = DataError(
                f"{origin}: expected an image ({', '.join(IMAGES)}), found none among "
                f"{', '.join(sample.ends)}; replace or remove it"
            )
        spans.append(span or (0, 0))
        written.append(label)
        keys.append(key)
    offsets, lengths = np.array(spans, dtype=np.int64).reshape(-1, 2).T.copy()
    return TarSamples(offsets, lengths, written, keys, lacking, dict(unread))


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, the last brace counting fastest.

    `{000..146}` counts up with as many digits, `{train,val}` lists words. Raises `DataError` for
    braces that say neither.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)  # outside, inside, outside, ...
    if any(brace in part for part in parts[::2] for brace in "{}"):
        raise DataError(f"{pattern}: a brace is not closed, or is within another; write them apart")
    choices = [_choices(part, pattern) if i % 2 else [part] for i, part in enumerate(parts)]
    count = int(np.prod([float(len(choice)) for choice in choices]))
    if count > MOST_NAMES:
        raise DataError(f"{pattern}: stands for {count:,} names, expected {MOST_NAMES:,} at most")
    return ["".join(words) for words in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    """The texts that one brace stands for."""
    bounds = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if bounds is None:
        if "," in inside and ".." not in inside:
            return inside.split(",")
        raise DataError(f"{pattern}: {{{inside}}} is neither {{000..146}} nor {{train,val}}")
    first, last = int(bounds[1]), int(bounds[2])
    if not first <= last < first + MOST_NAMES:
        raise DataError(
            f"{pattern}: {{{inside}}} does not count up, or has more than {MOST_NAMES:,} numbers"
        )
    padded = any(text.startswith("0") and len(text) > 1 for text in bounds.groups())
    width = max(map(len, bounds.groups())) if padded else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _samples(
    file: io.BufferedReader, name: str, labels: bool
) -> tuple[dict[str, _Sample], Counter[str]]:
    """The samples of an archive by key, and how many files are of none, by their ending."""
    size = file.seek(0, io.SEEK_END)
    samples: dict[str, _Sample] = {}
    unread: Counter[str] = Counter()
    for member in _members(file, name, size):
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, dot, ending = base.partition(".")
        if not all(map(is_visible, (*folder.split("/"), base))):
            continue
        if not dot:
            unread[NO_SUFFIX] += 1
            continue
        sample = samples.setdefault(folder + slash + stem, _Sample())
        ending, span = ending.lower(), (member.offset_data, member.size)
        if ending in sample.images or ending in sample.labels:
            raise DataError(f"{name}: {member.name!r} is there twice; keep one")
        if ending in IMAGES:
            sample.images[ending] = span
        elif ending in _READERS and labels:
            if member.size > MOST_LABEL:
                raise DataError(
                    f"{name}: {member.name!r} has {member.size:,} bytes, expected a label of "
                    f"{MOST_LABEL:,} at most"
                )
            file.seek(member.offset_data)
            sample.labels[ending] = file.read(member.size)
        else:
            sample.others.append(ending)
    return samples, unread


def _members(file: io.BufferedReader, name: str, size: int) -> Iterator[tarfile.TarInfo]:
    """The files in an archive of `size` bytes, once it is seen that it goes on to its end."""
    file.seek(0)
    start = file.read(6)
    for magic, packer in _PACKED.items():
        if start.startswith(magic):
            raise _compressed(name, f" ({packer})")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.offset_data + member.size > size:
                raise DataError(
                    f"{name}: cut short within {member.name!r}: its {member.size:,} bytes begin at "
                    f"{member.offset_data:,} of {size:,}; copy the shard again"
                )
            if member.isreg() and not member.issparse():
                yield member
        _check_end(file, name, archive.offset, size)


def _check_end(file: io.BufferedReader, name: str, end: int, size: int) -> None:
    """Raise `DataError` where what tarfile takes for an archive's end is none.

    It stops without a word at a header that it cannot read.
    """
    file.seek(end)
    rest = file.read(2 * tarfile.RECORDSIZE)  # archives are filled up to one record with zeros
    if len(rest) < tarfile.BLOCKSIZE:
        raise DataError(
            f"{name}: cut short after {size:,} bytes, where another member or the archive's end "
            "was expected; copy the shard again"
        )
    if any(rest[: tarfile.BLOCKSIZE]):
        raise DataError(f"{name}: damaged at byte {end:,}, where a member was expected")
    if any(rest):
        raise DataError(
            f"{name}: another archive begins after the end of the first; give each a file"
        )


def _image(sample: _Sample, origin: str) -> tuple[int, int] | None:
    """Offset and length in bytes of a sample's one image; None where it has none."""
    usual = [span for end, span in sample.images.items() if end in _USUAL]
    spans = usual or [*sample.images.values()]
    if len(spans) > 1:
        raise DataError(
            f"{origin}: expected one image ({', '.join(IMAGES)}), found {len(spans)} among "
            f"{', '.join(sample.ends)}"
        )
    return spans[0] if spans else None


def _label(sample: _Sample, origin: str) -> int | str | None:
    """The label of a sample, a number or the name of a class; None where it has none."""
    for ending, read in _READERS.items():
        if ending in sample.labels:
            label = read(sample.labels[ending], f"{origin}, .{ending}")
            if label is not None:
                return label
    return None


def _of_cls(content: bytes, origin: str) -> int:
    written = foreign_text.decode_text(content, origin).strip()
    if not re.fullmatch(r"-?[0-9]{1,18}", written):
        raise DataError(
            f"{origin}: expected the number of a class, found {foreign_text.excerpt(content)}"
        )
    return int(written)


def _of_json(content: bytes, origin: str) -> int | str | None:
    value = foreign_text.parse_json(content, origin)
    label = value.get("label") if isinstance(value, dict) else None
    if isinstance(label, bool) or not (label is None or isinstance(label, int | str)):
        raise DataError(
            f'{origin}: expected a number or a word as "label", found {foreign_text.excerpt(label)}'
        )
    return label


def _of_txt(content: bytes, origin: str) -> str | None:
    return foreign_text.decode_text(content, origin).strip() or None


# By the ending of a label's member; the first that a sample has counts.
_READERS = {"cls": _of_cls, "json": _of_json, "txt": _of_txt}
