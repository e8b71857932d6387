"""Folders that are named by the hash of their recipe.

    root/teachers/<fingerprint>/   weights at the saved epochs, metrics.jsonl, result.json
    root/caches/<fingerprint>/     shards, manifest.json
    root/preludes/<fingerprint>/   what some methods have trained before, and its helpers
    root/students/<fingerprint>/   weights.safetensors, metrics.jsonl, result.json
    root/searches/<fingerprint>/   decisions.json: the anchors that a greedy search chose, and why
    root/sweeps/<name>/            a sheet per trial; results.csv, results.arrow
    root/tune/<name>/              Ray Tune's own notes, and TensorBoard's files
    root/images/<digest>/          decoded pixels and labels
    root/weights/<digest>.*        copies of weights files that experiments named
    root/reports/                  pages
    root/locks/                    who makes what at the moment, so that nothing is made twice

A folder is complete when its marker is there, and the marker is written last. What a killed
run leaves is either complete or is continued or made anew.

The root may be a URL. Then every node works on a copy of its own, the mirror: what is written is
pushed, and what is missing is pulled. Of a local root those words mean nothing.
"""

import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from raykd.disk import gone, is_there, unwritable, write_atomic
from raykd.errors import CacheCorrupt, ConfigError, Unreachable
from raykd.mirror import Mirror, place_of
from raykd.record import Record, fingerprint
from raykd.remote import Remote, is_url

MARKER = "recipe.json"
LOCKS = "locks"

AnyRecord = TypeVar("AnyRecord", bound=Record)


class Recipe(Protocol):
    """A record that determines an artefact; `kind` is the folder that such artefacts share."""

    @property
    def kind(self) -> str: ...


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, _json(value))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises `CacheCorrupt`, naming it, where it is none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def read_recipe(kind: type[AnyRecord], folder: Path) -> AnyRecord:
    """The recipe of a finished artefact. Raises `CacheCorrupt`, naming the file."""
    path = folder / MARKER
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CacheCorrupt:
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CacheCorrupt(
        f"{path}: cannot be read ({what}); remove {path.parent} to have it made again"
    )


class Store:
    """Artefacts under one root: a folder that every worker can reach, or a URL.

    `root` is the folder on this node, `url` the text that makes the same store on another one.
    `local_gb` bounds the copies of a remote store's shards on a node; $RAYKD_LOCAL_GB goes first.
    """

    def __init__(self, place: str | Path, local_gb: float | None = None) -> None:
        self.mirror: Mirror | None = None
        if is_url(str(place)):
            remote = Remote(str(place))
            self.root = place_of(remote)
            self.url, self.shown = remote.url, remote.shown
            self.mirror = Mirror(remote, self.root)
        else:
            self.root = Path(place).expanduser().resolve()
            self.url = self.shown = str(self.root)
        self.local_bytes = _bound(local_gb)
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

    def path(self, recipe: Record) -> Path:
        """The folder of a recipe's artefact, whether or not it exists."""
        return self.root / _kind(recipe) / fingerprint(recipe)

    def has(self, recipe: Record) -> bool:
        """Whether the artefact is complete. Its large files may still have to be pulled."""
        return self.whole(self.path(recipe), MARKER)

    def finish(self, recipe: Record) -> None:
        """Write the marker that makes the artefact complete."""
        folder = self.path(recipe)
        write_json(folder / MARKER, recipe.plain())
        for path in folder.glob(".*.tmp"):  # of writers that were killed
            path.unlink(missing_ok=True)
        self.share(folder, MARKER)

    def discard(self, recipe: Record) -> None:
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
        """Whether a folder is complete, by the file that is written last."""
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
        """The same for a file that other nodes may have changed or removed."""
        if self.mirror is not None:
            self.mirror.renew(path)
        return path

    def renew_all(self, folder: Path) -> Path:
        """The same for a folder of texts."""
        if self.mirror is not None:
            self.mirror.renew_all(folder)
        return folder

    def elsewhere(self, path: Path) -> bytes | None:
        """What a file holds for all nodes, if that may be more than it holds here."""
        return None if self.mirror is None else self.mirror.read(path)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file atomically, here and for the other nodes."""
        if self.mirror is None:
            write_atomic(path, data)
            return
        # It is there first, so that nobody on this node renews it to what was before.
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        write_atomic(aside, data)
        try:
            self.mirror.push(aside, path)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def write_json(self, path: Path, value: object) -> None:
        """The same with a value as indented JSON."""
        self.write(path, _json(value))

    def remove(self, path: Path) -> None:
        """Remove a file or a folder, where it is there."""
        if self.mirror is not None:
            self.mirror.remove(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _bound(local_gb: float | None) -> int | None:
    """The bound on local copies in bytes; None for none. Raises `ConfigError`."""
    text = os.environ.get("RAYKD_LOCAL_GB")
    try:
        number = float(text) if text else local_gb
    except ValueError:
        raise ConfigError(f"$RAYKD_LOCAL_GB: expected a number, found {text!r}") from None
    return None if number is None else int(number * 1e9)


def _kind(recipe: Record) -> str:
    """The folder that artefacts of this class of recipe share."""
    kind = getattr(type(recipe), "kind", None)
    if not isinstance(kind, str):
        raise TypeError(f"{type(recipe).__name__} names no kind of artefact")
    return kind
