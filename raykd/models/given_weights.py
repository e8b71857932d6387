"""Weights that a user names: checked against their network, then copied into the store.

A copy is named by the SHA-256 of its bytes, so that a recipe means the same weights everywhere.
Only files that fit their network are copied.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import torch

from raykd import models
from raykd.core.errors import ConfigError
from raykd.models import checkpoint_files
from raykd.models.staged import Staged
from raykd.models.state_matching import matched
from raykd.storage.store import Store

KEY = "experiment.run.teacher.weights"
_KEPT = re.compile(r"sha256:[0-9a-f]{64}\.(safetensors|pt|pth)")  # a file in the store
# Endings that mean a file, also where there is none; any path that exists is one, too.
_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".pickle"}
Colour = tuple[float, float, float]  # red, green, blue


class GivenWeights:
    """The weights that the recipes of an experiment name; each file is read and checked once."""

    def __init__(self, store: Store, say: Callable[[str], None] = lambda text: None) -> None:
        """`say` is given a sentence where a checkpoint had to be interpreted."""
        self._store = store
        self._say = say
        self._known: dict[tuple[str, str, int], str] = {}

    def name(self, weights: str, model: str, classes: int) -> str:
        """The name of weights in a recipe: "sha256:..." of a file, or as published.

        Raises `ConfigError` where a file cannot be read, or holds the weights of another network
        than `model` with `classes` classes; nothing is copied then.
        """
        if weights.startswith("sha256:"):
            return self._kept(weights)
        if not is_path(weights):
            return weights
        key = (weights, model, classes)
        if key not in self._known:
            self._known[key] = self._imported(weights, model, classes)
        return self._known[key]

    def _kept(self, weights: str) -> str:
        """Check that the store has the file of a "sha256:..." name; returns the name."""
        if _KEPT.fullmatch(weights) is None:
            raise ConfigError(
                f"{KEY}: expected sha256:, 64 hex digits and .pt, .pth or .safetensors, "
                f"got {weights!r}"
            )
        path = self._store.root / "weights" / weights.removeprefix("sha256:")
        if not self._store.pull(path).is_file():
            raise ConfigError(
                f"{KEY}: {self._store.where(path)} is not there; name the file that it is a copy of"
            )
        return weights

    def _imported(self, weights: str, model: str, classes: int) -> str:
        """The name of a file's copy in the store, which is made where the file fits the network."""
        file = _file(weights)
        try:
            note = matched(checkpoint_files.entries(file), _without_memory(model, classes)).note
        except ConfigError as error:
            about = "" if str(file) in str(error) else f"{weights}: these do not fit {model}: "
            raise ConfigError(f"{KEY}: {about}{error}") from error
        if note:
            self._say(f"{weights}: {note}")
        return copied(self._store, weights)


def copied(store: Store, weights: str) -> str:
    """The name of a weights file's copy in the store, which is made where it is not there.

    Raises `ConfigError` where the file cannot be read.
    """
    file = _file(weights)
    suffix = checkpoint_files.kind_of(file)
    if suffix == checkpoint_files.PICKLED and file.suffix == ".pth":
        suffix = file.suffix  # the name that earlier recipes gave such files
    data = file.read_bytes()
    name = hashlib.sha256(data).hexdigest() + suffix
    kept = store.root / "weights" / name
    if not store.pull(kept).is_file():
        store.write(kept, data)
    return f"sha256:{name}"


def _file(weights: str) -> Path:
    """The file that a path means. Raises `ConfigError` where it cannot be read."""
    try:
        file = checkpoint_files.file_of(Path(weights).expanduser())
        with file.open("rb"):
            return file
    except OSError as error:
        raise ConfigError(f"{KEY}: {weights}: cannot be read ({error.strerror})") from error
    except ConfigError as error:
        raise ConfigError(f"{KEY}: {error}") from error


def normalisation(weights: str) -> tuple[Colour | None, Colour | None]:
    """Mean and standard deviation that a Hub folder's config.json names; None where it does not."""
    if not is_path(weights):
        return None, None
    known = checkpoint_files.preprocessing(Path(weights).expanduser())
    mean, std = (_colour(known.get(key)) for key in ("mean", "std"))
    return (mean, std) if mean and std and min(std) > 0 else (None, None)


def _colour(value: object) -> Colour | None:
    """Three numbers of a JSON file; None for anything else."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(isinstance(number, int | float) and abs(number) < 1e3 for number in value):
        return None
    red, green, blue = map(float, value)
    return red, green, blue


def is_path(weights: str) -> bool:
    """True for weights that are a file or a folder rather than a published name."""
    if weights.startswith("sha256:"):
        return False
    path = Path(weights).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        there = False
    return there or path.suffix.lower() in _SUFFIXES or "/" in weights or weights.startswith("~")


def _without_memory(model: str, classes: int) -> Staged:
    """A network on the meta device: names and shapes of its tensors, without memory."""
    try:
        with torch.device("meta"):
            return models.build(model, classes)
    except NotImplementedError:  # torchvision's regnets compute their widths with tensors
        return models.build(model, classes)
