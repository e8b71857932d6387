"""The training loop: start reading here.

A run is a function of its recipe. What an epoch does follows from (seed, epoch, rank) and the
state at its beginning, so a run that is stopped after any epoch and continued ends with the
same weights, bit for bit on a CPU; so does one that is stopped within an epoch and continued from a
checkpoint of `mid_epoch`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raykd.core import keyed_random
from raykd.core.counters import Timed
from raykd.core.types import Batch
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import by_class, epoch_order, steps
from raykd.methods.helper_kinds import Shared, Tally, reset_calibration
from raykd.models.staged import Staged
from raykd.recipes import StudentRun
from raykd.teachers.source import Source
from raykd.training import calibrations, mid_epoch
from raykd.training.checkpointing import fitting
from raykd.training.ema import Average
from raykd.training.evaluation import evaluate
from raykd.training.finite import check_metrics, check_weights
from raykd.training.hosts.base import Host, State
from raykd.training.learner import Learner
from raykd.training.network_parts import frozen_modules, norms_of, unmoved
from raykd.training.optim import build_optimiser, learning_rate, update
from raykd.training.probing import ProbeSets, is_due, probed

Metrics = dict[str, Any]  # numbers, and dicts of lists from a Tally


@dataclass(frozen=True)
class Sources:
    """Images and teachers of a training."""

    teacher_at: Callable[[int], Source | None]  # the teacher of an epoch (from 0)
    train: Views
    test: Views | None = None  # None: nothing is evaluated
    test_teacher: Source | None = None  # answers for the test images
    validation: Views | None = None  # images to choose epochs by
    probe: ProbeSets | None = None  # by which the task judges embeddings
    kept: calibrations.Calibrations | None = None  # what caches keep for all students


@dataclass(frozen=True)
class Trained:
    """The outcome of a training, on every worker."""

    history: list[Metrics]  # one entry for each epoch
    learner: Learner  # with all weights
    released: Staged  # the student, or the average of its weights where the recipe asks for it


def distil(
    run: StudentRun,
    learner: Learner,
    sources: Sources,
    host: Host,
    after_epoch: Callable[[int, Staged], None] = lambda epochs, student: None,
) -> Trained:
    """Train `learner` as `run` says, from the host's last checkpoint if there is one.

    `after_epoch` is called on every worker with the number of epochs done and the student that
    would be released then.
    """
    training = _Training(run, learner, sources, host)
    done = len(training.history)
    if done == run.optim.epochs:  # the run was stopped between its last epoch and its end
        trained = training.outcome()
        check_metrics(run, done - 1, trained.history[-1])
        check_weights(run, done - 1, (trained.learner, trained.released), host.total)
        after_epoch(done, trained.released)
    for epoch in range(done, run.optim.epochs):
        metrics, released = training.train_epoch(epoch)
        after_epoch(epoch + 1, released)
        host.report(metrics, training.state, last=epoch + 1 == run.optim.epochs)
    return training.outcome()


@dataclass
class _Epoch:
    """One pass over the training images."""

    number: int  # from 0
    chain_epoch: int  # from 0 over all runs of a chain
    teacher: Source | None
    updates: int
    share: float  # this worker's part of a batch relative to an equal split; 1 if it is even
    done: int = 0  # updates so far
    sums: dict[str, Tensor] = field(default_factory=dict)  # losses by name, over parts of steps


class _Training:
    """State of a training: everything that its next step depends on."""

    def __init__(self, run: StudentRun, learner: Learner, sources: Sources, host: Host) -> None:
        self._run, self._learner, self._sources, self._host = run, learner, sources, host
        for module in learner.helpers.modules():
            if isinstance(module, Shared):
                module.gather = host.gather
        self._average = None if run.optim.ema is None else Average(learner.student, run.optim.ema)
        self._modules = [learner] if self._average is None else [learner, self._average]
        averaged = () if self._average is None else self._frozen_in(self._average)
        self._frozen_norms = (*learner.frozen_norms, *averaged)
        self._of_test_teacher: list[Any] = []  # what evaluations need of its answers alone
        self.history: list[Metrics] = []
        checkpoint = host.restore()
        if checkpoint is None:
            self._calibrate(learner.teacher or sources.teacher_at(0), 0)
        else:
            self._load_weights(checkpoint)
        host.restart([*self.history])

        # Workers take their shares of the weights here, and the optimiser its state after that.
        self._wrapped = host.weights.wrap(learner, self._average)
        factors = learner.factors(dict(run.optim.parts))
        self._optimiser = build_optimiser(run.optim, learner, factors)
        self._interrupted: State | None = None  # a checkpoint within the first epoch to train
        if checkpoint is not None:
            with fitting(checkpoint):
                host.weights.load(self._optimiser, checkpoint["optimiser"])
                self._interrupted = checkpoint if checkpoint["within"] else None

    def _load_weights(self, checkpoint: State) -> None:
        """Go on with the weights and the epochs of a checkpoint."""
        with fitting(checkpoint):
            self._learner.load_state_dict(checkpoint["learner"])
            if self._average is not None:
                self._average.load_state_dict(checkpoint["average"])
            self.history = checkpoint["history"]

    def _frozen_in(self, average: Average) -> list[nn.Module]:
        """The batch norms of the averaged student that belong to frozen parts."""
        assert isinstance(average.module, Staged)
        return norms_of(frozen_modules(self._run.optim.freeze, average.module))

    def train_epoch(self, number: int) -> tuple[Metrics, Staged]:
        """Train for an epoch (from 0); its metrics, and the student that would be released."""
        run, host, train = self._run, self._host, self._sources.train
        teacher = self._teacher(number)
        # Dropout and the methods' own noise follow from the epoch, not from what ran before: a
        # teacher that is loaded here had its weights drawn first.
        chain_epoch = run.first_epoch + number
        torch.manual_seed(keyed_random.seed(run.seed, chain_epoch, host.rank))
        started = time.monotonic()
        self._learner.train()

        # One line of rows for every part of every step of this worker.
        parts = host.scale.accumulate
        order = epoch_order(run.seed, chain_epoch, len(train.images))
        order = by_class(order, train.images.targets, run.optim.per_class)
        worker = (host.rank, host.world, parts)
        rows = steps(order, run.optim.batch, *worker, uneven=host.scale.elastic)
        share = rows.shape[1] * parts * host.world / run.optim.batch
        epoch = _Epoch(number, chain_epoch, teacher, len(rows) // parts, share)
        self._resume(epoch)

        # The steps; those before a checkpoint within this epoch are skipped.
        skipped = epoch.done
        batches = Timed(train.batches(rows[skipped * parts :], run.view_at(number), chain_epoch))
        for position, batch in enumerate(batches, 1):
            last = position % parts == 0
            self._backward(epoch, batch, last=last)
            if last:
                self._update(epoch)

        tallies = _tallies(self._learner, host)
        with unmoved(self._frozen_norms):
            host.agree(torch.nn.ModuleList(self._modules))
        metrics = _means(epoch.sums, len(rows), host)
        check_metrics(run, number, metrics)
        seconds = time.monotonic() - started  # the sums were read: the device is done
        rate = learning_rate(run.optim, number * epoch.updates, epoch.updates)
        metrics |= {"epoch": number, "lr": rate}
        metrics["images_per_second"] = (epoch.updates - skipped) * run.optim.batch / seconds
        metrics |= batches.metrics() | tallies
        if train.bad:
            metrics["bad_images"] = train.bad
        released = self._evaluate(number, metrics)
        metrics["seconds"] = time.monotonic() - started
        self.history.append(metrics)
        return metrics, released

    def _evaluate(self, epoch: int, metrics: Metrics) -> Staged:
        """Check the student that would be released, and evaluate it into `metrics` where that is
        due; returns it.
        """
        trained, sources = self.outcome(), self._sources
        check_weights(self._run, epoch, (trained.learner, trained.released), self._host.total)
        learner, autocast, task = trained.learner, trained.learner.autocast, self._run.task
        network = (trained.released, learner.method, learner.helpers)
        due = self._run.optim.evaluates(epoch)
        if due and sources.test is not None:
            test = sources.test, sources.test_teacher
            metrics |= evaluate(*network, *test, self._host, autocast=autocast, task=task,
                of_teacher=self._of_test_teacher)  # fmt: skip
        if due and sources.validation is not None:
            scores = evaluate(*network, sources.validation, None, self._host, autocast=autocast)
            metrics |= {f"validation_{k.removeprefix('test_')}": v for k, v in scores.items()}
        if sources.probe is not None and is_due(sources.probe, epoch, self._run.optim.epochs):
            judged = trained.released, learner.helpers, sources.probe
            metrics |= probed(task, *judged, self._host, autocast=autocast)
        check_metrics(self._run, epoch, metrics)
        return trained.released

    def outcome(self) -> Trained:
        """The training so far, with all weights on every worker; all of them call it."""
        average, weights = self._average, self._host.weights
        whole = weights.whole(self._learner)
        released = whole.student if average is None else weights.whole(average).module
        assert isinstance(released, Staged)
        return Trained(self.history, whole, released)

    def state(self) -> State:
        """Everything that the next epoch depends on, in the same form from every host."""
        average, weights = self._average, self._host.weights
        return {
            "epoch": len(self.history),
            "history": self.history,
            "learner": weights.whole(self._learner).state_dict(),
            "optimiser": weights.saved(self._optimiser),
            "average": None if average is None else weights.whole(average).state_dict(),
            "within": None,
        }

    def _state_within(self, epoch: _Epoch) -> State:
        """Everything that the rest of an epoch depends on."""
        within = mid_epoch.save(epoch.done, epoch.sums, self._modules, self._host)
        within["parts"] = self._host.scale.accumulate  # each part is a term of the sums
        return self.state() | {"within": within}

    def _resume(self, epoch: _Epoch) -> None:
        """Set an epoch to the step at which it was interrupted, if it was."""
        checkpoint, self._interrupted = self._interrupted, None
        if checkpoint is None:
            return
        words = (self._run.seed, epoch.chain_epoch, self._host.rank)
        with fitting(checkpoint), unmoved(self._frozen_norms):
            within = checkpoint["within"]
            epoch.done, sums = mid_epoch.restore(within, self._modules, self._host, words)
            scale = self._host.scale.accumulate / within["parts"]
        epoch.sums = {name: value * scale for name, value in sums.items()}

    def _teacher(self, epoch: int) -> Source | None:
        """The teacher of an epoch; helpers begin anew with another one."""
        run, teacher = self._run, self._sources.teacher_at(epoch)
        begins = epoch and not self._interrupted
        if begins and run.anchor_at(epoch) != run.anchor_at(epoch - 1):
            reset_calibration(self._learner.helpers)
            self._calibrate(teacher, epoch)
        return teacher

    def _backward(self, epoch: _Epoch, batch: Batch, *, last: bool) -> None:
        """Add the gradients of one part of a step; they are averaged with the `last` one."""
        outputs = epoch.teacher(batch) if epoch.teacher is not None else None
        label_weight = self._run.label_weight_at(epoch.chain_epoch)
        with self._host.weights.averaging(self._wrapped, last=last):
            losses, _ = self._wrapped(batch, outputs, label_weight)
            if epoch.share != 1:  # the mean over workers is to be the one over samples
                losses = {name: loss * epoch.share for name, loss in losses.items()}
            parts = self._host.scale.accumulate
            (torch.stack([*losses.values()]).sum() / parts).backward()
        for name, loss in losses.items():
            epoch.sums[name] = epoch.sums.get(name, 0) + loss.detach()

    def _update(self, epoch: _Epoch) -> None:
        """Change the weights by a step's gradients; keep a checkpoint where it is time to."""
        optim = self._run.optim
        rate = learning_rate(optim, epoch.number * epoch.updates + epoch.done, epoch.updates)
        update(self._optimiser, rate, optim.clip)
        if self._average is not None:
            self._average.update_parameters(self._learner.student)
        epoch.done += 1
        if epoch.done < epoch.updates:
            self._host.between(lambda: self._state_within(epoch))

    def _calibrate(self, teacher: Source | None, epoch: int) -> None:
        """Let the method look at an epoch's teacher's outputs for some training samples."""
        run, learner, train = self._run, self._learner, self._sources.train
        if teacher is None or not learner.method.needs_calibration(learner.helpers):
            return
        # Chosen by the data's key, so that every seed of a student sees the same ones.
        order = epoch_order(run.data.seed, 0, len(train.images))
        rows = order[: calibrations.ROWS].sort().values
        sample = calibrations.Sample(teacher, train, rows, run.view_at(epoch))
        if self._sources.kept is not None:
            self._sources.kept.set(learner.method, learner.helpers, sample)
        if learner.method.needs_calibration(learner.helpers):
            sample.calibrate(learner.method, learner.helpers)


def _means(sums: dict[str, Tensor], count: int, host: Host) -> Metrics:
    """Mean losses per step over all workers: `loss`, and `loss_<name>` for each part of it."""
    total = host.total(torch.stack([value.double() for value in sums.values()]))
    means = (total / (count * host.world)).tolist()
    parts = {f"loss_{name}": mean for name, mean in zip(sums, means, strict=True)}
    return {"loss": sum(means), **parts}


def _tallies(learner: Learner, host: Host) -> Metrics:
    """The helpers' counts of an epoch over all workers; they start again from 0."""
    metrics: Metrics = {}
    for module in learner.helpers.modules():
        if isinstance(module, Tally):
            metrics |= module.metrics(host.total(module.counts))
            module.counts.zero_()
    return metrics
