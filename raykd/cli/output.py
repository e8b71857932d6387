"""Standard output and error of a command: text is shown as text, and no failed write stops work."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from raykd.core.errors import NoRoom
from raykd.core.safe_names import printable_lines

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def echo(text: str, *, err: bool = False) -> None:
    """Print text, in which control characters are escaped; to standard error with `err`."""
    click.echo(printable_lines(text), err=err)


class _Patient(io.FileIO):
    """A file whose writes do not fail; what follows the first that would have is dropped."""

    failure: OSError | None = None

    def write(self, data: Any) -> int | None:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """A region in which a reader that has gone (`| head`, a closed terminal) stops nothing.

    A disk that is full under standard output ends the region with the status of `NoRoom`, once
    all else is done.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # the next file that is opened would get a closed descriptor, and what is printed
    os.close(null)
    out, err = _patient(sys.stdout, 1), _patient(sys.stderr, 2)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        except SystemExit as stop:
            full = _full(out)
            if full is None or stop.code:
                raise
            click.echo(f"error: standard output: {full.strerror}; all else is done", err=True)
            raise SystemExit(NoRoom.code) from full
        finally:
            for number, stream in ((1, out), (2, err)):
                stream.flush()
                if _failure(stream) is not None:  # what Python writes as it ends is to fail neither
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _patient(stream: Any, number: int) -> Any:
    """A stream that writes to the same file; another one than the process began with, as it is."""
    with contextlib.suppress(OSError, ValueError):
        if stream is None or stream.fileno() == number:
            raw = _Patient(number, "wb", closefd=False)
            buffered = stream is None or not stream.line_buffering
            return io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=getattr(stream, "encoding", None),
                errors="backslashreplace",
                line_buffering=not buffered,
                write_through=getattr(stream, "write_through", False),
            )
    return stream


def _full(stream: Any) -> OSError | None:
    """The failure of a stream whose disk is full."""
    stream.flush()
    failure = _failure(stream)
    return failure if failure is not None and failure.errno in _FULL else None


def _failure(stream: Any) -> OSError | None:
    """The error for which writes to a stream are dropped; None where they are not."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Patient) else None
