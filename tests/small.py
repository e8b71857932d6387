"""Small real recipes and inputs that many tests share."""

import torch
from torch import Tensor

from raykd.data.images import Data, read
from raykd.engine.caches import CacheBuild, build_here
from raykd.engine.fit import local_host, train_student, train_teacher
from raykd.methods import METHODS, Method
from raykd.models import build, measure
from raykd.models.staged import Staged
from raykd.plan import plan
from raykd.recipes import LogitsRun, Optim, StudentRun, TeacherRun
from raykd.store import Store
from raykd.types import Batch, Outputs, Signal

CPU = torch.device("cpu")
ALL = Signal.LOGITS | Signal.EMBEDDING | Signal.FEATURES | Signal.LIVE


def digits(store: Store, **changes) -> Data:
    """The digits, read into the store."""
    from raykd.data.augment import Augment

    values = {"name": "digits", "holdout": 0.33, "augment": Augment(pad=1)} | changes
    return read(store, Data(**values), None)


def teacher_run(store: Store, **changes) -> TeacherRun:
    """A teacher of two epochs."""
    values = {
        "model": "resnet8",
        "data": digits(store, limit=320),
        "optim": Optim(epochs=2, batch=32),
        "save_every": 1,
    }
    return TeacherRun(**(values | changes))


def student_run(store: Store, method: str | Method = "kd", **changes) -> StudentRun:
    """A student of three epochs, from a teacher of two."""
    chosen = METHODS[method]() if isinstance(method, str) else method
    values = {
        "model": "resnet8",
        "data": digits(store, limit=96),
        "teacher": teacher_run(store),
        "method": chosen,
        "optim": Optim(epochs=3, batch=32),
    }
    return StudentRun(**(values | changes))


def prepare(store: Store, *runs: StudentRun) -> None:
    """Make the teachers and caches of some students, in this process."""
    work = plan(runs)
    for teacher in work.teachers:
        if not store.has(teacher):
            train_teacher(store, teacher, local_host(store, teacher, 0))
    for job in work.caches:
        build_here(CacheBuild(store, job.run, job.views), CPU)


def train_logits(run: StudentRun) -> LogitsRun:
    """The cache that the first epoch of a student reads."""
    return run.logits_at(0)


def trained(store: Store, run: StudentRun) -> bytes:
    """The weights file of a student, trained here if it is not there."""
    if not store.has(run):
        train_student(store, run, local_host(store, run, 0))
    return (store.path(run) / "weights.safetensors").read_bytes()


def pair(seed: int = 0) -> tuple[Staged, Staged]:
    """A student and a wider teacher for images of 16 x 16 and 10 classes."""
    torch.manual_seed(seed)
    return build("resnet8", 10), build("resnet8x4", 10).eval().requires_grad_(False)


def batch(size: int = 8, side: int = 16, seed: int = 0) -> Batch:
    """Random pixels and labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, side, side, generator=generator)
    targets = torch.randint(0, 10, (size,), generator=generator)
    return Batch(pixels, targets, torch.arange(size), view=0, epoch=0)


def helpers_of(method: Method, student: Staged, teacher: Staged, side: int = 16):
    """The method's helpers for two networks, calibrated on one batch where it asks for that."""
    helpers = method.helpers(measure(student, (side, side)), measure(teacher, (side, side)))
    if method.calibrates(helpers):
        outputs: list[Outputs] = [teacher.outputs(batch().pixels, ALL)]
        method.calibrate(helpers, outputs)
    return helpers


def golden_logits() -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits [4, 10] in float64 and labels [4], from closed formulas."""
    n = torch.arange(4, dtype=torch.float64)[:, None]
    c = torch.arange(10, dtype=torch.float64)[None, :]
    student = 3 * torch.sin(0.7 * n + 1.3 * c + 0.5)
    teacher = 4 * torch.cos(0.9 * n + 0.6 * c + 0.2)
    return student, teacher, torch.tensor([1, 4, 7, 0])
