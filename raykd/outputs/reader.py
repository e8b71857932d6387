"""The Arrow cache of one teacher's outputs, open for reading.

A look-up is arithmetic into memory maps, which every process on a node shares.

Shapes: B batch.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raykd.core.counters import METER
from raykd.core.errors import CacheCorrupt, CacheMismatch
from raykd.core.futures import begun
from raykd.core.types import CACHEABLE, Outputs, Signal
from raykd.outputs.codecs import Codec, codec_of
from raykd.outputs.manifest import Manifest, Shard, check_identity, read_manifest
from raykd.outputs.shard_files import ShardFolder
from raykd.outputs.statistics import (
    NOTE,
    OF_VECTORS,
    STATISTICS,
    Vectors,
    fitted_codecs,
    is_fitted,
    kind_of,
    read_vectors,
)
from raykd.storage import arrow

_Columns = list[dict[str, Tensor]]  # one entry per shard of a view, or one for all of them
JOINED_BYTES = 1 << 28  # a view of several shards up to this size is copied into one block
_AT_ONCE = 1 << 16  # rows of a part, where all are read
_OPEN_VIEWS = 2  # kept: the one being read, and the one before or after; file handles are few
_TRIES = 3  # to map copies that other processes may remove at any moment


class OutputsCache:
    """A complete cache, open for reading."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        device: torch.device | str = "cpu",
        shelf: ShardFolder | None = None,
    ) -> None:
        """`shelf` brings shards to this node; without one they are in the folder."""
        self.folder = folder
        self.manifest = manifest
        self.device = torch.device(device)
        self.codec = codec_of(manifest.recipe)
        self.classes: int | None = manifest.recipe.get("data", {}).get("classes")
        fitted = fitted_codecs(manifest.recipe)
        self.vectors: Vectors | None = None
        if fitted:
            grid = manifest.recipe.get("grid")
            self.vectors = read_vectors(folder / STATISTICS, fitted, grid).to(self.device)
        self._shards: dict[int, list[Shard]] = {}
        for shard in sorted(manifest.shards, key=lambda shard: shard.part.start):
            self._shards.setdefault(shard.part.view, []).append(shard)
        rows = sum(len(shard.part) for shard in manifest.shards)
        self._row_bytes = sum(shard.bytes for shard in manifest.shards) // max(1, rows)
        self.shelf = shelf
        self._open: OrderedDict[int, _Columns] = OrderedDict()
        self._coming: dict[int, Future[_Columns]] = {}
        self._latest: Future[_Columns] | None = None  # the load that was begun last
        self._stream: torch.cuda.Stream | None = None  # for copies to a GPU
        self._verified: set[Shard] = set()

    @classmethod
    def open(
        cls,
        folder: Path,
        recipe: dict[str, Any],
        weights: str,
        views: Iterable[int],
        device: torch.device | str = "cpu",
        shelf: ShardFolder | None = None,
    ) -> "OutputsCache":
        """The cache in `folder`, after a check of its recipe and its views.

        Raises `CacheMismatch` where the recipe is another one or a view is missing. A shard's bytes
        are checked when its view is first read: `CacheCorrupt` then names the file.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise CacheMismatch(f"{folder}: no cache is there yet; `raykd precompute` makes it")
        check_identity(folder, manifest, recipe, weights)
        missing = sorted(set(views) - set(manifest.views()))
        if missing:
            raise CacheMismatch(
                f"{folder}: {len(missing)} of the views are not complete, the first is "
                f"{missing[0]}; `raykd precompute` fills what is missing"
            )
        return cls(folder, manifest, device, shelf)

    def ids(self) -> Sequence[Tensor]:
        """All ids, int64, in the parts in which rows are read one after another."""
        return torch.arange(self.manifest.rows, device=self.device).split(_AT_ONCE)

    def content(self, views: Iterable[int]) -> str:
        """Words that are equal where the outputs for some views are: all their checksums, and the
        device.
        """
        shards = [shard.name for view in views for shard in self._shards[view]]
        vectors = self.vectors.checksum if self.vectors is not None else ""
        weights = self.manifest.weights
        return " ".join([self.folder.name, weights, vectors, self.device.type, *shards])

    def take(
        self, ids: Tensor, view: int, wanted: Signal = CACHEABLE, codec: Codec | None = None
    ) -> Outputs:
        """The teacher's outputs for the samples `ids` (int64 [B]) in one view, as float32.

        Embeddings, maps and derived columns are there where they are stored and `wanted`. `codec`
        is one of the readings of the cache's codec; None: its own.
        """
        columns, rows = self.columns(ids, view, wanted)
        plain = {name: column for name, column in columns.items() if not is_fitted(name)}
        outputs = (codec or self.codec).decode(plain, rows, self.classes)
        if len(plain) == len(columns):
            return outputs
        assert self.vectors is not None
        return self.vectors.decode(columns, rows, outputs)

    def columns(
        self, ids: Tensor, view: int, wanted: Signal = CACHEABLE
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Stored columns, and the rows (int64 [B]) in them of the samples `ids` (int64 [B])."""
        columns = self._view(view)
        METER.cache_bytes += len(ids) * self._row_bytes
        for signal, kind in OF_VECTORS:
            if signal not in wanted and any(kind_of(name) == kind for name in columns[0]):
                columns = [{k: v for k, v in c.items() if kind_of(k) != kind} for c in columns]
        if len(columns) == 1:
            return columns[0], ids
        starts = torch.tensor([s.part.start for s in self._shards[view]], device=ids.device)
        which = torch.bucketize(ids, starts, right=True) - 1
        order = which.argsort(stable=True)
        pieces = []
        for number in which.unique().tolist():
            rows = ids[order[which[order] == number]] - starts[number]
            pieces.append({k: v.index_select(0, rows) for k, v in columns[number].items()})
        joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
        return joined, back

    def prefetch(self, view: int) -> None:
        """Open a view in the background, so that the first `take` of it need not wait.

        Views are opened one at a time, in the order of the calls. `take` raises their errors.
        """
        if view in self._open or view in self._coming:
            return
        while len(self._open) >= _OPEN_VIEWS:  # make room for it
            self._open.popitem(last=False)
        before = self._latest

        def load() -> _Columns:
            if before is not None:
                wait([before])
            return self._load(view, ahead=True)

        self._coming[view] = self._latest = begun(load)

    def check(self, view: int) -> None:
        """Raise `CacheCorrupt` for the first shard of a view whose bytes are not as written."""
        self._bring(view)
        for shard in self._shards[view]:
            self._check(shard)

    def _check(self, shard: Shard) -> None:
        path = self.folder / shard.name
        if not path.is_file():
            raise CacheCorrupt(f"{path}: the shard is missing; `raykd precompute` rebuilds it")
        if arrow.file_checksum(path) != shard.checksum and not (
            self.shelf is not None and self.shelf.replace(shard)
        ):
            raise CacheCorrupt(
                f"{path}: the shard was truncated or altered, its checksum does not match; "
                "`raykd precompute` rebuilds it"
            )
        if self.vectors is not None and arrow.note(path, NOTE) != self.vectors.checksum:
            raise CacheCorrupt(
                f"{path}: the shard was not written by the {STATISTICS} beside it; remove the "
                "folder, and `raykd precompute` makes the cache again"
            )
        self._verified.add(shard)

    def _bring(self, view: int) -> None:
        """Fetch the shards of a view to this node."""
        if self.shelf is not None:
            self._verified.update(self.shelf.bring(self._shards[view]))
        else:
            METER.shards_here += len(self._shards[view])

    def _view(self, view: int) -> _Columns:
        """The columns of a view's shards, in row order."""
        if view in self._open:
            METER.cache_hits += 1
            self._open.move_to_end(view)
            return self._open[view]
        coming, start = self._coming.pop(view, None), time.monotonic()
        ready = coming is not None and coming.done()
        self._open[view] = columns = self._load(view) if coming is None else coming.result()
        METER.cache_seconds += time.monotonic() - start
        METER.cache_hits += ready
        METER.cache_misses += not ready
        for part in columns:
            for column in part.values():
                if column.is_cuda:  # it was allocated for another stream
                    column.record_stream(torch.cuda.current_stream(column.device))
        while len(self._open) > _OPEN_VIEWS:
            self._open.popitem(last=False)
        return columns

    def _load(self, view: int, *, ahead: bool = False) -> _Columns:
        """Open a view. `ahead`: called by the prefetcher; also pages verified files in."""
        columns = self._mapped(view, ahead)
        size = sum(shard.bytes for shard in self._shards[view])
        if len(columns) > 1 and size <= JOINED_BYTES:
            # Looking in one place is ten times faster than in four.
            columns = [{k: torch.cat([part[k] for part in columns]) for k in columns[0]}]
        if self.device.type == "cpu":
            return columns
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):  # not behind the steps that are under way
            # One block whatever its size: finding each row's shard would wait for the GPU.
            parts = [{k: v.to(self.device) for k, v in part.items()} for part in columns]
            columns = [{k: torch.cat([part[k] for part in parts]) for k in parts[0]}]
        self._stream.synchronize()
        return columns

    def _mapped(self, view: int, ahead: bool) -> _Columns:
        """The memory maps of a view's shards, once their bytes were checked by this process."""
        shards = self._shards[view]
        for left in reversed(range(_TRIES)):
            self._bring(view)
            try:
                for shard in shards:
                    if shard not in self._verified:
                        self._check(shard)
                    elif ahead:
                        arrow.page_in(self.folder / shard.name)
                return [arrow.read(self.folder / shard.name) for shard in shards]
            except (CacheCorrupt, FileNotFoundError):
                gone = not all((self.folder / shard.name).is_file() for shard in shards)
                if self.shelf is None or not (left and gone):
                    raise  # else another process has made room with a copy
        raise AssertionError("unreachable")
