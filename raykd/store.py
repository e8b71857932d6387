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

A folder is complete when its marker is there, and the marker is written last. What a killed
run leaves is either complete or is continued or made anew; nothing needs a lock.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from raykd.errors import NoRoom
from raykd.record import Record, fingerprint

MARKER = "recipe.json"


class Recipe(Protocol):
    """A record that determines an artefact; `kind` is the folder that such artefacts share."""

    @property
    def kind(self) -> str: ...


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    Raises `NoRoom` where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, not the process id: workers on several nodes may share the folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(
                f"{path}: the disk is full; what was finished is kept, so make room and run the "
                "same command again"
            ) from error
        raise


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text())


class Store:
    """Artefacts under one root folder, which every worker must be able to reach."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()

    def path(self, recipe: Record) -> Path:
        """The folder of a recipe's artefact, whether or not it exists."""
        return self.root / _kind(recipe) / fingerprint(recipe)

    def has(self, recipe: Record) -> bool:
        """Whether the artefact is complete."""
        return (self.path(recipe) / MARKER).is_file()

    def finish(self, recipe: Record) -> None:
        """Write the marker that makes the artefact complete."""
        write_json(self.path(recipe) / MARKER, recipe.plain())

    def discard(self, recipe: Record) -> None:
        """Remove the artefact, marker first, so that a half-removed one is never trusted."""
        (self.path(recipe) / MARKER).unlink(missing_ok=True)
        shutil.rmtree(self.path(recipe), ignore_errors=True)

    def finished(self, kind: str) -> Iterator[Path]:
        """Folders of the complete artefacts of one kind, oldest first."""
        markers = (self.root / kind).glob(f"*/{MARKER}")
        yield from (marker.parent for marker in sorted(markers, key=lambda m: m.stat().st_mtime))


def _kind(recipe: Record) -> str:
    """The folder that artefacts of this class of recipe share."""
    kind = getattr(type(recipe), "kind", None)
    if not isinstance(kind, str):
        raise TypeError(f"{type(recipe).__name__} names no kind of artefact")
    return kind
