"""Calls in threads of their own: once (`begun`), or again and again (`repeating`)."""

import atexit
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

_PATIENCE = 10.0  # seconds that a process waits at its end for the calls that go on

_Value = TypeVar("_Value")
_going: set[Future] = set()


def begun(call: Callable[[], _Value]) -> Future[_Value]:
    """The future of a call in a daemon thread.

    A process that ends waits for the call, `_PATIENCE` seconds at most.
    """
    future: Future[_Value] = Future()
    _going.add(future)
    future.add_done_callback(_going.discard)

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised where the value is read
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


@contextlib.contextmanager
def repeating(call: Callable[[], object], seconds: float, *, join: bool = True) -> Iterator[None]:
    """Context manager: repeats a call in a thread, each time `seconds` after the last one ended.

    `join`: wait at the end for a call under way; False where it may not return.
    """
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            call()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        if join:
            thread.join()


@atexit.register
def _wait() -> None:
    """Wait for calls before the interpreter ends.

    Afterwards, Python ends a thread that returns to it in a way that makes C++ code, such as
    torch's, abort.
    """
    wait(tuple(_going), timeout=_PATIENCE)
