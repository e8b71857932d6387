"""The files of a cache's shards: in its folder, or in a remote store with copies on this node.

A shard of a remote store exists when it is listed: it was uploaded whole, and its name carries
its checksum. A copy is fetched once per node, when a view is about to be read, and its bytes are
checked on the way. Copies are bounded by `Store.local_bytes`, over all caches: the least recently
used are removed first. A process that reads one goes on: its map outlives the file.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raykd.core.counters import METER
from raykd.core.errors import CacheCorrupt, Damaged, NoRoom
from raykd.outputs.manifest import Shard, named, whole_shards
from raykd.storage.atomic import make_folder
from raykd.storage.store import Store

_AT_ONCE = 4  # shards that are fetched at a time: one stream does not fill a fast network
_AGAIN = "`raykd precompute` makes it again"


class ShardFolder:
    """The shard files of the cache in `folder`."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.folder = folder
        self._node_cache = store.node_cache
        self._bound = store.local_bytes
        # Where shards lie before their upload, so that no process removes them to make room.
        self.drafts = folder if store.node_cache is None else folder / ".making"
        if store.node_cache is not None:
            make_folder(self.drafts)

    def add(self, shard: Shard) -> None:
        """Upload a shard that was written into the drafts, and keep it here as a copy."""
        if self._node_cache is None:
            return
        path = self.folder / shard.name
        self._node_cache.push(self.drafts / shard.name, path)
        with self._node_cache.lock("shards"):
            self._make_room(shard.bytes, {path})
            os.replace(self.drafts / shard.name, path)
            _used(path)

    def survey(self) -> tuple[list[Shard], list[str]]:
        """The whole shards, and messages about damaged ones, which are removed."""
        good, bad = whole_shards(self.drafts)
        for path in bad:
            path.unlink()
        messages = [f"{path}: the shard was truncated or altered" for path in bad]
        if self._node_cache is None:
            return good, messages
        for shard in good:  # left by a build that was killed before their upload
            self.add(shard)
        return self._listed(), messages

    def names(self) -> set[str]:
        """The names of the shards that are there, whole or not."""
        if self._node_cache is None:
            return {path.name for path in self.folder.glob("view-*.arrow")}
        return {shard.name for shard in self._listed()}

    def bring(self, shards: Sequence[Shard]) -> list[Shard]:
        """Fetch the shards that are not on this node; returns these, whose bytes were checked.

        Raises `CacheCorrupt` for a missing or damaged shard, which is then removed, and `NoRoom`
        where the copies would exceed the bound.
        """
        if self._node_cache is None:
            return []
        needed = sum(shard.bytes for shard in shards)
        if self._bound is not None and needed > self._bound:
            raise NoRoom(
                f"{self._node_cache.shown(self.folder)}: a view takes {needed / 1e9:.3g} GB, and "
                f"{self._bound / 1e9:.3g} GB of copies may be kept on a node; raise "
                "scale.local_gb or $RAYKD_LOCAL_GB"
            )
        with self._node_cache.lock("shards"):
            lacking = [shard for shard in shards if not (self.folder / shard.name).is_file()]
            if lacking:
                keep = {self.folder / shard.name for shard in shards}
                self._make_room(sum(shard.bytes for shard in lacking), keep)
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    for _ in pool.map(self._fetch, lacking):
                        pass
            for shard in shards:
                _used(self.folder / shard.name)
        METER.shards_here += len(shards) - len(lacking)
        METER.shards_fetched += len(lacking)
        METER.fetched_bytes += sum(shard.bytes for shard in lacking)
        return lacking

    def replace(self, shard: Shard) -> bool:
        """Fetch a damaged copy again; False for a local store, which has no other copy."""
        if self._node_cache is None:
            return False
        (self.folder / shard.name).unlink(missing_ok=True)
        self.bring([shard])
        return True

    def _fetch(self, shard: Shard) -> None:
        assert self._node_cache is not None
        path = self.folder / shard.name
        name, shown = self._node_cache.name(path), self._node_cache.shown(path)
        try:
            self._node_cache.remote.fetch(name, path, shard.checksum)
        except FileNotFoundError as error:
            raise CacheCorrupt(f"{shown}: the shard is missing; {_AGAIN}") from error
        except Damaged as error:
            self._node_cache.remote.delete(name)
            raise CacheCorrupt(
                f"{shown}: the shard was truncated or altered, its checksum does not match; it is "
                f"removed, and {_AGAIN}"
            ) from error

    def _listed(self) -> list[Shard]:
        """The shards in the remote store."""
        assert self._node_cache is not None
        entries = self._node_cache.remote.entries(self._node_cache.name(self.folder))
        shards = (named(Path(entry.name).name, entry.bytes) for entry in entries)
        return [shard for shard in shards if shard is not None]

    def _make_room(self, size: int, keep: set[Path]) -> None:
        """Remove copies, none of `keep`, until `size` more bytes are within the bound."""
        assert self._node_cache is not None
        if self._bound is None:
            return
        copies = []
        for path in self._node_cache.root.glob("caches/*/view-*.arrow"):
            with contextlib.suppress(FileNotFoundError):  # another process has replaced it
                stat = path.stat()
                copies.append((stat.st_mtime_ns, stat.st_size, path))
        size += sum(bytes_ for _, bytes_, _ in copies)
        for _, bytes_, path in sorted(copies):
            if size <= self._bound:
                return
            if path not in keep:
                path.unlink(missing_ok=True)
                size -= bytes_


def _used(path: Path) -> None:
    """Record the time of use, by a clock that is finer than a file system's own."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))
