"""From a recipe to a finished artefact in the store: teachers, shards, students.

Each function is one unit of work that any process can do, given the store. What it needs must
be in the store already: `raykd.plan` says in which order.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raykd import bits, models
from raykd.data.images import open_images
from raykd.data.loader import Views
from raykd.engine import weights
from raykd.engine.evaluate import evaluate
from raykd.engine.host import Host, LocalHost
from raykd.engine.journal import RESULT, Journal
from raykd.engine.learner import Learner
from raykd.engine.loop import Metrics, distil
from raykd.methods.label_only import LabelOnly
from raykd.models.staged import Staged, measure, parameter_count
from raykd.recipes import LogitsRun, StudentRun, TeacherRun
from raykd.store import Store, write_json
from raykd.teachers.cache import LogitsCache
from raykd.teachers.manifest import Part, Shard
from raykd.teachers.shard import compute_shard
from raykd.teachers.source import CachedTeacher, LiveTeacher, Source
from raykd.types import Signal


def default_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def local_host(store: Store, run: TeacherRun | StudentRun, seconds: float) -> LocalHost:
    """A host that trains `run` in this process, with `seconds` between checkpoints."""
    return LocalHost(Journal(store.path(run), seconds), default_device())


def train_teacher(store: Store, teacher: TeacherRun, host: Host) -> None:
    """Train a teacher, or take its given weights, and finish its artefact."""
    folder = store.path(teacher)
    folder.mkdir(parents=True, exist_ok=True)
    if teacher.weights is not None:
        _adopt_teacher(store, teacher, host)
        return
    saved = set(teacher.anchors())

    def keep(epoch: int, network: Staged) -> None:
        if epoch in saved and host.rank == 0:
            weights.save_weights(weights.anchor_path(store, teacher, epoch), network)

    run = teacher.training()
    train, test = _views(store, run, host)
    learner = _learner(run, None, host)
    history = distil(run, learner, lambda epoch: None, train, test, None, host, keep)
    if host.rank == 0:
        _finish(store, teacher, _result(run, learner.student, history, host))
        Journal(folder).close()


def train_student(store: Store, run: StudentRun, host: Host) -> None:
    """Train a student and finish its artefact."""
    folder = store.path(run)
    folder.mkdir(parents=True, exist_ok=True)
    released: list[Staged] = []
    train, test = _views(store, run, host)
    teacher_at = _teachers(store, run, host.device)
    test_run = run.test_logits()
    test_teacher = open_cache(store, test_run, [0], host.device) if test_run else None
    learner = _learner(run, run.teacher, host)
    history = distil(
        run,
        learner,
        teacher_at,
        train,
        test,
        CachedTeacher(test_teacher) if test_teacher else None,
        host,
        lambda epoch, network: released.append(network) if not released else None,
    )
    if host.rank == 0:
        network = released[0] if released else learner.student
        weights.save_weights(folder / weights.STUDENT, network)
        _finish(store, run, _result(run, network, history, host))
        Journal(folder).close()


class ShardMaker:
    """Computes shards of one cache in this process: the teacher and the images stay loaded."""

    def __init__(self, store: Store, run: LogitsRun, device: torch.device) -> None:
        self.folder = store.path(run)
        train, test = open_images(store, run.data)
        self.views = Views(train if run.split == "train" else test, run.data).to(device)
        self.teacher = live_teacher(store, run, device)

    def make(self, part: Part) -> Shard:
        """Compute and write one shard."""
        return compute_shard(self.folder, part, self.views, self.teacher)


def live_teacher(
    store: Store, run: LogitsRun, device: torch.device, supplies: Signal | None = None
) -> LiveTeacher:
    """The teacher whose outputs a cache holds, to ask in person."""
    network = weights.load_teacher(store, run.teacher, run.anchor, device)
    own, student = run.teacher.data, run.data
    assert own.mean and own.std and student.mean and student.std, "the data was never read"
    return LiveTeacher(
        network,
        run.signals() if supplies is None else supplies,
        bfloat16=run.precision == "bfloat16",
        student=(student.mean, student.std),
        own=(own.mean, own.std),
    )


def open_cache(store: Store, run: LogitsRun, views: list[int], device: torch.device) -> LogitsCache:
    """The cache of a recipe, with these views, whose look-ups answer on `device`."""
    checksum = weights.anchor_checksum(store, run)
    return LogitsCache.open(store.path(run), run.plain(), checksum, views, device)


def _views(store: Store, run: StudentRun, host: Host) -> tuple[Views, Views]:
    """The training views and the plain test images of a run, on the host's device."""
    train, test = open_images(store, run.data)
    return (
        Views(train, run.data).to(host.device),
        Views(test, run.data.test()).to(host.device),
    )


def _teachers(
    store: Store, run: StudentRun, device: torch.device
) -> Callable[[int], Source | None]:
    """The teacher of every epoch of a run; only the one in use is held."""
    held: dict[int, Source] = {}

    def make(epoch: int) -> Source:
        logits = run.logits_at(epoch)
        if not run.cached():
            return live_teacher(store, logits, device, run.method.needs())
        epochs = range(epoch, run.optim.epochs)
        views = {run.view_at(e) for e in epochs if run.anchor_at(e) == logits.anchor}
        return CachedTeacher(open_cache(store, logits, sorted(views), device))

    def at(epoch: int) -> Source | None:
        if not run.method.needs():
            return None
        anchor = run.anchor_at(epoch)
        if anchor not in held:
            held.clear()
            held[anchor] = make(epoch)
        return held[anchor]

    return at


def _learner(run: StudentRun, teacher: TeacherRun | None, host: Host) -> Learner:
    """Student and helpers as they are before the first step: a function of the seed."""
    assert run.data.classes is not None and run.data.size is not None, "the data was never read"
    torch.manual_seed(bits.seed(run.seed))
    student = models.build(run.model, run.data.classes)
    helpers = nn.ModuleDict()
    if teacher is not None and run.method.needs():
        shapes = measure(student, run.data.size)
        # Only its sizes are wanted, so the network is made without memory or initialisation.
        with torch.device("meta"):
            reference = models.build(teacher.model, run.data.classes)
        helpers = run.method.helpers(shapes, measure(reference, run.data.size))
    learner = Learner(student, run.method, helpers, autocast=run.precision == "bfloat16")
    return learner.to(host.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _adopt_teacher(store: Store, teacher: TeacherRun, host: Host) -> None:
    """Finish the artefact of a pretrained teacher: its weights, and how good it is."""
    network = weights.given_weights(store, teacher).to(host.device)
    _, test = open_images(store, teacher.data)
    started = time.monotonic()
    metrics = evaluate(
        network,
        LabelOnly(),
        nn.ModuleDict(),
        Views(test, teacher.data.test()).to(host.device),
        None,
        host,
    )
    metrics |= {"epoch": 0, "seconds": time.monotonic() - started}
    if host.rank == 0:
        weights.save_weights(weights.anchor_path(store, teacher, 0), network)
        _finish(store, teacher, _result(teacher.training(), network, [metrics], host))


def _finish(store: Store, run: TeacherRun | StudentRun, result: dict[str, Any]) -> None:
    """Write the result, with the checksums of the weights, and then the artefact's marker."""
    folder = store.path(run)
    write_json(folder / RESULT, result | {"weights": weights.checksums(folder)})
    store.finish(run)


def _result(run: StudentRun, network: Staged, history: list[Metrics], host: Host) -> dict[str, Any]:
    """What a finished run is remembered by; last and best epoch apart."""
    last = history[-1]
    best = max(history, key=lambda metrics: metrics["top1"])
    speeds = sorted(m["images_per_second"] for m in history if "images_per_second" in m)
    return {
        "model": run.model,
        "parameters": parameter_count(network),
        "epochs": len(history),
        "last": last,
        "best": best,
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,  # median of the epochs
        "seconds": sum(metrics["seconds"] for metrics in history),
        "workers": host.world,
        "hardware": hardware(host.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def hardware(device: torch.device) -> str:
    """The processor or GPU that a run was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({len(names) or 1} cores)"
