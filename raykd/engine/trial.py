"""Forwards and training steps on black images, to see how long they take.

Shapes: B batch, C classes, N training rows.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd import models
from raykd.data.images import Data
from raykd.engine.learner import Learner
from raykd.models.staged import Staged, measure
from raykd.recipes import StudentRun, TeacherRun
from raykd.teachers.source import LiveTeacher, LookingTeacher
from raykd.types import Batch, Look

_Module = TypeVar("_Module", bound=nn.Module)
_LOOKS: tuple[Look, ...] = ("clean", "partner", "strong")


def step_of(run: StudentRun, targets: Tensor, device: torch.device) -> Callable[[], None]:
    """A forward and backward of a student with all that its method does, to be called.

    What a cache would answer was asked before. The networks have random weights; `targets` (int64
    [N]) are the labels of the training rows.
    """
    method, needs, looks = run.method, run.method.needs(), run.method.looks()
    student, helpers, teacher = _network(run.model, run.data), nn.ModuleDict(), None
    if needs and run.teacher is not None:
        assert run.data.size is not None
        network = _network(run.teacher.model, run.data)
        shapes = (measure(who, run.data.size) for who in (student, network))
        helpers = method.helpers(*shapes, targets)
        lower, trained = run.teacher_precision == "bfloat16", method.trains_teacher()
        teacher = LiveTeacher(_on(device, network), needs, bfloat16=lower, trained=trained)
    own = teacher if method.trains_teacher() else None
    lower = run.precision == "bfloat16"
    learner = _on(device, Learner(student, method, helpers, own, autocast=lower))
    mixed = run.data.augment.mix is not None or method.mixing() is not None
    batch = _blank(run.optim.batch, run.data, device, mixed=mixed)
    asked = None if teacher is None else LookingTeacher(dict.fromkeys(looks.teacher, teacher))
    if asked is not None and method.calibrates(helpers):
        method.calibrate(helpers, [asked(batch)])
    known = asked(batch) if asked is not None and run.cached() else None

    def step() -> None:
        answers = known if asked is None or own or known else asked(batch)
        losses, _ = learner(batch, answers, 1.0)
        torch.stack([*losses.values()]).sum().backward()

    return step


def forward_of(
    teacher: TeacherRun, data: Data, size: int, device: torch.device
) -> Callable[[], None]:
    """The forward of a teacher for `size` images, to be called."""
    network = _on(device, _network(teacher.model, data).eval())
    batch = _blank(size, data, device)

    def forward() -> None:
        with torch.no_grad():
            network(batch.pixels)

    return forward


def _network(name: str, data: Data) -> Staged:
    assert data.classes is not None, "the data was never read"
    return models.build(name, data.classes)


def _on(device: torch.device, module: _Module) -> _Module:
    """The module on a device, in the layout in which everything is trained."""
    return module.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _blank(size: int, data: Data, device: torch.device, *, mixed: bool = False) -> Batch:
    """A batch of black images of class 0, and every other look at them."""
    assert data.size is not None and data.classes is not None, "the data was never read"
    pixels = torch.zeros(size, 3, *data.size, device=device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    targets = F.one_hot(labels, data.classes).float() if mixed else labels
    weights = torch.full((size,), 0.5, device=device) if mixed else None
    looks: dict[Look, Batch] = {
        look: Batch(pixels, labels, labels, view=0, epoch=0) for look in _LOOKS
    }
    return Batch(pixels, targets, labels, view=0, epoch=0, looks=looks, weights=weights)
