"""A call in a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Value = TypeVar("_Value")


def begun(call: Callable[[], _Value]) -> Future[_Value]:
    """The future value of a call that goes on while the caller does; its errors are raised there.

    The process may end before the call does.
    """
    future: Future[_Value] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whoever asks for the value hears of it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
