"""Records of W&B's offline files: https://docs.wandb.ai calls them transaction logs.

They are logs of LevelDB (its doc/log_format.md): blocks of 32 KiB, in which a record, or a part
of one, has a header of 7 bytes (checksum, length, kind); the file begins with 7 bytes of W&B's own.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as proto

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")
_FULL, _LAST = 1, 4  # kinds of parts


def records(folder: Path) -> Iterator[proto.Record]:
    """The records of an offline run's folder, in their order."""
    [path] = folder.glob("run-*.wandb")
    data, at, begun = path.read_bytes(), _HEADER.size, b""
    while at + _HEADER.size <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER.size:  # the end of a block is filled up
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        begun += data[at + _HEADER.size : at + _HEADER.size + length]
        at += _HEADER.size + length
        if kind in (_FULL, _LAST):
            record = proto.Record()
            record.ParseFromString(begun)
            begun = b""
            yield record


def history(folder: Path) -> list[dict]:
    """The logged rows of an offline run."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            )
    return rows
