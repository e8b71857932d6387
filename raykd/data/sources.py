"""Where images come from: one function per kind of source, and the table of them.

A source returns labels and still encoded images; nothing is decoded here. Whatever is wrong
with the files is a `DataError` that names the file or the row.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from raykd.data.samples import Found, Samples, Triple
from raykd.data.tables import read_tables, table_files
from raykd.errors import DataError
from raykd.registry import Registry

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_TESTS = ("test", "val", "valid", "validation")  # names of a test split; the first found is taken
# The field's constants for 32 x 32 images: CIFAR-10 as in SAKD's and KD_Lib's code, CIFAR-100 as
# in RepDistiller's and mdistiller's.
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))

SOURCES: Registry[Callable[[Path | None], Found]] = Registry("dataset")


def downloads() -> Path:
    """The folder of datasets that download themselves: $RAYKD_DATA, or ~/.cache/raykd."""
    return Path(os.environ.get("RAYKD_DATA", "~/.cache/raykd")).expanduser()


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
    return _cifar("CIFAR10", path, *_CIFAR10)


def cifar100(path: Path | None) -> Found:
    """CIFAR-100 with its fine labels: downloaded by torchvision, or image tables at `path`."""
    return _cifar("CIFAR100", path, *_CIFAR100)


def _cifar(kind: str, path: Path | None, mean: Triple, std: Triple) -> Found:
    """One of torchvision's CIFAR datasets, with the field's constants."""
    if path is not None and table_files(_existing(path, kind.lower())):
        found = read_tables(path)
        return Found(found.splits, found.names, mean, std)
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
    return Found(splits, names, mean, std)


def folder(path: Path | None) -> Found:
    """Image files in one folder per class, at the top or in `train` and `test` (or `val`)."""
    root = _existing(path, "folder")
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with one folder of images per class")
    train = root / "train" if (root / "train").is_dir() else root
    names = _class_names(train)
    splits = {"train": _class_folders(train, names)}
    test = next((root / name for name in _TESTS if (root / name).is_dir()), None)
    if test is not None and train != root:
        strange = sorted(set(_class_names(test)) - set(names))
        if strange:
            raise DataError(f"{test / strange[0]}: no class of this name is in {train}")
        splits["test"] = _class_folders(test, names)
    return Found(splits, names)


def table(path: Path | None) -> Found:
    """Parquet, Arrow or Feather tables with a column of encoded images and one of labels."""
    return read_tables(_existing(path, "table"))


def _existing(path: Path | None, name: str) -> Path:
    if path is None:
        raise DataError(f"a dataset of kind {name!r} lies in files; say where: data.path=PATH")
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder (data.path)")
    return path


def _class_names(root: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{root}: expected one folder of images per class, found no folder")
    return tuple(names)


class _Files:
    """Encoded images, each file read when its turn comes."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[bytes]:
        return (path.read_bytes() for path in self._paths)


def _class_folders(root: Path, names: tuple[str, ...]) -> Samples:
    """The images below `root`, in the order of class and file name; ids follow this order."""
    paths, labels = [], []
    for label, name in enumerate(names):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found and (root / name).is_dir():
            raise DataError(
                f"{root / name}: the class folder holds no image "
                f"({', '.join(sorted(SUFFIXES))}); fill it or remove it"
            )
        paths += found
        labels += [label] * len(found)
    return Samples(_Files(paths), np.asarray(labels, dtype=np.int64), lambda row: str(paths[row]))


for _source in (digits, cifar10, cifar100, folder, table):
    SOURCES.add(_source.__name__, _source)
