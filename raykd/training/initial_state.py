"""The student and its helpers as they are before the first step."""

from typing import Any

import torch
from torch import Tensor, nn

from raykd.core import keyed_random
from raykd.methods.helper_kinds import Shared, reset_calibration
from raykd.models.staged import Staged, measure
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.training import dry_run, inputs, weights
from raykd.training.hosts.base import Host
from raykd.training.learner import Learner
from raykd.training.panel import of_panel


def untrained(run: StudentRun, targets: Tensor) -> tuple[Staged, nn.ModuleDict]:
    """A student from torch's global generator, and its method's helpers for it.

    `targets` (int64 [N]) are the labels of the training rows.
    """
    data = run.data.resolved()
    student = weights.build_network(run)
    if run.method.teacherless:
        shapes = measure(student, data.size)
        return student, run.method.helpers(shapes, shapes, targets)
    if run.teacher is None or not run.method.needs():
        return student, nn.ModuleDict()
    members = run.members() if run.method.panel else run.members()[:1]
    shapes = [
        dry_run.shapes_of_teacher(teacher, run.as_teacher_sees(data, teacher).resolved().size)
        for teacher in members
    ]
    return student, run.method.helpers(measure(student, data.size), of_panel(shapes), targets)


def learner(store: Store, run: StudentRun, host: Host, targets: Tensor) -> Learner:
    """Student and helpers as they are before the first step: a function of the seed.

    `targets` (int64 [N]) are the labels of the training rows. Raises `ConfigError` where the
    network cannot be trained on the samples of a step.
    """
    share = run.optim.batch // host.world // host.scale.accumulate
    if share == 1 and run.method.trains != "helpers":
        data = run.data.resolved()
        dry_run.check_training(run.model, run.head, data.size, share)
    torch.manual_seed(keyed_random.seed(run.seed))
    student, helpers = untrained(run, targets)
    weights.load_start(store, run, student)
    teacher = None
    if run.method.trains_teacher():
        needs = run.method.needs()
        teacher = inputs.live_teacher(store, run.outputs_at(0), host.device, needs, trained=True)
    options: dict[str, Any] = {
        "autocast": run.precision == "bfloat16",
        "compiled": host.scale.compile,
        "label_smoothing": run.label_smoothing,
        "task": run.task,
        "freeze": run.optim.freeze,
    }
    module = Learner(student, run.method, helpers, teacher, **options)
    _load_prelude(store, run, module)
    _load_stage_before(store, run, module)
    return module.to(host.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _load_prelude(store: Store, run: StudentRun, learner: Learner) -> None:
    """Set student and helpers to those of the prelude, where the method has one."""
    prelude = run.prelude()
    if prelude is None:
        return
    if prelude.model is not None:
        weights.load_finished(store, prelude, weights.STUDENT, learner.student)
    if state := weights.finished_state(store, prelude, weights.HELPERS):
        learner.method.load_prelude(learner.helpers, state)


def _load_stage_before(store: Store, run: StudentRun, learner: Learner) -> None:
    """Set student and helpers to those of the stage before, where the run goes on after one.

    Helpers of another method, or for another teacher's network, begin anew; so do memories, and
    what a teacher sets in helpers.
    """
    before = run.after
    if before is None:
        return
    weights.load_finished(store, before, weights.STUDENT, learner.student)
    teacher = before.teacher.model if before.teacher else None
    same = run.teacher is not None and run.method == before.method and run.teacher.model == teacher
    if same and (state := weights.finished_state(store, before, weights.STAGE)):
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
