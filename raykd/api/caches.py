"""Caches of teachers' outputs, for programs that are not raykd.

On disk a cache is a folder of Arrow IPC files ("Feather v2"), uncompressed, which any Arrow
library reads. The file view-VVVVVV-rows-AAAAAAAAA-BBBBBBBBB-CHECKSUM.arrow has rows A to B - 1 of
view V, in one record batch, in the order of ids: there is no index, row i is the image A + i of the
split. Its columns are those of the codec:

    dense      logits FixedSizeList<float16>[C], maximum float32: maximum + logit
    int8       levels FixedSizeList<uint8>[C], maximum and step float32: maximum - step * level
    topk       k largest with packed class numbers, and the rest's mass: `raykd.outputs.codecs.topk`
    any        embedding FixedSizeList<float16>[D], where embeddings are stored
    others     embedding.levels, STAGE.map: `raykd.outputs.codecs.vectors`, and beside the shards
               statistics.safetensors, whose checksum is in statistics.json

Files calibration-DIGEST.safetensors are what methods computed of rows for their students.

`manifest.json` beside them lists the files with their checksums (24 hex digits of SHA-256), and
has the full recipe. `Cache` decodes all of that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raykd.outputs.decoded import ROWS, rows_of
from raykd.outputs.manifest import Shard
from raykd.outputs.reader import OutputsCache
from raykd.recipes import AnyTeacher, OutputsRun
from raykd.storage.store import Store
from raykd.training.inputs import open_cache


@dataclass(frozen=True)
class Cache:
    """The outputs of one checkpoint of a teacher for one split of some images.

    Decoded, a row has `id` int64 (the image's place in the split), `view` int32 (the number of its
    augmentation; 0 of test images), and the signals: `logits` float32 [C], `embedding` float32 [D]
    and `map` float32 [K H W], as far as they are stored. Logits of codec topk are
    relative to the row's largest.
    """

    store: Store
    recipe: OutputsRun
    views: tuple[int, ...]

    @property
    def teacher(self) -> AnyTeacher:
        """The recipe of the teacher."""
        return self.recipe.teacher

    @property
    def split(self) -> str:
        """The images: "train", "test" or "validation"."""
        return self.recipe.split

    @property
    def folder(self) -> Path:
        """Its folder; of a remote store, this node's copy, whose files come when they are read."""
        return self.store.path(self.recipe)

    @property
    def rows(self) -> int:
        """The number of images, in every view."""
        return self._open.manifest.rows

    def shards(self, views: Iterable[int] | None = None) -> list[Shard]:
        """The files of some views, or of all, in the order of their rows."""
        chosen = self.views if views is None else tuple(views)
        return sorted(shard for shard in self._open.manifest.shards if shard.part.view in chosen)

    def batches(
        self, views: Iterable[int] | None = None, size: int = ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The rows of some views, or of all, decoded, at most `size` at a time.

        Raises `CacheCorrupt` where a file is not as it was written.
        """
        for shard in self.shards(views):
            for columns in rows_of(self._open, shard, self.recipe.signals(), size):
                arrays = [_array(column) for column in columns.values()]
                yield pa.record_batch(arrays, names=[*columns])

    def to_arrow(self, views: Iterable[int] | None = None) -> pa.Table:
        """The rows of some views, or of all, as one table in memory; see `batches` for large ones.

        Raises `CacheCorrupt` where a file is not as it was written.
        """
        return pa.Table.from_batches(self.batches(views))

    def to_ray(self, views: Iterable[int] | None = None) -> Any:
        """The rows of some views, or of all, as a `ray.data.Dataset`, read where Ray has room.

        Every node must reach the store.
        """
        from raykd.launch.cache_dataset import cache_dataset

        bytes_ = self.store.local_bytes
        local_gb = None if bytes_ is None else bytes_ / 1e9
        parts = [shard.part for shard in self.shards(views)]
        return cache_dataset(self.store.url, local_gb, self.recipe, parts)

    @cached_property
    def _open(self) -> OutputsCache:
        return open_cache(self.store, self.recipe, list(self.views), torch.device("cpu"))

    def __repr__(self) -> str:
        name, views = self.recipe.teacher.model, len(self.views)
        return f"<Cache of {name}, {self.split}: {views} views of {self.rows} images>"


def _array(values: "np.ndarray[Any, Any]") -> pa.Array:
    """A column of numbers, or of lists of one length."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
