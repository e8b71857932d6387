"""The greedy search for a route's anchors: distances between checkpoints, and what follows.

Shapes: V validation images, C classes.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.core.errors import WorkFailed
from raykd.core.record import fingerprint
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.methods.base import finite
from raykd.recipes import Search, StudentRun
from raykd.storage.store import Store
from raykd.teachers.anchor_route import farthest, hardness
from raykd.teachers.source import Source
from raykd.training import initial_state, inputs
from raykd.training.checkpointing import Checkpoints
from raykd.training.evaluation import BATCH
from raykd.training.hosts.base import LocalHost
from raykd.training.learner import Learner
from raykd.training.route_results import (
    Decision,
    anchors_of,
    is_complete,
    read_decisions,
    write_decisions,
)


def decide(store: Store, search: Search, device: torch.device) -> None:
    """Measure the student of the last stage, where it is finished, and choose the next anchor."""
    decisions = read_decisions(store, search)
    if is_complete(search, decisions):
        store.finish(search)  # it was stopped in between
        return
    anchors, candidates = anchors_of(search, decisions), search.candidates()
    stage, current = search.stage(anchors), anchors[-1]
    if not store.has(stage):
        return  # another process has decided already, and the stage after is still to be trained
    measured = distances(store, search, anchors, device)
    invalid = [anchor for anchor, value in measured.items() if not math.isfinite(value)]
    if invalid:
        raise WorkFailed(
            f"{search.student.method.name} {search.student.model} seed {search.student.seed}: the "
            f"distance to the teacher's epoch {invalid[0]} is not finite ({measured[invalid[0]]}); "
            "its outputs for the validation images, or the student's, are not finite"
        )
    ratios = {anchor: hardness(measured[current], value) for anchor, value in measured.items()}
    final_stage = search.at_most is not None and len(anchors) + 1 >= search.at_most
    chosen = candidates[-1] if final_stage else farthest(ratios, current, search.threshold)
    decisions.append(Decision(current, fingerprint(stage), measured, ratios, chosen))
    write_decisions(store, search, decisions)
    if is_complete(search, decisions):
        store.finish(search)


def distances(
    store: Store, search: Search, anchors: tuple[int, ...], device: torch.device
) -> dict[int, float]:
    """From the student of these stages to its last anchor, and to every later checkpoint.

    `kl`: the mean over validation images of KL(teacher || student) of both networks' logits as the
    method compares them (`Method.comparable`), at the search's temperature, in nats. `loss`: the
    method's own loss on them. What a teacher sets in helpers stays as the stage left it.
    """
    run = search.stage(anchors)
    views = inputs.validation(store, run, device)
    assert views is not None, "a search has validation images"
    learner = _trained(store, run, device)
    later = [anchor for anchor in search.candidates() if anchor >= anchors[-1]]
    teachers = {anchor: inputs.validation_teacher(store, run, anchor, device) for anchor in later}
    if search.measure == "loss":
        epoch = run.first_epoch + run.optim.epochs - 1  # the epoch whose weights the loss has
        return {anchor: _loss(learner, views, teachers[anchor], epoch) for anchor in later}
    sums = dict.fromkeys(later, 0.0)
    with torch.no_grad():
        for batch in views.runs(torch.arange(len(views.images)), views.at_once(BATCH)):
            outputs = learner.student.outputs(batch.pixels, run.method.student_needs())
            for anchor, teacher in teachers.items():
                ours, theirs = run.method.comparable(outputs, teacher(batch), learner.helpers)
                sums[anchor] += _divergence(ours, theirs, search.temperature)
    return {anchor: value / len(views.images) for anchor, value in sums.items()}


def _trained(store: Store, run: StudentRun, device: torch.device) -> Learner:
    """A finished student and its helpers, in evaluation mode."""
    following = run.model_copy(
        update={"after": run, "weights": None}
    )  # which begins with what it ended with
    host = LocalHost(Checkpoints(store.path(run)), device)
    targets = open_images(store, run.data)[0].targets
    learner = initial_state.learner(store, following, host, targets)
    return learner.eval()


def _loss(learner: Learner, views: Views, teacher: Source, epoch: int) -> float:
    """The mean of a method's loss over images, batch by batch."""
    total = 0.0
    for batch in views.runs(torch.arange(len(views.images)), views.at_once(BATCH)):
        losses, _ = learner(replace(batch, epoch=epoch), teacher(batch), 0.0)
        method_losses = [loss.detach().double() for name, loss in losses.items() if name != "label"]
        total += float(torch.stack(method_losses).sum()) * len(batch.ids)
    return total / len(views.images)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The sum over images of KL(teacher || student) of logits [V, C], in float64."""
    log_teacher = (teacher.double() / temperature).log_softmax(1)
    log_student = (student.double() / temperature).log_softmax(1)
    return float(F.kl_div(log_student, finite(log_teacher), reduction="sum", log_target=True))
