"""Builds of caches: the shards that exist, those that are missing, and the room they need."""

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace

from raykd.core.errors import NoRoom
from raykd.core.types import Shapes
from raykd.data.dataset import open_split
from raykd.methods.columns import shapes_of_columns
from raykd.methods.feature_maps import map_shape
from raykd.outputs.codecs import Float16
from raykd.outputs.manifest import (
    Manifest,
    Part,
    Shard,
    check_identity,
    gaps,
    manifest_of,
    split,
    write_manifest,
)
from raykd.outputs.shard_files import ShardFolder
from raykd.recipes import OutputsRun
from raykd.storage.atomic import make_folder
from raykd.storage.store import MARKER, Store
from raykd.training.dry_run import shapes_of_teacher
from raykd.training.weights import anchor_checksum

_ROOM = 1.05  # free bytes wanted per byte to be written


class CacheBuild:
    """One build of the views of a cache that are not there yet.

    Opening it reads every shard once: whole ones that an interrupted build left are adopted,
    damaged ones are removed and will be computed again.
    """

    def __init__(
        self,
        store: Store,
        run: OutputsRun,
        views: Iterable[int],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.store = store
        self.run = run
        self.folder = store.path(run)
        make_folder(self.folder)
        rows = len(open_split(store, run.data, run.split))
        checksum = anchor_checksum(store, run)
        previous = manifest_of(store, run)
        if previous is not None:
            check_identity(self.folder, previous, run.plain(), checksum)
        self._shelf = ShardFolder(store, self.folder)
        good, bad = self._shelf.survey()
        for text in bad:
            say(f"{text}; it is removed and computed again")
        self.manifest = Manifest(run.plain(), checksum, rows, tuple(good))
        if previous is None or set(previous.shards) != set(good):
            self.commit()
        self.missing = [part for view in sorted(set(views)) for part in gaps(good, view, rows)]

    def parts(self, workers: int) -> list[Part]:
        """The missing parts, in pieces that keep `workers` busy."""
        rows = sum(len(part) for part in self.missing)
        return split(self.missing, max(1, -(-rows // workers)))

    def add(self, shard: Shard) -> None:
        """Take in a shard that was written."""
        self.manifest = replace(self.manifest, shards=(*self.manifest.shards, shard))

    def commit(self) -> None:
        """Write the manifest, with the shards of other builds that are in the folder's manifest."""
        previous = manifest_of(self.store, self.run)
        others = previous.shards if previous is not None else ()
        names = self._shelf.names()
        present = [shard for shard in others if shard.name in names]
        shards = tuple({*self.manifest.shards, *present})
        manifest = replace(self.manifest, shards=shards)
        write_manifest(self.folder, manifest, self.store.write_json)

    def finish(self) -> None:
        """Write the manifest, and the marker by which the store lists the cache."""
        self.commit()
        self.store.finish(self.run)

    def withdraw(self) -> None:
        """Remove the marker."""
        self.store.remove(self.folder / MARKER)


def needed_bytes(run: OutputsRun, rows: int) -> int:
    """Bytes of `rows` rows of a cache, all views counted."""
    data, width, more = run.data.resolved(), None, 0
    if run.embedding or run.maps or run.derived:
        shapes = shapes_of_teacher(run.teacher, data.size)
        if run.embedding and run.embedding_codec is not None:
            run.embedding_codec.check(shapes.embedding, "embedding_codec")
            more += run.embedding_codec.bytes_per_place(shapes.embedding)
        elif run.embedding:
            width = shapes.embedding
        if run.maps:
            codec, (channels, *size) = run.map_codec or Float16(), stored_shape(run, shapes)
            codec.check(channels, "map_codec")
            more += math.prod(size) * codec.bytes_per_place(channels)
        for channels, *size in shapes_of_columns(run.derived, shapes, data.classes).values():
            codec = run.derived_codec or Float16()
            codec.check(channels, "derived_codec")
            more += math.prod(size) * codec.bytes_per_place(channels)
    plain = run.stored().bytes_per_row(data.classes if run.logits else None, width)
    return rows * (plain + more)


def stored_shape(run: OutputsRun, shapes: Shapes) -> tuple[int, int, int]:
    """K, H and W of the last map as a cache stores it. Raises `ConfigError` without one."""
    channels, height, width = map_shape(shapes, "map", run.blocks)
    return (channels, min(run.grid or height, height), min(run.grid or width, width))


def check_room(store: Store, needed: int) -> None:
    """Raise `NoRoom` where the store's disk has not the free bytes for caches of this size.

    Of a remote store only a bounded part has to be on this one's.
    """
    make_folder(store.root)
    if store.node_cache is not None:
        needed = min(needed, store.local_bytes or needed)
    free = shutil.disk_usage(store.root).free
    if needed * _ROOM > free:
        raise NoRoom(
            f"{store.root}: the caches need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "lower run.views, or choose another --store"
        )
