"""A dataset as a source has it: splits of encoded images with labels; nothing is decoded yet.

Shapes: N images.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np

from raykd.core.errors import DataError
from raykd.core.safe_names import printable
from raykd.data.sources.files import Entry

NAMED = 10  # most unusable images that a message names
NO_SUFFIX = "no suffix"  # how files without one are counted
SPLITS = {  # words that name a split, in the order in which folders of them are looked for
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
UNLABELLED = "for images without labels, set run.data.labels: none"
_REPLACE = "; replace or remove it"  # end of a fault
_BLOCK_BYTES = 1 << 24  # bytes of images that are read at a time
_THREADS = 16  # that look at images

T = TypeVar("T")


class Images(ABC):
    """The encoded images of one split, in order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def lengths(self) -> np.ndarray:
        """Bytes of each image, exact or estimated: int64 [N]."""

    @abstractmethod
    def blocks(self, start: int, stop: int) -> Iterator[Sequence[bytes | DataError]]:
        """The images from `start` to `stop`, some at a time; an error in place of a missing one."""

    @abstractmethod
    def origin(self, row: int) -> str:
        """File and position of an image, for messages."""

    def __iter__(self) -> Iterator[bytes | DataError]:
        for block in self.blocks(0, len(self)):
            yield from block

    def mapped(
        self, function: Callable[[int, bytes | DataError], T], start: int, stop: int
    ) -> Iterator[tuple[int, bytes | DataError, T]]:
        """Row, image and `function(row, image)` from `start` to `stop`, by several threads."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for block in self.blocks(start, stop):
                rows = range(start, start + len(block))
                yield from zip(rows, block, pool.map(function, rows, block), strict=True)
                start = rows.stop


class Samples(NamedTuple):
    """One split."""

    images: Images
    labels: np.ndarray  # int64 [N]


@dataclass(frozen=True)
class About:
    """Facts about a dataset for its user, besides classes and counts."""

    test: str = ""  # folder of the test images; empty where the dataset has a fixed one
    unread: Mapping[str, int] = field(default_factory=dict)  # files, by suffix or kind
    declared: bool = False  # class names are not those of the images, so some may have none
    listed: bool = False  # lines of a list speak of the images, so none can be left out


@dataclass(frozen=True)
class Dataset:
    """Splits ("train", and "test" where there is one) and class names; none without labels.

    Raises `DataError` for a split without images, a label out of range, and a class without a
    training image whose name is not declared.
    """

    splits: Mapping[str, Samples]
    names: tuple[str, ...]
    stamp: str = ""  # changes when the files do, which are not read for it
    digest: str = ""  # `image_index.digest_of`, if the files state it; else empty
    # `image_index.content_hash` of each split's images, uint8 [N, 16], if the files state them.
    contents: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: About = field(default_factory=About)

    def __post_init__(self) -> None:
        for samples in self.splits.values():
            if not is_numbered(samples.labels, self.names):
                wrong = (samples.labels < 0) | (samples.labels >= len(self.names))
                row = int(np.flatnonzero(wrong)[0])
                raise DataError(
                    f"{samples.images.origin(row)}: label {samples.labels[row]} is out of range; "
                    f"the {len(self.names)} classes are numbered from 0"
                )
        check_filled(self.names, self.labels, self.about)

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The labels of each split, int64 [N]."""
        return {split: samples.labels for split, samples in self.splits.items()}


def is_numbered(labels: np.ndarray, names: Sequence[str]) -> bool:
    """True for labels (int64 [N]) of classes with these names; for zeros where there are none."""
    return not len(labels) or 0 <= int(labels.min()) <= int(labels.max()) < max(1, len(names))


def without_labels(dataset: Dataset) -> Dataset:
    """The images of a dataset alone, in their order: all labels are 0, and no class has a name.

    So its digest depends on the images and their order only.
    """
    splits = {
        split: Samples(samples.images, np.zeros(len(samples.labels), dtype=np.int64))
        for split, samples in dataset.splits.items()
    }
    return replace(
        dataset,
        splits=splits,
        names=(),
        stamp=f"no labels: {dataset.stamp}" if dataset.stamp else "",
        digest="" if dataset.names else dataset.digest,
        about=replace(dataset.about, declared=False),
    )


def row_ranges(lengths: np.ndarray, size: int = _BLOCK_BYTES) -> list[tuple[int, int]]:
    """Ranges of rows of about `size` bytes each, at most one image more."""
    if not len(lengths):
        return []
    number = (np.cumsum(lengths) - lengths) // size
    edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(lengths)]
    return [*pairwise(edges)]


def group_by_split(
    location: str, entries: Sequence[Entry], what: str, *, alone: bool
) -> dict[str, list[Entry]]:
    """The files of `train` and, if there are any, `test`; one that is `alone` is all data.

    Where there are both, validation files are left out. Raises `DataError` where no file is of
    the training split.
    """
    parts: dict[str, list[Entry]] = {"train": [], "test": [], "val": []}
    for entry in entries:
        parts["train" if alone else split_of(entry.name)].append(entry)
    if not parts["train"]:
        raise DataError(
            f"{location}: none of its {len(entries)} {what} is a training split; "
            "their names have the word 'train', 'test' or 'val'"
        )
    test = parts["test"] or parts["val"]
    return {"train": parts["train"]} | ({"test": test} if test else {})


def count_unread(entries: Iterable[Entry], chosen: Mapping[str, Sequence[Entry]]) -> dict[str, int]:
    """Number of files in no split, by the ending of their names."""
    names = {entry.name for split_entries in chosen.values() for entry in split_entries}
    passed = (PurePosixPath(entry.name) for entry in entries if entry.name not in names)
    return dict(Counter(path.suffix.lower() or NO_SUFFIX for path in passed))


def split_of(name: str) -> str:
    """The split that a word of a file's name, or else of its folders', names: train, test, val."""
    file = PurePosixPath(name)
    for part in (file.stem, *reversed(file.parts[:-1])):
        for word in re.findall("[a-z]+", part.lower()):
            if word.startswith("train"):
                return "train"
            if word.startswith("test"):
                return "test"
            if word in SPLITS["val"]:
                return "val"
    return "train"


def empty_classes(names: Sequence[str], labels: np.ndarray) -> list[str]:
    """The classes without any of the labels (int64 [N])."""
    present = set(labels.tolist())
    return [name for number, name in enumerate(names) if number not in present]


def check_filled(names: Sequence[str], labels: Mapping[str, np.ndarray], about: About) -> None:
    """Raise `DataError` where a split, or a class of the training split, has no image.

    Folders and labels name only classes that they fill; a declared list, as that of a teacher of
    1,000 classes, may name more. `labels` are those of the images of each split, int64 [N].
    """
    for split, split_labels in labels.items():
        if not len(split_labels):
            raise DataError(f"the {split} split of this dataset has no image that can be used")
    empty = empty_classes(names, labels["train"])
    if empty and not about.declared:
        raise DataError(
            f"class {names.index(empty[0])} ({empty[0]!r}) has no training image that can be used; "
            "give it some, or leave the class out of the folders or labels"
        )


def unusable_error(faults: Sequence[str], count: int) -> DataError:
    """The error of `count` images that cannot be used, some of which are named with the reason."""
    if count == 1:
        return DataError(f"{faults[0]}, or leave it out (on_bad_image: skip)")
    return DataError(
        f"{count:,} images cannot be used:\n{list_faults(faults, count)}\n"
        "replace or remove them, or leave them out (on_bad_image: skip)"
    )


def unusable_of(faults: Sequence[str], about: About) -> DataError:
    """The error of all images of a dataset that cannot be used, one a fault.

    Those of a list may be there several times, and cannot be left out.
    """
    if not about.listed:
        return unusable_error(faults, len(faults))
    faults = [*dict.fromkeys(faults)]
    return DataError(
        f"{count_of(len(faults), 'image')} of the list cannot be used:\n"
        f"{list_faults(faults, len(faults))}\n"
        "replace such images, or take their lines out of the list"
    )


def list_faults(faults: Sequence[str], count: int) -> str:
    """The first of `count` faults, one a line, and how many more there are."""
    named = [f"  {fault.removesuffix(_REPLACE)}" for fault in faults[:NAMED]]
    more = count - len(named)
    return "\n".join([*named, f"  and {more:,} more"] if more else named)


def summary(
    names: Sequence[str],
    counts: Mapping[str, int],
    about: About,
    *,
    holdout: float,
    empty: Sequence[str] = (),
) -> str:
    """One line that says what was read: classes, images by split, and what was left out.

    `counts` has the images of each split, `empty` the classes without a training image.
    """
    parts = [f"{len(names)} classes: {_shortened(names)}" if names else "no labels"]
    train, test = counts["train"], counts.get("test")
    if test is None:
        test = round(holdout * train)
        share = f"{train - test:,} train, {test:,} test, which are {holdout:g} of all"
        parts.append(f"{share}, held out (run.data.holdout)")
    else:
        origin = f" from {printable(about.test)}" if about.test else ""
        parts.append(f"{train:,} train, {test:,} test{origin}")
    if empty:
        parts.append(f"no training image of {_shortened(empty)}")
    if about.unread:
        kinds = [f"{printable(kind)} {number:,}" for kind, number in sorted(about.unread.items())]
        total = sum(about.unread.values())
        parts.append(f"{count_of(total, 'file')} not read: {_shortened(kinds)}")
    return "; ".join(parts)


def count_of(count: int, what: str) -> str:
    """A count of things that are called so."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _shortened(names: Sequence[str]) -> str:
    """Names for people: of a long list, the first and the last."""
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(printable, names)]
    return ", ".join(shown if len(shown) <= NAMED else [*shown[: NAMED - 2], "...", shown[-1]])
