"""A finished network that answers about image files.

Shapes: B batch, C classes, D embedding width, H, W pixels.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raykd.core.errors import ConfigError, DataError
from raykd.data.recipe import ResolvedData
from raykd.prediction.image_paths import image_paths
from raykd.prediction.preprocess import Picture, Preprocess, name_of
from raykd.recipes import AnyTeacher, StudentRun
from raykd.storage.store import Store
from raykd.training.load_trained import Finished, finished

_DECODERS = 8  # threads at most


@dataclass(frozen=True)
class Prediction:
    """The answer about one image: its most probable classes, or its embedding."""

    path: str
    labels: tuple[str, ...] = ()  # names of the most probable classes, that one first
    scores: tuple[float, ...] = ()  # their probabilities, 0 to 1
    embedding: tuple[float, ...] | None = None  # a backbone's answer: D numbers
    fault: str | None = None  # the reason why there is no answer

    @property
    def label(self) -> str | None:
        """The name of the most probable class; None without one."""
        return self.labels[0] if self.labels else None


class Predictor(nn.Module):
    """A finished student or teacher of a store or of an exported folder, in evaluation mode.

    It owns the plain network, and the helpers of its method without which that has no answer. It
    computes in the precision of its weights, float32, also where its training did not.
    """

    preprocess: Preprocess
    classes: tuple[str, ...] | None  # their names; None of a backbone, or where they are unknown
    is_backbone: bool  # True without a classifier: it answers with embeddings

    def __init__(
        self,
        network: nn.Module,
        answer: Callable[[Tensor], Tensor],
        data: ResolvedData,
        classes: tuple[str, ...] | None,
        *,
        is_backbone: bool,
        helpers: nn.ModuleDict | None = None,
    ) -> None:
        """`answer` is from normalised pixels to scores, or to embeddings."""
        super().__init__()
        self.network = network
        self.helpers = nn.ModuleDict() if helpers is None else helpers
        self.preprocess = Preprocess(data)
        self.classes = None if is_backbone else classes
        self.is_backbone = is_backbone
        self._answer = answer
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores [B, C] of normalised pixels [B, 3, H, W]: logits, as in evaluation.

        Of a backbone, or an encoder: embeddings [B, D].
        """
        return self._answer(pixels)

    def predict(
        self,
        paths: Picture | Iterable[Picture],
        batch: int = 64,
        top: int = 5,
        *,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Prediction]:
        """Answers about images, in the order of `paths`: files, folders, patterns, Pillow's images.

        The `top` most probable classes each; `batch` images are computed at a time. An image that
        cannot be decoded is a `DataError` that names it; with `skip_bad`, its prediction has a
        `fault` instead. `progress` receives the number of images so far and that of all.
        """
        pictures = image_paths(paths)
        predictions: list[Prediction] = []
        for prediction in self.stream(pictures, batch, top, skip_bad=skip_bad):
            predictions.append(prediction)
            if progress is not None:
                progress(len(predictions), len(pictures))
        return predictions

    def stream(
        self, pictures: Sequence[Picture], batch: int = 64, top: int = 5, *, skip_bad: bool = False
    ) -> Iterator[Prediction]:
        """The answers of `predict` one after the other, for image files or images of Pillow's.

        The images of the next batch are decoded while one is computed.
        """
        for name, value in (("batch", batch), ("top", top)):
            if value < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {value}")
        threads = min(_DECODERS, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(threads)
        current: list[tuple[Picture, Future[Tensor]]] = []
        try:
            for start in range(0, len(pictures) + batch, batch):
                part = pictures[start : start + batch]
                following = [(one, pool.submit(self.preprocess.pixels, one)) for one in part]
                yield from self._answers(current, top, skip_bad=skip_bad)
                current = following
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answers(
        self, decoded: list[tuple[Picture, Future[Tensor]]], top: int, *, skip_bad: bool
    ) -> Iterator[Prediction]:
        """The answers about one batch of images."""
        pixels: list[Tensor] = []
        faults: dict[int, str] = {}
        for index, (_, future) in enumerate(decoded):
            try:
                pixels.append(future.result())
            except DataError as error:
                faults[index] = str(error)
        if faults and not skip_bad:
            raise DataError("\n".join(faults.values()))
        answers = iter(self._computed(torch.stack(pixels), top) if pixels else [])
        for index, (picture, _) in enumerate(decoded):
            if index in faults:
                yield Prediction(name_of(picture), fault=faults[index])
            else:
                yield Prediction(name_of(picture), **next(answers))

    def _computed(self, pixels: Tensor, top: int) -> list[dict[str, Any]]:
        """Fields of the predictions for grey levels uint8 [B, H, W, 3]."""
        weight = next(self.parameters(), None)
        device = None if weight is None else weight.device
        with torch.no_grad():
            answer = self(self.preprocess.normalised(pixels.to(device)))
        if self.is_backbone:
            return [{"embedding": tuple(row)} for row in answer.tolist()]
        # The best class is that of the logits: rounding may make two probabilities equal.
        best = answer.topk(min(top, answer.shape[1]), dim=1).indices
        scores = answer.softmax(1).gather(1, best).tolist()
        names = self.classes
        return [
            {
                "labels": tuple(str(i) if names is None else names[i] for i in row),
                "scores": tuple(shares),
            }
            for row, shares in zip(best.tolist(), scores, strict=True)
        ]


def load(store: Store, run: AnyTeacher) -> Predictor:
    """The network of a finished run, on the CPU; a teacher's is that of its last epoch.

    No image is read, and none needs to be in the store but for the names of the classes. Raises
    `CacheCorrupt` where the weights are missing or were altered.
    """
    made = finished(store, run)
    data = made.run.data.resolved()
    return Predictor(
        made.network.network,
        made.answer,
        data,
        _classes(made),
        is_backbone=made.is_backbone,
        helpers=made.released,
    )


def _classes(finished: Finished) -> tuple[str, ...] | None:
    """The names of a network's classes; None of a backbone, or where they are not the data's."""
    if finished.is_backbone:
        return None
    run, names = finished.run, finished.names
    count = len(names) if isinstance(run, StudentRun) else run.logit_count()
    return names if count == len(names) else None
