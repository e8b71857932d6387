"""Folders that are named by the hash of their recipe.

    root/teachers/<fingerprint>/   weights at the saved epochs, metrics.jsonl, result.json
    root/caches/<fingerprint>/     shards, manifest.json
    root/preludes/<fingerprint>/   what some methods have trained before, and its helpers
    root/students/<fingerprint>/   weights.safetensors, metrics.jsonl, result.json
    root/searches/<fingerprint>/   decisions.json: the anchors that a greedy search chose, and why
    root/sweeps/<name>/            a sheet per trial; results.csv, results.arrow
    root/tune/<name>/              Ray Tune's logs, TensorBoard's files among them
    root/tensorboard/<kind>/       a folder of events per training, with scale.track: [tensorboard]
    root/images/<digest>/          where each image lies, of those that stay encoded
    root/images/<digest>-<side>/   decoded pixels and labels
    root/weights/<digest>.*        copies of weights files that experiments named
    root/reports/                  pages
    root/locks/                    who makes what at the moment, so that nothing is made twice

A folder is complete when its marker is there, and the marker is written last. What a killed
run leaves is either complete or is continued or made anew.

JSON files are sealed: beside what they say they hold a checksum of it and of their place (kind,
folder, name), so that neither a damaged file nor another artefact's is believed. A recipe needs no
seal, since its hash is its folder's name. Files without a seal, which were written before there
was one, are believed where they have the right shape.

The root may be a URL. Then every node works on a copy of its own, the mirror: what is written is
pushed, and what is missing is pulled. Of a local root those words mean nothing.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from raykd.core.errors import CacheCorrupt, CacheMismatch, ConfigError, Unreachable
from raykd.core.record import DIGITS, Recipe, fingerprint
from raykd.storage.atomic import gone, is_there, unwritable, write_atomic
from raykd.storage.filesystem import Remote, is_url
from raykd.storage.node_cache import Mirror, place_of

MARKER = "recipe.json"
LOCKS = "locks"
SEAL = "seal"  # a key of every file that `write_json` writes
_SEAL_DIGITS = 24
_NAME_BYTES = 255  # limit of a name, on every file system in use
# The names by which an earlier raykd hashed recipes: those of its classes.
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
    """Write `value` as indented JSON, atomically; a dict is `sealed` as that of its place."""
    write_atomic(path, _json(value, path if sealed else None))


def _json(value: object, path: Path | None = None) -> bytes:
    """The value as indented JSON; a dict that has a `path` with its seal."""
    if path is not None and isinstance(value, dict):
        value = {**value, SEAL: _seal(_place(path), json.loads(json.dumps(value)))}
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _seal(place: str, value: object) -> str:
    """A checksum of a JSON value and of its place, and the place itself."""
    text = json.dumps([place, value], sort_keys=True, separators=(",", ":"))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:_SEAL_DIGITS]} {place}"


def _place(path: Path) -> str:
    """The part of a file's path that stays where a store is moved: kind, folder, name."""
    return "/".join(path.parts[-3:])


def _unsealed(path: Path, value: Any, *, anywhere: bool) -> None:
    """Take the seal off a value that may have one. Raises `ValueError` where it is broken."""
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
    """The value of a JSON file without its seal, once it is seen to be what was written there.

    `shape` is the type that it is to have, a dict if not said. With `anywhere`, another artefact's
    file is taken, too. Raises `CacheCorrupt` for whatever else is there, which says `what` is the
    matter with the file and what to do, the `advice`.
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

    Raises `CacheCorrupt`, naming the file, and `CacheMismatch` where an earlier raykd wrote it.
    """
    path = folder / MARKER
    try:
        data = path.read_bytes()
        _check_age(path, data)
        recipe = kind.model_validate_json(data)
    except CacheMismatch:
        raise
    except (OSError, ValueError) as error:
        raise _no_recipe(path, f"cannot be read ({first_line(error)})") from error
    if fingerprint(recipe) != folder.name:
        raise _no_recipe(path, "is of another artefact")
    return recipe


def _no_recipe(path: Path, what: str) -> CacheCorrupt:
    return CacheCorrupt(
        f"{path}: {what}; it is not the recipe that its folder is named by. Remove this file and "
        "run the same command again, which writes it anew; what was computed stays"
    )


def _check_age(path: Path, data: bytes) -> None:
    """Raise `CacheMismatch` where a marker is that of an earlier raykd, which hashed other text."""
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
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


class Store:
    """Artefacts under one root: a folder that every worker can reach, or a URL.

    `root` is the folder on this node, `url` the text that makes the same store on another one.
    `local_gb` bounds the copies of a remote store's shards on a node; $RAYKD_LOCAL_GB goes first.
    """

    def __init__(self, place: str | Path, local_gb: float | None = None) -> None:
        self.mirror: Mirror | None = None
        self._believed: dict[Path, tuple[int, int]] = {}  # markers: when they changed, their sizes
        if is_url(str(place)):
            remote = Remote(str(place))
            self.root = place_of(remote)
            self.url, self.shown = remote.url, remote.shown
            self.mirror = Mirror(remote, self.root)
        else:
            self.root = _folder(str(place))
            self.url = self.shown = str(self.root)
        self.local_bytes = _bound(local_gb)
        self._checked_kinds: set[str] = set()  # whose artefacts this raykd made
        self._stands = False

    def stand(self, *, made: bool = False) -> None:
        """Make the root, when work begins in it; after that, or if it was `made`, look for it.

        Raises `Unreachable` where it has gone: what is left of a mount is an empty folder, in which
        nothing is to be made anew.
        """
        mark, own = self.root / LOCKS, self.mirror is None  # copies may be removed at any time
        if is_there(mark):
            self._stands = True
        elif made and own:
            raise Unreachable(
                f"{self.root}: the driver's store is not there on {socket.gethostname()}; all "
                "nodes must share that folder: mount it, and run the same command again"
            )
        elif self._stands and own:
            raise gone(self.root)
        else:
            try:
                mark.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(mark, error) from error
            self._stands = True

    def path(self, recipe: Recipe) -> Path:
        """The folder of a recipe's artefact, whether or not it exists."""
        return self.root / recipe.kind / fingerprint(recipe)

    def has(self, recipe: Recipe) -> bool:
        """True where the artefact is complete. Its large files may still have to be pulled.

        Raises `CacheCorrupt` where its marker is not this recipe, and `CacheMismatch` where an
        earlier raykd made the artefacts of this kind.
        """
        path = self.path(recipe) / MARKER
        self._check_form(recipe.kind)
        if not self.whole(path.parent, MARKER):
            return False
        try:
            file = self.pull(path).stat()
            state = (file.st_mtime_ns, file.st_size)
            if self._believed.get(path) != state:
                plain, data = recipe.plain(), path.read_bytes()
                if data != _json(plain) and json.loads(data) != json.loads(json.dumps(plain)):
                    raise _no_recipe(path, "was altered")
                self._believed[path] = state
        except CacheCorrupt:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise _no_recipe(path, f"cannot be read ({first_line(error)})") from error
        return True

    def _check_form(self, kind: str) -> None:
        """Raise `CacheMismatch` where the artefacts of a kind are those of an earlier raykd."""
        if kind in self._checked_kinds:
            return
        if self.mirror is None:
            marker = next((self.root / kind).glob(f"*/{MARKER}"), None)
        else:
            marker = self.mirror.first_marker(kind, MARKER)
        if marker is not None:
            with contextlib.suppress(OSError):
                _check_age(marker, self.pull(marker).read_bytes())
        self._checked_kinds.add(kind)

    def finish(self, recipe: Recipe) -> None:
        """Write the marker that makes the artefact complete."""
        folder = self.path(recipe)
        write_json(folder / MARKER, recipe.plain(), sealed=False)
        for path in folder.glob(".*.tmp"):  # left by writers that were killed
            path.unlink(missing_ok=True)
        self.share(folder, MARKER)

    def discard(self, recipe: Recipe) -> None:
        """Remove the artefact, marker first, so that a half-removed one is never trusted."""
        self.remove(self.path(recipe) / MARKER)
        self.remove(self.path(recipe))

    def finished(self, kind: str) -> Iterator[Path]:
        """Folders of the complete artefacts of one kind, oldest first."""
        if self.mirror is None:
            markers = [*(self.root / kind).glob(f"*/{MARKER}")]
        else:
            markers = [folder / MARKER for folder in self.mirror.finished(kind, MARKER)]
        yield from (marker.parent for marker in sorted(markers, key=lambda m: m.stat().st_mtime))

    def where(self, path: Path) -> str:
        """A path as messages name it: where it lies for all nodes."""
        return str(path) if self.mirror is None else self.mirror.shown(path)

    def whole(self, folder: Path, marker: str) -> bool:
        """True if a folder is complete, by the file that is written last."""
        if self.mirror is None:
            return (folder / marker).is_file()
        return self.mirror.whole(folder, marker)

    def share(self, folder: Path, marker: str) -> None:
        """Push a complete folder, its marker last."""
        if self.mirror is not None:
            self.mirror.share(folder, marker)

    def push(self, path: Path) -> None:
        """Let other nodes have a file."""
        if self.mirror is not None:
            self.mirror.push(path)

    def pull(self, path: Path) -> Path:
        """The path, once what lies there is here, if it is anywhere. For what never changes."""
        if self.mirror is not None:
            self.mirror.pull(path)
        return path

    def pull_all(self, folder: Path, beginning: str) -> None:
        """Pull the files of a folder whose names begin so."""
        if self.mirror is not None:
            self.mirror.pull_all(folder, beginning)

    def renew(self, path: Path) -> Path:
        """Renew a file that other nodes may have changed or removed."""
        if self.mirror is not None:
            self.mirror.renew(path)
        return path

    def renew_all(self, folder: Path) -> Path:
        """Renew a folder of texts."""
        if self.mirror is not None:
            self.mirror.renew_all(folder)
        return folder

    def elsewhere(self, path: Path) -> bytes | None:
        """Content of a file for all nodes, if that may be more than here."""
        return None if self.mirror is None else self.mirror.read(path)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file atomically, here and for the other nodes."""
        if self.mirror is None:
            write_atomic(path, data)
            return
        # Pushed before the local rename; else another process could fetch the old version.
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        write_atomic(aside, data)
        try:
            self.mirror.push(aside, path)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def write_json(self, path: Path, value: object) -> None:
        """Write a value as indented, sealed JSON."""
        self.write(path, _json(value, path))

    def remove(self, path: Path) -> None:
        """Remove a file or a folder, where it is there."""
        if self.mirror is not None:
            self.mirror.remove(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _folder(place: str) -> Path:
    """The folder of a store, where it is no URL. Raises `ConfigError` for what can be none."""
    if not place.strip():
        raise ConfigError("--store: expected a folder or a URL, got ''; `.` is the current folder")
    shown = f"--store: {place[:80]!r} can be no folder"
    try:
        root = Path(place).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, an unknown user, links in a ring
        raise ConfigError(f"{shown} ({first_line(error)}); name another one") from error
    longest = max(len(os.fsencode(part)) for part in root.parts)
    if longest > _NAME_BYTES:
        raise ConfigError(
            f"{shown} (a name of {longest} bytes, and at most {_NAME_BYTES} can be); name another"
        )
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise ConfigError(f"--store: {root} is a file, not a folder; name another one")
    except OSError as error:  # others are said when work begins in it
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
