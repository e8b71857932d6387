"""metrics.jsonl of a run: one line of JSON per epoch. Writing, reading, following."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from raykd.core.errors import CacheCorrupt, Unreachable
from raykd.core.futures import repeating
from raykd.recipes import Training
from raykd.storage import arrow
from raykd.storage.atomic import appending, lasting, write_atomic
from raykd.storage.store import Store
from raykd.tracking.logger import Logger, Metrics

METRICS = "metrics.jsonl"
_POLL_SECONDS = 0.5
_FAR = 20  # polls between two looks at what another node has written

Percent = Annotated[float, Field(ge=0, le=100)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Shape(BaseModel):
    """Base of checked parts of files; further fields are allowed and kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class Epoch(Shape):
    """The metrics of an epoch."""

    epoch: int = 0
    loss: float | None = None
    unscored: bool = False  # True for a teacher whose logits are not those of the data's classes
    cka: Percent | None = None
    knn_top1: Percent | None = None
    linear_top1: Percent | None = None
    recall_at_1: Percent | None = None
    map: Percent | None = None
    map_at_r: Percent | None = None
    verification: Percent | None = None
    top1: Percent | None = None
    top5: Percent | None = None
    validation_top1: Percent | None = None
    validation_top5: Percent | None = None
    agreement: Percent | None = None
    kl: float | None = None
    seconds: Amount | None = None


_LINES = TypeAdapter(list[Epoch])


class JsonLines:
    """Logger that keeps metrics.jsonl in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Replace the file by the lines of `history`: a checkpoint may be older than its end."""
        lines = "".join(json.dumps(line) + "\n" for line in history)
        write_atomic(self.path, lines.encode())

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Append a line."""
        with lasting(self.path), appending(self.path) as file:
            file.write(json.dumps(metrics) + "\n")

    def end(self, run: Training, result: Metrics | None) -> None:
        """Nothing: the file is complete after each epoch."""


def numbers(metrics: Metrics) -> dict[str, int | float]:
    """The numbers among an epoch's metrics."""
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def outcome(result: Metrics) -> dict[str, int | float | str]:
    """Numbers and texts of a training's result; those of its best epoch as `best_NAME`."""
    best = {f"best_{name}": value for name, value in numbers(result["best"]).items()}
    texts = {name: value for name, value in result.items() if isinstance(value, str)}
    return texts | numbers(result) | best


def read_metrics(
    folder: Path, store: Store | None = None, result: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The epochs' metrics of a run, in order; a line that is still being written is left out.

    `store`: of a run in progress, which may be on another node; the longer of the local and the
    remote file is read. `result`: of a finished run, whose checksum the file must have. Raises
    `CacheCorrupt`.
    """
    path = folder / METRICS
    texts = [path.read_bytes() if path.is_file() else b""]
    if store is not None:
        texts.append(store.elsewhere(path) or b"")
    lines = max((text.split(b"\n")[:-1] for text in texts), key=len)
    try:
        history = [json.loads(line) for line in lines]
        _LINES.validate_python(history)
    except (ValueError, RecursionError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise CacheCorrupt(
            f"{path}: not lines of JSON, one for the metrics of each epoch ({what}); remove the "
            "file of a run that goes on, the folder of a finished one"
        ) from error
    if result is not None and not _belongs(result, texts[0], history):
        raise CacheCorrupt(
            f"{path}: these are not the metrics that result.json speaks of; bring the file back, "
            f"or remove {folder} to train it again"
        )
    return history


def metrics_checksum(folder: Path) -> str | None:
    """The checksum of a run's metrics; None where there are none, as of given weights."""
    path = folder / METRICS
    return arrow.file_checksum(path) if path.is_file() else None


def _belongs(result: Mapping[str, Any], text: bytes, history: list[dict[str, Any]]) -> bool:
    """True where metrics are those of a result, by checksum or, without one, by the last line."""
    checksum = result.get("metrics")
    if checksum is not None:
        return arrow.checksum(text) == checksum
    return not history or history[-1] == result["last"]


@contextlib.contextmanager
def following(store: Store, run: Training, logger: Logger) -> Iterator[None]:
    """Region in which `logger` gets the epochs of a training that any process does.

    A thread reads metrics.jsonl, also what another node has pushed to a remote store.
    """
    folder = store.path(run)
    before: list[dict[str, Any]] = []
    with contextlib.suppress(CacheCorrupt):  # the training writes the file anew
        before = read_metrics(folder)
    done = len(before)

    def look(store: Store | None = None) -> None:
        nonlocal done
        history = read_metrics(folder, store)
        for metrics in history[done:]:
            logger.epoch(run, metrics)
        done = max(done, len(history))

    polls = itertools.count(1)

    def poll() -> None:
        with contextlib.suppress(Unreachable):  # the process that trains reports it
            look(store if next(polls) % _FAR == 0 else None)

    logger.begin(run, before)
    try:
        with repeating(poll, _POLL_SECONDS):
            yield
    finally:
        look()
        logger.end(run, None)
