"""Image files in one folder per class: the files that count, their classes and their order.

There is one such reading, for images that are decoded into memory, streamed or packed, on this
machine and at a URL.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raykd.core.errors import DataError
from raykd.core.safe_names import printable, text
from raykd.data.sources import pack_format
from raykd.data.sources.byte_ranges import Names, Ranges
from raykd.data.sources.class_labels import sort_names
from raykd.data.sources.files import Entry, Files
from raykd.data.sources.formats import SUFFIXES, is_image, suffix
from raykd.data.sources.splits import SPLITS, UNLABELLED, About, Dataset, Samples

_LOOSE = "images in no class folder"
_NO_FILE = "links to nothing, pipes and devices"
_LAYOUT = "one folder of images per class, at the top or in train and test (or val)"
_GALLERY, _QUERY = "gallery", "query"  # folders of a set for retrieval
_DISTRACTORS, _PROBES = "distractors", "probes"  # folders of a set of faces
DISTRACTORS = f"{_DISTRACTORS}/"  # their class, which no folder is called
_APART = f"{_GALLERY} and {_QUERY}, each with one folder of images per class"


@dataclass(frozen=True)
class Tree:
    """The files below a root, by what they are called."""

    files: Files
    images: tuple[Entry, ...]  # in the order of folders and names
    folders: frozenset[str]  # on this machine with those that are empty
    unread: Mapping[str, int]  # files that are no images, by suffix or kind

    @classmethod
    def of(cls, files: Files) -> "Tree":
        """The files below a root. Raises `DataError` where it is no folder."""
        if files.remote is None and not Path(files.root).is_dir():
            exists = Path(files.root).exists()
            raise DataError(
                f"{files.describe('')}: "
                + (f"expected a folder with {_LAYOUT}" if exists else "there is no such folder")
            )
        listing = files.listing()
        folders = {*listing.folders}
        images: list[Entry] = []
        unread: Counter[str] = Counter()
        for entry in listing.entries:
            if is_image(entry.name):
                images.append(entry)
            else:
                unread[suffix(entry.name) or "no suffix"] += 1
        if listing.others:
            unread[_NO_FILE] = len(listing.others)
        for folder in {entry.name.rpartition("/")[0] for entry in images} - folders:
            while folder:  # a URL names files alone
                folders.add(folder)
                folder = folder.rpartition("/")[0]
        return cls(files, tuple(images), frozenset(folders), unread)

    @property
    def stamp(self) -> str:
        """A text that changes when image files do."""
        return repr([*self.images])

    def inside(self, start: str) -> list[str]:
        """The names of the folders directly below a start, which is empty or ends with a slash."""
        below = (name[len(start) :] for name in self.folders if name.startswith(start))
        return sorted(name for name in below if "/" not in name)

    def by_class(self, start: str) -> dict[str, list[Entry]]:
        """The images below a start by the class folder that they lie in, however deep.

        Raises `DataError` for a class folder without images; at a URL there is none.
        """
        classes: dict[str, list[Entry]] = {name: [] for name in self.inside(start)}
        for entry in self.images:
            name, slash, _ = entry.name.removeprefix(start).partition("/")
            if slash and entry.name.startswith(start):
                classes[name].append(entry)
        for name, entries in classes.items():
            if not entries:
                raise DataError(
                    f"{self.files.describe(start + name)}: the class folder holds no image "
                    f"({', '.join(SUFFIXES)}); fill it or remove it"
                )
        return classes

    def samples(self, starts: Iterable[str], names: Sequence[str]) -> Samples:
        """The images below some starts in the order of start, class and file.

        `names` are those of class folders in the order of their labels; a missing folder has no
        images.
        """
        entries: list[Entry] = []
        labels: list[int] = []
        for start in starts:
            classes = self.by_class(start)
            for label, name in enumerate(names):
                entries += classes.get(name, [])
                labels += [label] * len(classes.get(name, []))
        return one_image_per_file(self.files, entries, labels)

    def unlabelled(self, start: str) -> Samples:
        """All images below a start, whatever folders they are in.

        They are in the order of their files' names, then of their sizes; the folders decide only
        between files that are alike in both. So another name of a class folder changes nothing.
        """
        entries = [entry for entry in self.images if entry.name.startswith(start)]
        entries.sort(key=lambda entry: (entry.name.rpartition("/")[2], entry.size, entry.name))
        return one_image_per_file(self.files, entries, [0] * len(entries))


def read_folder(root: str, labels: bool = True) -> Dataset:
    """Image files in one folder per class, at the top or in `train` and `test` (or `val`).

    Or in `gallery` and `query`, which are then the training and the test images; queries may be of
    classes that the gallery lacks. Or in `distractors`, training images of one class in whatever
    folders, and `probes`, the test images. Where `labels` is False, any tree of images, with or
    without such folders of splits. Or a pack, which was made of such a folder.
    """
    files = Files.at(root)
    if pack_format.is_pack(files):
        return pack_format.read_pack(root)
    tree = Tree.of(files)
    if labels and (found := _among_distractors(tree)):
        return found
    apart = _gallery_and_query(tree) if labels else {}
    starts = apart or _split_folders(tree, labels)
    if not labels:
        splits = {split: tree.unlabelled(start) for split, start in starts.items()}
        about = About(test=starts.get("test", ""), unread=_unread(tree, starts, labels))
        return Dataset(splits, (), tree.stamp, about=about)
    classes = {split: tree.by_class(start) for split, start in starts.items()}
    _check(tree, starts, classes, apart=bool(apart))
    folders = sort_names({*classes["train"], *classes.get("test", ())})
    splits = {split: tree.samples([start], folders) for split, start in starts.items()}
    unread = _unread(tree, starts, labels)
    about = About(test=starts.get("test", ""), unread=unread, declared=bool(apart))
    return Dataset(splits, tuple(map(text, folders)), tree.stamp, about=about)


def _among_distractors(tree: Tree) -> Dataset | None:
    """The images of `probes`, a folder for each class, and those of `distractors`, which are one.

    Names match in upper and lower case. None where the tree has not both, or the probes are in no
    folders, as a class called so may have them.
    """
    tops = {name.lower(): name for name in tree.inside("")}
    if not {_DISTRACTORS, _PROBES} <= tops.keys() or not tree.inside(f"{tops[_PROBES]}/"):
        return None
    starts = {"train": f"{tops[_DISTRACTORS]}/", "test": f"{tops[_PROBES]}/"}
    people = tree.by_class(starts["test"])
    entries = [entry for entry in tree.images if entry.name.startswith(starts["train"])]
    if not entries:
        raise DataError(
            f"{tree.files.describe(starts['train'].rstrip('/'))}: the folder holds no image "
            f"({', '.join(SUFFIXES)}) to distract from {_PROBES}; fill it or remove it"
        )
    names = (*sort_names(people), DISTRACTORS)
    splits = {
        "train": one_image_per_file(tree.files, entries, [len(people)] * len(entries)),
        "test": tree.samples([starts["test"]], names[:-1]),
    }
    unread = _unread(tree, {"test": starts["test"]}, labels=True)
    unread.pop(f"in {starts['train']}", None)
    about = About(test=starts["test"], unread=unread, declared=True)
    return Dataset(splits, tuple(map(text, names)), tree.stamp, about=about)


def has_gallery(root: str) -> bool:
    """True for a folder whose images of a gallery and queries are in two folders of those names."""
    files = Files.at(root)
    return not pack_format.is_pack(files) and bool(_gallery_and_query(Tree.of(files)))


def _gallery_and_query(tree: Tree) -> dict[str, str]:
    """The folders `gallery` and `query` as those of the training and the test images, if there.

    Names match in upper and lower case. Raises `DataError` where one of them has folders of images
    and no images of its own, as no class has, and the other is missing or has no folder.
    """
    tops = {name.lower(): name for name in tree.inside("") if tree.inside(f"{name}/")}
    found = [tops[name] for name in (_GALLERY, _QUERY) if name in tops]
    if {*SPLITS["train"]} & tops.keys() or not found:
        return {}
    if len(found) == 2:
        return {"train": f"{found[0]}/", "test": f"{found[1]}/"}
    if any(entry.name.rpartition("/")[0] == found[0] for entry in tree.images):
        return {}  # a class may be called so
    other = _QUERY if found[0].lower() == _GALLERY else _GALLERY
    raise DataError(
        f"{tree.files.describe('')}: {found[0]} holds folders of images, and there is no folder "
        f"{other} beside it that does; expected {_APART}"
    )


def _split_folders(tree: Tree, labels: bool) -> dict[str, str]:
    """The folder of the split "train", and of "test" where there is one, in a tree of images.

    Names of splits match in upper and lower case; test images come from a folder `test`, or else
    from one of validation images. Raises `DataError` if a tree has another layout.
    """
    path = tree.files.describe("")
    if not tree.images:
        layout = _LAYOUT if labels else "a folder of images"
        raise DataError(f"{path}: expected {layout}, found no image ({', '.join(SUFFIXES)})")
    words = [*SPLITS["test"], *SPLITS["val"]]
    others = [name for name in tree.inside("") if name.lower() in words]
    # A folder is that of a split where it holds folders; a class may be called `train`, too.
    # Without labels, it is one also where a folder of test images is beside it.
    tops = [name for name in tree.inside("") if tree.inside(f"{name}/")]
    flat_too = others and not labels
    training = [
        name for name in (tree.inside("") if flat_too else tops) if name.lower() in SPLITS["train"]
    ]
    if len(training) > 1:
        raise DataError(
            f"{path}: {_shorten(training)} are both folders of training images; keep one of them"
        )
    starts = {"train": f"{training[0]}/" if training else ""}
    if training and others:
        # One without folders has no labels, as the test images of competitions.
        chosen = min(others, key=lambda name: (name not in tops, words.index(name.lower()), name))
        starts["test"] = f"{chosen}/"
    return starts


def _check(
    tree: Tree,
    starts: Mapping[str, str],
    classes: Mapping[str, Mapping[str, Sequence[Entry]]],
    *,
    apart: bool,
) -> None:
    """Raise `DataError` where the folders of the splits are not those of classes.

    `apart`: test images may be of classes without a training image.
    """
    for split, start in starts.items():
        if not classes[split]:
            path = tree.files.describe(start.rstrip("/"))
            hint = f"; {UNLABELLED}" if split == "train" else ""
            raise DataError(
                f"{path}: expected one folder of images per class, found no folder{hint}"
            )
    start, names = starts["train"], list(classes["train"])
    path = tree.files.describe(start.rstrip("/"))
    words = {word for split in SPLITS.values() for word in split}
    if words.issuperset(name.lower() for name in names):
        raise DataError(
            f"{path}: the only folders of images are {_shorten(names)}, which are words for "
            f"splits; expected {_LAYOUT}; {UNLABELLED}"
        )
    if {name.lower() for name in names} == {_GALLERY, _QUERY}:
        raise DataError(
            f"{path}: {_shorten(names)} hold images and no folders, so nothing says what a query "
            f"is to find; expected {_APART}, or for retrieval a list (data.name: rankings)"
        )
    like = {name: split for name in names if (split := _split_in(name))}
    flat = [
        entry.name
        for name in like
        for entry in classes["train"][name]
        if "/" not in entry.name[len(f"{start}{name}/") :]
    ]
    if not flat and {"train", "test"} <= set(like.values()):
        raise DataError(
            f"{path}: the folders {_shorten([*like])} look like splits; rename them to train and "
            "test, each with one folder of images per class"
        )
    if len(names) == 1:
        inner = tree.inside(f"{start}{names[0]}/")
        holds = f"; {printable(names[0])} holds the folders {_shorten(inner)}" if inner else ""
        if inner and not start:
            holds += f", so give data.path={tree.files.describe(names[0])}"
        raise DataError(
            f"{path}: all images are of one class, {printable(names[0])}, which leaves nothing to "
            f"tell apart; expected {_LAYOUT}{holds}; {UNLABELLED}"
        )
    strange = [name for name in classes.get("test", ()) if name not in classes["train"]]
    if strange and not apart:
        folder = tree.files.describe(starts["test"] + strange[0])
        raise DataError(f"{folder}: no class of this name is in {path}")


def _split_in(name: str) -> str:
    """The split that a word of a folder's name speaks of: train or test, which may be val."""
    for word in re.findall("[a-z]+", name.lower()):
        for split, words in SPLITS.items():
            if word in words:
                return "train" if split == "train" else "test"
    return ""


def _unread(tree: Tree, starts: Mapping[str, str], labels: bool) -> dict[str, int]:
    """The files that are no image of a split, by suffix, kind or folder."""
    unread = Counter(tree.unread)
    for entry in tree.images:
        matches = [start for start in starts.values() if entry.name.startswith(start)]
        if not matches:
            top, slash, _ = entry.name.partition("/")
            unread[f"in {top}/" if slash else _LOOSE] += 1
        elif labels and "/" not in entry.name[len(matches[0]) :]:
            unread[_LOOSE] += 1
    return dict(unread)


def check_classes(tree: Tree, start: str, names: Sequence[str], origin: str) -> None:
    """Raise `DataError` where the class folders below a start are not those that `origin` names."""
    folders = tree.inside(start)
    for name in names:
        if name not in folders:
            raise DataError(
                f"{tree.files.describe(start + name)}: there is no such folder, but {origin} has "
                "this class"
            )
    strange = sorted({*folders} - {*names})
    if strange:
        raise DataError(
            f"{tree.files.describe(start + strange[0])}: {origin} has no class of this name"
        )


def one_image_per_file(files: Files, entries: Sequence[Entry], labels: Sequence[int]) -> Samples:
    """Images that are a file each, in the order of `entries`."""
    lengths = torch.tensor([entry.size for entry in entries], dtype=torch.int64)
    names = Names.of([entry.name for entry in entries])
    zeros = torch.zeros(len(entries), dtype=torch.int64)
    ranges = Ranges(files, names, torch.arange(len(entries)), zeros, lengths)
    return Samples(ranges, np.asarray(labels, dtype=np.int64))


def _shorten(names: Sequence[str]) -> str:
    """The first five of some names, for a message."""
    shown = [printable(name) for name in names[:5]]
    return ", ".join([*shown, "..."] if len(names) > 5 else shown)
