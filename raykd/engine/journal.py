"""What a run writes down while it trains: a line of metrics per epoch, and its last checkpoint."""

import io
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from raykd.disk import appending, lasting, write_atomic
from raykd.errors import CacheCorrupt
from raykd.scale import Scale
from raykd.store import Store

METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
RESULT = "result.json"  # of a finished run
_TOLD_SECONDS = 5.0  # between checkpoints on a machine that is about to go


class Journal:
    """The folder of one run in progress.

    A checkpoint is one file that is replaced atomically: at the end of an epoch, when `seconds`
    have passed since the last one, and between two steps of one, when `within` have. It holds the
    metrics of its epochs too, so that a continued run goes on with exactly the lines that belong
    to it. With the `store` that the folder belongs to, other nodes get every checkpoint, and a run
    may go on on one of them.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float = 0.0,
        store: Store | None = None,
        within: float = math.inf,
    ) -> None:
        self.folder = folder
        self.seconds = seconds
        self.within = within
        self._store = store
        self._saved = time.monotonic()
        self._told = False

    @classmethod
    def of(cls, store: Store, folder: Path, scale: Scale) -> "Journal":
        """That of a folder in a store, with checkpoints as often as `scale` says."""
        return cls(folder, scale.checkpoint_seconds, store, scale.checkpoint_within_seconds)

    def restore(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, on the CPU; None where there is none.

        Holds nothing but tensors, numbers, strings and containers of them: it is read
        without running any code. Raises `CacheCorrupt` where it cannot be read.
        """
        path = self.folder / CHECKPOINT
        if self._store is not None:
            self._store.renew(path)
        if not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds for a damaged file
            raise CacheCorrupt(
                f"{path}: the checkpoint cannot be read ({type(error).__name__}); "
                "remove it to start this run again"
            ) from error

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Set the metrics file to the lines of the epochs that a checkpoint covers."""
        lines = "".join(json.dumps(line) + "\n" for line in history)
        write_atomic(self.folder / METRICS, lines.encode())

    def due(self, *, last: bool) -> bool:
        """Whether it is time to replace the checkpoint."""
        return last or time.monotonic() - self._saved >= self.seconds

    def due_within(self, *, told: bool) -> bool:
        """The same between two steps; `told`: that this machine is about to go."""
        urgent = told and not self._told
        self._told = told
        passed = time.monotonic() - self._saved
        return urgent or passed >= (_TOLD_SECONDS if told else self.within)

    def record(
        self, metrics: Mapping[str, Any], state: Callable[[], dict[str, Any]] | None, *, last: bool
    ) -> None:
        """Append an epoch's metrics, and replace the checkpoint where it is time to.

        Where there is no `state`, the checkpoint stays.
        """
        path = self.folder / METRICS
        with lasting(path), appending(path) as file:
            file.write(json.dumps(metrics) + "\n")
        if state is not None and self.due(last=last):
            self.keep(state())

    def keep(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        data = io.BytesIO()
        torch.save(state, data)
        path = self.folder / CHECKPOINT
        with lasting(path):
            if self._store is None:
                write_atomic(path, data.getvalue())
            else:
                self._store.write(path, data.getvalue())
                self._store.push(self.folder / METRICS)
        self.kept()

    def kept(self) -> None:
        """The checkpoint was replaced just now, by whichever worker."""
        self._saved = time.monotonic()

    def close(self) -> None:
        """Remove the checkpoint of a finished run."""
        if self._store is None:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        else:
            self._store.remove(self.folder / CHECKPOINT)


def numbers(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers among an epoch's metrics."""
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def read_metrics(folder: Path, store: Store | None = None) -> list[dict[str, Any]]:
    """The epochs' metrics of a run, in order; a line that is still being written is left out.

    With the `store` of a run in progress, which may be on another node, as far as they are known.
    """
    path = folder / METRICS
    texts = [path.read_bytes() if path.is_file() else b""]
    if store is not None:
        texts.append(store.elsewhere(path) or b"")
    lines = max((text.split(b"\n")[:-1] for text in texts), key=len)
    try:
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: not lines of JSON ({error}); remove the folder") from error
