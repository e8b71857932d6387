"""The training loop: start reading here.

A run is a function of its recipe. What an epoch does follows from (seed, epoch, rank) and the
state at its beginning, so a run that is stopped after any epoch and continued ends with the
same weights, bit for bit on a CPU; so does one that is stopped within an epoch and continued from a
checkpoint of `midway`.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from raykd.core import keyed_random
from raykd.core.counters import Timed
from raykd.core.types import Outputs
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import epoch_order, steps
from raykd.methods.helper_kinds import Shared, Tally, forget
from raykd.models.staged import Staged
from raykd.recipes import StudentRun
from raykd.teachers.source import Source
from raykd.training import mid_epoch
from raykd.training.checkpointing import fitting
from raykd.training.ema import Average
from raykd.training.evaluation import evaluate
from raykd.training.finite import check_metrics, check_weights
from raykd.training.hosts.base import Host
from raykd.training.learner import Learner
from raykd.training.optim import build_optimiser, learning_rate, update

CALIBRATION_ROWS = 1 << 14  # training samples whose teacher outputs a method may look at first
Metrics = dict[str, Any]  # numbers, and dicts of lists from a Tally


def distil(
    run: StudentRun,
    learner: Learner,
    teacher_at: Callable[[int], Source | None],
    train: Views,
    test: Views | None,
    test_teacher: Source | None,
    host: Host,
    validation: Views | None = None,
    keep: Callable[[int, Staged], None] = lambda epoch, student: None,
) -> list[Metrics]:
    """Train `learner` as `run` says and return the metrics of every epoch.

    `teacher_at` gives the teacher of an epoch (from 0), `test_teacher` answers for the test
    images; where `test` is None, nothing is evaluated. `validation` are images to choose by. `keep`
    is called after every epoch, on every worker, with the number of epochs done and the student
    that would be released then.
    """
    for module in learner.helpers.modules():
        if isinstance(module, Shared):
            module.gather = host.gather
    average = None if run.optim.ema is None else Average(learner.student, run.optim.ema)
    state = host.restore()
    file = getattr(state, "path", None)  # of a checkpoint in a journal
    with fitting(file):
        history = _restored(learner, average, state)
    if state is None:
        _calibrate(run, learner, learner.teacher or teacher_at(0), train, 0)
    host.restart([*history])
    wrapped = host.wrap(learner, average)
    optimiser = build_optimiser(run.optim, learner)
    modules = [learner] if average is None else [learner, average]
    within = None
    if state is not None:
        with fitting(file):
            host.load(optimiser, state["optimiser"])
        within = state.get("within")
        del state  # as large as all weights
    if len(history) == run.optim.epochs:  # it was stopped between its last epoch and its end
        whole = host.whole(learner)
        released = _released(whole, average, host)
        check_metrics(run, len(history) - 1, history[-1])
        check_weights(run, len(history) - 1, (whole, released), host.total)
        keep(len(history), released)

    def state_within(steps: int, sums: dict[str, Tensor]) -> dict[str, Any]:
        """Everything that the rest of an epoch depends on."""
        begun = mid_epoch.save(steps, sums, modules, host)
        begun["parts"] = parts  # of a step, each of which is a term of the sums
        return _state(learner, optimiser, average, history, host) | {"within": begun}

    parts = host.scale.accumulate
    for epoch in range(len(history), run.optim.epochs):
        teacher = teacher_at(epoch)
        if epoch and not within and run.anchor_at(epoch) != run.anchor_at(epoch - 1):
            forget(learner.helpers)
            _calibrate(run, learner, teacher, train, epoch)
        # Dropout and the methods' own noise follow from the epoch, not from what ran before: a
        # teacher that is loaded here had its weights drawn first.
        moment = run.first_epoch + epoch
        torch.manual_seed(keyed_random.seed(run.seed, moment, host.rank))
        started = time.monotonic()
        learner.train()
        order = epoch_order(run.seed, moment, len(train.images))
        own = (host.rank, host.world, parts)
        rows = steps(order, run.optim.batch, *own, uneven=host.scale.elastic)
        count = len(rows) // parts  # of updates
        share = rows.shape[1] * parts * host.world / run.optim.batch  # 1: as much as every worker
        done, sums = 0, {}
        if within is not None:
            with fitting(file):
                done, sums = mid_epoch.restore(within, modules, host, (run.seed, moment, host.rank))
            sums = {name: value * (parts / within["parts"]) for name, value in sums.items()}
            within = None
        batches = Timed(train.batches(rows[done * parts :], run.view_at(epoch), moment))
        for number, batch in enumerate(batches, done * parts):
            step, part = divmod(number, parts)
            last = part == parts - 1
            rate = learning_rate(run.optim, epoch * count + step, count)
            outputs = teacher(batch) if teacher is not None else None
            with host.averaging(wrapped, last=last):
                losses, _ = wrapped(batch, outputs, run.label_weight_at(moment))
                if share != 1:  # the mean over workers is to be the one over samples
                    losses = {name: loss * share for name, loss in losses.items()}
                (torch.stack([*losses.values()]).sum() / parts).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
            if last:
                update(optimiser, rate, run.optim.clip)
            if last and average is not None:
                average.update_parameters(learner.student)
            if last and step + 1 < count:
                host.between(functools.partial(state_within, step + 1, sums))
        told = _tallied(learner, host)
        host.agree(torch.nn.ModuleList(modules))
        metrics = _means(sums, len(rows), host)
        check_metrics(run, epoch, metrics)
        seconds = time.monotonic() - started  # after the sums were read: the device is done
        metrics |= {"epoch": epoch, "lr": learning_rate(run.optim, epoch * count, count)}
        metrics["images_per_second"] = (count - done) * run.optim.batch / seconds
        metrics |= batches.metrics() | told
        if train.bad:
            metrics["bad_images"] = train.bad
        whole = host.whole(learner)
        released = _released(whole, average, host)
        check_weights(run, epoch, (whole, released), host.total)
        if test is not None:
            metrics |= _evaluated(whole, released, test, test_teacher, host)
        if validation is not None:
            found = _evaluated(whole, released, validation, None, host)
            metrics |= {f"validation_{k.removeprefix('test_')}": v for k, v in found.items()}
        check_metrics(run, epoch, metrics)
        metrics["seconds"] = time.monotonic() - started
        history.append(metrics)
        keep(epoch + 1, released)
        host.report(
            metrics,
            lambda: _state(learner, optimiser, average, history, host),
            last=epoch + 1 == run.optim.epochs,
        )
    return history


def _means(sums: dict[str, Tensor], count: int, host: Host) -> Metrics:
    """Mean losses per step over all workers: `loss`, and `loss_<name>` for each part of it."""
    total = host.total(torch.stack([value.double() for value in sums.values()]))
    means = (total / (count * host.world)).tolist()
    parts = {f"loss_{name}": mean for name, mean in zip(sums, means, strict=True)}
    return {"loss": sum(means), **parts}


def _evaluated(
    learner: Learner, released: Staged, views: Views, teacher: Source | None, host: Host
) -> Metrics:
    """How good the student that would be released is on some images."""
    return evaluate(
        released,
        learner.method,
        learner.helpers,
        views,
        teacher,
        host,
        autocast=learner.autocast,
    )


def _tallied(learner: Learner, host: Host) -> Metrics:
    """What the helpers counted in an epoch on all workers; they start again from 0."""
    told: Metrics = {}
    for module in learner.helpers.modules():
        if isinstance(module, Tally):
            told |= module.metrics(host.total(module.counts))
            module.counts.zero_()
    return told


def _released(whole: Learner, average: Average | None, host: Host) -> Staged:
    """The student that would be released now."""
    student = whole.student if average is None else host.whole(average).module
    assert isinstance(student, Staged)
    return student


def _calibrate(
    run: StudentRun, learner: Learner, teacher: Source | None, train: Views, epoch: int
) -> None:
    """Let the method look at an epoch's teacher's outputs for some training samples."""
    if teacher is None or not learner.method.calibrates(learner.helpers):
        return
    # Chosen by the data's key, so that every seed of a student sees the same ones.
    rows = epoch_order(run.data.seed, 0, len(train.images))[:CALIBRATION_ROWS].sort().values
    answers: Iterator[Outputs] = (
        teacher(batch) for batch in train.runs(rows, 512, run.view_at(epoch))
    )
    with torch.no_grad():
        learner.method.calibrate(learner.helpers, answers)


def _state(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    average: Average | None,
    history: list[Metrics],
    host: Host,
) -> dict[str, Any]:
    """Everything that the next epoch depends on, the same from whichever host."""
    return {
        "epoch": len(history),
        "history": history,
        "learner": host.whole(learner).state_dict(),
        "optimiser": host.saved(optimiser),
        "average": None if average is None else host.whole(average).state_dict(),
        "within": None,  # an epoch's end
    }


def _restored(
    learner: Learner, average: Average | None, state: dict[str, Any] | None
) -> list[Metrics]:
    """Load a checkpoint's weights, if there is one, and return the metrics of its epochs."""
    if state is None:
        return []
    learner.load_state_dict(state["learner"])
    if average is not None:
        average.load_state_dict(state["average"])
    return state["history"]
