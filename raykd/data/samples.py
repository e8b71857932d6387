"""One split of a dataset as it was found: labels, and images that are not decoded yet."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raykd.errors import DataError

Triple = tuple[float, float, float]


class Images(Protocol):
    """Images by number, in order: each the bytes of an encoded file, or uint8 pixels."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes | np.ndarray]: ...


@dataclass(frozen=True)
class Samples:
    """The images (pixels are [H, W] or [H, W, 3]) and labels of one split."""

    images: Images
    labels: np.ndarray  # int64 [N]
    origin: Callable[[int], str]  # where image i lies, for error messages


@dataclass(frozen=True)
class Found:
    """A dataset's splits ("train", and "test" where it has one) and its class names."""

    splits: Mapping[str, Samples]
    names: tuple[str, ...]
    mean: Triple | None = None  # the field's constants, where there are any
    std: Triple | None = None

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
        missing = sorted(set(range(len(self.names))) - set(self.splits["train"].labels.tolist()))
        if missing:
            first = self.names[missing[0]]
            raise DataError(f"class {missing[0]} ({first!r}) has no training image; remove it")
