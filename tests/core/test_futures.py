"""Calls in the background."""

import subprocess
import sys
import threading

import pytest

from raykd.core.futures import begun, repeating

ENDS_BEFORE_IT = """
import torch
from raykd.core.futures import begun

values = torch.rand(50_000)
begun(lambda: [torch.from_numpy(values.numpy()).sort() for _ in range(100)] and print("done"))
"""


def test_a_value_and_an_error_come_to_whoever_asks():
    assert begun(lambda: 2 + 2).result() == 4
    with pytest.raises(ZeroDivisionError):
        begun(lambda: 1 / 0).result()


def test_a_call_is_repeated_until_the_region_ends():
    calls, thrice = [], threading.Event()

    def call() -> None:
        calls.append(threading.current_thread())
        if len(calls) == 3:
            thrice.set()

    with repeating(call, 0.01):
        assert thrice.wait(600)
    count = len(calls)
    assert not calls[0].is_alive()
    assert len(calls) == count and threading.current_thread() not in calls


@pytest.mark.slow
def test_a_process_ends_in_order_while_a_call_goes_on():
    command = [sys.executable, "-c", ENDS_BEFORE_IT]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
