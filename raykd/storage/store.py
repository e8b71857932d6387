"""Folders that are named by the hash of their recipe.

    root/teachers/<fingerprint>/   weights at the saved epochs, metrics.jsonl, result.json
    root/caches/<fingerprint>/     shards, manifest.json
    root/preludes/<fingerprint>/   networks and helpers that some methods train before
    root/students/<fingerprint>/   weights.safetensors, metrics.jsonl, result.json
    root/searches/<fingerprint>/   decisions.json: the anchors that a greedy search chose, and why
    root/sweeps/<name>/            a sheet per trial; results.csv, results.arrow
    root/tune/<name>/              Ray Tune's logs, TensorBoard's files among them
    root/tensorboard/<kind>/       a folder of events per training, with scale.track: [tensorboard]
    root/wandb/                    W&B's files, with scale.track: [wandb]
    root/mlflow.db                 MLflow's, with scale.track: [mlflow] and no address of a server
    root/images/<digest>/          index of images that stay encoded
    root/images/<digest>-<side>/   decoded pixels and labels
    root/images/contents/          hashes of encoded images
    root/weights/<digest>.*        copies of weights files that experiments named
    root/plugins/<digest>.py       plugins that artefacts were made with
    root/reports/                  pages
    root/locks/                    the artefacts that processes are making at the moment
    root/.rayignore                `*`: `ray job submit` from a folder around it leaves it out

A folder is complete when its marker is there; the marker is written last. What a killed run leaves
is complete, or is continued or made anew.

JSON files are sealed: beside their content they hold a checksum of it and of their place (kind,
folder, name), so that neither a damaged file nor another artefact's is believed. A recipe needs no
seal, since its hash is its folder's name. Files without a seal, written before there was one, are
believed where they have the right shape.

The root may be a URL. Then every node works on a copy of its own (`node_cache.py`): files that are
written are pushed, and files that are missing are pulled. Neither does anything for a local root.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from raykd.core.errors import CacheCorrupt, CacheMismatch, ConfigError, NoRoom, Unreachable, text_of
from raykd.core.plugins import plugins_of
from raykd.core.record import DIGITS, Recipe, fingerprint
from raykd.storage import plugin_files
from raykd.storage.atomic import (
    gone,
    is_there,
    make_folder,
    remove_leftovers,
    unwritable,
    write_atomic,
)
from raykd.storage.filesystem import Remote, is_url
from raykd.storage.node_cache import NodeCache, folder_of

MARKER = "recipe.json"
LOCKS = "locks"
IGNORED = ".rayignore"  # Ray's own name for a list of what it does not upload
SEAL = "seal"  # a key of every file that `write_json` writes
_SEAL_DIGITS = 24
_NAME_BYTES = 255  # limit of a name, on every file system in use
# Class names that an earlier raykd hashed with its recipes.
_EARLIER_KINDS = {
    "teachers": "TeacherRun",
    "caches": "LogitsRun",
    "preludes": "PreludeRun",
    "students": "StudentRun",
    "searches": "Search",
}
_NO_FOLDER = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def write_json(path: Path, value: object, *, sealed: bool = True) -> None:
    """Write `value` as indented JSON, atomically; a dict gets the seal of its place if `sealed`."""
    write_atomic(path, _json(value, path if sealed else None))


def _json(value: object, path: Path | None = None) -> bytes:
    """The value as indented JSON; a dict for `path` gets a seal."""
    if path is not None and isinstance(value, dict):
        value = {**value, SEAL: _seal(_place(path), json.loads(json.dumps(value)))}
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _seal(place: str, value: object) -> str:
    """Checksum of a place and a JSON value, followed by the place."""
    text = json.dumps([place, value], sort_keys=True, separators=(",", ":"))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:_SEAL_DIGITS]} {place}"


def _place(path: Path) -> str:
    """The part of a file's path that stays when a store is moved: kind, folder, name."""
    return "/".join(path.parts[-3:])


def _unsealed(path: Path, value: Any, *, anywhere: bool) -> None:
    """Remove the seal of a value that has one. Raises `ValueError` where it does not match."""
    seal = value.pop(SEAL, None) if isinstance(value, dict) else None
    if seal is None:
        return
    place = seal.partition(" ")[2] if isinstance(seal, str) else ""
    if seal != _seal(place, value):
        raise ValueError("it was altered: its seal does not match")
    if place != _place(path) and not anywhere:
        raise ValueError(f"it belongs to {place}")


def read_json(
    path: Path,
    shape: Any = dict[str, Any],
    *,
    what: str = "cannot be read",
    advice: str = "",
    anywhere: bool = False,
) -> Any:
    """The value of a JSON file, without its seal, after a check that raykd wrote it there.

    `shape` is the type of the value. With `anywhere`, another artefact's file is accepted, too.
    Raises `CacheCorrupt` for anything else; `what` and `advice` are parts of its message: the
    fault, and the remedy.
    """
    try:
        value = json.loads(path.read_bytes())
        _unsealed(path, value, anywhere=anywhere)
        _adapter(shape).validate_python(value, strict=True)
    except (OSError, ValueError, RecursionError) as error:
        advice = advice or f"remove {path.parent} to have it made again"
        advice = "mend its permissions" if isinstance(error, PermissionError) else advice
        raise CacheCorrupt(f"{path}: {what} ({first_line(error)}); {advice}") from error
    return value


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def read_recipe(kind: type[AnyRecipe], folder: Path) -> AnyRecipe:
    """The recipe of a finished artefact.

    Raises `CacheCorrupt`, naming the file, `CacheMismatch` where an earlier raykd wrote it, and
    `ConfigError` where it uses a plugin that is not loaded.
    """
    path = folder / MARKER
    try:
        data = path.read_bytes()
        _check_age(path, data)
        plugin_files.check_loaded(folder, data)
        recipe = kind.model_validate_json(data)
    except (CacheMismatch, ConfigError):
        raise
    except (OSError, ValueError) as error:
        raise _no_recipe(path, f"cannot be read ({first_line(error)})") from error
    if fingerprint(recipe) != folder.name:
        raise _no_recipe(path, "is of another artefact")
    return recipe


def _is_recipe(data: bytes, recipe: Recipe) -> bool:
    """True where the JSON of a marker is a recipe. Raises `ValueError` for other content."""
    json.loads(data)
    try:
        return type(recipe).model_validate_json(data) == recipe
    except ValidationError:
        return False


def _no_recipe(path: Path, what: str) -> CacheCorrupt:
    return CacheCorrupt(
        f"{path}: {what}; it is not the recipe that its folder is named by. Remove this file and "
        "run the same command again, which writes it anew; what was computed stays"
    )


def _check_age(path: Path, data: bytes) -> None:
    """Raise `CacheMismatch` for the marker of an earlier raykd, which hashed other text."""
    *_, kind, name, _ = path.parts
    try:
        value = {"kind": _EARLIER_KINDS.get(kind), "value": json.loads(data)}
    except (ValueError, RecursionError):  # damaged; reported where the recipe is read
        return
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest()[:DIGITS] == name:
        raise CacheMismatch(
            f"{path}: an earlier raykd made this store, with other fingerprints, so that nothing "
            "in it would be found and all would be made again; keep it for the raykd that made "
            "it, and name another one with --store"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))[:200]
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = getattr(error, "strerror", None) or text_of(error)
    return text.splitlines()[0][:200]


class Store:
    """Artefacts under one root: a folder that every worker can reach, or a URL.

    `root` is the folder on this node; `url` makes the same store on another one. `local_gb` bounds
    the copies of a remote store's shards on a node; $RAYKD_LOCAL_GB goes first.
    """

    def __init__(self, root: str | Path, local_gb: float | None = None) -> None:
        self.node_cache: NodeCache | None = None
        self._checked: dict[Path, tuple[int, int]] = {}  # markers: times and sizes when checked
        if is_url(str(root)):
            remote = Remote(str(root))
            self.root = folder_of(remote)
            self.url, self.shown = remote.url, remote.shown
            self.node_cache = NodeCache(remote, self.root)
        else:
            self.root = _folder(str(root))
            self.url = self.shown = str(self.root)
        self.local_bytes = _bound(local_gb)
        self._checked_kinds: set[str] = set()  # kinds without artefacts of an earlier raykd
        self._stands = False

    def ensure_root(self, *, made: bool = False) -> None:
        """Make the root before work begins; later, or if `made`, only check that it is there.

        Raises `Unreachable` where it has gone: a lost mount leaves an empty folder, in which
        nothing must be made anew.
        """
        mark, local = self.root / LOCKS, self.node_cache is None  # copies may be removed any time
        if is_there(mark):
            self._stands = True
            self._leave_out()
        elif made and local:
            raise Unreachable(
                f"{self.root}: the driver's store is not there on {socket.gethostname()}; all "
                "nodes must share that folder: mount it, and run the same command again"
            )
        elif self._stands and local:
            raise gone(self.root)
        else:
            make_folder(mark)
            self._stands = True
            self._leave_out()

    def _leave_out(self) -> None:
        """Keep a folder's content out of what Ray uploads of a working directory around it."""
        note = self.root / IGNORED
        if self.node_cache is None and not note.exists():
            with contextlib.suppress(OSError, NoRoom, Unreachable):  # it may be read alone
                write_atomic(note, b"*\n")

    def path(self, recipe: Recipe) -> Path:
        """The folder of a recipe's artefact, whether or not it exists."""
        return self.root / recipe.kind / fingerprint(recipe)

    def has(self, recipe: Recipe) -> bool:
        """True if the artefact is complete. Its large files may still have to be pulled.

        Raises `CacheCorrupt` where its marker is not this recipe, and `CacheMismatch` where an
        earlier raykd made the artefacts of this kind.
        """
        path = self.path(recipe) / MARKER
        self._check_kind(recipe.kind)
        if not self.whole(path.parent, MARKER):
            return False
        try:
            file = self.pull(path).stat()
            state = (file.st_mtime_ns, file.st_size)
            if self._checked.get(path) != state:
                data = path.read_bytes()
                # An earlier raykd's lacks the fields that were added since, at their defaults.
                same = json.dumps(json.loads(data)) == json.dumps(recipe.plain(), sort_keys=True)
                if not same and not _is_recipe(data, recipe):
                    raise _no_recipe(path, "was altered")
                self._checked[path] = state
        except CacheCorrupt:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise _no_recipe(path, f"cannot be read ({first_line(error)})") from error
        return True

    def _check_kind(self, kind: str) -> None:
        """Raise `CacheMismatch` where an earlier raykd made the artefacts of a kind."""
        if kind in self._checked_kinds:
            return
        if self.node_cache is None:
            folders = (path.parent for path in (self.root / kind).glob(f"*/{MARKER}"))
        else:
            folders = iter(self.node_cache.complete(kind, MARKER))
        folder = next(folders, None)
        if folder is not None:
            with contextlib.suppress(OSError):
                _check_age(folder / MARKER, self.pull(folder / MARKER).read_bytes())
        self._checked_kinds.add(kind)

    def finish(self, recipe: Recipe) -> None:
        """Write the marker that makes the artefact complete."""
        folder = self.path(recipe)
        write_json(folder / MARKER, recipe.plain(), sealed=False)
        remove_leftovers(folder)
        self.share(folder, MARKER)

    def discard(self, recipe: Recipe) -> None:
        """Remove the artefact, marker first, so that a half-removed one is never trusted."""
        self.remove(self.path(recipe) / MARKER)
        self.remove(self.path(recipe))

    def finished(self, kind: str) -> Iterator[Path]:
        """Folders of the complete artefacts of one kind, oldest first."""
        if self.node_cache is None:
            folders = [path.parent for path in (self.root / kind).glob(f"*/{MARKER}")]
        else:
            folders = self.node_cache.finished(kind, MARKER)
        yield from sorted(folders, key=lambda folder: (folder / MARKER).stat().st_mtime)

    def where(self, path: Path) -> str:
        """A path for messages: its remote name if the store is remote."""
        return str(path) if self.node_cache is None else self.node_cache.shown(path)

    def whole(self, folder: Path, marker: str) -> bool:
        """True if a folder is complete, by the file that is written last."""
        if self.node_cache is None:
            return (folder / marker).is_file()
        return self.node_cache.whole(folder, marker)

    def share(self, folder: Path, marker: str) -> None:
        """Push a complete folder, its marker last."""
        if self.node_cache is not None:
            self.node_cache.share(folder, marker)

    def push(self, path: Path) -> None:
        """Upload a file for other nodes."""
        if self.node_cache is not None:
            self.node_cache.push(path)

    def pull(self, path: Path) -> Path:
        """The path of a file that never changes, once it is fetched; it may be nowhere."""
        if self.node_cache is not None:
            self.node_cache.pull(path)
        return path

    def pull_all(self, folder: Path, beginning: str) -> None:
        """Pull the files of a folder whose names begin so."""
        if self.node_cache is not None:
            self.node_cache.pull_all(folder, beginning)

    def renew(self, path: Path) -> Path:
        """Renew a file that other nodes may have changed or removed."""
        if self.node_cache is not None:
            self.node_cache.renew(path)
        return path

    def renew_all(self, folder: Path) -> Path:
        """Renew a folder of texts, in which other nodes write."""
        if self.node_cache is not None:
            self.node_cache.renew_all(folder)
        return folder

    def elsewhere(self, path: Path) -> bytes | None:
        """Remote content of a file; None for a local store, or if there is none."""
        return None if self.node_cache is None else self.node_cache.read(path)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file atomically, here and for the other nodes."""
        if self.node_cache is None:
            write_atomic(path, data)
            return
        # Pushed before the local rename; else another process could fetch the old version.
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        write_atomic(aside, data)
        try:
            self.node_cache.push(aside, path)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def write_json(self, path: Path, value: object) -> None:
        """Write a value as indented, sealed JSON."""
        self.write(path, _json(value, path))

    def keep_plugins(self, digests: Iterable[str]) -> None:
        """Write plugins of this process beside the artefacts that are made with them."""
        for plugin in plugins_of(digests):
            for name, data in plugin_files.files_of(plugin).items():
                path = self.root / plugin_files.FOLDER / name
                if not self.pull(path).is_file():
                    self.write(path, data)

    def remove(self, path: Path) -> None:
        """Remove a file or a folder, where it is there."""
        if self.node_cache is not None:
            self.node_cache.remove(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _folder(name: str) -> Path:
    """The folder of a local store. Raises `ConfigError` for a name that no folder can have."""
    if not name.strip():
        raise ConfigError("--store: expected a folder or a URL, got ''; `.` is the current folder")
    shown = f"--store: {name[:80]!r} can be no folder"
    try:
        root = Path(name).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, unknown user, circular links
        raise ConfigError(f"{shown} ({first_line(error)}); name another one") from error
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in root.parts):
        raise ConfigError(f"{shown} (a name of over {_NAME_BYTES} bytes); name another one")
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise ConfigError(f"--store: {root} is a file, not a folder; name another one")
    except OSError as error:  # others are reported when work begins
        if error.errno in _NO_FOLDER:
            raise ConfigError(f"{shown} ({error.strerror}); name another one") from error
        if error.errno == errno.ENOTDIR:
            raise unwritable(root, error) from error
    return root


def _bound(local_gb: float | None) -> int | None:
    """The bound on local copies in bytes; None for none. Raises `ConfigError`."""
    text = os.environ.get("RAYKD_LOCAL_GB")
    try:
        number = float(text) if text else local_gb
        return None if number is None else int(number * 1e9)
    except (ValueError, OverflowError):
        raise ConfigError(f"$RAYKD_LOCAL_GB: expected a number, found {text!r}") from None
