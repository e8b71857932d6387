"""The Arrow cache of one teacher's outputs, open for reading.

A look-up is arithmetic into memory maps, which every process on a node shares.

Shapes: B batch.
"""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raykd import arrow
from raykd.errors import CacheCorrupt, CacheMismatch
from raykd.teachers.codec import decode
from raykd.teachers.manifest import Manifest, Shard, check_identity, read_manifest
from raykd.types import CACHEABLE, Outputs, Signal

JOINED_BYTES = 1 << 28  # a view of several shards up to this size is copied into one block
_OPEN_VIEWS = 2  # kept mapped: the one being read, and the one before; file handles are few


class LogitsCache:
    """A complete cache, open for reading."""

    def __init__(
        self, folder: Path, manifest: Manifest, device: torch.device | str = "cpu"
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.device = torch.device(device)
        self._shards: dict[int, list[Shard]] = {}
        for shard in sorted(manifest.shards):
            self._shards.setdefault(shard.part.view, []).append(shard)
        self._open: OrderedDict[int, list[dict[str, Tensor]]] = OrderedDict()
        self._verified: set[Shard] = set()

    @classmethod
    def open(
        cls,
        folder: Path,
        recipe: dict[str, Any],
        weights: str,
        views: Iterable[int],
        device: torch.device | str = "cpu",
    ) -> "LogitsCache":
        """The cache in `folder`, once it is seen to be of this recipe and to have these views.

        Raises `CacheMismatch` where it is not or has not. A shard's bytes are checked when its
        view is first read: `CacheCorrupt` then names the file.
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
        return cls(folder, manifest, device)

    def take(self, ids: Tensor, view: int, wanted: Signal = CACHEABLE) -> Outputs:
        """The teacher's outputs for the samples `ids` (int64 [B]) in one view, as float32.

        Embeddings are there where they are stored and `wanted`.
        """
        columns = self._view(view)
        if Signal.EMBEDDING not in wanted and "embedding" in columns[0]:
            columns = [{k: v for k, v in c.items() if k != "embedding"} for c in columns]
        if len(columns) == 1:
            return decode(columns[0], ids)
        starts = torch.tensor([s.part.start for s in self._shards[view]], device=ids.device)
        which = torch.bucketize(ids, starts, right=True) - 1
        order = which.argsort(stable=True)
        pieces = []
        for number in which.unique().tolist():
            rows = ids[order[which[order] == number]] - starts[number]
            pieces.append(decode(columns[number], rows))
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
        logits = torch.cat([piece.logits for piece in pieces]).index_select(0, back)
        if "embedding" not in columns[0]:
            return Outputs(logits)
        embedding = torch.cat([piece.embedding for piece in pieces]).index_select(0, back)
        return Outputs(logits, embedding=embedding)

    def check(self, view: int) -> None:
        """Raise `CacheCorrupt` for the first shard of a view whose bytes are not as written."""
        for shard in self._shards[view]:
            path = self.folder / shard.name
            if not path.is_file():
                raise CacheCorrupt(f"{path}: the shard is missing; `raykd precompute` rebuilds it")
            if arrow.file_checksum(path) != shard.checksum:
                raise CacheCorrupt(
                    f"{path}: the shard was truncated or altered, its checksum does not match; "
                    "`raykd precompute` rebuilds it"
                )
            self._verified.add(shard)

    def _view(self, view: int) -> list[dict[str, Tensor]]:
        """The columns of a view's shards, in row order."""
        if view in self._open:
            self._open.move_to_end(view)
            return self._open[view]
        if not self._verified.issuperset(self._shards[view]):
            self.check(view)
        columns = [arrow.read(self.folder / shard.name) for shard in self._shards[view]]
        size = sum(shard.bytes for shard in self._shards[view])
        if len(columns) > 1 and size <= JOINED_BYTES:
            # Looking in one place is ten times faster than in four.
            columns = [{k: torch.cat([part[k] for part in columns]) for k in columns[0]}]
        if self.device.type != "cpu":
            # In one block whatever its size: a GPU would be waited for to see who is in which.
            parts = [{k: v.to(self.device) for k, v in part.items()} for part in columns]
            columns = [{k: torch.cat([part[k] for part in parts]) for k in parts[0]}]
        self._open[view] = columns
        while len(self._open) > _OPEN_VIEWS:
            self._open.popitem(last=False)
        return columns
