"""Weights on disk: safetensors files of a plain network, with no prefix of ours.

A teacher's folder holds one file per saved epoch, `weights-<epoch>.safetensors`; a student's
holds `weights.safetensors`, `weights-helpers.safetensors` where its method's helpers are needed
to use it, and `weights-stage.safetensors` where there are helpers for a next stage to go on with;
a prelude's folder holds the first two.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from raykd import models
from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.models import foreign_checkpoints
from raykd.models.class_map import mapped
from raykd.models.staged import Staged, classifier_name
from raykd.models.state_matching import load_matched
from raykd.models.weights_import import head_names
from raykd.recipes import AnyTeacher, OutputsRun, StudentRun, TeacherRun, Training
from raykd.storage import arrow
from raykd.storage.atomic import lasting, write_atomic
from raykd.storage.store import Store
from raykd.tasks import Classification
from raykd.training.checkpointing import RESULT, read_result

STUDENT = "weights.safetensors"
HELPERS = (
    "weights-helpers.safetensors"  # a prelude's, or those that a student cannot be used without
)
STAGE = "weights-stage.safetensors"  # a student's helpers, for the next stage of its chain


def save_weights(path: Path, network: Staged) -> None:
    """Write the plain network's state, atomically."""
    save_state(path, network.network.state_dict())


def save_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write the tensors of a state, atomically, into a folder that is there."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with lasting(path):
        write_atomic(path, safetensors.torch.save(tensors))


def load_weights(
    path: Path, network: Staged, *, new_head: bool = False, spare: Collection[str] = ()
) -> str:
    """Set a network to the weights in a file or a Hub folder; a sentence on what was taken, or ''.

    With `new_head` it keeps its own classifier where theirs has other classes, and `spare` names
    tensors that may be left out; see `raykd.models.state_matching`. Raises `ConfigError` where
    they are another network's, and `CacheCorrupt` where the file is missing or cannot be read.
    """
    candidates = _entries(path)
    try:
        return load_matched(candidates, network, new_head=new_head, spare=spare)
    except ConfigError as error:
        raise ConfigError(f"{path}: these are not weights of this network: {error}") from error


def load_state(path: Path) -> dict[str, Tensor]:
    """A state that `save_state` wrote. Raises `CacheCorrupt` where it is missing or unreadable."""
    return dict(_entries(path)[0].tensors)


def _entries(path: Path) -> list[foreign_checkpoints.Entry]:
    try:
        return foreign_checkpoints.entries(foreign_checkpoints.file_of(path))
    except ConfigError as error:
        raise CacheCorrupt(str(error)) from error


def checksums(folder: Path) -> dict[str, str]:
    """The checksum of every weights file in a folder, by its name."""
    return {path.name: arrow.file_checksum(path) for path in sorted(folder.glob("weights*"))}


def checked(path: Path) -> Path:
    """The path, once its bytes have the checksum in the artefact's result.

    Raises `CacheCorrupt`.
    """
    expected = recorded_checksums(path.parent).get(path.name)
    if path.is_file() and arrow.file_checksum(path) == expected:
        return path
    fault = "were truncated or altered" if path.is_file() else "are missing"
    advice = f"remove {path.parent} to train them again, or bring the file back"
    if path.parent.parent.name == TeacherRun.kind:
        advice += (
            ". Its caches are not damaged: they go on serving where the training gives the same "
            "bytes, as with the same versions on CPUs; where it does not, they are named then"
        )
    raise CacheCorrupt(f"{path}: the weights {fault}; {advice}")


def recorded_checksums(folder: Path) -> dict[str, str]:
    """The checksums of weights files in an artefact's result, by name. Raises `CacheCorrupt`."""
    checksums = read_result(folder).get("weights")
    if checksums is None:
        raise CacheCorrupt(
            f"{folder / RESULT}: expected the checksums of weights files, found none; "
            f"remove {folder} to train it again"
        )
    return checksums


def finished(store: Store, run: Training, name: str) -> Path:
    """A file of a finished artefact, fetched from a remote store, as its result is."""
    store.has(run)
    return store.pull(store.path(run) / name)


def load_finished(store: Store, run: Training, name: str, network: Staged) -> None:
    """Set a network to the weights in a finished artefact's file. Raises `CacheCorrupt`."""
    load_weights(checked(finished(store, run, name)), network)


def finished_state(store: Store, run: Training, name: str) -> dict[str, Tensor]:
    """The state in a finished artefact's file; empty where its result names no such file.

    Raises `CacheCorrupt` where the file is damaged or missing.
    """
    path = finished(store, run, name)
    return load_state(checked(path)) if path.name in recorded_checksums(path.parent) else {}


def anchor_path(store: Store, teacher: AnyTeacher, anchor: int) -> Path:
    """The file of a teacher's weights after `anchor` epochs; a student's has only the last."""
    if isinstance(teacher, StudentRun):
        return store.path(teacher) / STUDENT
    return store.path(teacher) / f"weights-{anchor:04d}.safetensors"


def anchor_checksum(store: Store, run: OutputsRun) -> str:
    """The checksum that names the teacher's weights in a cache's manifest, and its prelude's.

    Raises `CacheCorrupt` where they are damaged; of a remote store they need not be here.
    """
    checksum = _checksum(store, run.teacher, anchor_path(store, run.teacher, run.anchor))
    if run.prelude is None:
        return checksum
    path = store.path(run.prelude) / HELPERS
    return f"{checksum} and {_checksum(store, run.prelude, path)} of its prelude"


def _checksum(store: Store, run: Training, path: Path) -> str:
    """The checksum of one file of a finished training, which is sound where it is here."""
    if store.node_cache is None:
        checked(path)
    else:
        store.has(run)
    checksum = recorded_checksums(path.parent).get(path.name)
    if checksum is None:
        raise CacheCorrupt(
            f"{path.parent / RESULT}: speaks of no {path.name}; remove {path.parent} to train it "
            "again"
        )
    return checksum


def load_teacher(store: Store, teacher: AnyTeacher, anchor: int, device: torch.device) -> Staged:
    """The teacher as it was after `anchor` epochs, on `device`."""
    network = build_network(teacher)
    load_finished(store, teacher, anchor_path(store, teacher, anchor).name, network)
    return network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def build_network(teacher: AnyTeacher) -> Staged:
    """The network of a teacher or student, as it is made to have its weights loaded.

    A teacher's has its own outputs, and behind them the map to the classes of the data.
    """
    if isinstance(teacher, StudentRun):
        network = teacher.task.adapted(models.build(teacher.model, teacher.head))
        return _as_published(network, teacher.stages()[0].weights)
    network = teacher.task.adapted(models.build(teacher.model, teacher.own_classes()))
    return _as_asked(_as_published(network, teacher.weights), teacher)


def _as_published(network: Staged, source: str | None) -> Staged:
    """A network that takes pixels as the weights do that it began with."""
    if source and not source.startswith("sha256:") and hasattr(network.network, "transform_input"):
        # torchvision's googlenet and inception_v3 with published weights want other pixels.
        setattr(network.network, "transform_input", True)  # noqa: B010 - modules are not typed
    return network


def _as_asked(network: Staged, teacher: TeacherRun) -> Staged:
    """A teacher's network with its map of classes and its own size."""
    network.side = teacher.size
    return mapped(network, teacher.groups())


def load_start(store: Store, run: StudentRun, network: Staged) -> None:
    """Set a student to the weights that it starts from, if there are any.

    Its own classifier stays where theirs is missing, or has another number of classes; a backbone
    takes none.
    """
    if run.weights is None:
        return
    if run.task.embeds:  # the classifier is of another kind, and begins anew
        plain = models.build(run.model, run.head)
        load_start(store, run.model_copy(update={"task": Classification()}), plain)
        last = f"{classifier_name(plain)}."
        state = plain.network.state_dict()
        kept = {name: value for name, value in state.items() if not name.startswith(last)}
        network.network.load_state_dict(kept, strict=False)
        return
    spare = () if run.head else head_names(run.model)
    if run.weights.startswith("sha256:"):
        load_weights(_copy(store, run.weights), network, new_head=True, spare=spare)
        return
    library, _, name = run.model.partition("/")
    from raykd.models import libraries  # torchvision takes seconds to import

    classes = libraries.published_classes(library, name, run.weights)
    published = models.build(run.model, classes, run.weights)
    entry = foreign_checkpoints.Entry("", published.network.state_dict())
    load_matched([entry], network, new_head=True, spare=spare)


def pretrained(store: Store, teacher: TeacherRun) -> Staged:
    """A given teacher: published weights, or a file that the store has a copy of."""
    assert teacher.weights is not None
    if not teacher.weights.startswith("sha256:"):
        published = models.build(teacher.model, teacher.own_classes(), teacher.weights)
        return _as_asked(published, teacher)
    network = build_network(teacher)
    load_weights(_copy(store, teacher.weights), network)
    return network


def _copy(store: Store, weights: str) -> Path:
    """The store's copy of a file, by its "sha256:..." name. Raises `CacheCorrupt`."""
    name = weights.removeprefix("sha256:")
    path = store.pull(store.root / "weights" / name)
    if not path.is_file() or not name.startswith(hashlib.sha256(path.read_bytes()).hexdigest()):
        raise CacheCorrupt(
            f"{path}: the weights are missing, or were truncated or altered; remove the file, and "
            "name the one that it is a copy of as weights"
        )
    return path
