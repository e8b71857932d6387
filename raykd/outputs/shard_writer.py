"""From a part of a cache to its shard: run the teacher over the views, encode, write."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from raykd.core.counters import METER
from raykd.core.errors import CacheMismatch, ConfigError
from raykd.core.types import Batch, Outputs, Signal
from raykd.data.loading.loader import Views
from raykd.outputs.codecs import Codec
from raykd.outputs.manifest import GRAIN, Part, Shard, write_shard
from raykd.outputs.statistics import NOTE, Vectors
from raykd.storage import arrow


def compute_shard(
    folder: Path,
    part: Part,
    views: Views,
    teacher: Callable[[Batch], Outputs],
    signals: Signal,
    codec: Codec,
    size: int = GRAIN,
    vectors: Vectors | None = None,
) -> Shard:
    """Compute and write one shard, `size` images at a time.

    `vectors`: how embeddings and maps are stored where the logits' codec does not do that.

    Raises `CacheMismatch` where an output cannot be stored, and `ConfigError` where another codec
    would store it.
    """
    rows = torch.arange(part.start, part.stop)
    encoded: list[dict[str, Tensor]] = []
    plain = signals  # what the codec of logits stores
    if vectors is not None and "embedding" in vectors.codecs:
        plain &= ~Signal.EMBEDDING
    for number, batch in enumerate(views.runs(rows, size, part.view)):
        try:
            answer = teacher(batch)
            columns = codec.encode(answer, plain)
            encoded.append(columns if vectors is None else columns | vectors.encode(answer))
        except ValueError as error:
            where = f"view {part.view}, samples from {part.start + number * size}"
            if isinstance(error, ConfigError):  # which says what to do
                raise ConfigError(f"{where}: {error}") from error
            raise CacheMismatch(f"{where}: {error}; this teacher cannot be distilled") from error
    columns = {name: torch.cat([piece[name] for piece in encoded]) for name in encoded[0]}
    notes = arrow.NO_NOTES if vectors is None else {NOTE: vectors.checksum}
    shard = write_shard(folder, part, columns, notes)
    METER.made_rows += len(part)
    METER.made_bytes += shard.bytes
    return shard
