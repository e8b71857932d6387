"""An end to waiting for Ray: for a cluster that has gone, or when this process is told to end.

Much of Ray waits in C++ code, where no handler of a signal runs (`ray.init`, calls to a head that
has gone: a minute and more, Ray 2.60). So a thread looks after the main one: it has it stop, and
where that is not heeded within seconds, it says why and ends the process. What was finished is in
the store, as after any kill.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from raykd.errors import RaykdError

LOOK_SECONDS = 0.5
PATIENCE = 6.0  # seconds from a signal, or from the loss of a cluster, to the end of the process


# Why a cluster is lost, None while it is there; asked with True where something has failed already.
Loss = Callable[[bool], RaykdError | None]


class Lost(KeyboardInterrupt):
    """The cluster has gone: no work that is left can be done, so nothing is to go on."""


class Watch:
    """What looks after the main thread while it is connected to a cluster, or connects."""

    current: "Watch | None" = None  # of this process

    def __init__(self) -> None:
        self.error: RaykdError | None = None  # why the cluster is lost
        self._lost: Loss = lambda urgent: None
        self._limit: tuple[float, RaykdError] | None = None
        self._cleaning: Callable[[], None] = lambda: None
        self._ends: tuple[float, int, str] | None = None  # when, with which status and text
        self._wake: Callable[[], object] = lambda: None

    def over(self, lost: Loss) -> None:
        """From now on, ask this now and then why the cluster is lost."""
        self._lost = lost

    def cleaning(self, clean: Callable[[], None]) -> None:
        """Do this before the process is ended from here."""
        self._cleaning = clean

    @contextlib.contextmanager
    def limited(self, seconds: float, error: RaykdError) -> Iterator[None]:
        """A region that may take so long, and counts as lost with this error afterwards."""
        self._limit = (time.monotonic() + seconds, error)
        try:
            yield
        finally:
            self._limit = None

    def check(self) -> None:
        """Raise `Lost` where the cluster is."""
        if self.look(urgent=True) is not None:
            raise Lost

    def look(self, *, urgent: bool = False) -> RaykdError | None:
        """Why the cluster is lost; None while it is there."""
        limit = self._limit
        if self.error is None and limit is not None and time.monotonic() > limit[0]:
            self.error = limit[1]
        if self.error is None:
            self.error = self._lost(urgent)
        return self.error

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """The region that is looked after; what it ends with is `error` where there is one."""
        over = threading.Event()
        with contextlib.ExitStack() as stack:
            told = stack.enter_context(self._told()) if _in_main() else None
            thread = threading.Thread(target=self._look_after, args=(over, told), daemon=True)
            thread.start()
            before, Watch.current = Watch.current, self
            try:
                yield
            except (KeyboardInterrupt, Exception) as stop:
                if isinstance(stop, Exception | Lost):
                    self.look(urgent=True)
                if self.error is not None:
                    raise self.error from stop
                raise
            finally:
                Watch.current = before
                over.set()
                self._wake()
                thread.join()

    @contextlib.contextmanager
    def _told(self) -> Iterator[int]:
        """Signals as they come, as bytes of a pipe, whatever the main thread does."""
        before = signal.getsignal(signal.SIGTERM)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)

        def handle(number: int, frame: object) -> None:
            if self.error is not None:
                raise Lost
            if callable(before):
                before(number, frame)  # pyright: ignore[reportArgumentType]
            elif before == signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, handle)
        old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._wake = lambda: os.write(writing, b"\0")
        try:
            yield reading
        finally:
            self._wake = lambda: None
            signal.set_wakeup_fd(old)
            signal.signal(signal.SIGTERM, before)
            os.close(writing)
            os.close(reading)

    def _look_after(self, over: threading.Event, told: int | None) -> None:
        """The thread: look, have the main thread stop, end the process where it does not."""
        while not over.is_set():
            if told is not None and select.select([told], [], [], LOOK_SECONDS)[0]:
                if signal.SIGTERM in os.read(told, 64) and self._ends is None:
                    text = "stopped; what was finished is kept, and the same command goes on"
                    self._end_later(143, text)
            elif told is None:
                over.wait(LOOK_SECONDS)
            if over.is_set():
                return
            if self._ends is None and self.look() is not None:
                assert self.error is not None
                self._end_later(self.error.code, f"error: {self.error}")
                if told is not None:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            if self._ends is not None and time.monotonic() > self._ends[0]:
                if self.error is not None:
                    self._end_later(self.error.code, f"error: {self.error}")
                print(self._ends[2], file=sys.stderr, flush=True)
                self._cleaning()
                os._exit(self._ends[1])

    def _end_later(self, status: int, text: str) -> None:
        self._ends = (time.monotonic() + PATIENCE, status, text)


def check() -> None:
    """Raise `Lost` where the cluster that this process works with is."""
    if Watch.current is not None:
        Watch.current.check()


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()
