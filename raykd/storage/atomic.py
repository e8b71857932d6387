"""Atomic writes, and errors of a full disk and of storage that has gone."""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from raykd.core.errors import NoRoom, Unreachable

_YOUNG_SECONDS = 1.0  # age of a temporary file that may not be locked yet
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def lasting(path: Path) -> Iterator[None]:
    """Context manager for writing `path` into a folder that was there before.

    Raises `NoRoom` where the disk is full, and `Unreachable` where the storage has gone: below a
    lost mount, a folder of that name must not be made.
    """
    if not is_there(path.parent):
        raise gone(path.parent)
    try:
        yield
    except OSError as error:
        raise _failed(path, error) from error


def is_there(folder: Path) -> bool:
    """True if a folder is there; False for a broken mount, where pathlib raises."""
    return os.path.isdir(folder)  # noqa: PTH112


def gone(folder: Path) -> Unreachable:
    """Error for a folder that has gone."""
    return Unreachable(
        f"{folder} was there and is gone; what was finished lies on the storage, so bring it back "
        "and run the same command again"
    )


def unwritable(path: Path, error: OSError) -> Unreachable:
    """Error for a file or a folder that cannot be made."""
    return Unreachable(
        f"{path}: cannot be written ({error.strerror or error}); what was finished is kept, so "
        "mend the storage, or its permissions, and run the same command again"
    )


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is not there.

    Raises `NoRoom` where the disk is full, and `Unreachable` where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failed(folder, error) from error


def _failed(path: Path, error: OSError) -> NoRoom | Unreachable:
    """Error for a file that was not written, because the disk is full or otherwise."""
    if error.errno not in FULL:
        return unwritable(path, error)
    return NoRoom(
        f"{path}: the disk is full; what was finished is kept, so make room and run the same "
        "command again"
    )


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    Raises `NoRoom` where the disk is full, and `Unreachable` where nothing can be written.
    """
    # Random, not the process id: workers on several nodes may share the folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)  # says that its writer is at work
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed, not those of writers at work."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > _YOUNG_SECONDS:
                path.unlink()


def appending(path: Path) -> IO[str]:
    """Open a file for reading and appending. Raises `OSError` where it is a link.

    A link that another user made in the folder could lead anywhere.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "a+")
