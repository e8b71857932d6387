"""Table files with encoded images, here or at a URL, read batch by batch and never whole.

Shapes: N rows.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from raykd.arrow import extension_in
from raykd.data.files import Files
from raykd.data.shards import spans
from raykd.errors import DataError

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "cls")
_BATCH_BYTES = 1 << 24  # of Parquet rows that are decoded at a time, about
_BUFFER_BYTES = 1 << 20  # of a Parquet column that is read at a time

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

    def images(self, name: str, part: int) -> Iterator[pa.Array]:
        """The column of images from a row group on."""
        # Without pre_buffer, a row group that is larger than memory is read page by page.
        opened = self._opened(pre_buffer=False, buffer_size=_BUFFER_BYTES)
        each = max(size // max(1, rows) for size, rows in zip(self.sizes, self.rows, strict=True))
        struct = pa.types.is_struct(self.schema.field(name).type)
        batches = opened.iter_batches(
            max(1, _BATCH_BYTES // max(1, each)),
            row_groups=range(part, len(self.rows)),
            columns=[f"{name}.bytes" if struct else name],
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
        self.rows: list[int] = []  # known once a column was read

    @property
    def sizes(self) -> list[int]:
        """About how many bytes each part has."""
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

    def images(self, name: str, part: int) -> Iterator[pa.Array]:
        """The column of images from a record batch on."""
        options = ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name)])
        yield from self._columns(name, part, self._source(), options)

    def mapped(self, name: str) -> tuple[pa.Buffer, Iterator[pa.Array]]:
        """The bytes of the file, and the column of images over the same memory."""
        data = self._files.load(self._name)
        # Of chosen fields, Arrow would make a copy (26.0).
        return data, self._columns(name, 0, pa.BufferReader(data), ipc.IpcReadOptions())

    def _columns(
        self, name: str, part: int, source: Any, options: ipc.IpcReadOptions
    ) -> Iterator[pa.Array]:
        if self._streamed:
            batches = iter(ipc.open_stream(source, options=options))
        else:
            opened = ipc.open_file(source, options=options)
            batches = map(opened.get_batch, range(part, opened.num_record_batches))
        yield from (batch.column(name) for batch in batches)

    def _source(self) -> Any:
        return _opened(self._files, self._name, pa.memory_map)


class TableFile:
    """One Parquet, Arrow or Feather file, whose labels are read at once."""

    def __init__(self, files: Files, name: str) -> None:
        """Raises `DataError`, naming the file, where it is no table of images and labels."""
        self.files = files
        self.name = name
        self.place = files.describe(name)
        kind = _Parquet if name.endswith(".parquet") else _Arrow
        self._file = self._guard(lambda: kind(files, name))
        self.schema = self._file.schema
        self._image = self._column(IMAGE_COLUMNS, "encoded images")
        self._check_image()
        self.labels = self._labels(self._column(LABEL_COLUMNS, "labels"))
        self._starts = np.cumsum([0, *self._file.rows])  # the first row of each part
        # A row, images from there that were read already, and those after them.
        self._cursor: tuple[int, pa.Array | None, Iterator[pa.Array]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cursor": None}  # another process opens the file itself

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """About how many bytes each row's image has, int64 [N]."""
        rows = np.asarray(self._file.rows, dtype=np.int64)
        return np.repeat(np.asarray(self._file.sizes, dtype=np.int64) // np.maximum(rows, 1), rows)

    def spans(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Offset and length int64 [N] of every image, where they lie in the file as they are."""
        if isinstance(self._file, _Parquet):
            return None
        parts, row = [np.zeros((2, 0), dtype=np.int64)], 0
        data, columns = self._file.mapped(self._image)
        for column in self._guarded(columns):
            found = spans(self._present(column, row), data)
            if found is None:
                return None
            parts.append(np.stack(found))
            row += len(column)
        offset, length = np.concatenate(parts, axis=1)
        return offset, length

    def images(self, start: int, stop: int) -> Iterator[list[bytes]]:
        """The encoded images of the rows from `start` to `stop`, some at a time.

        Where rows are asked for in their order, the file is read once.
        """
        part = int(np.searchsorted(self._starts, start, side="right")) - 1
        row = int(self._starts[part])
        if self._cursor is not None and row <= self._cursor[0] <= start:
            row, column, batches = self._cursor
        else:
            column, batches = None, self._guarded(self._file.images(self._image, part))
        self._cursor = None
        while row < stop:
            if column is None or not len(column):
                column = next(batches)
            end = min(row + len(column), stop)
            if end > start:
                first = max(row, start)
                wanted = column.slice(first - row, end - first)
                yield self._present(wanted, first).to_pylist()
            column = column.slice(end - row)
            row = end
        self._cursor = (row, column, batches)

    def _present(self, column: pa.Array, row: int) -> pa.Array:
        """The bytes of an image column whose first row is `row`, once none is missing."""
        values = _bytes_of(column)
        if values.null_count:
            missing = row + values.is_null().to_pylist().index(True)
            raise DataError(f"{self.place}, row {missing}: the image is missing")
        return values

    def _labels(self, name: str) -> list[int | str]:
        labels: list[int | str] = []
        for column in self._guarded(self._file.column(name)):
            if column.null_count:
                row = len(labels) + column.is_null().to_pylist().index(True)
                raise DataError(f"{self.place}, row {row}: the label is missing")
            labels += column.to_pylist()
        return labels

    def _column(self, names: Sequence[str], what: str) -> str:
        for name in names:
            if name in self.schema.names:
                extension = extension_in(self.schema.field(name))
                if extension:  # of which a library may run code to read values
                    raise DataError(f"{self.place}: {name!r} is a column of {extension} values")
                return name
        raise DataError(
            f"{self.place}: expected a column of {what} called {' or '.join(names)}, "
            f"found {', '.join(self.schema.names) or 'no column'}"
        )

    def _check_image(self) -> None:
        """Raise `DataError` where the image column holds no encoded images."""
        kind = self.schema.field(self._image).type
        if pa.types.is_struct(kind):
            if "bytes" not in {field.name for field in kind}:
                raise DataError(
                    f"{self.place}: the image column is a struct without a field 'bytes'"
                )
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(f"{self.place}: the image column holds {kind}, expected encoded bytes")

    def _guard(self, read: Callable[[], T]) -> T:
        """What is read. Raises `DataError`, naming the file, where it cannot be."""
        try:
            return read()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.place}: cannot be read as a table ({error})") from error

    def _guarded(self, values: Iterator[T]) -> Iterator[T]:
        end = object()
        while (value := self._guard(lambda: next(values, end))) is not end:
            yield value  # pyright: ignore[reportReturnType]


def _bytes_of(column: pa.Array) -> pa.Array:
    """The bytes of an image column; missing where a struct is, too."""
    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[[field.name for field in column.type].index("bytes")]


def _opened(files: Files, name: str, open_here: Callable[[str], Any]) -> Any:
    """A file for pyarrow: opened by `open_here` where it lies on this machine."""
    return files.open(name) if files.remote is not None else open_here(str(Path(files.root, name)))
