"""From a recipe to a finished artefact in the store: teachers, shards, preludes, students.

Each function is one unit of work that any process can do, given the store. What it needs must
be in the store already: `raykd.planning.plan` says in which order.
"""

import contextlib
import copy
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from raykd.config.scale import Scale
from raykd.core.errors import WorkFailed
from raykd.core.shutdown import Notice
from raykd.data.dataset import open_split
from raykd.data.loading.loader import Views
from raykd.methods.label_only import LabelOnly
from raykd.models.staged import Staged
from raykd.outputs.manifest import GRAIN, Part, Shard
from raykd.outputs.shard_files import ShardFolder
from raykd.outputs.shard_writer import compute_shard
from raykd.recipes import OutputsRun, PreludeRun, StudentRun, TeacherRun, Training, training_of
from raykd.storage import locks
from raykd.storage.atomic import lasting, make_folder
from raykd.storage.store import Store, write_json
from raykd.tracking import run_log
from raykd.tracking.jsonl import metrics_checksum
from raykd.tracking.logger import NO_LABELS, Labels, Logger
from raykd.training import initial_state, inputs, weights
from raykd.training.cache_statistics import vectors_of_cache
from raykd.training.calibrations import Calibrations
from raykd.training.checkpointing import RESULT, Checkpoints
from raykd.training.evaluation import BATCH, evaluate
from raykd.training.finite import check_weights, listed, not_finite
from raykd.training.hosts.base import EVERY_EPOCH, NO_NOTICE, Host, LocalHost
from raykd.training.learner import Learner
from raykd.training.loop import Sources, Trained, distil
from raykd.training.probing import embeddings
from raykd.training.result import result_of

# Seconds that a writer may take to notice that its driver is gone, or NFS that a node is.
_PATIENCE = 300.0


def default_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def local_host(
    store: Store,
    run: Training,
    scale: Scale = EVERY_EPOCH,
    loggers: Sequence[Logger] = (),
    notice: Notice = NO_NOTICE,
    labels: Labels = NO_LABELS,
) -> LocalHost:
    """A host that trains `run` in this process, as `scale` says it is to be done.

    `loggers` get its metrics beside metrics.jsonl and the trackers of `scale.track`, which group
    trainings by `labels`.
    """
    checkpoints = Checkpoints.of(store, store.path(run), scale)
    log = run_log(store, run, scale.track, *loggers, labels=labels)
    return LocalHost(checkpoints, default_device(), log, scale, notice)


def train(store: Store, run: Training, host: Host) -> None:
    """Train whatever the recipe describes, and finish its artefact.

    A worker whose driver has died may still be writing: it is waited for, and `NoRoom` raised where
    it goes on.
    """
    alone = locks.held(store, run, "writer", patience=_PATIENCE)
    with alone if host.rank == 0 else contextlib.nullcontext():
        result = None
        try:
            make_folder(store.path(run))
            if isinstance(run, TeacherRun) and run.is_given:
                result = _adopt(store, run, host)
            else:
                result = _train(store, run, host)
            if result is not None:
                _finish(store, run, result)
        finally:
            host.log.end(result)


def _train(store: Store, run: Training, host: Host) -> dict[str, Any] | None:
    """Train, and write the weights; the result, on rank 0."""
    training = training_of(run)
    train, test = inputs.views(store, training, host)
    kept = Calibrations(store, host)
    sources = Sources(inputs.teachers(store, training, host.device), train, kept=kept)
    if not isinstance(run, PreludeRun):  # which is not evaluated
        test_teacher = inputs.test_teacher(store, training, host.device)
        validation = inputs.validation(store, training, host.device, host.scale)
        probe = inputs.probe(store, training, host.device, host.scale)
        sources = Sources(sources.teacher_at, train, test, test_teacher, validation, probe, kept)
    learner = initial_state.learner(store, training, host, train.images.targets)

    def save_anchor(epoch: int, network: Staged) -> None:
        if isinstance(run, TeacherRun) and epoch in run.anchors() and host.rank == 0:
            _save_anchor(store, run, epoch, network, train)

    trained = distil(training, learner, sources, host, save_anchor)
    if host.rank:
        return None
    parts: list[nn.Module] = [trained.released]
    if isinstance(run, PreludeRun):
        parts = _save_prelude(store.path(run), run, trained.learner)
    elif isinstance(run, StudentRun):
        parts = _save_student(store.path(run), run, trained)
    return result_of(training, parts, trained.history, host)


def _save_anchor(
    store: Store, teacher: TeacherRun, epoch: int, network: Staged, train: Views
) -> None:
    """Write a teacher's weights after `epoch` epochs."""
    if teacher.refresh_statistics:
        training = training_of(teacher)
        network = refreshed(network, train, training.view_at(epoch - 1))
        check_weights(training, epoch - 1, [network])
    path = weights.anchor_path(store, teacher, epoch)
    weights.save_weights(path, network)
    store.push(path)


def _save_prelude(folder: Path, prelude: PreludeRun, learner: Learner) -> list[nn.Module]:
    """Write the weights of a prelude; the modules that they belong to."""
    if learner.helpers.state_dict():
        weights.save_state(folder / weights.HELPERS, learner.helpers.state_dict())
    if prelude.model is None:
        return [learner.helpers]
    weights.save_weights(folder / weights.STUDENT, learner.student)
    return [learner.helpers, learner.student]


def _save_student(folder: Path, run: StudentRun, trained: Trained) -> list[nn.Module]:
    """Write the weights of a student; the modules that are needed to use it."""
    helpers = trained.learner.helpers
    weights.save_weights(folder / weights.STUDENT, trained.released)
    released = run.task.releases(run.method, helpers) if len(helpers) else nn.ModuleDict()
    if released.state_dict():
        weights.save_state(folder / weights.HELPERS, released.state_dict())
    if last := initial_state.lasting(helpers):
        weights.save_state(folder / weights.STAGE, last)
    return [trained.released, released]


def refreshed(network: Staged, train: Views, view: int) -> Staged:
    """A copy whose batch-norm statistics are those of one view of all training images."""
    try:
        return _refreshed(network, train, view, BATCH)
    except ValueError:  # a batch norm's: a last batch of one image whose maps are 1 x 1
        count = len(train.images)
        size = next((size for size in range(BATCH, 1, -1) if count % size != 1), BATCH)
        return _refreshed(network, train, view, size)


def _refreshed(network: Staged, train: Views, view: int, batch: int) -> Staged:
    """The copy, from batches of `batch` images and the rest."""
    copied = copy.deepcopy(network)
    runs = train.runs(torch.arange(len(train.images)), batch, view)
    update_bn((shown.pixels for shown in runs), copied)
    return copied


class ShardMaker:
    """Computes shards of one cache in this process: the teacher and the images stay loaded."""

    def __init__(
        self, store: Store, run: OutputsRun, device: torch.device, scale: Scale = EVERY_EPOCH
    ) -> None:
        self._shelf = ShardFolder(store, store.path(run))
        self.folder = self._shelf.drafts
        make_folder(self.folder)
        self.views = inputs.views_of(
            open_split(store, run.data, run.split), run.data, device, scale
        )
        self.teacher = inputs.live_teacher(store, run, device)
        self.size = scale.teacher_batch or self.views.at_once(GRAIN, self.teacher.network.side)
        self.codec = run.stored()
        self.vectors = vectors_of_cache(store, run, self.views, self.teacher)

    def make(self, part: Part) -> Shard:
        """Compute and write one shard."""
        shard = compute_shard(
            self.folder,
            part,
            self.views,
            self.teacher,
            self.teacher.supplies,
            self.codec,
            self.size,
            self.vectors,
        )
        self._shelf.add(shard)
        return shard


def _adopt(store: Store, teacher: TeacherRun, host: Host) -> dict[str, Any] | None:
    """Evaluate a given teacher, and write its weights; the result, on rank 0."""
    network = weights.pretrained(store, teacher).to(host.device)
    name = f"run.teacher.weights: the given teacher {teacher.model} ({teacher.weights})"
    wrong = not_finite([network.network], masks=network.classifier)
    if wrong:
        raise WorkFailed(f"{name}: {listed(wrong)} not finite; give other weights")
    started = time.monotonic()
    test = open_split(store, teacher.data, "test")
    views = inputs.views_of(test, teacher.data.test(), host.device, host.scale)
    metrics: dict[str, Any] = {"unscored": True}
    if teacher.is_tested():
        metrics = evaluate(network, LabelOnly(), nn.ModuleDict(), views, None, host)
        finite = not math.isnan(metrics["test_loss"])
    else:
        finite = bool(embeddings(network, views, host).isfinite().all())
    if not finite:
        raise WorkFailed(
            f"{name}: its answers to the test images are not finite; give other weights"
        )
    if math.isinf(metrics.get("test_loss", 0.0)):
        del metrics["test_loss"]  # it leaves out a class that test images have
    metrics |= {"epoch": 0, "seconds": time.monotonic() - started}
    if host.rank:
        return None
    weights.save_weights(weights.anchor_path(store, teacher, 0), network)
    return result_of(training_of(teacher), [network], [metrics], host)


def _finish(store: Store, run: Training, result: Mapping[str, Any]) -> None:
    """Write the result, with the checksums of the weights, and then the artefact's marker."""
    folder = store.path(run)
    store.pull_all(folder, "weights")  # epochs that were saved on other nodes
    with lasting(folder / RESULT):
        sums = {"weights": weights.checksums(folder), "metrics": metrics_checksum(folder)}
        write_json(folder / RESULT, {**result, **sums})
        store.finish(run)
    Checkpoints(folder, store=store).close()
