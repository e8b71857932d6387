"""Counters of this process: steps, images, waits, cache look-ups. They only grow.

Times are by the host's clock: no tensor is read and no device is waited for, so a GPU may be some
steps behind.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raykd.core.types import Batch


@dataclass
class Meter:
    """Counters of one process."""

    steps: int = 0  # forward and backward passes
    images: int = 0  # in steps
    step_seconds: float = 0.0  # in steps, without `cache_seconds`
    data_seconds: float = 0.0  # waiting for batches
    cache_hits: int = 0  # look-ups of teacher outputs in an open view
    cache_misses: int = 0  # look-ups that waited for their view to be opened
    cache_seconds: float = 0.0  # waiting for views to be opened
    cache_bytes: int = 0  # size of the rows that were looked up, as stored
    shards_here: int = 0  # opened shards that were on this node
    shards_fetched: int = 0  # opened shards that had to be fetched
    fetched_bytes: int = 0  # size of fetched shards
    made_rows: int = 0  # rows of computed shards
    made_bytes: int = 0  # size of computed shards


METER = Meter()


class Timed:
    """Iterator over an epoch's batches that times the steps between them."""

    def __init__(self, batches: Iterable[Batch], meter: Meter = METER) -> None:
        self._batches = iter(batches)
        self._meter = meter
        self._steps = 0
        self._step_seconds = 0.0
        self._wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            requested = time.monotonic()
            batch = next(self._batches, None)
            received, cached = time.monotonic(), self._meter.cache_seconds
            self._meter.data_seconds += received - requested
            self._wait_seconds += received - requested
            if batch is None:
                return
            yield batch
            waited = self._meter.cache_seconds - cached
            worked = time.monotonic() - received - waited
            self._meter.step_seconds += worked
            self._meter.steps += 1
            self._meter.images += len(batch.ids)
            self._step_seconds += worked
            self._wait_seconds += waited
            self._steps += 1

    def metrics(self) -> dict[str, float]:
        """Mean seconds per step, and total seconds of waiting for images or teacher outputs."""
        mean = self._step_seconds / max(1, self._steps)
        return {"step_seconds": mean, "data_wait_seconds": self._wait_seconds}
