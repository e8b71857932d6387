"""Watch over a Ray cluster: ends what waits for it once it is lost.

Much of Ray waits in C++ code, where no handler of a signal runs (`ray.init`, calls to a head that
has gone: a minute and more, Ray 2.60). So a thread looks whether the cluster is there, and where it
is not, `core/shutdown.py` ends what the main thread does as it does at SIGTERM, with the loss as
the reason. What was finished is in the store, as after any kill.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from raykd.core import shutdown
from raykd.core.errors import RaykdError

LOOK_SECONDS = 0.5

# A loss check: why a cluster is lost; None while it is there. The argument is True where something
# has failed already, so that an answer is urgent.
LossCheck = Callable[[bool], RaykdError | None]


class Lost(KeyboardInterrupt):
    """The cluster is lost, so no work that is left can be done."""


class Watch:
    """Watch over the main thread while it is connected to a cluster, or connects."""

    current: "Watch | None" = None  # the watch of this process

    def __init__(self) -> None:
        self.error: RaykdError | None = None  # why the cluster is lost
        self._check: LossCheck | None = None
        self._limit: tuple[float, RaykdError] | None = None  # time, and the error after it

    def use(self, check: LossCheck | None) -> None:
        """Use another loss check from now on; None for a cluster that cannot be lost."""
        self._check = check

    @contextlib.contextmanager
    def limited(self, seconds: float, error: RaykdError) -> Iterator[None]:
        """Context manager: after `seconds` inside, the cluster counts as lost with this error."""
        self._limit = (time.monotonic() + seconds, error)
        try:
            yield
        finally:
            self._limit = None

    def check(self) -> None:
        """Raise `Lost` where the cluster is lost."""
        if self.look(urgent=True) is not None:
            raise Lost

    def look(self, *, urgent: bool = False) -> RaykdError | None:
        """The error for which the cluster counts as lost; None while it is there."""
        limit = self._limit
        if self.error is None and limit is not None and time.monotonic() > limit[0]:
            self.error = limit[1]
        if self.error is None and self._check is not None:
            self.error = self._check(urgent)
        return self.error

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Context manager: ends what is inside once the cluster is lost, with `error`."""
        over = threading.Event()
        thread = threading.Thread(target=self._look_repeatedly, args=(over,), daemon=True)
        before, Watch.current = Watch.current, self
        try:
            with shutdown.terminable():
                thread.start()
                try:
                    yield
                finally:
                    over.set()
                    thread.join()
        except (KeyboardInterrupt, Exception) as stop:
            if isinstance(stop, Exception | Lost):
                self.look(urgent=True)
            if self.error is None:
                raise
            shutdown.go_on()
            raise self.error from stop
        finally:
            Watch.current = before

    def _look_repeatedly(self, over: threading.Event) -> None:
        """Stop the main thread once the cluster is lost; runs in a thread."""
        while not over.wait(LOOK_SECONDS):
            error = self.look()
            if error is not None and not over.is_set():
                shutdown.stop(error.code, f"error: {error}")
                return


@contextlib.contextmanager
def keeping_handler(number: int) -> Iterator[None]:
    """Context manager: restore a signal's handler, where Ray sets one of its own (2.60)."""
    is_main = threading.current_thread() is threading.main_thread()
    handler: Any = signal.getsignal(number) if is_main else None
    try:
        yield
    except SystemExit:
        if number == signal.SIGTERM and callable(handler):  # Ray's handler exits with 15
            handler(number, None)
        raise
    finally:
        if handler is not None:
            signal.signal(number, handler)


def check() -> None:
    """Raise `Lost` where the cluster that this process is connected to is lost."""
    if Watch.current is not None:
        Watch.current.check()
