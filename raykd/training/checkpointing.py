"""The files of a run: its last checkpoint, its result, and its metrics (`raykd.tracking.jsonl`).

A checkpoint ends with a checksum of its bytes and of the folder that it was written for, since
torch reads damaged ones without an error.
"""

import contextlib
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from raykd.config.scale import Scale
from raykd.core.errors import CacheCorrupt, RaykdError, text_of
from raykd.storage.atomic import lasting, write_atomic
from raykd.storage.store import Store, read_json
from raykd.tasks.base import HEADINGS
from raykd.tracking.jsonl import METRICS, Amount, Epoch, Shape

CHECKPOINT = "checkpoint.pt"
RESULT = "result.json"  # written when a run has finished
_LEAVING_SECONDS = 5.0  # between checkpoints on a machine that is about to go
_SEAL = b"\nraykd-seal:"  # at the end of a checkpoint, before a SHA-256 in hex digits


class _Tested(Epoch):
    @model_validator(mode="after")
    def _check(self) -> "_Tested":
        if not any(getattr(self, name) is not None for name in HEADINGS) and not self.unscored:
            raise ValueError(f"none of {', '.join(HEADINGS)} is there")
        return self


class _Loss(Epoch):
    loss: float  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]


class Result(Shape):
    """The content of a finished run's result.json, as `result_of` makes it."""

    parameters: Annotated[int, Field(ge=0)]
    flops: Annotated[int, Field(ge=0)] | None = None
    latency_ms: Amount | None = None
    epochs: int = 0
    last: Epoch
    best: Epoch
    images_per_second: Amount | None = None
    seconds: Amount
    workers: Annotated[int, Field(ge=1)] = 1
    hardware: str
    weights: dict[str, str] | None = None  # the files' checksums
    metrics: str | None = None  # that of METRICS


class Tested(Result):
    """Result of a teacher or a student."""

    last: _Tested  # pyright: ignore[reportIncompatibleVariableOverride]
    best: _Tested  # pyright: ignore[reportIncompatibleVariableOverride]


class Untested(Result):
    """Result of a prelude, which is not tested."""

    last: _Loss  # pyright: ignore[reportIncompatibleVariableOverride]


@contextlib.contextmanager
def fitting(checkpoint: Mapping[str, Any]) -> Iterator[None]:
    """Context manager for loading a checkpoint; raises `CacheCorrupt` where it is another run's."""
    try:
        yield
    except RaykdError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _unusable(Path(checkpoint["path"]), "is of another run", error) from error


def _unusable(path: Path, what: str, error: Exception | None = None) -> CacheCorrupt:
    """The error for a checkpoint that a run cannot go on from."""
    if error is not None:
        reason = text_of(error)
        what += f" ({reason.splitlines()[0][:200]})"
    return CacheCorrupt(f"{path}: the checkpoint {what}; remove it to start this run again")


class Checkpoints:
    """The checkpoints of one run in progress, in its folder.

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
        self._leaving = False

    @classmethod
    def of(cls, store: Store, folder: Path, scale: Scale) -> "Checkpoints":
        """The checkpoints of a folder in a store, made as often as `scale` says."""
        return cls(folder, scale.checkpoint_seconds, store, scale.checkpoint_within_seconds)

    def restore(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, on the CPU, and its `path`; None where there is none.

        It holds nothing but tensors, numbers, strings and containers of them: it is read
        without running any code. Raises `CacheCorrupt` where it cannot be read.
        """
        path = self.folder / CHECKPOINT
        if self._store is not None:
            self._store.renew(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, "cannot be read", error) from error
        payload, mark, _ = data.rpartition(_SEAL)
        if not mark:
            raise _unusable(path, "cannot be read (it has no checksum)")
        if data != payload + self._seal(payload):
            raise _unusable(path, "was altered, or belongs to another run")
        try:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds
            raise _unusable(path, f"cannot be read ({type(error).__name__})") from error
        return state | {"path": str(path)}

    def _seal(self, data: bytes) -> bytes:
        """The checksum that ends a checkpoint of these bytes in this folder."""
        digest = hashlib.sha256(self.folder.name.encode())
        digest.update(data)
        return _SEAL + digest.hexdigest().encode()

    def due(self, *, last: bool) -> bool:
        """True where it is time to replace the checkpoint at the end of an epoch."""
        return last or time.monotonic() - self._saved >= self.seconds

    def due_within(self, *, leaving: bool) -> bool:
        """True where it is time to between two steps; `leaving`: this machine is about to stop."""
        urgent = leaving and not self._leaving
        self._leaving = leaving
        passed = time.monotonic() - self._saved
        return urgent or passed >= (_LEAVING_SECONDS if leaving else self.within)

    def record(self, state: Callable[[], dict[str, Any]] | None, *, last: bool) -> None:
        """Replace the checkpoint at the end of an epoch, where it is time to.

        Where there is no `state`, the checkpoint stays.
        """
        if state is not None and self.due(last=last):
            self.keep(state())

    def keep(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        data = io.BytesIO()
        torch.save(state, data)
        payload, path = data.getvalue(), self.folder / CHECKPOINT
        payload += self._seal(payload)
        with lasting(path):
            if self._store is None:
                write_atomic(path, payload)
            else:
                self._store.write(path, payload)
                self._store.push(self.folder / METRICS)
        self.restart_timer()

    def restart_timer(self) -> None:
        """Note that a worker, this or another one, has just replaced the checkpoint."""
        self._saved = time.monotonic()

    def close(self) -> None:
        """Remove the checkpoint of a finished run."""
        if self._store is None:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        else:
            self._store.remove(self.folder / CHECKPOINT)


def read_result(folder: Path, shape: type[Result] = Result) -> dict[str, Any]:
    """The result of a finished run. Raises `CacheCorrupt` where it is missing or was altered."""
    return read_json(
        folder / RESULT,
        shape,
        advice="it is the result of a finished run, so bring the file back, or remove the folder "
        f"{folder} to train it again",
    )
