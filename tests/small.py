"""Small real recipes and inputs that many tests share."""

import torch
from torch import Tensor

from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.methods import METHODS, Method
from raykd.planning.plan import plan
from raykd.recipes import Optim, OutputsRun, StudentRun, TeacherRun
from raykd.register.contract import ALL, batch, helpers_of, outputs_of, pair, pair_for
from raykd.storage.store import Store
from raykd.training.cache_builder import CacheBuild
from raykd.training.runs import ShardMaker, local_host, train

# As the laws of methods have them.
__all__ = ["ALL", "batch", "helpers_of", "outputs_of", "pair", "pair_for"]

CPU = torch.device("cpu")
# What is short about a method in a small run.
SHORT = {
    "ab": {"init_epochs": 2},
    "fsp": {"init_epochs": 2},
    "ft": {"paraphraser_epochs": 2},
    "multi_head_kd": {"head": "linear", "head_epochs": 2},
}


def digits(store: Store, **changes) -> Data:
    """The digits, read into the store."""
    from raykd.data.transforms.augment import Augment

    values = {"name": "digits", "holdout": 0.1, "augment": Augment(pad=1)} | changes
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
    chosen = METHODS[method](**SHORT.get(method, {})) if isinstance(method, str) else method
    values = {
        "model": "resnet8",
        "data": digits(store, limit=96),
        "teacher": teacher_run(store),
        "method": chosen,
        "optim": Optim(epochs=3, batch=32),
    }
    return StudentRun(**(values | changes))


def prepare(store: Store, *runs: StudentRun) -> None:
    """Make the teachers, caches and preludes of some students, in this process."""
    work = plan(runs)
    for teacher in work.teachers:
        if not store.has(teacher):
            train(store, teacher, local_host(store, teacher))
    for prelude in work.preludes:
        if not store.has(prelude):
            train(store, prelude, local_host(store, prelude))
    for job in work.caches:
        build_here(CacheBuild(store, job.run, job.views), CPU)


def train_logits(run: StudentRun) -> OutputsRun:
    """The cache that the first epoch of a student reads."""
    return run.outputs_at(0)


def trained(store: Store, run: StudentRun) -> bytes:
    """The weights file of a student, trained here if it is not there."""
    if not store.has(run):
        train(store, run, local_host(store, run))
    return (store.path(run) / "weights.safetensors").read_bytes()


def build_here(build: CacheBuild, device: torch.device) -> None:
    """Compute what a cache lacks, in this process."""
    maker = ShardMaker(build.store, build.run, device)
    for part in build.parts(1):
        build.add(maker.make(part))
    build.finish()


def golden_logits() -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits [4, 10] in float64 and labels [4], from closed formulas."""
    n = torch.arange(4, dtype=torch.float64)[:, None]
    c = torch.arange(10, dtype=torch.float64)[None, :]
    student = 3 * torch.sin(0.7 * n + 1.3 * c + 0.5)
    teacher = 4 * torch.cos(0.9 * n + 0.6 * c + 0.2)
    return student, teacher, torch.tensor([1, 4, 7, 0])


def golden_maps() -> dict[str, Tensor]:
    """Feature maps in float64 from closed formulas; the digit is the number of channels or H."""

    def grid(*shape: int) -> list[Tensor]:
        axes = [torch.arange(size, dtype=torch.float64) for size in shape]
        return list(torch.meshgrid(*axes, indexing="ij"))

    def student(*shape: int) -> Tensor:
        n, c, h, w = grid(*shape)
        return torch.sin(0.3 * n + 0.5 * c + 0.7 * h + 1.1 * w)

    def teacher(*shape: int) -> Tensor:
        n, c, h, w = grid(*shape)
        return torch.cos(0.4 * n + 0.6 * c + 0.8 * h + 1.2 * w)

    n, c, h, w = grid(4, 4, 2, 2)
    return {
        "fs": student(4, 3, 4, 4),
        "fs5": student(4, 5, 4, 4),
        "a8": student(4, 3, 8, 8),
        "ft": teacher(4, 5, 4, 4),
        "ft3": teacher(4, 3, 4, 4),
        "ft8": teacher(4, 3, 8, 8),
        "gs1": torch.sin(0.2 * n + 0.4 * c + 0.9 * h + 0.5 * w),
        "gt1": torch.cos(0.1 * n + 0.3 * c + 0.6 * h + 0.8 * w),
    }


def golden_embeddings() -> tuple[Tensor, Tensor]:
    """Student and teacher embeddings [4, 6] in float64 from closed formulas."""
    n = torch.arange(4, dtype=torch.float64)[:, None]
    d = torch.arange(6, dtype=torch.float64)[None, :]
    return torch.sin(0.5 * n + 0.9 * d + 0.1), torch.cos(0.3 * n + 0.7 * d + 0.2)


def golden_tokens() -> tuple[Tensor, Tensor]:
    """Student and teacher tokens [2, 6, 5] (D before T) in float64 from closed formulas."""
    sizes = (torch.arange(size, dtype=torch.float64) for size in (2, 5, 6))
    n, t, d = torch.meshgrid(*sizes, indexing="ij")
    student = torch.sin(0.3 * n + 0.5 * t + 0.9 * d + 0.1)
    return student.mT, torch.cos(0.2 * n + 0.7 * t + 0.4 * d + 0.3).mT
