"""Where the images of a dataset lie, found without reading them."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from raykd.core.errors import DataError
from raykd.data.sources import foreign_text, pack_shards
from raykd.data.sources.class_labels import declared_names, numbered
from raykd.data.sources.encoded import Names, Ranges
from raykd.data.sources.files import Entry, Files
from raykd.data.sources.folders import Tree, layout
from raykd.data.sources.raw_split import About, Found, Samples
from raykd.data.sources.split_names import by_split, unread
from raykd.data.sources.tables import Rows, open_tables
from raykd.data.sources.tars import BLOCK, TarSamples, expanded, is_packed_tar, is_tar, tar_samples
from raykd.storage.filesystem import is_url

_REMOTE_BLOCK = 1 << 16  # bytes of a tar file that are read at a time over a network
_OPENED = 16  # files at a time, each of which may wait for a network


@dataclass(frozen=True)
class Located:
    """A dataset's splits, as ranges of bytes with labels (int64 [N]), and its class names."""

    splits: Mapping[str, tuple[Ranges, np.ndarray]]
    names: tuple[str, ...]
    stamp: str = ""  # what changes when files are changed, without reading them
    digest: str = ""  # `contents.digest_of`, where it is known: nothing needs to be read
    about: About = field(default_factory=About)

    def found(self) -> Found:
        """The same, to be read into memory. Raises `DataError` for labels that are no class's."""
        splits = {
            split: Samples(ranges, labels, ranges.origin)
            for split, (ranges, labels) in self.splits.items()
        }
        return Found(splits, self.names, self.stamp, self.about)


def folder(root: str) -> Located:
    """Image files in one folder per class, at the top or in `train` and `test` (or `val`).

    Or a pack, which was made of such a folder.
    """
    files = Files.at(root)
    if pack_shards.is_pack(files):
        return pack(root)
    tree = Tree.of(files)
    found = layout(tree)
    splits = {split: tree.samples([start], found.folders) for split, start in found.starts.items()}
    return of_files(Found(splits, found.names, tree.stamp, found.about))


def of_files(found: Found) -> Located:
    """A dataset whose images are ranges of files."""
    splits = {}
    for split, samples in found.splits.items():
        assert isinstance(samples.images, Ranges), "images that are no files are not located"
        splits[split] = (samples.images, samples.labels)
    return Located(splits, found.names, found.stamp, about=found.about)


def pack(root: str) -> Located:
    """What `raykd pack` wrote, here or at a URL; its digest is known.

    Raises `CacheCorrupt` where a shard is missing, has another size, or where the index was
    altered.
    """
    files = Files.at(root)
    facts = pack_shards.read_json(files, pack_shards.MARKER)
    names = tuple(facts["classes"])
    splits = pack_shards.read_splits(files, facts["splits"], names)
    # A class without images has a declared name: it was seen when the pack was made.
    about = About(declared=True)
    return Located(splits, names, facts["digest"], facts["digest"], about)


def table(root: str) -> Located | None:
    """A pack, or Arrow files of this machine that are not compressed; None for other tables."""
    if pack_shards.is_pack(Files.at(root)):
        return pack(root)
    tables = open_tables(root)
    splits = {}
    for split, (rows, labels) in tables.splits.items():
        ranges = _in_tables(rows)
        if ranges is None:
            return None
        splits[split] = (ranges, labels)
    return Located(splits, tables.names, tables.stamp, about=tables.about)


def _in_tables(rows: Rows) -> Ranges | None:
    """Images that are values of tables; None where they are compressed there, or far away."""
    files = rows.files[0].files
    spans = [None if files.remote else file.spans() for file in rows.files]
    found = [span for span in spans if span is not None]
    if len(found) < len(spans):
        return None
    numbers = np.repeat(np.arange(len(found)), [len(file) for file in rows.files])
    offset, length = np.concatenate([np.stack(span) for span in found], axis=1)
    names, lacking, first = [file.name for file in rows.files], {}, 0
    for file in rows.files:
        for row, place in file.elsewhere().items():
            if isinstance(place, DataError):
                lacking[first + row] = place
            else:
                numbers[first + row], offset[first + row] = len(names), 0
                length[first + row] = place.size
                names.append(place.name)
        first += len(file)
    file, offset, length = map(torch.from_numpy, (numbers, offset, length))
    return Ranges(files, Names.of(names), file, offset, length, lacking)


def webdataset(root: str) -> Located:
    """Tar shards of images and labels: a folder of them, one, or a pattern with braces.

    In a pattern {000..146} counts and {train,val} lists. Words of the names say train, test or
    validation; one file alone is all data. Labels that are texts are classes in sorted order; the
    names of those that are numbers may lie beside the shards, in classes.json or classes.txt.
    """
    files, entries, alone = _tar_files(root)
    archives = [entry for entry in entries if is_tar(entry.name)]
    if not archives:
        packed = next((entry.name for entry in entries if is_packed_tar(entry.name)), None)
        if packed is not None:
            raise DataError(
                f"{files.describe(packed)}: is compressed, so that no single image can be taken "
                "from it; unpack it to a plain .tar, which is hardly larger"
            )
        raise DataError(f"{root}: expected .tar files of images and labels, found none")
    chosen = by_split(root, archives, "tar files", alone=alone)
    splits, labels, passed = {}, {}, Counter(unread(entries, chosen))
    with ThreadPoolExecutor(_OPENED) as pool:
        for split, found in chosen.items():
            parts = [*pool.map(lambda entry: _tar(files, entry.name), found)]
            counts = [len(part.labels) for part in parts]
            numbers = np.repeat(np.arange(len(parts)), counts)
            offset = np.concatenate([part.offsets for part in parts])
            length = np.concatenate([part.lengths for part in parts])
            lacking = {
                int(first) + row: error
                for first, part in zip(np.cumsum([0, *counts]), parts, strict=False)
                for row, error in part.lacking.items()
            }
            own = Names.of([entry.name for entry in found])
            columns = map(torch.from_numpy, (numbers, offset, length))
            ranges = splits[split] = Ranges(files, own, *columns, lacking=lacking)
            labels[split] = ([label for part in parts for label in part.labels], ranges.origin)
            for part in parts:
                passed.update(part.unread)
    declared = _names_beside(files)
    names, classes = numbered(labels, declared)
    splits = {split: (ranges, classes[split]) for split, ranges in splits.items()}
    about = About(unread=passed, declared=bool(declared))
    located = Located(splits, names, repr(archives), about=about)
    located.found()
    return located


def _tar_files(root: str) -> tuple[Files, list[Entry], bool]:
    """The tar files at a path, URL or pattern, and whether it is that of a single one."""
    path, mark, options = root.partition("?") if is_url(root) else (root, "", "")
    if not (is_tar(path) or is_packed_tar(path)) or Path(path).expanduser().is_dir():
        files = Files.at(root)
        return files, files.walk(), False
    folder = path.partition("{")[0].rpartition("/")[0]
    files = Files.at((folder or ("/" if path[:1] == "/" else ".")) + mark + options)
    names = expanded(path[len(folder) :].lstrip("/"))
    entries = []
    for name in names:
        entry = files.find(name)
        if entry is None:
            raise DataError(f"{files.describe(name)}: there is no such file")
        entries.append(entry)
    return files, entries, "{" not in path


def _tar(files: Files, name: str) -> TarSamples:
    """The samples of one tar file."""
    block = _REMOTE_BLOCK if files.remote is not None else BLOCK
    with files.open(name) as file:
        return tar_samples(file, files.describe(name), block)


def _names_beside(files: Files) -> tuple[str, ...]:
    """Class names from classes.json or classes.txt in a folder; none where there is neither."""
    if files.has("classes.txt"):
        place = files.describe("classes.txt")
        lines = foreign_text.text(files.load("classes.txt").to_pybytes(), place).splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if not files.has("classes.json"):
        return ()
    place = files.describe("classes.json")
    value = foreign_text.value(files.load("classes.json").to_pybytes(), place)
    return declared_names(value, place)


LOCATED: Mapping[str, Callable[[str], Located | None]] = {
    "folder": folder,
    "table": table,
    "webdataset": webdataset,
}
