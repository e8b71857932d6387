"""Folders as save_to_disk of Hugging Face's `datasets` writes them, written without it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc

IMAGE = {"_type": "Image"}
NUMBER = {"dtype": "int64", "_type": "Value"}
TEXT = {"dtype": "string", "_type": "Value"}


def classes(*names: str) -> dict[str, Any]:
    """The feature ClassLabel."""
    return {"names": [*names], "_type": "ClassLabel"}


def save(
    folder: Path, features: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], shards: int = 1
) -> Path:
    """A saved dataset; images are bytes."""
    folder.mkdir(parents=True)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "license": ""}))
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    arrays = {}
    for name, values in columns.items():
        kind = features[name]["_type"]
        if kind == "Image":
            arrays[name] = pa.array([{"bytes": v, "path": None} for v in values], image)
        else:
            arrays[name] = pa.array(values, pa.int64() if kind == "ClassLabel" else None)
    table = pa.table(arrays)
    each = -(-len(table) // shards)
    for shard, name in enumerate(names):
        part = table.slice(shard * each, each)
        with ipc.new_stream(folder / name, part.schema) as file:
            file.write_table(part)
    return folder


def save_splits(folder: Path, features: Mapping[str, Any], **splits: Mapping[str, Any]) -> Path:
    """A saved dictionary of datasets."""
    for split, columns in splits.items():
        save(folder / split, features, columns)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))
    return folder
