"""Image tables: Parquet, Arrow or Feather files with encoded images and labels."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from raykd.data.folders import shown
from raykd.data.samples import Found, Samples
from raykd.errors import DataError

SUFFIXES = (".parquet", ".arrow", ".feather")
IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "cls")


def table_files(path: Path) -> list[Path]:
    """The table files at `path` (one file, or a folder of them), sorted; without hidden ones."""
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    found = (file for file in path.rglob("*") if file.suffix in SUFFIXES)
    return sorted(file for file in found if all(map(shown, file.relative_to(path).parts)))


def read_tables(path: Path) -> Found:
    """The dataset in a table file, or in a folder whose files or folders name the split.

    A file is of the training split unless a word of its name, or of its folder's, says test or
    validation; where there are both, validation files are left out. A single file is all data.
    Images are bytes, or structs with a field `bytes`. Labels are integers from 0, or strings,
    which become classes in sorted order. Class names come from the schema's metadata where it
    has them (`classes`, or the features that Hugging Face's datasets writes).
    """
    files = table_files(path)
    if not files:
        raise DataError(f"{path}: expected {', '.join(SUFFIXES)} files, found none")
    parts: dict[str, list[Path]] = {"train": [], "test": [], "val": []}
    for file in files:
        parts["train" if path.is_file() else _split_of(file.relative_to(path))].append(file)
    if not parts["train"]:
        raise DataError(
            f"{path}: none of its {len(files)} table files is a training split; "
            "their names have the word 'train', 'test' or 'val'"
        )
    test = parts["test"] or parts["val"]
    tables = {"train": _read_split(parts["train"])} | ({"test": _read_split(test)} if test else {})
    names = _class_names(tables)
    return Found({split: _samples(read, names) for split, read in tables.items()}, names)


def _split_of(file: Path) -> str:
    """The split that a word of a file's name, or else of its folder's, names."""
    for part in (file.stem, *reversed(file.parts[:-1])):
        for word in re.findall("[a-z]+", part.lower()):
            if word.startswith("train"):
                return "train"
            if word.startswith("test"):
                return "test"
            if word in ("val", "valid", "validation"):
                return "val"
    return "train"


class _Split:
    """The image and label columns of one split, and the file of every row."""

    def __init__(self) -> None:
        self.images: list[bytes] = []
        self.labels: list[int | str] = []
        self.files: list[tuple[int, Path]] = []  # first row of each file
        self.schema: pa.Schema | None = None

    def origin(self, row: int) -> str:
        """`file, row i` for a row of the split."""
        start, file = max(entry for entry in self.files if entry[0] <= row)
        return f"{file}, row {row - start}"


def _read_split(files: list[Path]) -> _Split:
    split = _Split()
    for file in files:
        table = _read_file(file)
        split.schema = split.schema or table.schema
        image = _column(table, file, IMAGE_COLUMNS, "encoded images")
        label = _column(table, file, LABEL_COLUMNS, "labels")
        split.files.append((len(split.images), file))
        if pa.types.is_struct(image.type):
            if "bytes" not in {field.name for field in image.type}:
                raise DataError(f"{file}: the image column is a struct without a field 'bytes'")
            image = pa.chunked_array([chunk.field("bytes") for chunk in image.chunks])
        if not (pa.types.is_binary(image.type) or pa.types.is_large_binary(image.type)):
            raise DataError(f"{file}: the image column holds {image.type}, expected encoded bytes")
        for column, name in ((image, "image"), (label, "label")):
            if column.null_count:
                row = column.is_null().index(True).as_py()
                raise DataError(f"{file}, row {row}: the {name} is missing")
        split.images += image.to_pylist()
        split.labels += label.to_pylist()
    return split


def _read_file(file: Path) -> pa.Table:
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        try:
            return feather.read_table(file)
        except pa.ArrowInvalid:
            return ipc.open_stream(file.read_bytes()).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: cannot be read as a table ({error})") from error


def _column(table: pa.Table, file: Path, names: tuple[str, ...], what: str) -> pa.ChunkedArray:
    for name in names:
        if name in table.column_names:
            return table.column(name)
    raise DataError(
        f"{file}: expected a column of {what} called {' or '.join(names)}, "
        f"found {', '.join(table.column_names) or 'no column'}"
    )


def _class_names(tables: dict[str, _Split]) -> tuple[str, ...]:
    """From the metadata, else from string labels, else numbers up to the largest training label."""
    train = tables["train"]
    declared = _declared_names(train.schema)
    if declared:
        return declared
    if any(isinstance(label, str) for label in train.labels):
        return tuple(sorted({str(label) for label in train.labels}))
    largest = max((label for label in train.labels if isinstance(label, int)), default=-1)
    if largest >= len(train.labels):
        row = train.labels.index(largest)
        raise DataError(
            f"{train.origin(row)}: label {largest} is out of range; {len(train.labels)} rows "
            "cannot fill the classes from 0 to that"
        )
    return tuple(str(number) for number in range(largest + 1))


def _declared_names(schema: pa.Schema | None) -> tuple[str, ...]:
    metadata = (schema.metadata if schema is not None else None) or {}
    if b"classes" in metadata:
        return tuple(metadata[b"classes"].decode().split(","))
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    for column in LABEL_COLUMNS:
        names = features.get(column, {}).get("names") if column in features else None
        if names:
            return tuple(names)
    return ()


def _samples(split: _Split, names: tuple[str, ...]) -> Samples:
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.empty(len(split.labels), dtype=np.int64)
    for row, label in enumerate(split.labels):
        if isinstance(label, str) and label in numbers:
            labels[row] = numbers[label]
        elif isinstance(label, int):
            labels[row] = label
        else:
            raise DataError(
                f"{split.origin(row)}: label {label!r} is no class; "
                + (f"there are {', '.join(names)}" if names else "expected integers or strings")
            )
    return Samples(split.images, labels, split.origin)
