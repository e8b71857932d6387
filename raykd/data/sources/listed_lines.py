"""Lists of images beside the images, and the lines of them that cannot be used."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from raykd.core.errors import DataError
from raykd.data.sources.files import Entry, Files, split_path
from raykd.data.sources.folders import Tree
from raykd.data.sources.foreign_text import decode_text, excerpt
from raykd.data.sources.splits import count_of, list_faults

Parsed = TypeVar("Parsed")


class List(NamedTuple):
    """A list beside its images."""

    files: Files
    name: str
    lines: list[str]

    @property
    def origin(self) -> str:
        """The path of the list, for people."""
        return self.files.describe(self.name)

    def numbered(self, start: int = 0) -> list[tuple[int, str]]:
        """The lines from a place on that are not empty, with their numbers from 1."""
        lines = enumerate(self.lines[start:], start + 1)
        return [(number, line) for number, line in lines if line.strip()]


def find_list(root: str, known: Sequence[str]) -> List:
    """The list that a path or URL is, or the one of the `known` names that lies in a folder."""
    files = Files.at(root)
    names = [name for name in known if files.has(name)]
    if not names and (root.endswith((".txt", ".csv")) or Path(root).is_file()):
        folder, name = split_path(files.root)
        files, names = Files.at(folder), [name]
    if len(names) != 1:
        found = "both" if names else "neither" if len(known) > 1 else "none"
        raise DataError(
            f"{files.describe('')}: expected {' or '.join(known)}, found {found}; give the path of "
            "the list"
        )
    content = decode_text(files.read(names[0]), files.describe(names[0]))
    return List(files, names[0], content.splitlines())


def cells_of(line: str) -> list[str]:
    """The cells of a line of a CSV file. Raises `ValueError` where it cannot be parted."""
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise ValueError(f"expected cells with commas between, found {excerpt(line)}") from error


class ByPath:
    """The images of a tree by their paths."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._images = {entry.name: entry for entry in tree.images}

    def find(self, path: str) -> Entry:
        """The image at a path. Raises `ValueError` where there is none."""
        name = str(PurePosixPath(path.strip()))
        if name not in self._images:
            raise ValueError(f"there is no image {name!r} in {self._tree.files.describe('')}")
        return self._images[name]


def parse_lines(
    listed: List,
    lines: Sequence[tuple[int, str]],
    parse: Callable[[int, str], Parsed],
    what: str,
) -> list[Parsed]:
    """The results of `parse` for the place and the text of each numbered line.

    Raises `DataError` that names all lines for which it raises `ValueError`, and where there are
    no lines; `what` says what each line is to hold.
    """
    parsed, wrong = list[Parsed](), list[str]()
    for place, (number, line) in enumerate(lines):
        try:
            parsed.append(parse(place, line))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    refuse_lines(listed, wrong)
    if not parsed:
        raise DataError(f"{listed.origin}: expected {what} on each line, found none")
    return parsed


def refuse_lines(listed: List, wrong: Sequence[str]) -> None:
    """Raise `DataError` where lines cannot be used, whose faults are given."""
    if len(wrong) == 1:
        raise DataError(f"{listed.origin}, {wrong[0]}")
    if wrong:
        raise DataError(
            f"{listed.origin}: {count_of(len(wrong), 'line')} cannot be used:\n"
            f"{list_faults(wrong, len(wrong))}"
        )
