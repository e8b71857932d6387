"""Work in the background, done at once: what follows does not depend on threads."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def at_once(call: Callable[[], Any]) -> Future[Any]:
    """A stand-in for `raykd.core.futures.begun` that calls in this thread."""
    future: Future[Any] = Future()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future
