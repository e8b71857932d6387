"""The files in a cache's folder: shards, and the manifest that commits them.

A shard is the rows [start, stop) of one view in id order. It is written under a temporary name,
synced and renamed, and its final name carries its checksum; the manifest, with the full recipe
and every shard's view, rows, bytes and checksum, comes last. So a killed build leaves whole
shards, which the next build adopts, and no others.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic_core import to_json
from torch import Tensor

from raykd.core.errors import CacheCorrupt, CacheMismatch
from raykd.core.record import Recipe, difference
from raykd.storage import arrow
from raykd.storage.atomic import lasting, write_atomic
from raykd.storage.store import Store, first_line, read_json, write_json

MANIFEST = "manifest.json"
FORMAT = 1  # the folder's layout; another number is refused
SHARD_ROWS = 1 << 16  # the most rows of a shard
# Shards begin at multiples of so many rows, which are one forward of the teacher: rounding
# depends on what is in a batch, so no way of cutting a view changes a bit of the outputs.
GRAIN = 256
_Number = Annotated[int, Field(ge=0)]
_Size = Annotated[int, Field(gt=0)]
_NAME = re.compile(r"view-(\d{6})-rows-(\d{9})-(\d{9})-([0-9a-f]{24})\.arrow")


@dataclass(frozen=True, order=True)
class Part:
    """A range of rows of one view."""

    view: _Number
    start: _Number
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, order=True)
class Shard:
    """The file of a part."""

    part: Part
    bytes: _Size
    checksum: Annotated[str, Field(pattern="^[0-9a-f]+$")]  # no other name could be a path

    @property
    def name(self) -> str:
        """The file's name."""
        part = self.part
        return f"view-{part.view:06d}-rows-{part.start:09d}-{part.stop:09d}-{self.checksum}.arrow"


@dataclass(frozen=True)
class Manifest:
    """The content of a cache."""

    recipe: dict[str, Any]  # the full recipe of the outputs
    weights: str  # checksum of the teacher's weights file
    rows: _Size  # N, in every view
    shards: tuple[Shard, ...]

    def views(self) -> list[int]:
        """The views whose rows are all there, in order."""
        covered: dict[int, int] = {}  # rows from the first on, by view
        for shard in sorted(self.shards, key=lambda shard: shard.part.start):
            part = shard.part
            if part.start <= covered.setdefault(part.view, 0) < part.stop:
                covered[part.view] = part.stop
        return sorted(view for view, rows in covered.items() if rows >= self.rows)


_MANIFEST = TypeAdapter(Manifest)


def write_shard(
    folder: Path,
    part: Part,
    columns: Mapping[str, Tensor],
    notes: Mapping[str, str] = arrow.NO_NOTES,
) -> Shard:
    """Write one shard atomically; row i of every column is the sample `part.start + i`."""
    data = arrow.pack(columns, notes)
    shard = Shard(part, len(data), arrow.checksum(data))
    with lasting(folder / shard.name):
        write_atomic(folder / shard.name, data)
    return shard


def gaps(shards: Iterable[Shard], view: int, rows: int) -> list[Part]:
    """Parts of a view that no shard covers."""
    parts, position = [], 0
    for part in sorted(shard.part for shard in shards if shard.part.view == view):
        if part.start > position:
            parts.append(Part(view, position, part.start))
        position = max(position, part.stop)
    return [*parts, Part(view, position, rows)] if position < rows else parts


def split(parts: Iterable[Part], size: int) -> list[Part]:
    """Parts cut into pieces of `size` rows, rounded up to whole grains, at most SHARD_ROWS."""
    size = min(-(-size // GRAIN) * GRAIN, SHARD_ROWS)
    return [
        Part(part.view, start, min(start + size, part.stop))
        for part in parts
        for start in range(part.start, part.stop, size)
    ]


def whole_shards(folder: Path) -> tuple[list[Shard], list[Path]]:
    """The shards in a folder whose bytes match their checksum, and the files that do not."""
    good, bad = [], []
    for path in sorted(folder.glob("view-*.arrow")):
        shard = named(path.name, path.stat().st_size)
        if shard is None:
            continue
        if arrow.file_checksum(path) == shard.checksum:
            good.append(shard)
        else:
            bad.append(path)
    return good, bad


def named(name: str, size: int) -> Shard | None:
    """The shard of `size` bytes with this file name; None where it is no shard's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    view, start, stop, checksum = match.groups()
    return Shard(Part(int(view), int(start), int(stop)), size, checksum)


def write_manifest(
    folder: Path, manifest: Manifest, write: Callable[[Path, object], None] = write_json
) -> None:
    """Commit the shards of a build. Shards that overlap others are left out, shorter ones first."""
    chosen: list[Shard] = []
    for shard in sorted(manifest.shards, key=lambda s: (s.part.view, s.part.start, -s.part.stop)):
        last = chosen[-1].part if chosen and chosen[-1].part.view == shard.part.view else None
        if last is None or shard.part.start >= last.stop:
            chosen.append(shard)
    value = asdict(manifest) | {"format": FORMAT, "shards": [asdict(shard) for shard in chosen]}
    write(folder / MANIFEST, value)


def manifest_of(store: Store, run: Recipe) -> Manifest | None:
    """The manifest of a cache, newest version of all nodes; None where there is none yet."""
    return read_manifest(store.renew(store.path(run) / MANIFEST).parent)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none yet.

    Raises `CacheCorrupt` where the file is not a manifest of this format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    what, advice = "not a readable manifest", "remove it and run again, whole shards are kept"
    # `check_identity` reports another cache's manifest, difference by difference.
    value = read_json(path, what=what, advice=advice, anywhere=True)
    number = value.pop("format", None)
    if isinstance(number, int) and number != FORMAT:
        raise CacheMismatch(
            f"{path}: format {number}, this raykd reads {FORMAT}; remove the folder"
        )
    try:
        if number is None:
            raise ValueError("format is missing")
        # From JSON: elsewhere, strict reading takes no dict for a dataclass, no list for a tuple.
        manifest = _MANIFEST.validate_json(to_json(value), strict=True)
        for shard in manifest.shards:
            if not shard.part.start < shard.part.stop <= manifest.rows:
                raise ValueError(f"shard {shard.name} has rows beyond the {manifest.rows}")
        return manifest
    except ValueError as error:
        raise CacheCorrupt(f"{path}: {what} ({first_line(error)}); {advice}") from error


def check_identity(folder: Path, manifest: Manifest, recipe: dict[str, Any], weights: str) -> None:
    """Raise `CacheMismatch`, with every difference, where a cache is not of this recipe.

    Fields that the manifest lacks were added after it was written, and are at their defaults: its
    folder is named by the fingerprint, which leaves those out.
    """
    differences = difference(recipe, manifest.recipe)
    lines = [line for line in differences if not line.endswith(", found nothing")]
    if not lines and weights != manifest.weights:
        lines = [f"teacher's weights: expected {weights}, found {manifest.weights}"]
    if lines:
        raise CacheMismatch(
            f"{folder}: this cache was made for something else:\n  "
            + "\n  ".join(lines)
            + "\nremove the folder, or use the recipe that it was made for"
        )
