"""A call in a thread of its own."""

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

_PATIENCE = 10.0  # seconds that a process waits at its end for the calls that go on

_Value = TypeVar("_Value")
_going: set[Future] = set()


def begun(call: Callable[[], _Value]) -> Future[_Value]:
    """The future value of a call that goes on while the caller does; its errors are raised there.

    A process that ends waits for the call a while and then no longer.
    """
    future: Future[_Value] = Future()
    _going.add(future)
    future.add_done_callback(_going.discard)

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whoever asks for the value hears of it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


@atexit.register
def _wait() -> None:
    """Let calls end before the interpreter does.

    Python ends a thread that returns to it from then on in a way that C++ code, such as torch's,
    answers with an abort.
    """
    wait(tuple(_going), timeout=_PATIENCE)
