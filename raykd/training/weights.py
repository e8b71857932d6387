"""Weights on disk: safetensors files of a plain network, with no prefix of ours.

A teacher's folder holds one file per saved epoch, `weights-<epoch>.safetensors`; a student's
holds `weights.safetensors`, `weights-helpers.safetensors` where its method's helpers are needed
to use it, and `weights-stage.safetensors` where there are helpers for a next stage to go on with;
a prelude's folder holds the first two.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from raykd import models
from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.models import checkpoint_files
from raykd.models.staged import Staged
from raykd.models.state_matching import load_matched
from raykd.recipes import AnyTeacher, LogitsRun, StudentRun, TeacherRun, Training
from raykd.storage import arrow
from raykd.storage.atomic import lasting, write_atomic
from raykd.storage.store import Store
from raykd.training.checkpointing import RESULT, read_result

STUDENT = "weights.safetensors"
HELPERS = (
    "weights-helpers.safetensors"  # a prelude's, or those that a student cannot be used without
)
STAGE = "weights-stage.safetensors"  # a student's helpers, for the next stage of its chain


def save_weights(path: Path, network: Staged) -> None:
    """Write the plain network's state, atomically."""
    save_state(path, network.network)


def save_state(path: Path, module: nn.Module) -> None:
    """Write a module's state, atomically."""
    save_tensors(path, module.state_dict())


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by their names, atomically, into a folder that is there."""
    state = {name: value.detach().cpu() for name, value in tensors.items()}
    with lasting(path):
        write_atomic(path, safetensors.torch.save({k: v.contiguous() for k, v in state.items()}))


def load_weights(path: Path, network: Staged) -> str:
    """Set a network to the weights in a file or a Hub folder; a sentence on what was taken, or ''.

    See `raykd.models.state_matching`. Raises `ConfigError` where they are another network's, and
    `CacheCorrupt` where the file is missing or cannot be read.
    """
    _check_there(path)
    try:
        candidates = checkpoint_files.entries(checkpoint_files.file_of(path))
    except ConfigError as error:
        raise CacheCorrupt(str(error)) from error
    try:
        return load_matched(candidates, network)
    except ConfigError as error:
        raise ConfigError(f"{path}: these are not weights of this network: {error}") from error


def load_state(path: Path) -> dict[str, Tensor]:
    """A state that was written here. Raises `CacheCorrupt` where it is missing or unreadable."""
    _check_there(path)
    try:
        return dict(checkpoint_files.entries(path)[0].tensors)
    except ConfigError as error:
        raise CacheCorrupt(str(error)) from error


def _check_there(path: Path) -> None:
    if not path.exists():
        raise CacheCorrupt(
            f"{path}: the weights are missing; remove the folder to train them again"
        )


def checksums(folder: Path) -> dict[str, str]:
    """The checksum of every weights file in a folder, by its name."""
    return {path.name: arrow.file_checksum(path) for path in sorted(folder.glob("weights*"))}


def checked(path: Path) -> Path:
    """The path, once its bytes are seen to be those that the artefact's result speaks of.

    Raises `CacheCorrupt`.
    """
    known = known_checksums(path.parent)
    if not path.is_file():
        raise CacheCorrupt(f"{path}: the weights are missing; {_to_mend(path)}")
    if arrow.file_checksum(path) != known.get(path.name):
        raise CacheCorrupt(f"{path}: the weights were truncated or altered; {_to_mend(path)}")
    return path


def _to_mend(path: Path) -> str:
    """Advice about an artefact's damaged weights."""
    what = f"remove {path.parent} to train them again, or bring the file back"
    if path.parent.parent.name != TeacherRun.kind:
        return what
    return (
        f"{what}. Its caches are not damaged: they go on serving where the training gives the "
        "same bytes, as with the same versions on CPUs; where it does not, they are named then"
    )


def known_checksums(folder: Path) -> dict[str, str]:
    """The checksums that an artefact's result has of its weights files. Raises `CacheCorrupt`."""
    known = read_result(folder).get("weights")
    if known is None:
        raise CacheCorrupt(
            f"{folder / RESULT}: expected the checksums of weights files, found none; "
            f"remove {folder} to train them again"
        )
    return known


def finished(store: Store, run: Training, name: str) -> Path:
    """A file of a finished artefact, brought here where it has one, with its result."""
    store.has(run)
    return store.pull(store.path(run) / name)


def kept(path: Path) -> dict[str, Tensor]:
    """The state in a file of a finished artefact, once checked; nothing where it has no such file.

    Raises `CacheCorrupt` where the artefact's result speaks of the file and it is not there.
    """
    if path.name not in known_checksums(path.parent):
        return {}
    return load_state(checked(path))


def anchor_path(store: Store, teacher: AnyTeacher, anchor: int) -> Path:
    """The file of a teacher's weights after `anchor` epochs; a student's has only the last."""
    if isinstance(teacher, StudentRun):
        return store.path(teacher) / STUDENT
    return store.path(teacher) / f"weights-{anchor:04d}.safetensors"


def anchor_checksum(store: Store, run: LogitsRun) -> str:
    """The checksum that names the teacher's weights in a cache's manifest.

    Raises `CacheCorrupt` where they are damaged; of a remote store they need not be here.
    """
    path = anchor_path(store, run.teacher, run.anchor)
    if store.node_cache is None:
        checked(path)
    else:
        store.has(run.teacher)
    checksum = known_checksums(path.parent).get(path.name)
    if checksum is None:
        raise CacheCorrupt(
            f"{path.parent / RESULT}: speaks of no {path.name}; remove {path.parent} to train it "
            "again"
        )
    return checksum


def load_teacher(store: Store, teacher: AnyTeacher, anchor: int, device: torch.device) -> Staged:
    """The teacher as it was after `anchor` epochs, on `device`."""
    path = checked(finished(store, teacher, anchor_path(store, teacher, anchor).name))
    network = unloaded(teacher)
    load_weights(path, network)
    return network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def unloaded(teacher: AnyTeacher) -> Staged:
    """The network of a teacher or student, as it is made to have its weights loaded."""
    network = models.build(teacher.model, teacher.data.resolved().classes)
    given = teacher.weights if isinstance(teacher, TeacherRun) else None
    if given and not given.startswith("sha256:") and hasattr(network.network, "transform_input"):
        # torchvision's googlenet and inception_v3 with published weights want other pixels.
        setattr(network.network, "transform_input", True)  # noqa: B010 - modules are not typed
    return network


def given_weights(store: Store, teacher: TeacherRun) -> Staged:
    """A pretrained teacher: published weights, or a file that the store has a copy of."""
    assert teacher.weights is not None
    classes = teacher.data.resolved().classes
    if not teacher.weights.startswith("sha256:"):
        return models.build(teacher.model, classes, teacher.weights)
    network = models.build(teacher.model, classes)
    name = teacher.weights.removeprefix("sha256:")
    path = store.pull(store.root / "weights" / name)
    if path.is_file() and not name.startswith(hashlib.sha256(path.read_bytes()).hexdigest()):
        raise CacheCorrupt(
            f"{path}: the weights were truncated or altered; remove the file, and name the one "
            "that it is a copy of in run.teacher.weights"
        )
    load_weights(path, network)
    return network
