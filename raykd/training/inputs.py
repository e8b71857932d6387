"""The inputs of a run: views of its images, and its teacher's outputs, live or from caches."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from raykd.config.scale import Scale
from raykd.core.types import Look, Signal
from raykd.data.dataset import AnyImages, class_names, open_images, open_split
from raykd.data.loading.loader import Views
from raykd.data.recipe import Data, Split
from raykd.methods.columns import trained_modules
from raykd.models.staged import Staged, measure
from raykd.outputs.manifest import Manifest, manifest_of
from raykd.outputs.reader import OutputsCache
from raykd.outputs.shard_files import ShardFolder
from raykd.outputs.statistics import STATISTICS, fitted_codecs, seal_of
from raykd.recipes import OutputsRun, StudentRun
from raykd.storage.store import Store
from raykd.tasks import probe_of
from raykd.teachers.source import CachedTeacher, LiveTeacher, Source, ViewMean, by_look
from raykd.training import weights
from raykd.training.cache_prefetch import CachePrefetch
from raykd.training.hosts.base import EVERY_EPOCH, Host
from raykd.training.panel import together
from raykd.training.probing import ProbeSets


def views(store: Store, run: StudentRun, host: Host) -> tuple[Views, Views]:
    """The training views and the plain test images of a run, on the host's device."""
    train, test = open_images(store, run.data)
    return (
        views_of(train, run.shown(), host.device, host.scale, run.looks()),
        views_of(test, run.data.test(), host.device, host.scale),
    )


def views_of(
    images: AnyImages,
    data: Data,
    device: torch.device,
    scale: Scale,
    looks: Mapping[Look, Data] | None = None,
) -> Views:
    """The views of some images on a device, decoded as `scale` says where they have to be."""
    skip, processes = scale.on_bad_image == "skip", decoders(scale, device)
    return Views(images, data, looks, device=device, decoders=processes, skip_bad=skip)


def decoders(scale: Scale, device: torch.device) -> int:
    """Number of processes that decode streamed images for one worker.

    Where that is not given, a GPU has its share of this machine's processors to feed it, and a
    worker on CPUs those of its own that it does not train with.
    """
    if scale.decoders is not None:
        return scale.decoders
    if device.type == "cuda":
        return max(1, (os.cpu_count() or 1) // torch.cuda.device_count() - 1)
    return max(0, int(scale.cpus) - 1)


def validation(
    store: Store, run: StudentRun, device: torch.device, scale: Scale = EVERY_EPOCH
) -> Views | None:
    """The plain validation images of a run, where its data hold some out."""
    if run.data.validation is None:
        return None
    data = run.data.held_out()
    looks: dict[Look, Data] = {}
    if run.asked_at_another_size():
        looks["teacher"] = run.as_teacher_sees(data)
    return views_of(open_split(store, data, "validation"), data, device, scale, looks)


def probe(
    store: Store, run: StudentRun, device: torch.device, scale: Scale = EVERY_EPOCH
) -> ProbeSets | None:
    """The plain images of a task's probe, normalised as the student's are; None without one.

    Where the task reads what the teacher embedded, with its caches: of a panel those of the first.
    """
    judge = probe_of(run.task)
    if judge is None:
        return None
    data, seen = judge.data.resolved(), run.data.resolved()
    plain = data.test().model_copy(update={"mean": seen.mean, "std": seen.std})
    train, test = (views_of(part, plain, device, scale) for part in open_images(store, data))
    teacher: dict[Split, OutputsCache] = {
        split: open_cache(store, caches[0], [0], device)
        for split, caches in run.probe_caches().items()
    }
    return ProbeSets(judge, train, test, class_names(store, data), teacher)


def test_teacher(store: Store, run: StudentRun, device: torch.device) -> Source | None:
    """The cache of what a run's teacher says about the test images; None without a teacher."""
    members: list[Source] = []
    for recipe in run.test_caches():
        cache = open_cache(store, recipe, [0], device)
        cache.prefetch(0)
        members.append(CachedTeacher(cache, recipe.signals()))
    if not members:
        return None
    # The one view of a test image is the mean over its views, too.
    looks: tuple[Look, ...] = ("given",)
    if "view_mean" in run.method.looks().teacher:
        looks = ("given", "view_mean")
    return by_look(dict.fromkeys(looks, together(run, members, judged=True)))


def validation_teacher(store: Store, run: StudentRun, anchor: int, device: torch.device) -> Source:
    """The teacher's checkpoint of one epoch, to be asked about the validation images."""
    recipe = run.validation_outputs(anchor)
    if not run.cached():
        return _live(store, run, [recipe], ("given",), device)
    cache = open_cache(store, recipe, [0], device)
    return CachedTeacher(cache, run.method.needs(), _classifier(store, run, recipe, device))


def teachers(store: Store, run: StudentRun, device: torch.device) -> Callable[[int], Source | None]:
    """A function from an epoch to its teacher; only the one in use is held.

    None where there is none, or where the learner has it. From a cache, the view of an epoch and
    that of the next one are opened in the background.
    """
    held: dict[int, Source] = {}
    looks = run.method.looks().teacher

    def open_caches(epoch: int) -> dict[Look, list[OutputsCache]]:
        opened: dict[Look, list[OutputsCache]] = {}
        for look in looks:
            views = _views_of_anchor(run, 0 if look == "view_mean" else epoch, run.anchor_at(epoch))
            caches = run.caches_at(epoch, look)
            opened[look] = [open_cache(store, cache, views, device) for cache in caches]
        return opened

    prefetch = CachePrefetch(run, open_caches)

    def make(epoch: int) -> Source:
        if not run.cached():
            return _live(store, run, run.caches_at(epoch), looks, device)
        needs = run.method.needs()
        last = [_classifier(store, run, recipe, device) for recipe in run.caches_at(epoch)]

        def stored(look: Look, cache: OutputsCache, classifier: nn.Module | None) -> Source:
            if look == "view_mean":
                views = _views_of_anchor(run, 0, run.anchor_at(epoch))
                return ViewMean(cache, views, needs, run.codec)
            return CachedTeacher(cache, needs, classifier, run.codec)

        sources: dict[Look, Source] = {
            look: together(run, [stored(look, *pair) for pair in zip(caches, last, strict=True)])
            for look, caches in prefetch.at(epoch).items()
        }
        return by_look(sources)

    def at(epoch: int) -> Source | None:
        if not run.method.needs() or run.method.trains_teacher():
            return None
        anchor = run.anchor_at(epoch)
        if anchor not in held:
            held.clear()
            held[anchor] = make(epoch)
        if run.cached():
            prefetch.look_ahead(epoch)
        return held[anchor]

    return at


def _live(
    store: Store,
    run: StudentRun,
    recipes: Sequence[OutputsRun],
    looks: tuple[Look, ...],
    device: torch.device,
) -> Source:
    """The networks that a run asks for some looks, or for the one at the teacher's resolution."""
    networks = [live_teacher(store, recipe, device, run.method.needs()) for recipe in recipes]
    if run.asked_at_another_size():
        looks = ("teacher",)
    return by_look(dict.fromkeys(looks, together(run, networks)))


def _classifier(
    store: Store, run: StudentRun, cache: OutputsRun, device: torch.device
) -> nn.Module | None:
    """The last layer of a cache's teacher, where the method runs it again."""
    if Signal.CLASSIFIER not in run.method.needs():
        return None
    network = weights.load_teacher(store, cache.teacher, cache.anchor, torch.device("cpu"))
    return network.classifier.to(device).eval().requires_grad_(False)


def _views_of_anchor(run: StudentRun, epoch: int, anchor: int) -> list[int]:
    """The views that a run reads from an epoch on, in the epochs of an anchor."""
    epochs = range(epoch, run.optim.epochs)
    return sorted({run.view_at(e) for e in epochs if run.anchor_at(e) == anchor})


def live_teacher(
    store: Store,
    run: OutputsRun,
    device: torch.device,
    supplies: Signal | None = None,
    *,
    trained: bool = False,
) -> LiveTeacher:
    """The teacher whose outputs a cache holds, as a network to run, or to train."""
    network = weights.load_teacher(store, run.teacher, run.anchor, device)
    teacher_data, data = run.teacher.data.resolved(), run.data.resolved()
    return LiveTeacher(
        network,
        run.signals() if supplies is None else supplies,
        bfloat16=run.precision == "bfloat16",
        student=(data.mean, data.std),
        own=(teacher_data.mean, teacher_data.std),
        trained=trained,
        derived=run.derived,
        modules=_modules(store, run, network, device),
    )


def _modules(store: Store, run: OutputsRun, network: Staged, device: torch.device) -> nn.ModuleDict:
    """The modules of a cache's functions, as its prelude has trained them."""
    if run.prelude is None:
        return nn.ModuleDict()
    data, state = run.data.resolved(), weights.finished_state(store, run.prelude, weights.HELPERS)
    modules = trained_modules(run.derived, measure(network, data.size), data.classes, state)
    return modules.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def serving(store: Store, run: OutputsRun, views: Iterable[int]) -> OutputsRun:
    """The cache that answers for a recipe: its own, unless only the wider one has these views."""
    return served(store, run, views)[0]


def served(
    store: Store, run: OutputsRun, views: Iterable[int]
) -> tuple[OutputsRun, Manifest | None]:
    """The cache that answers for a recipe, with its manifest if there is one."""
    needed, manifest = set(views), manifest_of(store, run)
    if run.wider() == run or (manifest is not None and needed.issubset(manifest.views())):
        return run, manifest
    wide = manifest_of(store, run.wider())
    holds = wide is not None and needed.issubset(wide.views())
    return (run.wider(), wide) if holds else (run, manifest)


def open_cache(
    store: Store, run: OutputsRun, views: list[int], device: torch.device
) -> OutputsCache:
    """A cache with the outputs of a recipe in these views, whose look-ups answer on `device`."""
    run = serving(store, run, views)
    folder, checksum = store.path(run), weights.anchor_checksum(store, run)
    shelf = None if store.node_cache is None else ShardFolder(store, folder)
    if fitted_codecs(run.plain()):
        store.pull(seal_of(store.pull(folder / STATISTICS)))
    return OutputsCache.open(folder, run.plain(), checksum, views, device, shelf)
