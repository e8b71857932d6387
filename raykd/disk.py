"""A disk that is full, and storage that has gone."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from raykd.errors import NoRoom, Unreachable

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def lasting(path: Path) -> Iterator[None]:
    """A region that writes `path` into a folder that was there before.

    Raises `NoRoom` where the disk is full, and `Unreachable` where the storage has gone: a folder
    of that name must not be made on whatever lies below.
    """
    if not path.parent.is_dir():
        raise Unreachable(
            f"{path.parent} was there and is gone; what was finished lies on the storage, so "
            "bring it back and run the same command again"
        )
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full(path) from error
        raise Unreachable(
            f"{path}: cannot be written ({error.strerror or error}); what was finished is kept, "
            "so mend the storage and run the same command again"
        ) from error


def full(path: Path) -> NoRoom:
    """What to say where a file did not fit."""
    return NoRoom(
        f"{path}: the disk is full; what was finished is kept, so make room and run the same "
        "command again"
    )


def appending(path: Path) -> IO[str]:
    """A file to read and to write on at its end. Raises `OSError` where it is a link.

    Whoever else can write into the folder could have it lead anywhere.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "a+")
