"""Shutdown of this process at SIGTERM, in order where possible and in time always.

SIGTERM ends a process within `SECONDS`, wherever it is. Python runs its own handlers in the main
thread between two bytecodes, so never during a call that waits in C. Therefore a thread counts the
seconds and ends a process that has not ended by itself. `stop` does the same for another reason,
with a status and a text of its own.
"""

import _thread
import contextlib
import multiprocessing
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

SECONDS = 9.5  # from SIGTERM to the end of the process
ORDERLY_SECONDS = 1.5  # the last of these seconds, in which resources are released
SAVING_SECONDS = 25.0  # to the end where a checkpoint is being written; Kubernetes waits for 30
HURRIED_SECONDS = 1.0  # to the end after a second SIGTERM
CLEANING_SECONDS = 1.0  # for the clean-up calls before a process is ended
STATUS = 128 + int(signal.SIGTERM)
TEXT = (
    "stopped; what was finished is kept, and the same command goes on (it did not end by itself "
    "in time)"
)


class Terminated(KeyboardInterrupt):
    """Request to stop in order, as with Ctrl-C; raised at SIGTERM. Finished work is kept."""


class Notice:
    """Null object: never announces a shutdown. Hosts poll `given()` between steps."""

    def given(self) -> bool:
        """True if a checkpoint should be kept now; costs nothing."""
        return False

    def heeded(self) -> None:
        """Report that the checkpoint was kept."""


class _OwnNotice(Notice):
    """Notice of a SIGTERM to this process."""

    def __init__(self) -> None:
        self.told = False
        self.seen = False  # True: a host has polled it and is writing a checkpoint

    def given(self) -> bool:
        self.seen = self.told
        return self.told

    def heeded(self) -> None:
        if self.told:
            raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Context manager: SIGTERM raises `Terminated`.

    The process is ended `SECONDS` later if it is still inside.
    """
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
    """Context manager: at a first SIGTERM, `Terminated` is raised once a checkpoint is kept.

    It is raised without one where no step ends in time, and at once at a second SIGTERM.
    """
    notice = _OwnNotice()

    def end(*_: Any) -> None:
        if notice.told:
            raise Terminated
        notice.told = True

    with _handled(end, notice):
        try:
            yield notice
        except Exception as error:  # nothing else is begun after it
            if notice.told:
                raise Terminated from error
            raise
    notice.heeded()  # SIGTERM came after the last step


def leave() -> None:
    """End the process in the seconds that remain, even if exit handlers or threads hang.

    For the last line of a process that ended in order at SIGTERM.
    """
    left = 0.0 if _Watch.since is None else _Watch.since + SECONDS - time.monotonic()
    clock = threading.Timer(max(left, ORDERLY_SECONDS), _end)
    clock.daemon = True
    clock.start()


@contextlib.contextmanager
def cleaning(clean: Callable[[], object]) -> Iterator[None]:
    """Context manager: `clean` is called before this module ends the process."""
    _cleanings.append(clean)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # in a forked process
            _cleanings.remove(clean)


def stop(status: int, text: str) -> None:
    """End the context managers of the main thread as SIGTERM does; callable from any thread.

    If they do not end in time, the process is ended with this status and text.
    """
    if _watch is not None:
        _watch.last = status, text
        _nudge()


def go_on() -> None:
    """Cancel a `stop` that the main thread has handled, so that the process goes on."""
    if _watch is not None:
        _watch.call_off()


def _nudge() -> None:
    """Make the main thread handle a SIGTERM; callable from any thread.

    The signal itself wakes it from a call that waits. But Ray's shutdown puts SIGTERM's default
    back below Python (2.60), which would end the process at once: then the handler runs without.
    """
    if _is_caught(signal.SIGTERM):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)


def _is_caught(number: int) -> bool:
    """True if this process has a handler of a signal, or where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return True
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return match is None or bool(int(match[1], 16) >> (number - 1) & 1)


def _end(status: int = STATUS, text: str = TEXT) -> None:
    """End the process and its child processes; callable from any thread."""
    with contextlib.suppress(Exception):
        for process in multiprocessing.active_children():
            process.kill()
        if select.select([], [2], [], 0)[1]:  # a full pipe would keep the process
            os.write(2, f"\n{text}\n".encode(errors="replace"))
    for clean in reversed(_cleanings):
        with contextlib.suppress(Exception):
            clean()
    os._exit(status)


class _Watch:
    """A thread that receives each SIGTERM at once, wherever the main thread is.

    C code writes the numbers of signals into a pipe (`signal.set_wakeup_fd`), and the thread reads
    them. When time is nearly over, it sends the main thread another SIGTERM, so that the handler
    raises as soon as Python runs, and then it ends the process.
    """

    since: ClassVar[float | None] = None  # when SIGTERM came first (time.monotonic)

    def __init__(self) -> None:
        self.notice: _OwnNotice | None = None  # set in a region where a checkpoint may be kept
        self.last = STATUS, TEXT  # exit status and message of an ended process
        self._over = False
        self._off = False  # True: the count is cancelled
        self._lock = threading.Lock()
        self._hears, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Stop listening; in the main thread."""
        with self._lock:
            self._over = True
        signal.set_wakeup_fd(self._before)
        os.close(self._writes)  # which wakes the thread

    def call_off(self) -> None:
        """Cancel the count, and listen again."""
        with self._lock:
            self._off, self.last, _Watch.since = True, (STATUS, TEXT), None
        os.write(self._writes, b"\0")  # which wakes the thread

    def _run(self) -> None:
        try:
            while not self._over:
                self._count()
                self._off = False
        finally:
            os.close(self._hears)

    def _count(self) -> None:
        """Wait for SIGTERM, and then for the end of its time or a second one."""
        first = self._heard(None)
        if first is None:
            return
        _Watch.since = first
        ends = first + SECONDS - (CLEANING_SECONDS if _cleanings else 0)
        raises = ends - ORDERLY_SECONDS
        second = self._heard(raises)
        if second is None and self.notice is not None and self.notice.seen:
            raises, ends = first + SAVING_SECONDS, first + SAVING_SECONDS + ORDERLY_SECONDS
            second = self._heard(raises)
        if second is not None:
            raises, ends = second + HURRIED_SECONDS / 2, second + HURRIED_SECONDS
            self._heard(raises)
        with self._lock:
            if self._over or self._off:
                return
            _nudge()  # every handler raises at the second signal, if not at the first
        while not (self._over or self._off) and time.monotonic() < ends:
            self._heard(ends)
        with self._lock:
            if not (self._over or self._off):
                _end(*self.last)

    def _heard(self, until: float | None) -> float | None:
        """Time of the next SIGTERM (time.monotonic); None if it does not come `until` then."""
        while not (self._over or self._off):
            left = None if until is None else max(until - time.monotonic(), 0)
            if not select.select([self._hears], [], [], left)[0]:
                return None
            numbers = os.read(self._hears, 4096)
            if self._before >= 0 and numbers:  # for the listener before this one
                with contextlib.suppress(OSError):
                    os.write(self._before, numbers)
            if signal.SIGTERM in numbers:
                return time.monotonic()
        return None


_watch: _Watch | None = None  # made by the outermost context manager
_cleanings: list[Callable[[], object]] = []


@contextlib.contextmanager
def _handled(end: Any, notice: _OwnNotice | None = None) -> Iterator[None]:
    """Context manager: `end` handles SIGTERM and its time is counted; main thread only."""
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, watch = _watch, _watch or _Watch()
    noticed_before, handled_before = watch.notice, signal.signal(signal.SIGTERM, end)
    _watch, watch.notice = watch, notice
    try:
        yield
    finally:
        _watch, watch.notice = outer, noticed_before
        if outer is None:
            watch.close()
        signal.signal(signal.SIGTERM, handled_before)


def _forget() -> None:
    """Detach a forked process from its parent's pipe and clean-up calls."""
    _cleanings.clear()
    if _watch is not None:
        with contextlib.suppress(ValueError):  # not its main thread
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
