"""Word that this process, or the machine that it runs on, is about to go.

SIGTERM ends a process within `SECONDS`, wherever it is. Python's own handlers run in the main
thread, and only between two steps of Python: a call that waits in C code would never hear of it. So
a thread counts the seconds, and ends what has not ended by itself. `stop` does the same for another
reason, which has a status and a text of its own.
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

SECONDS = 9.5  # from SIGTERM to the end of the process, whatever it does
ORDERLY_SECONDS = 1.5  # the last of these seconds, in which resources are released
SAVING_SECONDS = 25.0  # to the end where a checkpoint is being written; Kubernetes waits for 30
HURRIED_SECONDS = 1.0  # after a second SIGTERM
CLEANING_SECONDS = 1.0  # for what is done before a process is ended
STATUS = 128 + int(signal.SIGTERM)
TEXT = (
    "stopped; what was finished is kept, and the same command goes on (it did not end by itself "
    "in time)"
)


class Terminated(KeyboardInterrupt):
    """SIGTERM: stop in order, as with Ctrl-C. What was finished is kept."""


class Notice:
    """A notice that is never given. A host asks between the steps of a training."""

    def given(self) -> bool:
        """True if a checkpoint should be kept now; costs nothing."""
        return False

    def heeded(self) -> None:
        """It was kept."""


class _OwnNotice(Notice):
    """This process was told to end."""

    def __init__(self) -> None:
        self.told = False
        self.seen = False  # by a host, which keeps a checkpoint since then

    def given(self) -> bool:
        self.seen = self.told
        return self.told

    def heeded(self) -> None:
        if self.told:
            raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A region that SIGTERM ends with `Terminated`.

    The process ends `SECONDS` later where the region is still not over.
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
    """A region in which a first SIGTERM waits until a checkpoint is kept, which then ends it.

    Where no step ends in time, the region ends without one; a second SIGTERM ends it at once.
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
    notice.heeded()  # told after the last step


def leave() -> None:
    """Let the process end in what is left of its seconds, though exit handlers and threads hang.

    For the last line of a process that SIGTERM ended in order.
    """
    left = 0.0 if _Watch.since is None else _Watch.since + SECONDS - time.monotonic()
    clock = threading.Timer(max(left, ORDERLY_SECONDS), _end)
    clock.daemon = True
    clock.start()


@contextlib.contextmanager
def cleaning(clean: Callable[[], object]) -> Iterator[None]:
    """A region in which this is done before the process is ended from here."""
    _cleanings.append(clean)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # in a forked process
            _cleanings.remove(clean)


def stop(status: int, text: str) -> None:
    """Have the regions of the main thread end as SIGTERM does; from any thread.

    Where they do not end in time, the process does, with this status and text.
    """
    if _watch is not None:
        _watch.last = status, text
        _nudge()


def go_on() -> None:
    """Let the process live after a `stop` that the main thread has heeded."""
    if _watch is not None:
        _watch.call_off()


def _nudge() -> None:
    """Have the main thread handle a SIGTERM; from any thread.

    The signal itself wakes it from a call that waits. But Ray's shutdown puts SIGTERM's default
    back below Python (2.60), which would end the process at once: then the handler runs without.
    """
    if _is_caught(signal.SIGTERM):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)


def _is_caught(number: int) -> bool:
    """True where this process has a handler of a signal, or the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return True
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> (number - 1) & 1)


def _end(status: int = STATUS, text: str = TEXT) -> None:
    """End the process, and those that decode for it; from any thread."""
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
    """A thread that hears of each SIGTERM as it comes, wherever the main thread is.

    C code writes the numbers of signals into a pipe (`signal.set_wakeup_fd`), and the thread reads
    them. When time is nearly over, it sends the main thread another one, so that the handler
    raises as soon as Python runs, and then it ends the process.
    """

    since: ClassVar[float | None] = None  # when SIGTERM came first (time.monotonic)

    def __init__(self) -> None:
        self.notice: _OwnNotice | None = None  # set in a region where a checkpoint may be kept
        self.last = STATUS, TEXT  # with which the process is ended
        self._over = False
        self._off = False  # whether what was counted is called off
        self._lock = threading.Lock()
        self._hears, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Hear of no more; in the main thread."""
        with self._lock:
            self._over = True
        signal.set_wakeup_fd(self._before)
        os.close(self._writes)  # which wakes the thread

    def call_off(self) -> None:
        """Count no further, and listen again."""
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
        """When SIGTERM comes (time.monotonic); None where it does not, and once all is over."""
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


_watch: _Watch | None = None  # that of the outermost region
_cleanings: list[Callable[[], object]] = []


@contextlib.contextmanager
def _handled(end: Any, notice: _OwnNotice | None = None) -> Iterator[None]:
    """SIGTERM handled by `end`, and its time counted; only the main thread may say so."""
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
    """A forked process has the pipe of the one that it is a copy of, and nothing to clean for it.

    Let it not write there.
    """
    _cleanings.clear()
    if _watch is not None:
        with contextlib.suppress(ValueError):  # not its main thread
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
