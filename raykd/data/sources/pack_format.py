"""Packs: encoded images and their labels in Arrow files, with an index of byte ranges.

Tar shards without such an index take 100 times longer to open, and 1000 times from S3
(experiments/README.md).

    train-00012-<checksum>.arrow   a shard: columns `image` (large_binary) and `label` (int64),
                                   which images without labels do not have
    train-index.arrow              shard, offset and length of every image, and its label
    train-{text,stops}.arrow       the names of the shards, as `byte_ranges.Names` has them
    train-contents.arrow           the hash of every image; packs of earlier versions have none
    pack.json                      classes, splits and shards, written last
    plan.json                      only until then: what the pack is being made of

A pack is a folder here or at a URL, and a dataset of tables like any other.

Shapes: N images.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raykd.core.errors import CacheCorrupt, DataError
from raykd.data.sources import foreign_text
from raykd.data.sources.byte_ranges import (
    FileRanges,
    Ranges,
    index_names,
    joined,
    read_index,
    write_index,
)
from raykd.data.sources.files import Files
from raykd.data.sources.splits import About, Dataset, Samples, is_numbered
from raykd.data.sources.table_batches import spans
from raykd.storage import arrow

MARKER, PLAN = "pack.json", "plan.json"
FORMAT = 1  # version of the folder's layout; another one is refused
_SPLIT = re.compile(r"[a-z]+")
_NAME = re.compile(r"([a-z]+)-(\d{5,})-([0-9a-f]{24})\.arrow")
_BATCH_BYTES = 1 << 24  # least size of a record batch


@dataclass(frozen=True)
class Shard:
    """Consecutive images of a split that lie in one file."""

    split: str
    number: int
    checksum: str
    bytes: int  # size of the file
    offset: np.ndarray  # int64 [N], in bytes
    length: np.ndarray  # int64 [N], in bytes
    labels: np.ndarray  # int64 [N]

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.split}-{self.number:05d}-{self.checksum}.arrow"


def parse_name(name: str) -> tuple[str, int, str] | None:
    """Split, number and checksum of a shard, from its file's name; None for another file."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else None


def is_pack(files: Files) -> bool:
    """True for a folder that is a pack. Raises `DataError` where it is one that is not finished."""
    if files.has(MARKER):
        return True
    if files.has(PLAN):
        raise DataError(
            f"{files.describe('')}: a pack that is not finished; run the `raykd pack` again that "
            "began it"
        )
    return False


class Writer:
    """The bytes of a shard, in memory."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` are those of the classes; without any, no labels are written."""
        fields = [pa.field("image", pa.large_binary()), pa.field("label", pa.int64())]
        if names:
            self._schema = pa.schema(fields, {"classes": join_names(names)})
        else:
            self._schema = pa.schema(fields[:1])
        # Arrow's stream in memory spends most of the time on growing (26.0).
        self._sink = io.BytesIO()
        self._file = pa.ipc.new_file(self._sink, self._schema)
        self._images: list[bytes] = []
        self._labels: list[int] = []
        self._bytes = 0

    def add(self, image: bytes, label: int) -> None:
        """One more image."""
        self._images.append(image)
        self._labels.append(label)
        self._bytes += len(image)
        if self._bytes >= _BATCH_BYTES:
            self._flush()

    def finish(self) -> pa.Buffer:
        """All bytes of the file."""
        if self._images:
            self._flush()
        self._file.close()
        return pa.py_buffer(self._sink.getbuffer())

    def _flush(self) -> None:
        columns = [pa.array(self._images, pa.large_binary()), pa.array(self._labels, pa.int64())]
        columns = columns[: len(self._schema)]
        self._file.write_batch(pa.record_batch(columns, schema=self._schema))
        self._images, self._labels, self._bytes = [], [], 0


def join_names(names: Sequence[str]) -> str:
    """Class names as the schema of a table has them: joined, or JSON where that is not enough.

    JSON is for names with commas, and for names of folders that are not UTF-8.
    """
    joined = ",".join(names)
    plain = joined.split(",") == list(names) and joined[:1] not in "[{" and joined != "null"
    return joined if plain and joined.isprintable() else json.dumps(names)


def read_shard(split: str, number: int, checksum: str, data: pa.Buffer) -> Shard:
    """The shard whose file's bytes are `data`."""
    offsets, lengths, labels = [], [], []
    reader = pa.ipc.open_file(pa.BufferReader(data))
    for index in range(reader.num_record_batches):
        batch = reader.get_batch(index)
        ranges = spans(batch.column("image"), data)
        assert ranges is not None, "shards are not compressed"
        offset, length = ranges
        offsets.append(offset)
        lengths.append(length)
        written = "label" in batch.schema.names
        labels.append(
            batch.column("label").to_numpy() if written else np.zeros(len(length), dtype=np.int64)
        )
    columns = (joined(parts).numpy() for parts in (offsets, lengths, labels))
    return Shard(split, number, checksum, data.size, *columns)


def write_splits(
    files: Files, shards: Iterable[Shard], contents: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Write the index of every split and the hashes uint8 [N, 16] of its images.

    Returns its entries of the marker. Shards are in order.
    """
    splits: dict[str, list[Shard]] = {}
    for shard in shards:
        splits.setdefault(shard.split, []).append(shard)
    facts = {}
    for split, parts in splits.items():
        ranges = Ranges.joined(
            files, [FileRanges(shard.name, shard.offset, shard.length) for shard in parts]
        )
        labels = joined([shard.labels for shard in parts])
        with TemporaryDirectory() as folder:
            index = write_index(Path(folder), split, ranges, labels)
            for name in index:
                files.put(name, Path(folder, name).read_bytes())
        facts[split] = {
            "rows": len(labels),
            "bytes": sum(shard.bytes for shard in parts),
            "shards": {shard.name: shard.bytes for shard in parts},
            "index": index,
            "contents": _put_contents(files, split, contents[split]),
        }
    return facts


def _put_contents(files: Files, split: str, contents: np.ndarray) -> dict[str, str]:
    """Write the hashes of a split's images; returns the file's checksum by its name."""
    data = arrow.pack({"contents": torch.from_numpy(contents)})
    name = f"{split}-contents.arrow"
    files.put(name, data)
    return {name: arrow.checksum(data)}


def sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with their checksum, which `read_json` checks."""
    return facts | {"checksum": arrow.checksum(json.dumps(facts, sort_keys=True).encode())}


def read_json(files: Files, name: str) -> dict[str, Any]:
    """The facts in the marker or the plan of a pack.

    Raises `CacheCorrupt` where they cannot be read, were altered, or are of another format.
    """
    data = files.load(name).to_pybytes()
    try:
        facts = foreign_text.parse_json(data, files.describe(name))
    except DataError as error:
        raise _damaged(files, name, "cannot be read") from error
    if not isinstance(facts, dict) or "format" not in facts:
        raise _damaged(files, name, "cannot be read, since it says no format")
    if facts["format"] != FORMAT:
        what = f"format {foreign_text.excerpt(facts['format'])}, this raykd reads {FORMAT}"
        raise _damaged(files, name, what)
    seal = facts.pop("checksum", None)  # packs of earlier versions have none
    if seal is not None and sealed(facts)["checksum"] != seal:
        raise _damaged(files, name, "it was altered")
    if name == MARKER and not _is_marker(facts):
        raise _damaged(files, name, "it does not say which classes and shards there are")
    return facts


def _is_marker(facts: dict[str, Any]) -> bool:
    """True for facts of a whole pack, as far as their types go."""
    names, splits = facts.get("classes"), facts.get("splits")
    return (
        isinstance(facts.get("digest"), str)
        and isinstance(facts.get("plan", {}), dict)
        and isinstance(names, list)
        and all(map(foreign_text.is_text, names))
        and isinstance(splits, dict)
        and "train" in splits
        and all(
            isinstance(split_facts, dict)
            and isinstance(split_facts.get("shards"), dict)
            and isinstance(split_facts.get("index"), dict)
            and isinstance(split_facts.get("contents", {}), dict)
            for split_facts in splits.values()
        )
    )


def check_shards(files: Files) -> None:
    """Raise `CacheCorrupt`, naming the file, where a shard of a pack is missing or was altered."""
    sizes = {entry.name: entry.size for entry in files.walk()}
    for split_facts in read_json(files, MARKER)["splits"].values():
        for name, size in split_facts["shards"].items():
            _check_size(files, name, size, sizes)
            parts = parse_name(name)
            if parts is None or arrow.checksum(files.load(name)) != parts[2]:
                raise _damaged(files, name, "it was altered")


def _check_size(files: Files, name: str, size: int, sizes: dict[str, int]) -> None:
    if sizes.get(name) != size:
        raise _damaged(files, name, f"expected {size} bytes, found {sizes.get(name, 0)}")


def read_splits(files: Files, facts: dict[str, Any], names: tuple[str, ...]) -> dict[str, Samples]:
    """The images and labels of every split that `write_splits` wrote.

    No shard is read. Raises `CacheCorrupt`, naming the file, where one is missing or is not as
    it was written.
    """
    sizes = {entry.name: entry.size for entry in files.walk()}
    splits = {}
    for split, split_facts in facts.items():
        if _SPLIT.fullmatch(split) is None or sorted(split_facts["index"]) != sorted(
            index_names(split)
        ):
            what = f"the index of {split!r} lies in {', '.join(map(repr, split_facts['index']))}"
            raise _damaged(files, MARKER, what)
        for name, size in split_facts["shards"].items():
            _check_size(files, name, size, sizes)
        with TemporaryDirectory() as folder:  # its files stay mapped
            for name, checksum in split_facts["index"].items():
                Path(folder, name).write_bytes(_load(files, name, checksum))
            encoded = read_index(Path(folder), split, files.root, names)
        labels = encoded.targets.numpy()
        if not is_numbered(labels, names):
            raise _damaged(files, MARKER, f"its labels are of other classes than the {len(names)}")
        splits[split] = Samples(encoded.ranges, labels)
    return splits


def _load(files: Files, name: str, checksum: str) -> pa.Buffer:
    """The bytes of a file. Raises `CacheCorrupt` where they have another checksum."""
    data = files.load(name)
    if arrow.checksum(data) != checksum:
        raise _damaged(files, name, "it was altered")
    return data


def _read_contents(
    files: Files, facts: dict[str, Any], splits: Mapping[str, Samples]
) -> dict[str, np.ndarray]:
    """The hashes of the images of every split, uint8 [N, 16]; empty where a pack has none."""
    contents = {}
    for split, split_facts in facts.items():
        name = f"{split}-contents.arrow"
        if name not in split_facts.get("contents", {}):
            return {}
        with TemporaryDirectory() as folder:  # its file stays mapped
            path = Path(folder, name)
            path.write_bytes(_load(files, name, split_facts["contents"][name]))
            column = arrow.read(path).get("contents")
        if column is None or column.dim() != 2 or len(column) != len(splits[split].labels):
            raise _damaged(files, name, "it does not have a hash of each image")
        contents[split] = column.numpy()
    return contents


def read_pack(root: str) -> Dataset:
    """The dataset that `raykd pack` wrote, here or at a URL; its marker states its digest.

    Raises `CacheCorrupt` where a shard is missing, has another size, or where the index was
    altered.
    """
    files = Files.at(root)
    facts = read_json(files, MARKER)
    names = tuple(facts["classes"])
    splits = read_splits(files, facts["splits"], names)
    # A class without images has a declared name: it was seen when the pack was made.
    contents = _read_contents(files, facts["splits"], splits)
    return Dataset(splits, names, facts["digest"], facts["digest"], contents, About(declared=True))


def _damaged(files: Files, name: str, what: str) -> CacheCorrupt:
    return CacheCorrupt(
        f"{files.describe(name)}: {what}; run the `raykd pack` again that made this pack, which "
        "keeps what is whole"
    )
