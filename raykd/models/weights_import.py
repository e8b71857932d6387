"""Import of weights files: checked against their network, then copied into the store.

A copy is named by the SHA-256 of its bytes, so that a recipe means the same weights everywhere.
Only files that fit their network are copied.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from raykd import models
from raykd.core.errors import ConfigError
from raykd.models import foreign_checkpoints, hub, state_matching
from raykd.models.staged import Staged, unallocated
from raykd.models.state_matching import OtherHead, matched
from raykd.models.weights_config import WeightsConfig, of_folder
from raykd.storage.remembered import digest_of
from raykd.storage.store import Store

# The name of a file in the store, and that of the config.json that it came with (`portable_name`).
_COPY = re.compile(r"sha256:[0-9a-f]{64}\.(safetensors|pt|pth)(\+[0-9a-f]{64}\.json)?")
# Endings that mean a file, also where there is none; any path that exists is one, too.
_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".pickle"}


class WeightsImporter:
    """Importer of the weights in an experiment's recipes; each file is read and checked once."""

    def __init__(self, store: Store, log: Callable[[str], None] = lambda text: None) -> None:
        """`log` is called with a sentence where a checkpoint had to be interpreted."""
        self._store = store
        self._log = log
        self._names: dict[tuple[str, str, int, bool], str] = {}
        self._outputs: dict[tuple[str, str, int], int] = {}
        self._latest: tuple[Path, list[foreign_checkpoints.Entry]] | None = None

    def name(self, weights: str, model: str, classes: int, *, start: bool = False) -> str:
        """The name of weights in a recipe: "sha256:..." of a file, or as published.

        `start`: training goes on from them, so another classifier is replaced. Raises `ConfigError`
        where a file cannot be read, or holds the weights of another network than `model` with
        `classes` classes; nothing is copied then.
        """
        if weights.startswith("sha256:"):
            return self._check_copy(weights)
        key = (weights, model, classes, start)
        if key not in self._names:
            if is_path(weights):
                self._names[key] = self._import(weights, model, classes, start=start)
            else:
                self._names[key] = self._published(weights, model, classes, start=start)
        return self._names[key]

    def outputs(self, weights: str, model: str, classes: int) -> int:
        """Number of classes of the weights' head; 0 without a head.

        `classes` for a file whose head has those, or that does not fit at all, which `name` says.
        """
        key = (weights, model, classes)
        if key not in self._outputs:
            self._outputs[key] = self._outputs_of(*key)
        return self._outputs[key]

    def _entries(self, file: Path) -> list[foreign_checkpoints.Entry]:
        """The entries of a file; those of the latest one are kept, since it is asked for twice."""
        if self._latest is None or self._latest[0] != file:
            self._latest = None  # before the next one is in memory
            self._latest = file, foreign_checkpoints.entries(file)
        return self._latest[1]

    def _outputs_of(self, weights: str, model: str, classes: int) -> int:
        """The number of classes that `outputs` looks up."""
        library, slash, name = model.partition("/")
        if weights.startswith("sha256:"):
            self._check_copy(weights)
            file = _in_store(self._store, weights)
        elif is_path(weights):
            file = _file(weights)
        elif slash:
            from raykd.models import libraries

            return libraries.published_classes(library, name, weights)
        else:
            return classes
        try:
            matched(self._entries(file), _meta_network(model, max(1, classes)))
        except OtherHead as error:
            return error.classes
        except ConfigError:
            return classes
        return max(1, classes)

    def _published(self, weights: str, model: str, classes: int, *, start: bool) -> str:
        """The name of published weights, which a start is not trained before it is checked."""
        library, slash, name = model.partition("/")
        if not start:
            return weights
        if not slash:
            raise ConfigError(
                f"{model} has no published weights {weights!r}; give a file, or hub:owner/name"
            )
        from raykd.models import libraries  # torchvision takes seconds to import

        available = libraries.published_classes(library, name, weights)
        theirs = _meta_network(model, available).network.state_dict()
        entry = foreign_checkpoints.Entry("", theirs)
        try:
            note = self._fitting([entry], model, classes, start=True)
        except ConfigError as error:
            raise ConfigError(f"{weights!r} cannot start {model}: {error}") from error
        if note:
            self._log(f"{model} {weights}: {note}")
        return weights

    def _check_copy(self, weights: str) -> str:
        """Check that the store has the file of a "sha256:..." name; returns the file's name."""
        if _COPY.fullmatch(weights) is None:
            raise ConfigError(
                f"expected sha256:, 64 hex digits and .pt, .pth or .safetensors, got {weights!r}"
            )
        path = _in_store(self._store, weights)
        if not self._store.pull(path).is_file():
            raise ConfigError(
                f"{self._store.where(path)} is not there; name the file that it is a copy of"
            )
        return weights.partition("+")[0]

    def _import(self, weights: str, model: str, classes: int, *, start: bool) -> str:
        """The name of a file's copy in the store, which is made where the file fits the network."""
        file = _file(weights)
        try:
            note = self._fitting(self._entries(file), model, classes, start=start)
        except ConfigError as error:
            subject = "" if str(file) in str(error) else f"{weights}: these do not fit {model}: "
            raise ConfigError(f"{subject}{error}{_of_other(weights, model)}") from error
        if note:
            self._log(f"{weights}: {note}")
        return copy_to_store(self._store, weights)

    def _fitting(
        self, entries: list[foreign_checkpoints.Entry], model: str, classes: int, *, start: bool
    ) -> str:
        """A sentence on how tensors were read as a network's. Raises `ConfigError`."""
        spare = head_names(model) if start and not classes else ()
        return matched(entries, _meta_network(model, classes), new_head=start, spare=spare).note


def copy_to_store(store: Store, weights: str) -> str:
    """The name of a weights file's copy in the store, which is made where it is not there.

    Raises `ConfigError` where the file cannot be read.
    """
    file = _file(weights)
    suffix = foreign_checkpoints.kind_of(file)
    if suffix == foreign_checkpoints.PICKLED and file.suffix == ".pth":
        suffix = file.suffix  # the name that earlier recipes gave such files
    name = digest_of(file) + suffix
    if not store.pull(store.root / "weights" / name).is_file():
        data = file.read_bytes()
        name = hashlib.sha256(data).hexdigest() + suffix
        store.write(store.root / "weights" / name, data)
    return f"sha256:{name}"


def portable_name(store: Store, weights: str) -> str:
    """The name of a file's copy in the store, with that of a copy of the config.json beside it.

    Other processes read in it what the folder says of its weights.
    """
    name, config = copy_to_store(store, weights), _local(weights) / "config.json"
    if not config.is_file():
        return name
    data = config.read_bytes()
    copy = f"{hashlib.sha256(data).hexdigest()}.json"
    if not store.pull(store.root / "weights" / copy).is_file():
        store.write(store.root / "weights" / copy, data)
    return f"{name}+{copy}"


def _in_store(store: Store, weights: str) -> Path:
    """The path of the file of a "sha256:..." name."""
    return store.root / "weights" / weights.removeprefix("sha256:").partition("+")[0]


def _file(weights: str) -> Path:
    """The file that a path means. Raises `ConfigError` where it cannot be read."""
    try:
        file = foreign_checkpoints.file_of(_local(weights))
        with file.open("rb"):
            return file
    except OSError as error:
        raise ConfigError(f"{weights}: cannot be read ({error.strerror})") from error


def _local(weights: str) -> Path:
    """The file or folder that a path means, or the folder that the Hub's repository is in."""
    return hub.fetched(weights) if weights.startswith(hub.PREFIX) else Path(weights).expanduser()


def _of_other(weights: str, model: str) -> str:
    """Words on the architecture that a folder's config.json names, where it is not the model's."""
    theirs = foreign_checkpoints.configuration(_local(weights)).get("architecture")
    if not isinstance(theirs, str) or theirs == model.rpartition("/")[2]:
        return ""
    return f"; its config.json says that they are of timm/{theirs[:100]}, so give that as the model"


def configuration(weights: str, model: str, store: Store | None = None) -> WeightsConfig:
    """The classes and the input that weights name as theirs; nothing for a plain file.

    `store` has what a name of `portable_name` names. Raises `ConfigError` where a library has not
    published such weights.
    """
    library, slash, name = model.partition("/")
    if is_path(weights):
        return of_folder(_local(weights))
    if weights.startswith("sha256:"):
        config = weights.partition("+")[2]
        if store is None or not config:
            return WeightsConfig()
        return of_folder(store.pull(store.root / "weights" / config))
    if not slash:
        return WeightsConfig()
    from raykd.models import libraries  # torchvision takes seconds to import

    return libraries.configuration(library, name, weights)


def is_path(weights: str) -> bool:
    """True for weights that are a file, a folder or on the Hub rather than a published name."""
    if weights.startswith(("sha256:", hub.PREFIX)):
        return weights.startswith(hub.PREFIX)
    path = Path(weights).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        exists = False
    return exists or path.suffix.lower() in _SUFFIXES or "/" in weights or weights.startswith("~")


def head_names(model: str) -> set[str]:
    """The names of a network's classifier's parameters, where it has one."""
    return state_matching.head_names(_meta_network(model, 1))


def _meta_network(model: str, classes: int) -> Staged:
    """A network of a model for the names and shapes of its tensors."""
    return unallocated(lambda: models.build(model, classes))
