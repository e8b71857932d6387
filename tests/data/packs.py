"""Packs, tables and tar shards of small images."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from click.testing import CliRunner

from raykd.cli import main
from raykd.data import image_index
from raykd.data.packing import Packed, Packing
from raykd.data.sources.files import Files
from raykd.data.sources.folders import read_folder
from raykd.data.sources.splits import Dataset
from raykd.storage.store import Store
from tests.data.files import encoded, picture

MB = 0.004  # of a shard: a handful of photographs
ROWS = 23
IMAGES = [encoded(picture(number)) for number in range(ROWS)]
LABELS = [number % 3 for number in range(ROWS)]


def quiet(text: str) -> None:
    """Say nothing."""


def packing(source: Path | str, target: Path | str, **changes) -> Packing:
    dataset = read_folder(str(source))
    values = {"shard_mb": MB} | changes
    return Packing(dataset, str(source), Files.at(target), **values)


def packed(source: Path | str, target: Path | str, **changes) -> list[Packed]:
    work = packing(source, target, **changes)
    made = [*work.make_all(work.begin())]
    work.finish(made)
    return made


def images(dataset: Dataset, split: str = "train") -> list[bytes]:
    return [*dataset.splits[split][0]]


def same(a: Dataset, b: Dataset) -> None:
    """The same images with the same labels and class names, in the same order."""
    assert (a.names, sorted(a.splits)) == (b.names, sorted(b.splits))
    for split in a.splits:
        assert np.array_equal(a.splits[split][1], b.splits[split][1])
        assert images(a, split) == images(b, split)


def digest(store: Store, dataset: Dataset, *, skip_bad: bool = False) -> str:
    """The digest of the images of some files, which are in the store then."""
    reading = image_index.read_images(dataset, quiet, skip_bad=skip_bad)
    return image_index.write(store, dataset, reading)


def call(*words, code: int = 0):
    result = CliRunner().invoke(main, ["pack", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def table(images=IMAGES, labels=LABELS, *, struct: bool = False) -> pa.Table:
    if struct:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": data, "path": "x.png"} for data in images], kind)
    else:
        column = pa.array(images, pa.binary())
    return pa.table({"label": labels, "image": column})


def put_table(path: Path, content: pa.Table, each: int = 5) -> Path:
    """A file of this table, in parts of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".parquet", ".pq"):
        pq.write_table(content, path, row_group_size=each)
    elif path.suffix == ".feather":
        feather.write_feather(content, str(path), chunksize=each)
    else:
        codec = "zstd" if "compressed" in path.name else None
        options = pa.ipc.IpcWriteOptions(compression=codec)
        new = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with new(str(path), content.schema, options=options) as writer:
            writer.write_table(content, max_chunksize=each)
    return path


def put_tar(path: Path, members: dict[str, bytes | str], kind: int = tarfile.GNU_FORMAT) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members.items():
            content = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def samples(rows, label=lambda row: {"cls": str(row % 3)}) -> dict[str, bytes | str]:
    """Members of these images with their labels."""
    members: dict[str, bytes | str] = {}
    for row in rows:
        members[f"{row:04d}.png"] = IMAGES[row]
        members |= {f"{row:04d}.{ending}": text for ending, text in label(row).items()}
    return members


def shards(root: Path) -> Path:
    """Two shards to train on and one to test on."""
    put_tar(root / "train-000.tar", samples(range(5)))
    put_tar(root / "train-001.tar", samples(range(5, 9)))
    put_tar(root / "val-000.tar", samples(range(9, 12)))
    return root
