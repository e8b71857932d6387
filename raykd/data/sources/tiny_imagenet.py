"""Tiny-ImageNet as it is distributed: 200 classes of ImageNet, 64 x 64 pixels as JPEG.

A class is named by its WordNet id (wnid). The images are in `train/<wnid>/images` and, with the
classes in a file of tab separated lines, in `val/images`; those in `test` have no public labels.
Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip.
"""

from collections import Counter
from pathlib import Path

from raykd.core.errors import DataError
from raykd.data.sources.archives import Archive
from raykd.data.sources.files import Files
from raykd.data.sources.folders import Tree, check_classes, one_image_per_file
from raykd.data.sources.splits import Dataset, Samples

TINY_IMAGENET = Archive(
    title="Tiny-ImageNet",
    file="tiny-imagenet-200.zip",
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    urls=("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
    folder="tiny-imagenet-200",
    marker="wnids.txt",
)


def read_tiny_imagenet(root: Path) -> Dataset:
    """The dataset in its folder; the validation images are its test split.

    Classes are numbered in the sorted order of their wnids, which is not that of `wnids.txt`.
    """
    wnids = _wnids(root / "wnids.txt")
    if not (root / "train").is_dir():
        raise DataError(
            f"{root / 'train'}: there is no such folder; wnids.txt names {len(wnids)} classes"
        )
    tree = Tree.of(Files.at(root))
    check_classes(tree, "train/", wnids, "wnids.txt")
    splits = {"train": tree.samples(["train/"], wnids), "test": _validation(tree, root, wnids)}
    stamp = repr([tree.stamp, splits["test"].labels.tolist()])
    return Dataset(splits, _names(root / "words.txt", wnids), stamp)


def _wnids(file: Path) -> tuple[str, ...]:
    """The classes that the file lists, sorted."""
    wnids: set[str] = set()
    for number, line in enumerate(_lines(file), start=1):
        wnid = line.strip()
        if not wnid or wnid in wnids:
            problem = f"{wnid!r} stands there twice" if wnid else "expected a wnid, found nothing"
            raise DataError(f"{file}, line {number}: {problem}")
        wnids.add(wnid)
    if not wnids:
        raise DataError(f"{file}: expected one wnid a line, found nothing")
    return tuple(sorted(wnids))


def _validation(tree: Tree, root: Path, wnids: tuple[str, ...]) -> Samples:
    """The validation images, in the order of the lines that give their classes."""
    file, folder = root / "val" / "val_annotations.txt", root / "val" / "images"
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    start = "val/images/"
    images = {
        entry.name.rpartition("/")[2]: entry
        for entry in tree.images
        if entry.name.startswith(start)
    }
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(file), start=1):
        name, tab, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        problem = ""
        if not (name and tab and wnid):
            problem = f"expected a file name, a wnid and a box with tabs between, found {line!r}"
        elif wnid not in numbers:
            problem = f"the class {wnid!r} is not in {root / 'wnids.txt'}"
        elif name not in images:
            problem = f"there is no image {folder / name}"
        elif name in labels:
            problem = f"{name} has a line already"
        if problem:
            raise DataError(f"{file}, line {number}: {problem}")
        labels[name] = numbers[wnid]
    for name, entry in images.items():
        if name not in labels:
            raise DataError(f"{tree.files.describe(entry.name)}: no line of {file} gives its class")
    return one_image_per_file(tree.files, [images[name] for name in labels], list(labels.values()))


def _names(file: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """The first of each class's words in the file; the wnid of a class without words."""
    words: dict[str, str] = {}
    for line in _lines(file) if file.exists() else ():
        wnid, _, synonyms = line.partition("\t")
        words[wnid] = synonyms.partition(",")[0].strip()
    chosen = [words.get(wnid) or wnid for wnid in wnids]
    count = Counter(chosen)
    return tuple(
        name if count[name] == 1 else wnid for name, wnid in zip(chosen, wnids, strict=True)
    )


def _lines(file: Path) -> list[str]:
    """The lines of a text file, without blank ones at its end."""
    try:
        return file.read_text(encoding="utf-8").rstrip().splitlines()
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); expected the folder as distributed, with "
            "wnids.txt, train and val/val_annotations.txt"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not text") from error
