"""The end of a process by SIGTERM: in time, wherever it is."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from raykd.core.shutdown import STATUS, Notice, Terminated, noticed, terminable
from tests.tiers import slow_but

# Each is run as a process of its own, whose seconds are fewer. None ends by itself.
START = """
import ctypes, fcntl, os, signal, sys, threading, time
import click
from raykd.core import shutdown as ending
from raykd.cli.shared import speaking

ending.SECONDS, ending.ORDERLY_SECONDS, ending.SAVING_SECONDS = {seconds}
libc = ctypes.CDLL(None)

def ready():
    print("ready", flush=True)

@click.command()
@speaking
def command():
"""
PLACES = {
    "in a call of C that knows no Python": """
    ready()
    while True:
        libc.usleep(500_000)  # C code that begins again after each signal
""",
    "in one call of C": """
    ready()
    lock = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)
""",
    "where a lock is waited for": """
    one, other = open(sys.argv[1], "w"), open(sys.argv[1], "w")
    fcntl.flock(one, fcntl.LOCK_EX)
    ready()
    fcntl.flock(other, fcntl.LOCK_EX)
""",
    "in an epoch whose steps do not end": """
    with ending.noticed() as notice:
        ready()
        threading.Event().wait()
""",
    "in a step in C": """
    with ending.noticed() as notice:
        ready()
        lock = ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(lock)
        libc.pthread_mutex_lock(lock)
""",
    "in code that lets nothing through": """
    ready()
    while True:
        try:
            time.sleep(100)
        except BaseException:
            pass
""",
    "at its own end": """
    thread = threading.Thread(target=threading.Event().wait)
    thread.start()
    ready()
    time.sleep(1000)
""",
}
GRACE = 240  # seconds that a busy machine may take beside those that are counted


def begun(tmp_path, place: str, seconds: str = "(2, 1, 3)") -> subprocess.Popen:
    """A process that is at its place."""
    words = [sys.executable, "-c", START.format(seconds=seconds) + place + "\ncommand([])"]
    process = subprocess.Popen(
        [*words, str(tmp_path / "lock")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("place", slow_but(PLACES, ["in code that lets nothing through"]))
def test_sigterm_ends_a_process_wherever_it_is(tmp_path, place):
    with begun(tmp_path, PLACES[place]) as process:
        process.terminate()
        said = process.communicate(timeout=GRACE)[1]
    assert process.returncode == STATUS == 143, said
    assert "finished is kept, and the same command goes on" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("place", ["in an epoch whose steps do not end", "in a step in C"])
def test_a_second_sigterm_ends_a_process_at_once(tmp_path, place):
    with begun(tmp_path, PLACES[place], "(600, 1, 600)") as process:
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.terminate()
        said = process.communicate(timeout=GRACE)[1]
    assert process.returncode == STATUS, said
    assert "finished is kept, and the same command goes on" in said


SAVING = """
    with ending.noticed() as notice:
        ready()
        while not notice.given():
            time.sleep(0.01)
        time.sleep(4)  # longer than the process would have otherwise
        print("saved", flush=True)
        notice.heeded()
"""


@pytest.mark.slow
def test_a_checkpoint_that_is_being_written_is_waited_for(tmp_path):
    with begun(tmp_path, SAVING, "(2, 1, 600)") as process:
        process.terminate()
        out, said = process.communicate(timeout=GRACE)
    assert (out, process.returncode) == ("saved\n", STATUS), said


@pytest.mark.slow
def test_a_region_that_is_over_leaves_the_process_alone(monkeypatch):
    monkeypatch.setattr("raykd.core.shutdown.SECONDS", 3.0)
    monkeypatch.setattr("raykd.core.shutdown.ORDERLY_SECONDS", 2.0)
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    for region in (terminable, noticed):
        with pytest.raises(Terminated), region() as notice:  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            if isinstance(notice, Notice) and notice.given():
                notice.heeded()
    time.sleep(4)
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before


def test_regions_within_each_other_and_in_threads_are_ended_once():
    with pytest.raises(Terminated), terminable():  # noqa: PT012
        with noticed() as notice:
            assert not notice.given()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)
    reached = []

    def work() -> None:
        with terminable(), noticed():
            reached.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached
