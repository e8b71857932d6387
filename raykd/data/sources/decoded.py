"""Datasets by name: one function per kind of source.

A source returns labels and still encoded images; nothing is decoded here. Whatever is wrong
with the files is a `DataError` that names the file or the row.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from raykd.core.errors import DataError
from raykd.data.sources import byte_ranges
from raykd.data.sources.archives import Archive, downloads, is_at, unpacked
from raykd.data.sources.cinic10 import CINIC10, read_cinic10
from raykd.data.sources.raw_split import Found, Samples
from raykd.data.sources.tables import open_tables, table_files
from raykd.data.sources.tiny_imagenet import TINY_IMAGENET, read_tiny_imagenet


def digits(path: Path | None) -> Found:
    """1,797 real handwritten digits of 8 x 8 pixels (UCI), from scikit-learn; no test split."""
    from sklearn.datasets import load_digits  # takes a second

    flat, labels = load_digits(return_X_y=True)
    grey = np.asarray(flat).reshape(-1, 8, 8) * (255 / 16)  # from 17 grey levels
    pixels, labels = np.rint(grey).astype(np.uint8), np.asarray(labels, dtype=np.int64)
    samples = Samples(pixels, labels, lambda row: f"digits, row {row}")
    return Found({"train": samples}, tuple(str(digit) for digit in range(10)))


def cifar10(path: Path | None) -> Found:
    """CIFAR-10: downloaded by torchvision, or image tables at `path`."""
    return _cifar("CIFAR10", path)


def cifar100(path: Path | None) -> Found:
    """CIFAR-100 with its fine labels: downloaded by torchvision, or image tables at `path`."""
    return _cifar("CIFAR100", path)


def _cifar(kind: str, path: Path | None) -> Found:
    """One of torchvision's CIFAR datasets."""
    if path is not None and table_files(_existing(path, kind.lower()))[1]:
        return open_tables(path).found()
    from torchvision import datasets  # takes seconds to import

    root = path or downloads()
    splits, names = {}, ()
    for split in ("train", "test"):
        try:
            # torchvision checks the MD5 of every file before it reads any.
            part = getattr(datasets, kind)(str(root), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{kind} is not in {root} and could not be downloaded ({error}); copy it there, "
                "or give data.path=FOLDER with its Parquet files"
            ) from error
        labels = np.asarray(part.targets, dtype=np.int64)
        splits[split] = Samples(part.data, labels, lambda row, s=split: f"{kind} {s}, row {row}")
        names = tuple(part.classes)
    return Found(splits, names)


def tiny_imagenet(path: Path | None) -> Found:
    """Tiny-ImageNet, 200 classes: downloaded, or as distributed or image tables at `path`."""
    return _distributed(TINY_IMAGENET, path, read_tiny_imagenet)


def cinic10(path: Path | None) -> Found:
    """CINIC-10, to train on `train`: downloaded, or as distributed or image tables at `path`."""
    return _distributed(CINIC10, path, read_cinic10)


def cinic10_trainvalid(path: Path | None) -> Found:
    """CINIC-10, to train on `train` and `valid`: downloaded, or as distributed at `path`."""
    # No image tables: of those, validation files are left out where there are test files.
    root = None if path is None else _existing(path, "cinic10_trainvalid")
    return read_cinic10(unpacked(CINIC10, root), ("train", "valid"))


def _distributed(archive: Archive, path: Path | None, read: Callable[[Path], Found]) -> Found:
    """The dataset of an archive; or tables, where those are there."""
    if (
        path is not None
        and not is_at(archive, path)
        and table_files(_existing(path, archive.title))[1]
    ):
        return open_tables(path).found()
    return read(unpacked(archive, path))


def folder(path: Path | None) -> Found:
    """Image files in one folder per class, at the top or in `train` and `test` (or `val`)."""
    return byte_ranges.folder(str(_existing(path, "folder"))).found()


def table(path: Path | None) -> Found:
    """Parquet, Arrow or Feather tables with a column of encoded images and one of labels."""
    return open_tables(_existing(path, "table")).found()


def webdataset(path: Path | None) -> Found:
    """Tar shards of images and labels: a folder, one, or a pattern such as train-{000..146}.tar."""
    if path is None or "{" not in path.name:
        path = _existing(path, "webdataset")
    return byte_ranges.webdataset(str(path)).found()


def _existing(path: Path | None, name: str) -> Path:
    if path is None:
        raise DataError(f"a dataset of kind {name!r} lies in files; say where: data.path=PATH")
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder (data.path)")
    return path
