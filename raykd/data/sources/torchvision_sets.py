"""Datasets of torchvision, read and downloaded by its own classes.

Images that lie in files stay there, so that they can be streamed; those that torchvision keeps as
arrays of pixels are in memory.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raykd.core.errors import DataError
from raykd.data.sources.archives import downloads
from raykd.data.sources.files import Entry, Files
from raykd.data.sources.folders import one_image_per_file
from raykd.data.sources.pixels import of_pixels
from raykd.data.sources.splits import About, Dataset

SplitArgument = bool | str | None  # torchvision's: `train=True`, `split="train"`, or none


def read_torchvision(
    name: str, train: SplitArgument, test: SplitArgument, path: Path | None
) -> Dataset:
    """The dataset `torchvision.datasets.NAME` below `path`, or in the folder of downloads.

    `train` and `test` are torchvision's arguments of the two splits; where both are None, all data
    are the training split. torchvision downloads what the folder lacks. Raises `DataError`.
    """
    root = (downloads() if path is None else path.expanduser()).resolve()
    arguments = {"train": train} if train is None else {"train": train, "test": test}
    parts = {split: _open(name, root, argument) for split, argument in arguments.items()}
    classes = {split: _class_names(part) for split, part in parts.items()}
    names = classes["train"]
    if any(other != names for other in classes.values()):
        raise DataError(f"torchvision/{name} in {root}: its splits have other classes")
    if hasattr(parts["train"], "data"):
        arrays = {split: _arrays(part) for split, part in parts.items()}
        names = names or _numbers(arrays["train"][1])
        return of_pixels(name, arrays, names, declared=True)
    files = Files.at(root)
    entries, splits = [], {}
    for split, part in parts.items():
        paths, labels = _paths(part)
        entries.append([_entry(files, root, image) for image in paths])
        splits[split] = one_image_per_file(files, entries[-1], labels)
    names = names or _numbers(splits["train"].labels)
    return Dataset(splits, names, repr(entries), about=About(declared=True))


def _open(name: str, root: Path, argument: SplitArgument) -> Any:
    """A split as torchvision has it, downloaded first where it is not there."""
    from torchvision import datasets  # takes seconds to import

    kind = getattr(datasets, name)
    options: dict[str, Any] = {}
    if argument is not None:
        options["train" if isinstance(argument, bool) else "split"] = argument
    if "loader" in inspect.signature(kind).parameters:
        options["loader"] = str  # the path itself, instead of its image
    try:
        try:
            return kind(str(root), **options)
        except RuntimeError:  # "Dataset not found"
            return kind(str(root), **options, download=True)
    except ImportError as error:
        raise DataError(f"torchvision/{name}: {error}") from error
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise DataError(
            f"torchvision/{name} is not in {root}, and could not be downloaded or read ({error}); "
            f"give data.path=FOLDER in which torchvision.datasets.{name} finds it"
        ) from error


def _class_names(part: Any) -> tuple[str, ...]:
    """The names of its classes, of several names the first; empty where it has none."""
    names = getattr(part, "classes", ())
    return tuple(name if isinstance(name, str) else name[0] for name in names)


def _numbers(labels: np.ndarray) -> tuple[str, ...]:
    """Numbers as the names of classes."""
    return tuple(map(str, range(int(labels.max()) + 1)))


def _arrays(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, H, W] or [N, H, W, 3], and labels int64 [N]."""
    pixels = np.asarray(part.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:  # channels first, as SVHN has them
        pixels = pixels.transpose(0, 2, 3, 1)
    labels = part.targets if hasattr(part, "targets") else part.labels
    return np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64)


def _paths(part: Any) -> tuple[Sequence[Any], Sequence[int]]:
    """The paths and the labels of its images, in the order of the paths.

    SUN397 lists files as the file system does, which is another order on another machine.
    """
    if hasattr(part, "loader"):  # which is `str`
        pairs = [part[row] for row in range(len(part))]
    elif hasattr(part, "_samples"):
        pairs = part._samples  # GTSRB
    else:
        pairs = zip(part._images, part._labels, strict=True)  # OxfordIIITPet
    paths, labels = zip(*sorted(pairs, key=lambda pair: str(pair[0])), strict=True)
    return paths, labels


def _entry(files: Files, root: Path, path: Any) -> Entry:
    """The entry of an image's file."""
    entry = files.find(Path(path).relative_to(root).as_posix())
    if entry is None:
        raise DataError(f"{path}: there is no such file, but the dataset names it")
    return entry
