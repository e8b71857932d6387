"""Lists of the images that queries are to find in a gallery, and of ignored ones: a CSV file.

The dataset has the gallery as `train` and the queries as `test`. Images of the gallery of which the
list says the same are a class, whose name says it (see `relevance.py`); the queries' labels, all 0,
say nothing.
"""

from typing import NamedTuple

from raykd.core.errors import DataError
from raykd.data.sources.files import Entry
from raykd.data.sources.folders import Tree, one_image_per_file
from raykd.data.sources.foreign_text import excerpt
from raykd.data.sources.listed_lines import ByPath, cells_of, find_list, parse_lines, refuse_lines
from raykd.data.sources.relevance import WORDS, class_name
from raykd.data.sources.splits import About, Dataset

FILE = "rankings.csv"  # looked for in a folder
_OUTSIDE = "images neither in gallery/ nor in the list"
HEADER = ["query", "relevance", "gallery"]


class Line(NamedTuple):
    """A line of a list: an image of the gallery is relevant or junk to a query."""

    query: Entry
    word: str
    image: Entry


def read_rankings(root: str, labels: bool = True) -> Dataset:
    """The queries and the gallery of a list, which `root` names, or of `rankings.csv` in there.

    Lines are `query,relevant,image` or `query,junk,image`, with paths from the list's folder; the
    first may be `query,relevance,gallery`. The gallery is what lines name as such, and every other
    image below the folder, or below `gallery` in it if there is one, that is no query. A query that
    is in it is junk to itself. What no line names is irrelevant. Raises `DataError` that names the
    lines that cannot be used.
    """
    listed = find_list(root, [FILE])
    tree = Tree.of(listed.files)
    images = ByPath(tree)

    def parse(place: int, line: str) -> Line:
        cells = [cell.strip() for cell in cells_of(line)]
        if len(cells) != len(HEADER) or cells[1].lower() not in WORDS:
            raise ValueError(
                "expected the path of a query, relevant or junk, and the path of an image, with "
                f"commas between, found {excerpt(line)}"
            )
        said = Line(images.find(cells[0]), cells[1].lower(), images.find(cells[2]))
        if said.query == said.image and said.word == "relevant":
            raise ValueError(f"{said.query.name} is not to find itself")
        return said

    first = "".join(listed.lines[:1]).split(",")
    titled = [cell.strip(' "').lower() for cell in first] == HEADER
    lines = listed.numbered(int(titled))
    parsed = parse_lines(listed, lines, parse, "what a query is to find")
    said = {(line.query.name, line.image.name): line.word for line in parsed}
    refuse_lines(listed, [
        f"line {number}: {line.image.name} is {line.word} to {line.query.name} here, and another "
        "line says otherwise"
        for (number, _), line in zip(lines, parsed, strict=True)
        if said[line.query.name, line.image.name] != line.word
    ])  # fmt: skip
    if "relevant" not in said.values():
        raise DataError(f"{listed.origin}: no line says relevant, so there is nothing to find")

    # The queries in the order of the list, the gallery in that of its files.
    queries = [*{line.query.name: line.query for line in parsed}.values()]
    places = {entry.name: place for place, entry in enumerate(queries)}
    named = {name for _, name in said}
    start = "gallery/" if "gallery" in tree.inside("") else ""
    gallery = [
        entry
        for entry in tree.images
        if entry.name in named or (entry.name.startswith(start) and entry.name not in places)
    ]
    said |= {(name, name): "junk" for name in places if name in named}

    # Images of which the same is said are a class.
    about: dict[str, dict[str, list[int]]] = {}
    for (query, name), word in said.items():
        about.setdefault(name, {}).setdefault(word, []).append(places[query])
    classes = [class_name(about.get(entry.name, {})) for entry in gallery]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes))}
    known = [numbers[name] for name in classes]
    splits = {
        "train": one_image_per_file(tree.files, gallery, known),
        "test": one_image_per_file(tree.files, queries, [0] * len(queries)),
    }
    stamp = repr([gallery, queries, [*numbers], known])
    used = {*named, *places, *(entry.name for entry in gallery)}
    unread = {_OUTSIDE: rest} if (rest := len(tree.images) - len(used)) else {}
    read = About(test=f"queries of {listed.name}", unread=unread, listed=True)
    return Dataset(splits, tuple(numbers), stamp, about=read)
