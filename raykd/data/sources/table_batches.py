"""Table files with encoded images, here or at a URL, read batch by batch and never whole.

Shapes: N rows.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from raykd.core.errors import DataError, RaykdError
from raykd.core.safe_names import is_below
from raykd.data.sources.byte_ranges import FileRanges
from raykd.data.sources.files import Entry, Files
from raykd.data.sources.splits import UNLABELLED
from raykd.storage.arrow import extension_in

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "cls")
PARQUET = (".parquet", ".pq")
SUFFIXES = (*PARQUET, ".arrow", ".feather", ".ipc")
_BATCH_BYTES = 1 << 24  # approximate size of Parquet rows decoded at a time
_BUFFER_BYTES = 1 << 20  # part of a Parquet column read at a time

T = TypeVar("T")


class _Parquet:
    """A Parquet file, in row groups."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name
        opened = self._opened()
        self.schema: pa.Schema = opened.schema_arrow
        groups = [opened.metadata.row_group(part) for part in range(opened.num_row_groups)]
        self.rows = [group.num_rows for group in groups]
        self.sizes = [group.total_byte_size for group in groups]

    def column(self, name: str) -> Iterator[pa.Array]:
        """A column of small values."""
        yield from self._opened(pre_buffer=True).read(columns=[name]).column(name).chunks

    def may_lack_bytes(self, name: str) -> bool:
        """True where bytes of an image may be missing, by the file's statistics."""
        metadata = self._opened().metadata
        statistics = [
            chunk.statistics
            for part in range(metadata.num_row_groups)
            for chunk in map(metadata.row_group(part).column, range(metadata.num_columns))
            if chunk.path_in_schema == f"{name}.bytes"
        ]
        return any(one is None or one.null_count != 0 for one in statistics)

    def images(
        self, name: str, part: int, fields: Sequence[str] = ("bytes",)
    ) -> Iterator[pa.Array]:
        """The column of images from a row group on; of structs, some fields."""
        # Without pre_buffer, a row group that is larger than memory is read page by page.
        opened = self._opened(pre_buffer=False, buffer_size=_BUFFER_BYTES)
        each = max(size // max(1, rows) for size, rows in zip(self.sizes, self.rows, strict=True))
        struct = pa.types.is_struct(self.schema.field(name).type)
        batches = opened.iter_batches(
            max(1, _BATCH_BYTES // max(1, each)),
            row_groups=range(part, len(self.rows)),
            columns=[f"{name}.{field}" for field in fields] if struct else [name],
        )
        yield from (batch.column(name) for batch in batches)

    def _opened(self, **options: Any) -> pq.ParquetFile:
        return pq.ParquetFile(_opened(self._files, self._name, pa.OSFile), **options)


class _Arrow:
    """An Arrow or Feather file, or stream, in record batches; a stream is one part."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name
        self._streamed = False
        try:
            self.schema: pa.Schema = ipc.open_file(self._source()).schema
        except pa.ArrowInvalid:
            self.schema = ipc.open_stream(self._source()).schema
            self._streamed = True
        self.rows: list[int] = []  # empty until a column was read

    @property
    def sizes(self) -> list[int]:
        """Approximate bytes of each part."""
        with self._files.open(self._name) as file:
            size = file.seek(0, 2)
        return [size * rows // max(1, sum(self.rows)) for rows in self.rows]

    def column(self, name: str) -> Iterator[pa.Array]:
        """A column of small values."""
        rows = []
        for column in self.images(name, 0):
            rows.append(len(column))
            yield column
        self.rows = [sum(rows)] if self._streamed else rows

    def may_lack_bytes(self, name: str) -> bool:
        """True where bytes of an image may be missing: only its arrays tell."""
        return self.schema.field(name).nullable

    def images(self, name: str, part: int, fields: Sequence[str] = ()) -> Iterator[pa.Array]:
        """The column of images from a record batch on, with all fields of structs."""
        options = ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name)])
        yield from self._columns(name, part, self._source(), options)

    def mapped(self, name: str) -> tuple[pa.Buffer, Iterator[pa.Array]]:
        """The bytes of the file, and the column of images over the same memory."""
        data = self._files.load(self._name)
        # Arrow would copy the chosen fields (26.0).
        return data, self._columns(name, 0, pa.BufferReader(data), ipc.IpcReadOptions())

    def _columns(
        self, name: str, part: int, source: Any, options: ipc.IpcReadOptions
    ) -> Iterator[pa.Array]:
        if self._streamed:
            batches = iter(ipc.open_stream(source, options=options))
        else:
            opened = ipc.open_file(source, options=options)
            batches = map(opened.get_batch, range(part, opened.num_record_batches))
        for batch in batches:
            batch.validate()  # its columns have as many rows as it says
            yield batch.column(name)

    def _source(self) -> Any:
        return _opened(self._files, self._name, pa.memory_map)


class TableFile:
    """One Parquet, Arrow or Feather file, whose labels are read at once."""

    def __init__(
        self,
        files: Files,
        name: str,
        labels: bool = True,
        *,
        image_columns: Sequence[str] = IMAGE_COLUMNS,
        label_columns: Sequence[str] = LABEL_COLUMNS,
    ) -> None:
        """Raises `DataError`, naming the file, where it is no table of images and labels.

        Where `labels` is False, there may be no column of them, and none is read. Of the names of
        columns the first that is there counts.
        """
        self.files = files
        self.name = name
        self.origin = files.describe(name)
        kind = _Parquet if name.lower().endswith(PARQUET) else _Arrow
        self._file = self._guard(lambda: kind(files, name))
        self.schema = self._file.schema
        self._image = self._column(image_columns, "encoded images")
        self._kind = self._image_kind()
        self.label = self._column(label_columns, "labels") if labels else ""
        self.labels = self._labels() if labels else [None] * self._count()
        self._starts = np.cumsum([0, *self._file.rows])  # the first row of each part
        if self._starts[-1] != len(self.labels):
            raise DataError(
                f"{self.origin}: cannot be read as a table ({len(self.labels)} labels in "
                f"{self._starts[-1]} rows)"
            )
        # A row, images from that row on that were read already, and the batches after them.
        self._cursor: tuple[int, pa.Array | None, Iterator[pa.Array]] | None = None
        # Rows without bytes that name a file in the table's folder: it, or why it is not used.
        self._named: Mapping[int, Entry | DataError] = self._named_files()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cursor": None}  # another process opens the file itself

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """Approximate bytes of each row's image, int64 [N]."""
        rows = np.asarray(self._file.rows, dtype=np.int64)
        return np.repeat(np.asarray(self._file.sizes, dtype=np.int64) // np.maximum(rows, 1), rows)

    def named_files(self) -> list[Entry]:
        """The files that rows without bytes name."""
        return [entry for entry in self._named.values() if isinstance(entry, Entry)]

    def ranges(self) -> FileRanges | None:
        """Byte range of every image in the file; None where images are compressed in it."""
        if isinstance(self._file, _Parquet) or not _is_flat(self._kind):
            return None
        parts, row = [np.zeros((2, 0), dtype=np.int64)], 0
        lacking: dict[int, DataError] = {}
        elsewhere: dict[int, str] = {}
        data, columns = self._file.mapped(self._image)
        for column in self._arrays(columns):
            values = _bytes_of(column)
            ranges = spans(values, data)
            if ranges is None:
                return None
            parts.append(np.stack(ranges))
            for number in np.flatnonzero(_nulls(values)).tolist():
                entry = self._named.get(row + number) or self._missing(row + number)
                if isinstance(entry, Entry):
                    parts[-1][:, number] = 0, entry.size
                    elsewhere[row + number] = entry.name
                else:
                    parts[-1][1, number] = 0
                    lacking[row + number] = entry
            row += len(column)
        offset, length = np.concatenate(parts, axis=1)
        return FileRanges(self.name, offset, length, lacking, elsewhere)

    def images(self, start: int, stop: int) -> Iterator[list[bytes | DataError]]:
        """The encoded images of the rows from `start` to `stop`, some at a time.

        If rows are requested in their order, the file is read once. A row without bytes has
        those of the file that it names; an error stands in place of an image that is missing.
        """
        part = int(np.searchsorted(self._starts, start, side="right")) - 1
        row = int(self._starts[part])
        if self._cursor is not None and row <= self._cursor[0] <= start:
            row, column, batches = self._cursor
        else:
            column, batches = None, self._arrays(self._file.images(self._image, part))
        self._cursor = None
        while row < stop:
            if column is None or not len(column):
                column = next(batches, None)
                if column is None:
                    raise DataError(f"{self.origin}: ends before row {row}, of {len(self)}")
            end = min(row + len(column), stop)
            if end > start:
                first = max(row, start)
                values = _bytes_of(column.slice(first - row, end - first)).to_pylist()
                yield [
                    self._read_named(number) if data is None else data
                    for number, data in enumerate(values, first)
                ]
            column = column.slice(end - row)
            row = end
        self._cursor = (row, column, batches)

    def _named_files(self) -> dict[int, Entry | DataError]:
        """The files that rows without bytes name by a path from the table's folder, by row."""
        kind = self.schema.field(self._image).type
        if not _has_paths(kind) or not self._file.may_lack_bytes(self._image):
            return {}
        named: dict[int, Entry | DataError] = {}
        row = 0
        for column in self._arrays(self._file.images(self._image, 0, ("bytes", "path"))):
            paths = column.flatten()[column.type.get_field_index("path")]
            for number in np.flatnonzero(_nulls(_bytes_of(column))).tolist():
                if path := paths[number].as_py():
                    named[row + number] = self._file_at(path) or self._missing(
                        row + number, f" (no bytes, and no file {path!r} in the table's folder)"
                    )
            row += len(column)
        return named

    def _file_at(self, path: str) -> Entry | None:
        """The file at a path from the table's folder; None if the folder has no such file."""
        if not is_below(path):
            return None
        try:
            return self.files.find(str(PurePosixPath(self.name).parent / path))
        except OSError:  # no name that a file can have
            return None

    def _read_named(self, row: int) -> bytes | DataError:
        """The image of a row without bytes."""
        entry = self._named.get(row) or self._missing(row)
        return entry if isinstance(entry, DataError) else self.files.read(entry.name)

    def _missing(self, row: int, reason: str = "") -> DataError:
        return DataError(
            f"{self.origin}, row {row}: the image is missing{reason}; replace or remove it"
        )

    def _labels(self) -> list[Any]:
        labels: list[Any] = []
        for column in self._arrays(self._file.column(self.label)):
            if column.null_count:
                row = len(labels) + int(np.flatnonzero(_nulls(column))[0])
                raise DataError(f"{self.origin}, row {row}: the label is missing")
            labels += self._guard(column.to_pylist)
        return labels

    def _count(self) -> int:
        """Number of rows."""
        if not self._file.rows:  # an Arrow file tells only while a column is read
            small = (
                field.name
                for field in self.schema
                if pa.types.is_primitive(field.type) and self.schema.names.count(field.name) == 1
            )
            for _ in self._arrays(self._file.column(next(small, self._image))):
                pass
        return sum(self._file.rows)

    def _column(self, names: Sequence[str], what: str) -> str:
        """The first of `names` that is a column's. Raises `DataError` where none is, or two are."""
        present = self._guard(lambda: self.schema.names)
        for name in names:
            if present.count(name) > 1:
                raise DataError(f"{self.origin}: {present.count(name)} columns are called {name!r}")
            if name in present:
                extension = extension_in(self.schema.field(name))
                if extension:  # a library may run code to read its values
                    raise DataError(f"{self.origin}: {name!r} is a column of {extension} values")
                return name
        raise DataError(
            f"{self.origin}: expected a column of {what} called {' or '.join(names)}, "
            f"found {', '.join(present) or 'no column'}"
            + (f"; {UNLABELLED}" if names is LABEL_COLUMNS else "")
        )

    def _image_kind(self) -> pa.DataType:
        """The type of encoded images. Raises `DataError` where the column holds none."""
        kind = self.schema.field(self._image).type
        if pa.types.is_struct(kind):
            children = [field.name for field in kind]
            if children.count("bytes") != 1 or children.count("path") > 1:
                raise DataError(
                    f"{self.origin}: the image column is a struct without a field 'bytes', or with "
                    f"two of one name: {', '.join(children)}"
                )
            kind = kind.field("bytes").type
        if not _is_flat(kind) and not pa.types.is_binary_view(kind):
            raise DataError(f"{self.origin}: the image column holds {kind}, expected encoded bytes")
        return kind

    def _arrays(self, columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """Arrays whose offsets and lengths stay within them. Raises `DataError` for others.

        Nothing is read through an offset before: one that lies would end the process.
        """
        end = object()
        while (column := self._guard(lambda: next(columns, end))) is not end:
            array: Any = column
            self._guard(lambda array=array: array.validate(full=True))
            yield array

    def _guard(self, read: Callable[[], T]) -> T:
        """The value of `read`. Raises `DataError`, naming the file, where it fails."""
        try:
            return read()
        except RaykdError:
            raise
        # Errors of Arrow, and of pyarrow for names and texts that are not UTF-8.
        except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
            raise DataError(f"{self.origin}: cannot be read as a table ({error})") from error


def _bytes_of(column: pa.Array) -> pa.Array:
    """The bytes of a column of images; missing where a whole struct is."""
    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]


def _has_paths(kind: pa.DataType) -> bool:
    """True for structs of images that can name a file instead of holding bytes."""
    types = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return "path" in types and any(is_text(types["path"]) for is_text in texts)


def _is_flat(kind: pa.DataType) -> bool:
    """True for values that lie one after another in one buffer."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def spans(values: pa.Array, file: pa.Buffer) -> tuple[np.ndarray, np.ndarray] | None:
    """Offset and length int64 [N] of binary values, in the bytes of the file that they are of.

    None where the values are not among those bytes: they were compressed.
    """
    _, stops, data = values.buffers()
    if not len(values) or data is None or not data.size:
        nothing = np.zeros(len(values), dtype=np.int64)
        return nothing, nothing
    kind = np.dtype(np.int64 if pa.types.is_large_binary(values.type) else np.int32)
    edges = np.frombuffer(stops, kind, len(values) + 1, values.offset * kind.itemsize)
    edges = edges.astype(np.int64)
    start = data.address - file.address
    if start < 0 or start + int(edges[-1]) > file.size:
        return None
    return start + edges[:-1], np.diff(edges)


def _nulls(values: pa.Array) -> np.ndarray:
    """The rows that are missing, bool [N]."""
    return values.is_null().to_numpy(zero_copy_only=False)


def _opened(files: Files, name: str, open_here: Callable[[bytes], Any]) -> Any:
    """A file for pyarrow: opened by `open_here` where it lies on this machine."""
    if files.remote is not None:
        return files.open(name)
    return open_here(os.fsencode(Path(files.root, name)))  # bytes: Arrow wants a str to be UTF-8
