"""Rows of a cache as they are decoded: ids, view and signals, for readers outside of training."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raykd.core.types import Signal
from raykd.outputs.manifest import Shard
from raykd.outputs.reader import OutputsCache

ROWS = 1 << 14  # at a time


def rows_of(
    cache: OutputsCache, shard: Shard, signals: Signal, size: int = ROWS
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """The rows of one shard, `size` at a time: id int64 [n], view int32 [n], and the signals.

    Those are `logits` float32 [n, C], `embedding` float32 [n, D], `map` float32 [n, K H W] and
    derived columns by their names, flat too, where the cache has them.
    Raises `CacheCorrupt` where the shard is not as it was written.
    """
    alone = OutputsCache(cache.folder, replace(cache.manifest, shards=(shard,)), shelf=cache.shelf)
    part = shard.part
    for start in range(0, len(part), size):
        rows = torch.arange(start, min(start + size, len(part)))
        outputs = alone.take(rows, part.view)
        columns = {
            "id": (rows + part.start).numpy(),
            "view": np.full(len(rows), part.view, np.int32),
        }
        if Signal.LOGITS in signals:
            columns["logits"] = outputs.logits.numpy()
        if Signal.EMBEDDING in signals:
            columns["embedding"] = outputs.embedding.numpy()
        if Signal.MAP in signals:
            columns["map"] = outputs.map.flatten(1).numpy()
        if Signal.DERIVED in signals:
            columns |= {name: x.flatten(1).numpy() for name, x in outputs.derived.items()}
        yield columns
