"""Forwards and training steps on noise, for measuring their time and counting their operations.

Shapes: B batch, C classes, N training rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raykd.core.types import Batch, Look, Signal
from raykd.data.recipe import Data
from raykd.methods.columns import modules_of
from raykd.methods.derived import Derived
from raykd.models.staged import measure
from raykd.recipes import AnyTeacher, StudentRun
from raykd.recipes.optim import Precision
from raykd.teachers.source import LiveTeacher, Source, by_look
from raykd.training import weights
from raykd.training.compiled import Mode
from raykd.training.learner import Learner
from raykd.training.panel import of_panel, together

_Module = TypeVar("_Module", bound=nn.Module)
_LOOKS: tuple[Look, ...] = ("clean", "partner", "strong")
_COUNTED = 4  # images whose operations are counted


def step_of(
    run: StudentRun, targets: Tensor, device: torch.device, compiled: Mode = False
) -> Callable[[], None]:
    """A forward and backward of a student with all that its method does, to be called.

    What a cache would answer was asked before. Pixels and the networks' weights are random, and
    follow from no run's seed; `targets` (int64 [N]) are the labels of the training rows.
    """
    return _learning(run, targets, device, compiled)[1]


def step_cost(run: StudentRun, targets: Tensor) -> tuple[int, float]:
    """Parameters that a step of a student trains, and FLOPs of each of its images.

    Those of the backward, the method's helpers and a live teacher are among them.
    """
    optim = run.optim.model_copy(update={"batch": _COUNTED})
    changes = {"optim": optim, "precision": "float32", "teacher_precision": "float32"}
    learner, step = _learning(run.model_copy(update=changes), targets, torch.device("cpu"))
    flops = _count(step)
    trained = [value for value in learner.parameters() if value.grad is not None]
    return sum(value.numel() for value in trained), flops / _COUNTED


def forward_flops(teacher: AnyTeacher, data: Data, derived: Sequence[Derived] = ()) -> float:
    """FLOPs of a teacher's forward for one image, with those of `forward_of`."""
    forward = forward_of(teacher, data, _COUNTED, torch.device("cpu"), derived=derived)
    return _count(forward) / _COUNTED


def _count(call: Callable[[], object]) -> int:
    """FLOPs of a call: a multiply-add is two, and only products are counted."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _learning(
    run: StudentRun, targets: Tensor, device: torch.device, compiled: Mode = False
) -> tuple[Learner, Callable[[], None]]:
    """A student with all that its method does, and its step: see `step_of`."""
    torch.manual_seed(0)
    method, needs, looks = run.method, run.method.needs(), run.method.looks()
    student, helpers = weights.build_network(run), nn.ModuleDict()
    teacher: Source | None = None
    trained_teacher: LiveTeacher | None = None
    data, seen = run.data.resolved(), run.as_teacher_sees(run.data).resolved()
    if method.teacherless:
        shapes = measure(student, data.size)
        helpers = method.helpers(shapes, shapes, targets)
    elif needs and run.teacher is not None:
        networks = [weights.build_network(member) for member in run.members()]
        read = networks if method.panel else networks[:1]
        shapes = of_panel([measure(network, seen.size) for network in read])
        helpers = method.helpers(measure(student, data.size), shapes, targets)
        trained = method.trains_teacher()
        modules = _on(device, modules_of(method.derived(), shapes, data.classes))
        members = [
            LiveTeacher(
                _on(device, network),
                needs,
                bfloat16=run.teacher_precision == "bfloat16",
                trained=trained,
                derived=method.derived(),
                modules=modules,
            )
            for network in networks
        ]
        teacher = together(run, members)
        trained_teacher = members[0] if trained else None
    lower = run.precision == "bfloat16"
    options: dict[str, Any] = {"autocast": lower, "compiled": compiled, "task": run.task}
    options["freeze"] = run.optim.freeze
    learner = _on(device, Learner(student, method, helpers, trained_teacher, **options))
    mixed = run.data.augment.mix is not None or method.mixing() is not None
    batch = _noise(run.optim.batch, run.data, device, rows=len(targets), mixed=mixed)
    teacher_batch = (
        batch if seen == run.data else _noise(run.optim.batch, seen, device, rows=len(targets))
    )
    source = None if teacher is None else by_look(dict.fromkeys(looks.teacher, teacher))
    if source is not None and method.needs_calibration(helpers):
        method.calibrate(helpers, [source(teacher_batch)])
    live = source if trained_teacher is None and not run.cached() else None
    cached = source(teacher_batch) if source is not None and run.cached() else None

    def step() -> None:
        losses, _ = learner(batch, cached if live is None else live(teacher_batch), 1.0)
        torch.stack([*losses.values()]).sum().backward()

    return learner, step


def forward_of(
    teacher: AnyTeacher,
    data: Data,
    size: int,
    device: torch.device,
    precision: Precision = "float32",
    derived: Sequence[Derived] = (),
) -> Callable[[], object]:
    """The forward of a teacher for `size` images, to be called.

    With that of the modules that functions of its outputs run.
    """
    network = _on(device, weights.build_network(teacher).eval())
    batch, lower = _noise(size, data, device, rows=size), precision == "bfloat16"
    if any(function.trained for function in derived):
        read = data.resolved()
        modules = _on(device, modules_of(derived, measure(network, read.size), read.classes))
        live = LiveTeacher(
            network, Signal.DERIVED, bfloat16=lower, derived=derived, modules=modules
        )
        return lambda: live(batch)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, lower):
            network(batch.pixels)

    return forward


def _on(device: torch.device, module: _Module) -> _Module:
    """The module on a device, in the layout in which everything is trained."""
    return module.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _noise(size: int, data: Data, device: torch.device, *, rows: int, mixed: bool = False) -> Batch:
    """A batch of noise, and every other look at it: the first of `rows` rows, over and over."""
    read = data.resolved()
    sides, classes = read.size, read.classes

    def look(looks: dict[Look, Batch], *, mixed: bool) -> Batch:
        pixels = torch.randn(size, 3, *sides, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        ids = torch.arange(size, device=device) % rows
        labels = ids % max(1, classes)
        targets = F.one_hot(labels, classes).float() if mixed and classes else labels
        weights = torch.full((size,), 0.5, device=device) if mixed else None
        return Batch(pixels, targets, ids, view=0, epoch=0, looks=looks, weights=weights)

    return look({name: look({}, mixed=False) for name in _LOOKS}, mixed=mixed)
