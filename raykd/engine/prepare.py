"""What a run needs before its first step: images, teachers, the student and its helpers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from raykd import bits, models
from raykd.data.images import open_images, open_split
from raykd.data.loader import Views
from raykd.engine import weights
from raykd.engine.host import Host
from raykd.engine.learner import Learner
from raykd.methods.roles import Shared, forget
from raykd.models.staged import measure
from raykd.recipes import LogitsRun, PreludeRun, StudentRun
from raykd.store import Store
from raykd.teachers.cache import LogitsCache
from raykd.teachers.manifest import read_manifest
from raykd.teachers.source import CachedTeacher, LiveTeacher, LookingTeacher, Source
from raykd.types import Look, Signal


def views(store: Store, run: StudentRun, host: Host) -> tuple[Views, Views]:
    """The training views and the plain test images of a run, on the host's device."""
    train, test = open_images(store, run.data)
    return (
        Views(train, run.shown(), run.looks()).to(host.device),
        Views(test, run.data.test()).to(host.device),
    )


def validation(store: Store, run: StudentRun, device: torch.device) -> Views | None:
    """The plain validation images of a run, where its data hold some out."""
    if run.data.validation is None:
        return None
    data = run.data.held_out()
    return Views(open_split(store, data, "validation"), data).to(device)


def validator(store: Store, run: StudentRun, anchor: int, device: torch.device) -> Source:
    """What the teacher of one epoch says about the validation images."""
    asked, needs = run.validation_logits(anchor), run.method.needs()
    if not run.cached():
        return live_teacher(store, asked, device, needs)
    classifier = _classifier(store, run, anchor, device)
    return CachedTeacher(open_cache(store, asked, [0], device), needs, classifier)


def teachers(store: Store, run: StudentRun, device: torch.device) -> Callable[[int], Source | None]:
    """The teacher of every epoch of a run; only the one in use is held.

    None where there is none, or where the learner has it.
    """
    held: dict[int, Source] = {}
    looks = run.method.looks().teacher

    def make(epoch: int) -> Source:
        sources: dict[Look, Source]
        if run.cached():
            seen = _views_of_anchor(run, epoch)
            classifier = _classifier(store, run, run.anchor_at(epoch), device)
            sources = {
                look: CachedTeacher(
                    open_cache(store, run.logits_at(epoch, look), seen, device),
                    run.method.needs(),
                    classifier,
                )
                for look in looks
            }
        else:
            live = live_teacher(store, run.logits_at(epoch), device, run.method.needs())
            sources = dict.fromkeys(looks, live)
        return sources["given"] if looks == ("given",) else LookingTeacher(sources)

    def at(epoch: int) -> Source | None:
        if not run.method.needs() or run.method.trains_teacher():
            return None
        anchor = run.anchor_at(epoch)
        if anchor not in held:
            held.clear()
            held[anchor] = make(epoch)
        return held[anchor]

    return at


def _classifier(
    store: Store, run: StudentRun, anchor: int, device: torch.device
) -> nn.Module | None:
    """The last layer of one of the teacher's checkpoints, where the method runs it again."""
    if Signal.CLASSIFIER not in run.method.needs():
        return None
    assert run.teacher is not None
    cpu = torch.device("cpu")
    network = weights.load_teacher(store, run.teacher, anchor, cpu)
    return network.classifier.to(device).eval().requires_grad_(False)


def _views_of_anchor(run: StudentRun, epoch: int) -> list[int]:
    """The views that a run reads from an epoch on, as long as its anchor lasts."""
    anchor, epochs = run.anchor_at(epoch), range(epoch, run.optim.epochs)
    return sorted({run.view_at(e) for e in epochs if run.anchor_at(e) == anchor})


def live_teacher(
    store: Store,
    run: LogitsRun,
    device: torch.device,
    supplies: Signal | None = None,
    *,
    trained: bool = False,
) -> LiveTeacher:
    """The teacher whose outputs a cache holds, to ask in person, or to train."""
    network = weights.load_teacher(store, run.teacher, run.anchor, device)
    own, student = run.teacher.data, run.data
    assert own.mean and own.std and student.mean and student.std, "the data was never read"
    return LiveTeacher(
        network,
        run.signals() if supplies is None else supplies,
        bfloat16=run.precision == "bfloat16",
        student=(student.mean, student.std),
        own=(own.mean, own.std),
        trained=trained,
    )


def serving(store: Store, run: LogitsRun, views: Iterable[int]) -> LogitsRun:
    """The cache that answers for a recipe: its own, unless only the wider one has these views."""
    wanted = set(views)

    def holds(candidate: LogitsRun) -> bool:
        known = read_manifest(store.path(candidate))
        return known is not None and wanted.issubset(known.views())

    return run.wider() if not holds(run) and holds(run.wider()) else run


def open_cache(store: Store, run: LogitsRun, views: list[int], device: torch.device) -> LogitsCache:
    """A cache with the outputs of a recipe in these views, whose look-ups answer on `device`."""
    run = serving(store, run, views)
    checksum = weights.anchor_checksum(store, run)
    return LogitsCache.open(store.path(run), run.plain(), checksum, views, device)


def learner(store: Store, run: StudentRun, host: Host, targets: Tensor) -> Learner:
    """Student and helpers as they are before the first step: a function of the seed.

    `targets` (int64 [N]) are the labels of the training rows.
    """
    assert run.data.classes is not None and run.data.size is not None, "the data was never read"
    torch.manual_seed(bits.seed(run.seed))
    student = models.build(run.model, run.data.classes)
    helpers = nn.ModuleDict()
    if run.teacher is not None and run.method.needs():
        shapes = measure(student, run.data.size)
        # Only its sizes are wanted, so the network is made without memory or initialisation.
        try:
            with torch.device("meta"):
                reference = models.build(run.teacher.model, run.data.classes)
        except NotImplementedError:  # torchvision's regnets compute their widths with tensors
            reference = models.build(run.teacher.model, run.data.classes)
        helpers = run.method.helpers(shapes, measure(reference, run.data.size), targets)
    teacher = None
    if run.method.trains_teacher():
        needs = run.method.needs()
        teacher = live_teacher(store, run.logits_at(0), host.device, needs, trained=True)
    how: dict[str, Any] = {"autocast": run.precision == "bfloat16", "compiled": host.scale.compile}
    made = Learner(student, run.method, helpers, teacher, **how)
    before = run.prelude()
    if before is not None:
        _begin_from(store, before, made)
    if run.after is not None:
        _go_on_after(store, run.after, made, alike=_fits(run, run.after))
    return made.to(host.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _begin_from(store: Store, before: PreludeRun, learner: Learner) -> None:
    """Set student and helpers to what the prelude made of them."""
    folder = store.path(before)
    if before.model is not None:
        weights.load_weights(weights.checked(folder / weights.STUDENT), learner.student)
    if state := weights.kept(folder / weights.HELPERS):
        learner.method.adopt(learner.helpers, state)


def _fits(run: StudentRun, before: StudentRun) -> bool:
    """Whether the helpers of the student before are the same kind of helpers."""
    theirs = before.teacher.model if before.teacher else None
    return run.teacher is not None and run.method == before.method and run.teacher.model == theirs


def _go_on_after(store: Store, before: StudentRun, learner: Learner, *, alike: bool) -> None:
    """Set the student, and helpers that are `alike`, to what a finished student's are.

    What the teacher sets is left to the teacher of this stage, and a memory begins anew.
    """
    folder = store.path(before)
    weights.load_weights(weights.checked(folder / weights.STUDENT), learner.student)
    if alike and (state := weights.kept(folder / weights.STAGE)):
        learner.helpers.load_state_dict(state, strict=False)  # without memories
        forget(learner.helpers)


def lasting(helpers: nn.ModuleDict) -> dict[str, Tensor]:
    """The state of helpers that a next stage goes on with: all but memories of samples."""
    memories = {
        f"{where}.{name}"
        for where, module in helpers.named_modules()
        if isinstance(module, Shared)
        for name, _ in module.named_buffers(recurse=False)
    }
    return {name: value for name, value in helpers.state_dict().items() if name not in memories}
