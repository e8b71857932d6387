"""Answers that take seconds to work out and a moment to look up, in files of the user's cache.

They lie in $RAYKD_REMEMBERED, by default raykd in $XDG_CACHE_HOME or ~/.cache, each as JSON with
the key for which it is right. Nothing depends on them: where the folder cannot be written or a file
is damaged, answers are worked out again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from raykd.storage.atomic import write_atomic

_LIBRARIES = ("torch", "torchvision", "timm", "pydantic")  # that answers about the code depend on
_MOST = 1000  # files whose digests are remembered

T = TypeVar("T")


def folder() -> Path | None:
    """The folder of the user's cache; None where there is no home."""
    if named := os.environ.get("RAYKD_REMEMBERED"):
        return Path(named)
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raykd"
    return None


def recall(name: str, key: str) -> Any:
    """The answer that is remembered by a name for a key; None where there is none."""
    place = folder()
    if place is None:
        return None
    try:
        held = json.loads((place / f"{name}.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return held.get("answer") if isinstance(held, dict) and held.get("key") == key else None


def remember(name: str, key: str, answer: Any) -> None:
    """Keep an answer, of JSON's types, by a name: the one for the latest key."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(OSError, ValueError):
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / f"{name}.json", json.dumps({"key": key, "answer": answer}).encode())


def remembered(name: str, key: str, work_out: Callable[[], T]) -> T:
    """The answer for a key, worked out where it is not remembered."""
    answer = recall(name, key)
    if answer is None:
        answer = work_out()
        remember(name, key, answer)
    return answer


def code() -> str:
    """Digest of raykd's own files, by their sizes and times, and of the libraries' versions."""
    root = Path(__file__).parents[1]
    words = [sys.version]
    for path in sorted(root.rglob("*.py")):
        state = path.stat()
        words.append(f"{path} {state.st_size} {state.st_mtime_ns}")
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            words.append(f"{library} {importlib.metadata.version(library)}")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file in hex, remembered by its path, size, time and inode."""
    state = path.stat()
    key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino} {state.st_dev}"
    known = recall("digests", "")
    known = known if isinstance(known, dict) else {}
    digest = known.get(key)
    if isinstance(digest, str):
        return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat() == state:  # it was not written meanwhile
        kept = [*known.items()][1 - _MOST :]
        remember("digests", "", {**dict(kept), key: digest})
    return digest
