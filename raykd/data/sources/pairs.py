"""Lists of pairs of images, of one person or of two: LFW's pairs.txt, or a CSV file.

The dataset has the first image of each pair as `train`, and the second as `test`, in the order of
the list; an image is there as often as the list names it. A pair is of one person where both labels
are equal.
"""

from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple

from raykd.core.errors import DataError
from raykd.core.safe_names import text
from raykd.data.sources.files import Entry
from raykd.data.sources.folders import Tree, one_image_per_file
from raykd.data.sources.foreign_text import excerpt
from raykd.data.sources.formats import SUFFIXES
from raykd.data.sources.listed_lines import (
    ByPath,
    List,
    cells_of,
    find_list,
    parse_lines,
    refuse_lines,
)
from raykd.data.sources.splits import About, Dataset

LISTS = ("pairs.txt", "pairs.csv")  # looked for in a folder
_WORDS = {"same": True, "1": True, "different": False, "0": False}


class Pair(NamedTuple):
    """Two images of a list."""

    first: Entry
    second: Entry
    same: bool  # both are of one person


def read_pairs(root: str, labels: bool = True) -> Dataset:
    """The pairs of a list, which `root` names, or of `pairs.txt` or `pairs.csv` in that folder.

    `pairs.txt` is as LFW's (Huang et al. 2007): folds and pairs of a kind in each, then for each
    fold the lines `name i j` of one person, and `name i other j` of two, with tabs between; images
    are `name/name_0001.jpg`, in any format and however deep below the list's folder. A CSV file has
    lines `first,second,same` or `first,second,different` (or 1 and 0), with paths from its folder.
    Raises `DataError` that names the lines that cannot be used, and why.
    """
    listed = find_list(root, LISTS)
    tree = Tree.of(listed.files)
    read = _read_csv if listed.name.lower().endswith(".csv") else _read_lfw
    pairs, people = read(listed, tree)
    names = sorted({*people.values()})
    numbers = {name: number for number, name in enumerate(names)}
    entries = {"train": [pair.first for pair in pairs], "test": [pair.second for pair in pairs]}
    known = {
        split: [numbers[people[entry.name]] for entry in part] for split, part in entries.items()
    }
    splits = {
        split: one_image_per_file(tree.files, part, known[split]) for split, part in entries.items()
    }
    about = About(test=f"second images of {listed.name}", declared=True, listed=True)
    return Dataset(splits, tuple(map(text, names)), repr([entries, known]), about=about)


def folds_of(root: str) -> int | None:
    """The number of folds that a list like LFW's states; None for a CSV file."""
    listed = find_list(root, LISTS)
    return None if listed.name.lower().endswith(".csv") else _counts(listed)[0]


def _read_lfw(listed: List, tree: Tree) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of a list like LFW's, and the person of each image by its name."""
    folds, each = _counts(listed)
    images = {"/".join(_stem(entry.name).split("/")[-2:]): entry for entry in tree.images[::-1]}
    people: dict[str, str] = {}

    def find(person: str, number: str) -> Entry:
        if not number.isdecimal():
            raise ValueError(f"expected the number of an image of {person}, found {number!r}")
        name = f"{person}/{person}_{int(number):04d}"
        if name not in images:
            raise ValueError(f"there is no image {name} ({', '.join(SUFFIXES)})")
        people[images[name].name] = person
        return images[name]

    def parse(place: int, line: str) -> Pair:
        words = line.split("\t") if "\t" in line else line.split()
        matched = place % (2 * each) < each
        if len(words) != (3 if matched else 4):
            form = "a name and two numbers" if matched else "a name and a number, twice"
            raise ValueError(f"expected {form}, with tabs between, found {excerpt(line)}")
        if not matched and words[0] == words[2]:
            raise ValueError(f"expected two people, found {words[0]!r} twice")
        pair = find(*words[:2]), find(*((words[0], words[2]) if matched else words[2:]))
        return _of_two(*pair, same=matched)

    lines = listed.numbered(1)
    if len(lines) != 2 * folds * each:
        raise DataError(
            f"{listed.origin}: its first line says {folds} folds of {each} pairs of one person and "
            f"{each} of two, which are {2 * folds * each:,} lines, but {len(lines):,} follow"
        )
    return parse_lines(listed, lines, parse, "a pair"), people


def _read_csv(listed: List, tree: Tree) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of a CSV file, and the person of each image by its name.

    People are groups of images that pairs of one person connect. A person is called by the folder
    of their first image, or by its path where another one has that folder, too.
    """
    images, groups = ByPath(tree), _Groups()

    def parse(place: int, line: str) -> Pair:
        cells = cells_of(line)
        word = cells[-1].strip().lower() if len(cells) == 3 else ""
        if word not in _WORDS:
            raise ValueError(
                f"expected two paths, and same or different, with commas between, found "
                f"{excerpt(line)}"
            )
        pair = _of_two(images.find(cells[0]), images.find(cells[1]), same=_WORDS[word])
        if pair.same:
            groups.join(pair.first.name, pair.second.name)
        return pair

    lines = listed.numbered()
    pairs = parse_lines(listed, lines, parse, "a pair")
    wrong = [
        f"line {number}: {pair.first.name} and {pair.second.name} are different people here, but "
        "other lines say that they are one"
        for (number, _), pair in zip(lines, pairs, strict=True)
        if not pair.same and groups.of(pair.first.name) == groups.of(pair.second.name)
    ]
    refuse_lines(listed, wrong)
    first = {
        name: groups.of(name) for pair in pairs for name in (pair.first.name, pair.second.name)
    }
    folders = {name: name.rpartition("/")[0].rpartition("/")[2] for name in first.values()}
    count = Counter(folders.values())
    people = {
        name: folders[head] if folders[head] and count[folders[head]] == 1 else head
        for name, head in first.items()
    }
    return pairs, people


class _Groups:
    """Sets of names that are joined one by one; the first name of a set stands for it."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name that stands for a name's set."""
        while (above := self._above.get(name, name)) != name:
            self._above[name] = self._above.get(above, above)  # a shorter way for the next time
            name = above
        return name

    def join(self, name: str, other: str) -> None:
        """Make one set of two names' sets."""
        self._above[self.of(other)] = self.of(name)


def _counts(listed: List) -> tuple[int, int]:
    """Folds, and pairs of a kind in each, by the first line of a list like LFW's."""
    line = listed.lines[0] if listed.lines else ""
    words = line.split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        raise DataError(
            f"{listed.origin}, line 1: expected the number of folds and that of pairs of a kind in "
            f"each, as '10 300', found {excerpt(line)}"
        )
    return int(words[0]), int(words[1])


def _of_two(first: Entry, second: Entry, *, same: bool) -> Pair:
    """A pair of two images. Raises `ValueError` where it is one."""
    if first == second:
        raise ValueError(f"expected two images, found {first.name} twice")
    return Pair(first, second, same)


def _stem(name: str) -> str:
    """The name of a file without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))
