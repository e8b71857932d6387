"""Tensors as columns of an Arrow IPC file, written atomically and read back as memory maps.

A file is uncompressed and holds one record batch, so that a column is one flat block of the
file: it is mapped, not read, and every process on a node shares the same pages. There is no
index column; row i of the file is row i of every tensor.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raykd.core.errors import CacheCorrupt
from raykd.storage.atomic import write_atomic

CHECKSUM_DIGITS = 24
_BLOCK = 1 << 24

_TYPES = {
    torch.float16: pa.float16(),
    torch.float32: pa.float32(),
    torch.uint8: pa.uint8(),
    torch.int64: pa.int64(),
}
NO_NOTES: Mapping[str, str] = MappingProxyType({})
_DTYPES = {arrow: dtype for dtype, arrow in _TYPES.items()}


def pack(columns: Mapping[str, Tensor], notes: Mapping[str, str] = NO_NOTES) -> bytes:
    """The bytes of an Arrow file with these columns, each a tensor [N] or [N, width].

    `notes` are kept in the metadata of its schema.
    """
    arrays = []
    for value in columns.values():
        flat = pa.array(value.contiguous().numpy().reshape(-1), type=_TYPES[value.dtype])
        two = value.dim() == 2
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, value.shape[1]) if two else flat)
    batch = pa.record_batch(arrays, names=list(columns))
    if notes:
        batch = batch.replace_schema_metadata(dict(notes))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def checksum(data: bytes) -> str:
    """24 hex digits of the SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()[:CHECKSUM_DIGITS]


def file_checksum(path: Path) -> str:
    """Checksum of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:CHECKSUM_DIGITS]


def page_in(path: Path) -> None:
    """Read a file into the page cache, so that its memory map is read without waiting."""
    block = bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def write(path: Path, columns: Mapping[str, Tensor]) -> str:
    """Write the columns to `path` atomically and return the file's checksum."""
    data = pack(columns)
    write_atomic(path, data)
    return checksum(data)


def read(path: Path) -> dict[str, Tensor]:
    """The columns of a file that `write` made, as tensors [N] or [N, width] over its memory map.

    Nothing is copied, so the tensors must not be written to. Raises `CacheCorrupt`, naming the
    file, where it is not an Arrow file of this form.
    """
    try:
        source = pa.memory_map(os.fsencode(path))  # Arrow reads a str as UTF-8
        reader = pa.ipc.open_file(source)
        if reader.num_record_batches != 1:
            raise pa.ArrowInvalid(f"{reader.num_record_batches} record batches, not 1")
        batch = reader.get_batch(0)
        batch.validate()  # no column is longer than its part of the file
        return {name: _tensor(batch.column(name)) for name in batch.schema.names}
    except FileNotFoundError:
        raise CacheCorrupt(f"{path}: the file is missing") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CacheCorrupt(f"{path}: not an Arrow file that raykd wrote ({error})") from error


def note(path: Path, name: str) -> str:
    """One of the notes of a file that `read` can read; "" where it has none of this name."""
    with pa.memory_map(os.fsencode(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata or {}
    return metadata.get(name.encode(), b"").decode(errors="replace")


def extension_in(field: pa.Field) -> str:
    """The name of an extension type in a column, registered or not; empty if there is none."""
    if isinstance(field.type, pa.BaseExtensionType):
        return field.type.extension_name
    name = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace")
    inner = (field.type.field(index) for index in range(field.type.num_fields))
    return name or next(filter(None, map(extension_in, inner)), "")


def _tensor(column: pa.Array) -> Tensor:
    """One column as a tensor over the same memory."""
    if column.null_count:
        raise pa.ArrowInvalid(f"{column.null_count} missing rows")
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else None
    values = column if width is None else column.flatten()
    dtype = _DTYPES[values.type]
    if not len(values):
        return torch.empty((0,) if width is None else (0, width), dtype=dtype)
    with warnings.catch_warnings():
        # torch warns that the map is read-only; nothing here writes to it.
        warnings.simplefilter("ignore", UserWarning)
        flat = torch.from_numpy(np.asarray(values.to_numpy(zero_copy_only=True)))
    return flat if width is None else flat.view(-1, width)
