"""Image files in one folder per class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from raykd.data.samples import Samples
from raykd.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class ImageFiles:
    """Encoded images, each file read when its turn comes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[bytes]:
        for path in self.paths:
            try:
                yield path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def labelled(paths: Sequence[Path], labels: Sequence[int]) -> Samples:
    """The samples of image files, in the given order; an id is a place in it."""
    numbers = np.asarray(labels, dtype=np.int64)
    return Samples(ImageFiles(paths), numbers, lambda row: str(paths[row]))


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted; without those that are hidden."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = filter(shown, folders)  # os.walk goes into what is left
        found += [Path(place, name) for name in filter(shown, files)]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def class_names(root: Path) -> tuple[str, ...]:
    """The names of the class folders in `root`, sorted."""
    names = folder_names(root)
    if not names:
        raise DataError(f"{root}: expected one folder of images per class, found no folder")
    return tuple(names)


def folder_names(root: Path) -> list[str]:
    """The names of the folders in `root` that count, sorted."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and shown(path.name))


def check_classes(root: Path, names: Sequence[str], origin: str) -> None:
    """Raise `DataError` where the class folders in `root` are not those that `origin` names."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; {origin} names {len(names)} classes")
    there = folder_names(root)
    for name in names:
        if name not in there:
            raise DataError(f"{root / name}: there is no such folder, but {origin} has this class")
    strange = sorted({*there} - {*names})
    if strange:
        raise DataError(f"{root / strange[0]}: {origin} has no class of this name")


def class_folders(roots: Sequence[Path], names: Sequence[str]) -> Samples:
    """The images below the class folders of each root, in the order of class and file name.

    A class folder that is not there has no images; one that is empty is a `DataError`.
    """
    paths: list[Path] = []
    labels: list[int] = []
    for root in roots:
        for label, name in enumerate(names):
            found = image_files(root / name)
            if not found and (root / name).is_dir():
                raise empty(root / name)
            paths += found
            labels += [label] * len(found)
    return labelled(paths, labels)


def empty(folder: Path) -> DataError:
    """What to say of a class without images."""
    return DataError(
        f"{folder}: the class folder holds no image ({', '.join(sorted(SUFFIXES))}); fill it or "
        "remove it"
    )


def shown(name: str) -> bool:
    """Whether a file or folder counts: macOS leaves ._x.jpg and __MACOSX in archives."""
    return not name.startswith(".") and name != "__MACOSX"
