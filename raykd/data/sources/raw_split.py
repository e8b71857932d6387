"""One split of a dataset as a source has it: labels, and images that are not decoded yet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from raykd.core.errors import DataError
from raykd.core.safe_names import printable

NAMED = 10  # images that cannot be used, at most, that a message names


class Images(Protocol):
    """Images by number, in order: each the bytes of an encoded file, or uint8 pixels.

    An error stands in the place of one that is not there, and says why.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes | np.ndarray | DataError]: ...


@dataclass(frozen=True)
class Samples:
    """The images (pixels are [H, W] or [H, W, 3]) and labels of one split."""

    images: Images
    labels: np.ndarray  # int64 [N]
    origin: Callable[[int], str]  # where image i lies, for error messages


@dataclass(frozen=True)
class About:
    """Facts about a dataset for its user, besides classes and counts."""

    test: str = ""  # where the test images are from; nothing where the dataset says it itself
    unread: Mapping[str, int] = field(default_factory=dict)  # files, by suffix or kind
    declared: bool = False  # class names are not those of the images, so some may have none


@dataclass(frozen=True)
class Found:
    """A dataset's splits ("train", and "test" where it has one) and its class names."""

    splits: Mapping[str, Samples]
    names: tuple[str, ...]
    stamp: str = ""  # what changes when files are changed, without reading them
    about: About = field(default_factory=About)

    def __post_init__(self) -> None:
        for split, samples in self.splits.items():
            if not len(samples.labels):
                raise DataError(f"the {split} split of this dataset has no images")
            wrong = np.flatnonzero((samples.labels < 0) | (samples.labels >= len(self.names)))
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{samples.origin(row)}: label {samples.labels[row]} is out of range; "
                    f"the {len(self.names)} classes are numbered from 0"
                )
        check_filled(self.names, self.splits["train"].labels, self.about)


def empty_classes(names: Sequence[str], labels: np.ndarray) -> list[str]:
    """The classes that none of the labels (int64 [N]) is of."""
    there = set(labels.tolist())
    return [name for number, name in enumerate(names) if number not in there]


def check_filled(names: Sequence[str], labels: np.ndarray, about: About) -> None:
    """Raise `DataError` where a class has no training image, unless its name is declared.

    Folders and labels name only classes that they fill; a declared list, as that of a teacher of
    1,000 classes, may name more. `labels` are those of the training images, int64 [N].
    """
    empty = empty_classes(names, labels)
    if empty and not about.declared:
        raise DataError(
            f"class {names.index(empty[0])} ({empty[0]!r}) has no training image that can be used; "
            "give it some, or leave the class out of the folders or labels"
        )
    if not len(labels):
        raise DataError("the train split of this dataset has no image that can be used")


def check_any(split: str, count: int) -> None:
    """Raise `DataError` where a split is left with no image."""
    if not count:
        raise DataError(f"the {split} split of this dataset has no image that can be used")


def unusable(faults: Sequence[str], count: int) -> DataError:
    """The error of `count` images that cannot be used, some of which are named with the reason."""
    if count == 1:
        return DataError(f"{faults[0]}, or leave it out (on_bad_image: skip)")
    return DataError(
        f"{count:,} images cannot be used:\n{listed(faults, count)}\n"
        "replace or remove them, or leave them out (on_bad_image: skip)"
    )


def listed(faults: Sequence[str], count: int) -> str:
    """The first of `count` faults, one a line, and how many more there are."""
    named = [f"  {fault.removesuffix('; replace or remove it')}" for fault in faults[:NAMED]]
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
    parts = [f"{len(names)} classes: {_some(names)}"]
    train, test = counts["train"], counts.get("test")
    if test is None:
        test = round(holdout * train)
        share = f"{train - test:,} train, {test:,} test, which are {holdout:g} of all"
        parts.append(f"{share}, held out (run.data.holdout)")
    else:
        origin = f" from {printable(about.test)}" if about.test else ""
        parts.append(f"{train:,} train, {test:,} test{origin}")
    if empty:
        parts.append(f"no training image of {_some(empty)}")
    if about.unread:
        kinds = [f"{printable(kind)} {number:,}" for kind, number in sorted(about.unread.items())]
        total = sum(about.unread.values())
        parts.append(f"{numbered(total, 'file')} not read: {_some(kinds)}")
    return "; ".join(parts)


def numbered(count: int, what: str) -> str:
    """A count of things that are called so."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _some(names: Sequence[str]) -> str:
    """Names for people: of a long list, the first and the last."""
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(printable, names)]
    return ", ".join(shown if len(shown) <= NAMED else [*shown[: NAMED - 2], "...", shown[-1]])
