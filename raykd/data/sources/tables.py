"""Image tables: Parquet, Arrow or Feather files with encoded images and labels."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from raykd.core.errors import DataError
from raykd.data.sources import foreign_text, pack_format
from raykd.data.sources.byte_ranges import Ranges
from raykd.data.sources.class_labels import Label, number_labels, parse_names
from raykd.data.sources.files import Entry, Files, split_path
from raykd.data.sources.splits import About, Dataset, Images, Samples, count_unread, group_by_split
from raykd.data.sources.table_batches import SUFFIXES, TableFile
from raykd.storage.filesystem import is_url

_OPENED = 16  # files at a time, each of which may wait for a network


class Rows(Images):
    """The encoded images of one split, in the order of its files and their rows."""

    def __init__(self, files: list[TableFile]) -> None:
        self.files = files
        self._starts = np.cumsum([0, *map(len, files)])  # the first row of each file

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, start: int, stop: int) -> Iterator[list[bytes | DataError]]:
        """The images from `start` to `stop`, some at a time: those in memory are a few.

        An error stands in place of a missing image.
        """
        for file, first in zip(self.files, self._starts.tolist(), strict=False):
            low, high = max(start - first, 0), min(stop - first, len(file))
            if low < high:
                yield from file.images(low, high)

    def lengths(self) -> np.ndarray:
        """Approximate bytes of each image, int64 [N]."""
        return np.concatenate([file.lengths() for file in self.files])

    def origin(self, row: int) -> str:
        """`file, row i` for a row of the split."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self.files[number].origin}, row {row - self._starts[number]}"

    def labels(self) -> list[Label]:
        """The label of every row, as the file has it; None where labels are not read."""
        return [label for file in self.files for label in file.labels]


def is_table(name: str) -> bool:
    """True for a file that is called as tables are."""
    return name.lower().endswith(SUFFIXES)


def has_tables(path: Path) -> bool:
    """True for a table file, and for a folder with some."""
    return any(is_table(entry.name) for entry in _files_at(str(path))[1])


def _files_at(location: str) -> tuple[Files, list[Entry], bool]:
    """Every file in a folder, or the one table at a path or URL, and whether it is that one."""
    if is_url(location):
        alone = is_table(location.partition("?")[0])
    else:
        alone = is_table(location) and Path(location).expanduser().is_file()
    if not alone:
        files = Files.at(location)
        return files, files.walk(), False
    root, name = split_path(location)
    files = Files.at(root)
    entry = files.find(name)
    return files, [entry] if entry else [], True


def read_tables(location: str | Path, labels: bool = True) -> Dataset:
    """The dataset in a table file, or in a folder whose files or folders name the split.

    A file is of the training split unless a word of its name, or of its folder's, says test or
    validation; where there are both, validation files are left out. A single file is all data.
    Images are bytes, or structs with a field `bytes`; a row without bytes has
    those of the file that its field `path` names from the table's folder. Labels are integers from
    0, or strings, which become classes in sorted order. Class names come from the schema's
    metadata where it has them (`classes`, or the features that Hugging Face's datasets writes).
    Labels are read at once, images when their turn comes. Where `labels` is False, no column of
    them is needed or read. A pack is such a folder, whose index is read instead. Raises
    `DataError`, and `CacheCorrupt` for a pack whose shards are not as they were written.
    """
    files, everything, alone = _files_at(str(location))
    entries = [entry for entry in everything if is_table(entry.name)]
    if not entries:
        raise DataError(f"{location}: expected {', '.join(SUFFIXES)} files, found none")
    if not alone and pack_format.is_pack(files):
        return pack_format.read_pack(files.root)
    chosen = group_by_split(str(location), entries, "table files", alone=alone)
    names = {split: [entry.name for entry in part] for split, part in chosen.items()}
    rows = open_rows(files, names, labels)
    opened = [file for part in rows.values() for file in part.files]
    declared = _declared(opened) if labels else ()
    about = About(unread=count_unread(everything, chosen), declared=bool(declared))
    return dataset_of(rows, declared, entries, about)


def open_rows(
    files: Files, names: Mapping[str, Sequence[str]], labels: bool, **columns: Sequence[str]
) -> dict[str, Rows]:
    """The rows of the table files of each split; `columns` as `TableFile` takes them."""

    def opened(name: str) -> TableFile:
        return TableFile(files, name, labels, **columns)

    with ThreadPoolExecutor(_OPENED) as pool:
        return {split: Rows([*pool.map(opened, part)]) for split, part in names.items()}


def dataset_of(
    rows: Mapping[str, Rows], declared: tuple[str, ...], entries: Sequence[Entry], about: About
) -> Dataset:
    """The dataset of open tables in `entries`, whose classes may be `declared`."""
    opened = [file for part in rows.values() for file in part.files]
    written = {split: (part.labels(), part.origin) for split, part in rows.items()}
    names, numbers = number_labels(written, declared)
    ranges = [_in_place(part) for part in rows.values()]
    in_place = [part for part in ranges if part is not None]
    images: Sequence[Images] = in_place if len(in_place) == len(rows) else [*rows.values()]
    splits = {
        split: Samples(part, numbers[split]) for split, part in zip(rows, images, strict=True)
    }
    stamp = repr([*entries, *(entry for file in opened for entry in file.named_files())])
    return Dataset(splits, names, stamp, about=about)


def _in_place(rows: Rows) -> Ranges | None:
    """Images that are values of tables; None if they are compressed, or at a URL."""
    files = rows.files[0].files
    if files.remote is not None:
        return None
    parts = []
    for file in rows.files:
        ranges = file.ranges()
        if ranges is None:
            return None
        parts.append(ranges)
    return Ranges.joined(files, parts)


def _declared(files: list[TableFile]) -> tuple[str, ...]:
    """The class names that tables declare, which must agree; empty if no table does."""
    first, names = "", ()
    for file in files:
        classes = _declared_names(file)
        if classes and names and classes != names:
            raise DataError(
                f"{file.origin}: names {_few(classes)} as classes, but {first} names "
                f"{_few(names)}; their labels do not mean the same"
            )
        if classes and not names:
            first, names = file.origin, classes
    return names


def _declared_names(file: TableFile) -> tuple[str, ...]:
    """The class names in the metadata of a table, which other programs wrote."""
    metadata = file.schema.metadata or {}
    origin = f"{file.origin}, `classes` in its metadata"
    classes = metadata.get(b"classes", b"")
    if classes[:1] in (b"[", b"{"):
        return parse_names(foreign_text.parse_json(classes, origin), origin)
    if classes and classes != b"null":
        return tuple(foreign_text.decode_text(classes, origin).split(","))
    origin = f"{file.origin}, `huggingface` in its metadata"
    value = foreign_text.parse_json(metadata.get(b"huggingface", b"null"), origin)
    for key in ("info", "features", file.label, "names"):
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise DataError(
                f"{origin}: expected an object with the key {key!r}, "
                f"found {foreign_text.excerpt(value)}"
            )
        value = value.get(key)
    return () if value is None else parse_names(value, f"{origin}, names of {file.label!r}")


def _few(names: tuple[str, ...]) -> str:
    return foreign_text.excerpt([*names])
