"""From a recipe to a finished artefact in the store: teachers, shards, preludes, students.

Each function is one unit of work that any process can do, given the store. What it needs must
be in the store already: `raykd.planning.plan` says in which order.
"""

import contextlib
import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from raykd.config.scale import Scale
from raykd.core.errors import WorkFailed
from raykd.core.shutdown import Notice
from raykd.data.dataset import open_images, open_split
from raykd.data.loading.loader import Views
from raykd.methods.label_only import LabelOnly
from raykd.models.staged import Staged
from raykd.outputs.manifest import Part, Shard
from raykd.outputs.shard_files import Shelf
from raykd.outputs.shard_writer import compute_shard
from raykd.recipes import LogitsRun, PreludeRun, StudentRun, TeacherRun, Training, training_of
from raykd.storage import locks
from raykd.storage.atomic import lasting, make_folder
from raykd.storage.store import Store, write_json
from raykd.teachers.source import CachedTeacher
from raykd.tracking import run_log
from raykd.tracking.jsonl import metrics_checksum
from raykd.tracking.logger import Logger, Metrics
from raykd.training import initial_state, inputs, weights
from raykd.training.checkpointing import RESULT, Journal
from raykd.training.evaluation import BATCH, evaluate
from raykd.training.finite import check_weights, listed, not_finite
from raykd.training.hosts.base import EVERY_EPOCH, NO_NOTICE, Host, LocalHost
from raykd.training.loop import Sources, distil
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
) -> LocalHost:
    """A host that trains `run` in this process, as `scale` says it is to be done.

    `loggers` get its metrics beside metrics.jsonl and the trackers of `scale.track`.
    """
    journal = Journal.of(store, store.path(run), scale)
    log = run_log(store, run, scale.track, *loggers)
    return LocalHost(journal, default_device(), log, scale, notice)


def train(store: Store, run: Training, host: Host) -> None:
    """Train whatever the recipe describes, and finish its artefact.

    A worker whose driver has died may still be writing: it is waited for, and `NoRoom` raised where
    it goes on.
    """
    alone = locks.held(store, run, "writer", patience=_PATIENCE)
    with alone if host.rank == 0 else contextlib.nullcontext():
        result = None
        try:
            if isinstance(run, TeacherRun):
                result = train_teacher(store, run, host)
            elif isinstance(run, PreludeRun):
                result = train_prelude(store, run, host)
            else:
                result = train_student(store, run, host)
        finally:
            host.log.end(result)


def train_teacher(store: Store, teacher: TeacherRun, host: Host) -> Metrics | None:
    """Train a teacher, or take its given weights; its result, on rank 0."""
    make_folder(store.path(teacher))
    if teacher.weights is not None:
        return _adopt_teacher(store, teacher, host)
    saved = set(teacher.anchors())

    def save_anchor(epoch: int, network: Staged) -> None:
        if epoch in saved and host.rank == 0:
            if teacher.refresh_statistics:
                network = refreshed(network, train, run.view_at(epoch - 1))
                check_weights(run, epoch - 1, [network])
            path = weights.anchor_path(store, teacher, epoch)
            weights.save_weights(path, network)
            store.push(path)

    run = training_of(teacher)
    train, test = inputs.views(store, run, host)
    validation = inputs.validation(store, run, host.device, host.scale)
    learner = initial_state.learner(store, run, host, train.images.targets)
    sources = Sources(lambda epoch: None, train, test, validation=validation)
    trained = distil(run, learner, sources, host, save_anchor)
    if host.rank:
        return None
    result = result_of(run, [trained.learner.student], trained.history, host)
    return _finish(store, teacher, result)


def train_prelude(store: Store, prelude: PreludeRun, host: Host) -> Metrics | None:
    """Train what comes before a method's own training; its result, on rank 0."""
    folder = store.path(prelude)
    make_folder(folder)
    run = prelude.training()
    train, _ = inputs.views(store, run, host)
    learner = initial_state.learner(store, run, host, train.images.targets)
    teacher_at = inputs.teachers(store, run, host.device)
    trained = distil(run, learner, Sources(teacher_at, train), host)
    learner = trained.learner
    if host.rank == 0:
        parts: list[nn.Module] = [learner.helpers]
        if prelude.model is not None:
            weights.save_weights(folder / weights.STUDENT, learner.student)
            parts.append(learner.student)
        if learner.helpers.state_dict():
            weights.save_state(folder / weights.HELPERS, learner.helpers)
        return _finish(store, prelude, result_of(run, parts, trained.history, host))
    return None


def train_student(store: Store, run: StudentRun, host: Host) -> Metrics | None:
    """Train a student and finish its artefact; its result, on rank 0."""
    folder = store.path(run)
    make_folder(folder)
    train, test = inputs.views(store, run, host)
    validation = inputs.validation(store, run, host.device, host.scale)
    teacher_at = inputs.teachers(store, run, host.device)
    test_run = run.test_logits()
    test_teacher = inputs.open_cache(store, test_run, [0], host.device) if test_run else None
    if test_teacher is not None:
        test_teacher.prefetch(0)
    learner = initial_state.learner(store, run, host, train.images.targets)
    answers = CachedTeacher(test_teacher) if test_teacher else None
    sources = Sources(teacher_at, train, test, answers, validation)
    trained = distil(run, learner, sources, host)
    if host.rank == 0:
        learner, network = trained.learner, trained.released
        weights.save_weights(folder / weights.STUDENT, network)
        kept = run.method.releases(learner.helpers) if run.method.needs() else nn.ModuleDict()
        if kept.state_dict():
            weights.save_state(folder / weights.HELPERS, kept)
        if last := initial_state.lasting(learner.helpers):
            weights.save_tensors(folder / weights.STAGE, last)
        return _finish(store, run, result_of(run, [network, kept], trained.history, host))
    return None


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
        self, store: Store, run: LogitsRun, device: torch.device, scale: Scale = EVERY_EPOCH
    ) -> None:
        self._shelf = Shelf(store, store.path(run))
        self.folder = self._shelf.workshop
        make_folder(self.folder)
        self.views = inputs.shown(open_split(store, run.data, run.split), run.data, device, scale)
        self.teacher = inputs.live_teacher(store, run, device)
        self.codec = run.stored()

    def make(self, part: Part) -> Shard:
        """Compute and write one shard."""
        shard = compute_shard(
            self.folder, part, self.views, self.teacher, self.teacher.supplies, self.codec
        )
        self._shelf.add(shard)
        return shard


def _adopt_teacher(store: Store, teacher: TeacherRun, host: Host) -> Metrics | None:
    """Finish the artefact of a pretrained teacher: its weights, and how good it is."""
    network = weights.given_weights(store, teacher).to(host.device)
    wrong = not_finite([network.network], masks=network.classifier)
    if wrong:
        raise WorkFailed(f"{_given(teacher)}: {listed(wrong)} not finite; give other weights")
    _, test = open_images(store, teacher.data)
    started = time.monotonic()
    metrics = evaluate(
        network,
        LabelOnly(),
        nn.ModuleDict(),
        inputs.shown(test, teacher.data.test(), host.device, host.scale),
        None,
        host,
    )
    if math.isnan(metrics["test_loss"]):
        raise WorkFailed(
            f"{_given(teacher)}: its answers to the test images are not finite; give other weights"
        )
    if math.isinf(metrics["test_loss"]):
        del metrics["test_loss"]  # it leaves out a class that test images have
    metrics |= {"epoch": 0, "seconds": time.monotonic() - started}
    if host.rank == 0:
        weights.save_weights(weights.anchor_path(store, teacher, 0), network)
        result = result_of(training_of(teacher), [network], [metrics], host)
        return _finish(store, teacher, result)
    return None


def _given(teacher: TeacherRun) -> str:
    """A teacher with given weights, as messages name it."""
    return f"run.teacher.weights: the given teacher {teacher.model} ({teacher.weights})"


def _finish(store: Store, run: Training, result: dict[str, Any]) -> Metrics:
    """Write the result, with the checksums of the weights, and then the artefact's marker."""
    folder = store.path(run)
    store.pull_all(folder, "weights")  # epochs that were saved on other nodes
    with lasting(folder / RESULT):
        sums = {"weights": weights.checksums(folder), "metrics": metrics_checksum(folder)}
        write_json(folder / RESULT, result | sums)
        store.finish(run)
    Journal(folder, store=store).close()
    return result
