"""From a part of a cache to its shard: run the teacher over the views, encode, write."""

from collections.abc import Callable
from pathlib import Path

import torch

from raykd.core.counters import METER
from raykd.core.errors import CacheMismatch
from raykd.core.types import Batch, Outputs, Signal
from raykd.data.loading.loader import Views
from raykd.outputs.codecs import Codec
from raykd.outputs.manifest import GRAIN, Part, Shard, write_shard


def compute_shard(
    folder: Path,
    part: Part,
    views: Views,
    teacher: Callable[[Batch], Outputs],
    signals: Signal,
    codec: Codec,
    size: int = GRAIN,
) -> Shard:
    """Compute and write one shard, `size` images at a time.

    Raises `CacheMismatch` where an output cannot be stored.
    """
    rows = torch.arange(part.start, part.stop)
    encoded = []
    for number, batch in enumerate(views.runs(rows, size, part.view)):
        try:
            encoded.append(codec.encode(teacher(batch), signals))
        except ValueError as error:
            first = part.start + number * size
            raise CacheMismatch(
                f"view {part.view}, samples from {first}: {error}; this teacher cannot be distilled"
            ) from error
    columns = {name: torch.cat([piece[name] for piece in encoded]) for name in encoded[0]}
    shard = write_shard(folder, part, columns)
    METER.made_rows += len(part)
    METER.made_bytes += shard.bytes
    return shard
