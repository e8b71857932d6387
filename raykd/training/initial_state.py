"""The student and its helpers as they are before the first step."""

from typing import Any

import torch
from torch import Tensor, nn

from raykd import models
from raykd.core import keyed_random
from raykd.methods.helper_kinds import Shared, reset_calibration
from raykd.models.staged import Staged, measure
from raykd.recipes import PreludeRun, StudentRun
from raykd.storage.store import Store
from raykd.training import dry_run, inputs, weights
from raykd.training.hosts.base import Host
from raykd.training.learner import Learner


def untrained(run: StudentRun, targets: Tensor) -> tuple[Staged, nn.ModuleDict]:
    """A student from torch's global generator, and its method's helpers for it.

    `targets` (int64 [N]) are the labels of the training rows.
    """
    data = run.data.resolved()
    student = models.build(run.model, data.classes)
    if run.teacher is None or not run.method.needs():
        return student, nn.ModuleDict()
    # Only its sizes are wanted, so the teacher is made without memory or initialisation.
    try:
        with torch.device("meta"):
            reference = models.build(run.teacher.model, data.classes)
    except NotImplementedError:  # torchvision's regnets compute their widths with tensors
        reference = models.build(run.teacher.model, data.classes)
    seen = run.as_teacher_sees(run.data).resolved().size
    shapes = measure(student, data.size), measure(reference, seen)
    return student, run.method.helpers(*shapes, targets)


def learner(store: Store, run: StudentRun, host: Host, targets: Tensor) -> Learner:
    """Student and helpers as they are before the first step: a function of the seed.

    `targets` (int64 [N]) are the labels of the training rows. Raises `ConfigError` where the
    network cannot be trained on the samples of a step.
    """
    share = run.optim.batch // host.world // host.scale.accumulate
    if share == 1 and run.method.trains != "helpers":
        data = run.data.resolved()
        dry_run.check_training(run.model, data.classes, data.size, share)
    torch.manual_seed(keyed_random.seed(run.seed))
    student, helpers = untrained(run, targets)
    teacher = None
    if run.method.trains_teacher():
        needs = run.method.needs()
        teacher = inputs.live_teacher(store, run.logits_at(0), host.device, needs, trained=True)
    how: dict[str, Any] = {
        "autocast": run.precision == "bfloat16",
        "compiled": host.scale.compile,
        "label_smoothing": run.label_smoothing,
    }
    made = Learner(student, run.method, helpers, teacher, **how)
    before = run.prelude()
    if before is not None:
        _begin_from(store, before, made)
    if run.after is not None:
        _go_on_after(store, run.after, made, alike=_fits(run, run.after))
    return made.to(host.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _begin_from(store: Store, before: PreludeRun, learner: Learner) -> None:
    """Set student and helpers to what the prelude made of them."""
    if before.model is not None:
        path = weights.finished(store, before, weights.STUDENT)
        weights.load_weights(weights.checked(path), learner.student)
    if state := weights.kept(weights.finished(store, before, weights.HELPERS)):
        learner.method.load_prelude(learner.helpers, state)


def _fits(run: StudentRun, before: StudentRun) -> bool:
    """True where the helpers of the student before are of the same kind."""
    theirs = before.teacher.model if before.teacher else None
    return run.teacher is not None and run.method == before.method and run.teacher.model == theirs


def _go_on_after(store: Store, before: StudentRun, learner: Learner, *, alike: bool) -> None:
    """Set the student, and helpers that are `alike`, to what a finished student's are.

    What the teacher sets is left to the teacher of this stage, and a memory begins anew.
    """
    path = weights.finished(store, before, weights.STUDENT)
    weights.load_weights(weights.checked(path), learner.student)
    if alike and (state := weights.kept(weights.finished(store, before, weights.STAGE))):
        learner.helpers.load_state_dict(state, strict=False)  # without memories
        reset_calibration(learner.helpers)


def lasting(helpers: nn.ModuleDict) -> dict[str, Tensor]:
    """The state of helpers that a next stage goes on with: all but memories of samples."""
    memories = {
        f"{where}.{name}"
        for where, module in helpers.named_modules()
        if isinstance(module, Shared)
        for name, _ in module.named_buffers(recurse=False)
    }
    return {name: value for name, value in helpers.state_dict().items() if name not in memories}
