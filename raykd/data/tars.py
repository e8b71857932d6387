"""Samples in uncompressed tar shards, as the WebDataset convention lays them out.

A sample is all members whose path is the same up to the first dot of the file's name, its key:
`a/0001.jpg` and `a/0001.cls` are one. The image is found and left where it lies, so that a reader
can take any one of them from the shard later.

Shapes: n samples of a shard.
"""

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import numpy as np

from raykd.data.folders import shown
from raykd.errors import DataError

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm")  # what follows the first dot of an image's name
LABELS = ("cls", "json", "txt")  # of a label's; the first that a sample has counts
BLOCK = 1 << 13  # bytes read at once: headers and labels of one sample lie close together
MOST_NAMES = 1_000_000  # that one pattern may stand for
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarSamples(NamedTuple):
    """The samples of one shard, in the order in which they begin."""

    offsets: np.ndarray  # int64 [n]: where the image begins, in bytes
    lengths: np.ndarray  # int64 [n]: bytes of the image
    labels: list[int | str]
    keys: list[str]


@dataclass
class _Sample:
    """What was found of one sample: members by the end of their names."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset and length
    labels: dict[str, bytes] = field(default_factory=dict)  # contents
    others: list[str] = field(default_factory=list)


def tar_samples(file: IO[bytes], name: str, block: int = BLOCK) -> TarSamples:
    """The samples of a shard: a seekable file, such as an open one or pyarrow's `NativeFile`.

    Reads headers and labels, and of the images only what lies in the same `block` of bytes; where
    every read is a request over a network, a large one is faster. A label is the integer in `.cls`,
    "label" in `.json`, or the text in `.txt`. `name` is for messages. The file stays open.

    Raises `DataError`, naming shard and member, where the archive is compressed, cut short or
    damaged, and where a sample has no image, no label, or two images.
    """
    # tarfile asks for 512 bytes at a time, which must not be a request each.
    buffered = io.BufferedReader(file, block)  # pyright: ignore[reportArgumentType]
    try:
        samples = _samples(buffered, name)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{name}: cannot be read as a tar archive ({error})") from error
    finally:
        buffered.detach()
    places = [_image(sample, f"{name}, sample {key!r}") for key, sample in samples.items()]
    labels = [_label(sample, f"{name}, sample {key!r}") for key, sample in samples.items()]
    offsets, lengths = np.array(places, dtype=np.int64).reshape(-1, 2).T.copy()
    return TarSamples(offsets, lengths, labels, list(samples))


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
    """What may stand in place of one brace."""
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


def _samples(file: io.BufferedReader, name: str) -> dict[str, _Sample]:
    """What every sample of an archive has, by key."""
    size = file.seek(0, io.SEEK_END)
    samples: dict[str, _Sample] = {}
    for member in _members(file, name, size):
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, dot, ending = base.partition(".")
        if not (dot and all(map(shown, (*folder.split("/"), base)))):
            continue
        sample = samples.setdefault(folder + slash + stem, _Sample())
        ending, place = ending.lower(), (member.offset_data, member.size)
        if ending in sample.images or ending in sample.labels:
            raise DataError(f"{name}: {member.name!r} is there twice; keep one")
        if ending in IMAGES:
            sample.images[ending] = place
        elif ending in LABELS:
            file.seek(member.offset_data)
            sample.labels[ending] = file.read(member.size)
        else:
            sample.others.append(ending)
    return samples


def _members(file: io.BufferedReader, name: str, size: int) -> Iterator[tarfile.TarInfo]:
    """The files in an archive of `size` bytes, once it is seen that it goes on to its end."""
    file.seek(0)
    start = file.read(6)
    for magic, packer in _PACKED.items():
        if start.startswith(magic):
            raise DataError(
                f"{name}: is compressed ({packer}), so that no single image can be taken from it; "
                "unpack it to a plain .tar, which is hardly larger"
            )
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


def _image(sample: _Sample, origin: str) -> tuple[int, int]:
    """Where the one image of a sample lies: offset and length in bytes."""
    if len(sample.images) != 1:
        ends = [*sample.images, *sample.labels, *sample.others]
        raise DataError(
            f"{origin}: expected one image ({', '.join(IMAGES)}), "
            f"found {len(sample.images) or 'none'} among {', '.join(ends)}"
        )
    (place,) = sample.images.values()
    return place


def _label(sample: _Sample, origin: str) -> int | str:
    """The label of a sample: a number, or the name of a class."""
    for ending, read in zip(LABELS, (_of_cls, _of_json, _of_txt), strict=True):
        if ending in sample.labels:
            label = read(sample.labels[ending], f"{origin}, .{ending}")
            if label is not None:
                return label
    raise DataError(
        f'{origin}: no label; expected a member .cls with a number, .json with a key "label", or '
        ".txt with a class"
    )


def _of_cls(content: bytes, origin: str) -> int:
    if not re.fullmatch(rb"\s*-?\d{1,18}\s*", content):
        raise DataError(f"{origin}: expected the number of a class, found {content[:40]!r}")
    return int(content)


def _of_json(content: bytes, origin: str) -> int | str | None:
    try:
        value: Any = json.loads(content)
    except ValueError as error:
        raise DataError(f"{origin}: cannot be read as JSON ({error})") from error
    label = value.get("label") if isinstance(value, dict) else None
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise DataError(f'{origin}: expected a number or a word as "label", found {label!r}')
    return label


def _of_txt(content: bytes, origin: str) -> str | None:
    try:
        return content.decode().strip() or None
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: cannot be read as text ({error})") from error
