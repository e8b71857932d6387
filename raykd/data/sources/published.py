"""Published datasets by name, which are downloaded unless a path is set.

CINIC-10: Darlow et al. 2018, arXiv 1810.03505; train, valid and test, with one folder of PNG files
per class, as in the README of https://github.com/BayesWatch/cinic-10.
"""

from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from raykd.core.errors import DataError
from raykd.data.sources.archives import Archive, archive_folder, downloads, has_archive
from raykd.data.sources.files import Files
from raykd.data.sources.folders import Tree, check_classes
from raykd.data.sources.pixels import of_pixels
from raykd.data.sources.splits import Dataset
from raykd.data.sources.tables import has_tables, read_tables
from raykd.data.sources.tiny_imagenet import TINY_IMAGENET, read_tiny_imagenet

# Alphabetical, and in the order of CIFAR-10.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CINIC10 = Archive(
    title="CINIC-10",
    file="CINIC-10.tar.gz",
    md5="6ee4d0c996905fe93221de577967a372",
    urls=(
        # The second is the published address. Where the server answers it with a page instead
        # of the file, as it has done since it moved to DSpace 7, the first one works.
        "https://datashare.ed.ac.uk/server/api/core/bitstreams/"
        "e8e186cc-2688-48f1-aa5a-3fda1a43f8b6/content",
        "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
    ),
    folder="CINIC-10",
    marker="train/airplane",
)


def read_cinic10(root: Path, parts: tuple[str, ...] = ("train",)) -> Dataset:
    """The dataset in its folder, whose `parts` become the training split.

    The test split is `test`, which holds the whole test set of CIFAR-10 and is never trained on.
    """
    for part in (*parts, "test"):
        if not (root / part).is_dir():
            raise DataError(
                f"{root / part}: there is no such folder; expected CINIC-10 as distributed, with "
                "train, valid and test"
            )
    tree = Tree.of(Files.at(root))
    for part in (*parts, "test"):
        check_classes(tree, f"{part}/", CLASSES, "CINIC-10")
    splits = {
        "train": tree.samples([f"{part}/" for part in parts], CLASSES),
        "test": tree.samples(["test/"], CLASSES),
    }
    return Dataset(splits, CLASSES, tree.stamp)


def digits(path: Path | None) -> Dataset:
    """1,797 real handwritten digits of 8 x 8 pixels (UCI), from scikit-learn; no test split."""
    # Its load_digits reads the same file, but takes seconds to import.
    table = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(table), delimiter=",")  # float64 [N, 64 + 1], the label last
    grey = rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)  # from 17 grey levels
    pixels, labels = np.rint(grey).astype(np.uint8), rows[:, -1].astype(np.int64)
    return of_pixels("digits", {"train": (pixels, labels)}, tuple(map(str, range(10))))


def cifar10(path: Path | None) -> Dataset:
    """CIFAR-10: downloaded by torchvision, or image tables at `path`."""
    return _cifar("CIFAR10", path)


def cifar100(path: Path | None) -> Dataset:
    """CIFAR-100 with its fine labels: downloaded by torchvision, or image tables at `path`."""
    return _cifar("CIFAR100", path)


def _cifar(kind: str, path: Path | None) -> Dataset:
    """One of torchvision's CIFAR datasets."""
    if path is not None and has_tables(path):
        return read_tables(path)
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
        splits[split] = part.data, labels
        names = tuple(part.classes)
    return of_pixels(kind, splits, names)


def tiny_imagenet(path: Path | None) -> Dataset:
    """Tiny-ImageNet, 200 classes: downloaded, or as distributed or image tables at `path`."""
    return _distributed(TINY_IMAGENET, path, read_tiny_imagenet)


def cinic10(path: Path | None) -> Dataset:
    """CINIC-10, to train on `train`: downloaded, or as distributed or image tables at `path`."""
    return _distributed(CINIC10, path, read_cinic10)


def cinic10_trainvalid(path: Path | None) -> Dataset:
    """CINIC-10, to train on `train` and `valid`: downloaded, or as distributed at `path`."""
    # No image tables: their reader leaves out validation files if it has test files.
    return read_cinic10(archive_folder(CINIC10, path), ("train", "valid"))


def _distributed(archive: Archive, path: Path | None, read: Callable[[Path], Dataset]) -> Dataset:
    """The dataset of an archive; or tables, if the folder has some."""
    if path is not None and not has_archive(archive, path) and has_tables(path):
        return read_tables(path)
    return read(archive_folder(archive, path))
