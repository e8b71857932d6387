"""Where the images of a dataset lie, found without reading them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch

from raykd.data.encoded import Names, Ranges
from raykd.data.files import Entry, Files
from raykd.data.folders import SUFFIXES
from raykd.errors import DataError

TESTS = ("test", "val", "valid", "validation")  # names of a test split; the first found is taken


@dataclass(frozen=True)
class Located:
    """A dataset's splits, as ranges of bytes with labels (int64 [N]), and its class names."""

    splits: Mapping[str, tuple[Ranges, np.ndarray]]
    names: tuple[str, ...]
    stamp: str = ""  # what changes when files are changed, without reading them


def folder(root: str) -> Located:
    """Image files in one folder per class, at the top or in `train` and `test` (or `val`)."""
    files = Files.at(root)
    entries = [e for e in files.walk() if PurePosixPath(e.name).suffix.lower() in SUFFIXES]
    if not entries:
        raise DataError(
            f"{files.describe('')}: expected one folder of images per class, found no image "
            f"({', '.join(sorted(SUFFIXES))})"
        )
    tops = {entry.name.partition("/")[0] for entry in entries if "/" in entry.name}
    parts = {"train": "train/"} if "train" in tops else {"train": ""}
    test = next((name for name in TESTS if name in tops), None)
    if "train" in tops and test is not None:
        parts["test"] = f"{test}/"
    chosen = {
        split: [entry for entry in entries if entry.name.startswith(start)]
        for split, start in parts.items()
    }
    names = tuple(sorted({_class(entry, parts["train"], files) for entry in chosen["train"]}))
    numbers = {name: number for number, name in enumerate(names)}
    splits = {}
    for split, found in chosen.items():
        labels = []
        for entry in found:
            name = _class(entry, parts[split], files)
            if name not in numbers:
                raise DataError(
                    f"{files.describe(entry.name)}: no class {name!r} is among the training images"
                )
            labels.append(numbers[name])
        splits[split] = (_whole(files, found), np.asarray(labels, dtype=np.int64))
    return Located(splits, names, repr(entries))


def _class(entry: Entry, start: str, files: Files) -> str:
    """The class that the folder of an image file names."""
    name, slash, _ = entry.name.removeprefix(start).partition("/")
    if not slash:
        raise DataError(
            f"{files.describe(entry.name)}: the image lies in no class folder; expected "
            f"{files.describe(start + 'CLASS/' + name)}"
        )
    return name


def _whole(files: Files, entries: list[Entry]) -> Ranges:
    """Images that are a file each."""
    count = len(entries)
    lengths = torch.tensor([entry.size for entry in entries], dtype=torch.int64)
    names = Names.of([entry.name for entry in entries])
    zeros = torch.zeros(count, dtype=torch.int64)
    return Ranges(files, names, torch.arange(count), zeros, lengths)


LOCATED: Mapping[str, Callable[[str], Located]] = {"folder": folder}
