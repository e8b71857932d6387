"""A cache of a teacher's outputs as a dataset of Ray Data, read shard by shard on any node."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import ray.data
import torch

from raykd.outputs.decoded import rows_of
from raykd.outputs.manifest import Part
from raykd.recipes import OutputsRun
from raykd.storage.store import Store
from raykd.training.inputs import open_cache


def cache_dataset(
    url: str, local_gb: float | None, run: OutputsRun, parts: Sequence[Part]
) -> ray.data.Dataset:
    """The rows of some shards, decoded: columns id, view, logits, embedding as the cache has them.

    Each shard is one task, which checks its bytes. `local_gb` bounds a node's copies of a remote
    store.
    """
    rows = [dict(zip(("view", "start", "stop"), astuple(part), strict=True)) for part in parts]
    shards = ray.data.from_items(rows, override_num_blocks=len(rows))
    read: Any = partial(_read, url, local_gb, run)
    return shards.map_batches(read, batch_size=1)


def _read(
    url: str, local_gb: float | None, run: OutputsRun, batch: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The rows of the shards of one batch."""
    store = Store(url, local_gb)
    for view, start, stop in zip(batch["view"], batch["start"], batch["stop"], strict=True):
        part = Part(int(view), int(start), int(stop))
        cache = open_cache(store, run, [part.view], torch.device("cpu"))
        for shard in cache.manifest.shards:
            if shard.part == part:
                yield from rows_of(cache, shard, run.signals())
