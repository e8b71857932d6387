"""Locks of artefacts: one process at a time makes or writes an artefact.

A lock is a file; the system frees it when the process that holds it ends, without a clock or a
heartbeat. It counts for all processes that see the same folder, on local disks and on NFS; for a
store by URL it counts for the processes of this node.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol

from raykd.core.errors import NoRoom
from raykd.core.record import Recipe
from raykd.storage.atomic import appending, is_there, unwritable
from raykd.storage.store import LOCKS, Store

_LOOK_SECONDS = 0.5
# A file system without locks:
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_GONE = (errno.ENOENT, errno.ESTALE)


class Lock(Protocol):
    """A function that keeps other processes from making an artefact meanwhile."""

    def __call__(self, recipe: Recipe, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Hold the lock of an artefact; yields True if it is held.

        With `wait` False it yields False at once where another process holds it.
        """
        ...


@contextlib.contextmanager
def held(
    store: Store,
    recipe: Recipe,
    role: str,
    say: Callable[[str], None] = lambda text: None,
    *,
    wait: bool = True,
    patience: float | None = None,
) -> Iterator[bool]:
    """Hold the lock of an artefact for a role ("maker", "writer"); yields True if it is held.

    Where another process holds it: with `wait` False yields False at once; else it calls `say` once
    and waits. Raises `NoRoom` after `patience` seconds.
    """
    store.ensure_root()
    folder, path = store.path(recipe), _path(store, recipe, role)
    file, until = _try(path), time.monotonic() + (patience or 0)
    if file is None and wait:
        say(f"{folder} is being made by {_owner(path)}; waiting until it is there")
    while file is None and wait:
        if patience is not None and time.monotonic() > until:
            raise NoRoom(
                f"{folder}: {_owner(path)} writes there; wait until it is done, or stop it, and "
                "run the same command again"
            )
        time.sleep(_LOOK_SECONDS)
        file = _try(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            _release(path, file)


def owner(store: Store, recipe: Recipe, role: str) -> str | None:
    """The holder of an artefact's lock, for messages; None without one. Writes nothing."""
    path = _path(store, recipe, role)
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(path)
    except OSError:
        pass
    return None


def _try(path: Path) -> IO[str] | None:
    """Open the lock's file, which holds it until it is closed; None where another process does.

    Raises `Unreachable` where there can be no such file.
    """
    until = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            file = appending(path)
        except OSError as error:
            if error.errno in _GONE and time.monotonic() < until and is_there(path.parent):
                continue  # some file systems say so where its holder has just removed the file
            raise unwritable(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return file  # assumes that no other process writes
            file.close()
            if error.errno not in _GONE:
                raise unwritable(path, error) from error
        file.close()  # its last holder removed it meanwhile


def _owner(path: Path) -> str:
    """The holder of a lock, for messages."""
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"


def _release(path: Path, file: IO[str]) -> None:
    with contextlib.suppress(OSError):  # an error here would hide what went wrong before
        path.unlink(missing_ok=True)  # before it is closed, so that no other process holds it
    with contextlib.suppress(OSError):
        file.close()


def _path(store: Store, recipe: Recipe, role: str) -> Path:
    folder = store.path(recipe)
    return store.root / LOCKS / f"{folder.parent.name}-{folder.name}.{role}"
