"""Image tables: Parquet, Arrow or Feather files with encoded images and labels."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raykd.data.batches import LABEL_COLUMNS, TableFile
from raykd.data.classes import Label, class_names, numbers
from raykd.data.files import Entry, Files, parted
from raykd.data.samples import Found, Samples
from raykd.data.shards import is_pack, numbered
from raykd.data.splits import by_split
from raykd.errors import DataError
from raykd.remote import is_url

SUFFIXES = (".parquet", ".arrow", ".feather")
_OPENED = 16  # files at a time, each of which may wait for a network


@dataclass(frozen=True)
class Tables:
    """The splits of a dataset of tables, their labels (int64 [N]), and its class names."""

    splits: Mapping[str, tuple["Rows", np.ndarray]]
    names: tuple[str, ...]
    stamp: str  # what changes when files are changed, without reading them

    def found(self) -> Found:
        """The same, its images not read. Raises `DataError` for a label that is out of range."""
        splits = {
            split: Samples(rows, labels, rows.origin)
            for split, (rows, labels) in self.splits.items()
        }
        return Found(splits, self.names)


class Rows:
    """The encoded images of one split, in the order of its files and their rows."""

    def __init__(self, files: list[TableFile]) -> None:
        self.files = files
        self._starts = np.cumsum([0, *map(len, files)])  # the first row of each file

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[bytes]:
        for images in self.blocks(0, len(self)):
            yield from images

    def blocks(self, start: int, stop: int) -> Iterator[list[bytes]]:
        """The images from `start` to `stop`, some at a time: those in memory are a few."""
        for file, first in zip(self.files, self._starts.tolist(), strict=False):
            low, high = max(start - first, 0), min(stop - first, len(file))
            if low < high:
                yield from file.images(low, high)

    def lengths(self) -> np.ndarray:
        """About how many bytes each image has, int64 [N]."""
        return np.concatenate([file.lengths() for file in self.files])

    def origin(self, row: int) -> str:
        """`file, row i` for a row of the split."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self.files[number].place}, row {row - self._starts[number]}"

    def labels(self) -> list[Label]:
        """The label of every row, as it stands there."""
        return [label for file in self.files for label in file.labels]

    @property
    def schema(self) -> pa.Schema:
        """The columns of the first file, and what their metadata say."""
        return self.files[0].schema


def table_files(place: str | Path) -> tuple[Files, list[Entry]]:
    """The table files at a path or URL (one file, or a folder of them), in order.

    Those of a pack are its shards.
    """
    if _is_file(str(place)):
        root, name = parted(str(place))
        entry = Files.at(root).find(name)
        return Files.at(root), [entry] if entry else []
    files = Files.at(place)
    entries = [entry for entry in files.walk() if entry.name.endswith(SUFFIXES)]
    if is_pack(files):
        entries = [entry for entry in entries if numbered(entry.name)]
    return files, entries


def _is_file(place: str) -> bool:
    """Whether a path or URL is that of a table file."""
    is_one = place.partition("?")[0].endswith(SUFFIXES)
    return is_one and (is_url(place) or Path(place).is_file())


def open_tables(place: str | Path) -> Tables:
    """The dataset in a table file, or in a folder whose files or folders name the split.

    A file is of the training split unless a word of its name, or of its folder's, says test or
    validation; where there are both, validation files are left out. A single file is all data.
    Images are bytes, or structs with a field `bytes`. Labels are integers from 0, or strings,
    which become classes in sorted order. Class names come from the schema's metadata where it
    has them (`classes`, or the features that Hugging Face's datasets writes). Labels are read
    at once, images when their turn comes.
    """
    files, entries = table_files(place)
    if not entries:
        raise DataError(f"{place}: expected {', '.join(SUFFIXES)} files, found none")
    chosen = by_split(str(place), entries, "table files", alone=_is_file(str(place)))
    with ThreadPoolExecutor(_OPENED) as pool:
        rows = {
            split: Rows([*pool.map(lambda entry: TableFile(files, entry.name), found)])
            for split, found in chosen.items()
        }
    train = rows["train"]
    names = _declared_names(train.schema) or class_names(train.labels(), train.origin)
    splits = {
        split: (found, numbers(found.labels(), names, found.origin))
        for split, found in rows.items()
    }
    tables = Tables(splits, names, repr(entries))
    tables.found()
    return tables


def _declared_names(schema: pa.Schema) -> tuple[str, ...]:
    metadata = schema.metadata or {}
    classes = metadata.get(b"classes", b"").decode()
    if classes:
        return tuple(json.loads(classes) if classes.startswith("[") else classes.split(","))
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    for column in LABEL_COLUMNS:
        names = features.get(column, {}).get("names") if column in features else None
        if names:
            return tuple(names)
    return ()
