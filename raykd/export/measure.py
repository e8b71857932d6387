"""Measurements of written files: the time of one image, and what 8 bits change.

Shapes: B batch, C classes, D embedding width, H, W pixels.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.data.loading.loader import Views
from raykd.export import graph
from raykd.prediction.preprocess import Preprocess
from raykd.training.load_trained import Finished
from raykd.training.result import hardware

CALLS = 50  # timed calls of a network on one image
LEAST_CALLS = 20  # as many are made however long they take
SECONDS = 5.0  # after which no further call is made
TESTED = 5_000  # test images, evenly spread, on which graphs are compared at most
_BATCH = 64  # images that a graph computes at a time


def latency(model: Finished, normalised: Tensor, graphs: dict[str, Path]) -> dict[str, Any]:
    """The time of one image on one thread of this processor: of the network, and of its graphs.

    `normalised` is an image [1, 3, H, W], from which the graphs' input is made as well; `graphs`
    are ONNX files by name. `load` is the number of processes that wanted a processor beside.
    """
    pixels = grey_levels(model, normalised)
    threads, (load, *_) = torch.get_num_threads(), os.getloadavg()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            times = {"PyTorch": _timed(lambda: model.answer(normalised))}
    finally:
        torch.set_num_threads(threads)
    given = {graph.PIXELS: pixels.numpy()}
    for name, path in graphs.items():
        times[name] = _timed(partial(graph.session(path, threads=1).run, None, given))
    device = torch.device("cpu")
    return {"hardware": hardware(device), "threads": 1, "load": round(load, 1), "files": times}


def _timed(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of a call after three others: median, tenth and ninetieth of a hundred."""
    for _ in range(3):
        call()
    times: list[float] = []
    until = time.monotonic() + SECONDS
    while len(times) < CALLS and (len(times) < LEAST_CALLS or time.monotonic() < until):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    low, *_, high = statistics.quantiles(times, n=10)
    rounded = {"median_ms": statistics.median(times), "low_ms": low, "high_ms": high}
    return {key: float(f"{value:.3g}") for key, value in rounded.items()} | {"calls": len(times)}


def compared(model: Finished, exact: Path, other: Path) -> dict[str, Any]:
    """Accuracy of two ONNX graphs on test images, and how often they answer alike, in percent.

    Of a backbone: the mean cosine of their embeddings.
    """
    count = len(model.test)
    rows = torch.linspace(0, count - 1, min(count, TESTED)).long()
    views = Views(model.test, model.run.data.resolved().test(), skip_bad=True)
    sessions = [graph.session(path) for path in (exact, other)]
    right, alike = [0, 0], 0.0
    for batch in views.runs(rows, _BATCH):
        array = grey_levels(model, batch.pixels).numpy()
        answers = [torch.from_numpy(one.run(None, {graph.PIXELS: array})[0]) for one in sessions]
        if model.is_backbone:
            alike += float(F.cosine_similarity(answers[0], answers[1]).sum())
            continue
        best = [answer.argmax(1) for answer in answers]
        alike += int((best[0] == best[1]).sum())
        right = [n + int((one == batch.targets).sum()) for n, one in zip(right, best, strict=True)]
    facts: dict[str, Any] = {"test_images": len(rows)}
    if model.is_backbone:
        return facts | {"cosine": alike / len(rows)}
    shares = [100 * number / len(rows) for number in right]
    named = dict(zip((exact.name, other.name), shares, strict=True))
    return facts | {"top1": named, "agreement": 100 * alike / len(rows)}


def grey_levels(model: Finished, normalised: Tensor) -> Tensor:
    """The uint8 pixels [B, 3, H, W] that became these normalised ones."""
    return Preprocess(model.run.data.resolved()).grey_levels(normalised)
