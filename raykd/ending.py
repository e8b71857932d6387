"""Word that this process, or the machine that it runs on, is about to go."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM: stop in order, as with Ctrl-C. What was finished is kept."""


class Notice:
    """Nobody says anything. A host asks between the steps of a training."""

    def given(self) -> bool:
        """Whether a checkpoint should be kept now; costs nothing."""
        return False

    def heeded(self) -> None:
        """It was kept."""


class _OwnNotice(Notice):
    """This process was told to end."""

    def __init__(self) -> None:
        self.told = False

    def given(self) -> bool:
        return self.told

    def heeded(self) -> None:
        if self.told:
            raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A region that SIGTERM ends with `Terminated`."""
    told = False

    def end(*_: Any) -> None:
        nonlocal told
        told = True
        raise Terminated

    with _handled(end):
        try:
            yield
        except KeyboardInterrupt as stop:
            # What interrupts Ray's waiting comes out as a KeyboardInterrupt of its own (2.60).
            if told and not isinstance(stop, Terminated):
                raise Terminated from stop
            raise


@contextlib.contextmanager
def noticed() -> Iterator[Notice]:
    """A region in which a first SIGTERM waits until a checkpoint is kept, which then ends it."""
    notice = _OwnNotice()

    def end(*_: Any) -> None:
        if notice.told:
            raise Terminated
        notice.told = True

    with _handled(end):
        try:
            yield notice
        except Exception as error:  # nothing else is begun after it
            if notice.told:
                raise Terminated from error
            raise
    notice.heeded()  # told after the last step


@contextlib.contextmanager
def _handled(end: Any) -> Iterator[None]:
    """SIGTERM handled by `end`; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
