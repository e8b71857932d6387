"""Which split a file is of, as its name says."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from raykd.core.errors import DataError
from raykd.data.sources.files import Entry

NO_SUFFIX = "no suffix"  # as files are counted whose names have none
SPLITS = {  # words that name a split, in the order in which folders of them are looked for
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}


def by_split(
    place: str, entries: Sequence[Entry], what: str, *, alone: bool
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
            f"{place}: none of its {len(entries)} {what} is a training split; "
            "their names have the word 'train', 'test' or 'val'"
        )
    test = parts["test"] or parts["val"]
    return {"train": parts["train"]} | ({"test": test} if test else {})


def unread(entries: Iterable[Entry], chosen: Mapping[str, Sequence[Entry]]) -> dict[str, int]:
    """How many files are in no split, by the ending of their names."""
    names = {entry.name for own in chosen.values() for entry in own}
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
