"""What this process has done so far: plain numbers that only grow, for whoever shows them.

Times are those of the host's clock: no tensor is read, and no device is waited for. A GPU may be
some steps behind.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raykd.core.types import Batch


@dataclass
class Meter:
    """Counts of one process."""

    steps: int = 0  # forward and backward passes
    images: int = 0  # in them
    step_seconds: float = 0.0  # in them, without `cache_seconds`
    data_seconds: float = 0.0  # in which a step waited for its batch
    cache_hits: int = 0  # look-ups of teacher outputs in a view that was open
    cache_misses: int = 0  # those that waited for it to be opened
    cache_seconds: float = 0.0  # in which they waited
    cache_bytes: int = 0  # of the rows that were looked up, as they lie in the files
    shards_here: int = 0  # shards of views that were opened, and which this node had
    shards_fetched: int = 0  # and which it had not
    fetched_bytes: int = 0  # of those
    made_rows: int = 0  # of shards that were computed
    made_bytes: int = 0  # of them


METER = Meter()


class Timed:
    """The batches of an epoch, whose steps are timed while they are gone through."""

    def __init__(self, batches: Iterable[Batch], meter: Meter = METER) -> None:
        self._batches = iter(batches)
        self._meter = meter
        self._steps = 0
        self._step_seconds = 0.0
        self._wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            asked = time.monotonic()
            batch = next(self._batches, None)
            given, cached = time.monotonic(), self._meter.cache_seconds
            self._meter.data_seconds += given - asked
            self._wait_seconds += given - asked
            if batch is None:
                return
            yield batch
            waited = self._meter.cache_seconds - cached
            worked = time.monotonic() - given - waited
            self._meter.step_seconds += worked
            self._meter.steps += 1
            self._meter.images += len(batch.ids)
            self._step_seconds += worked
            self._wait_seconds += waited
            self._steps += 1

    def metrics(self) -> dict[str, float]:
        """Seconds of a step, and those in which steps waited for images or teacher outputs."""
        mean = self._step_seconds / max(1, self._steps)
        return {"step_seconds": mean, "data_wait_seconds": self._wait_seconds}
