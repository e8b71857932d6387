"""The loss of a cluster, and SIGTERM while one is used: one count of the seconds for both."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from raykd.core import shutdown
from raykd.core.errors import WorkFailed
from raykd.launch.cluster_watch import Watch

# A process of its own, which has few seconds.
START = """
import ctypes, threading, time
import click
from raykd.core import shutdown as ending
from raykd.cli.shared import speaking
from raykd.core.errors import WorkFailed
from raykd.launch.cluster_watch import Watch

ending.SECONDS, ending.ORDERLY_SECONDS, ending.SAVING_SECONDS = 2, 0.5, 600
ending.CLEANING_SECONDS = 0.5

@click.command()
@speaking
def command():
    watch = Watch()
    with watch.watching(), ending.cleaning(lambda: print("cleaned", flush=True)):
"""
IN_C = """
        watch.use(lambda urgent: WorkFailed("a raylet died"))
        lock = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_lock(lock)
        libc.pthread_mutex_lock(lock)
"""
SAVING = """
        with ending.noticed() as notice:
            print("ready", flush=True)
            while not notice.given():
                time.sleep(0.01)
            time.sleep(4)  # longer than the process would have otherwise
            print("saved", flush=True)
            notice.heeded()
"""


def begun(place: str) -> subprocess.Popen:
    words = [sys.executable, "-c", START + place + "\ncommand([])"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_loss_ends_a_process_that_waits_in_c_with_its_own_status():
    with begun(IN_C) as process:
        out, said = process.communicate(timeout=240)
    assert (process.returncode, out) == (7, "cleaned\n"), said
    assert "error: a raylet died" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_checkpoint_that_is_being_written_is_waited_for_beside_a_cluster():
    with begun(SAVING) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, said = process.communicate(timeout=240)
    assert (process.returncode, out) == (143, "saved\n"), said


@pytest.mark.slow
def test_a_process_goes_on_after_a_loss_that_it_has_heeded(monkeypatch):
    monkeypatch.setattr(shutdown, "SECONDS", 4.0)
    monkeypatch.setattr(shutdown, "ORDERLY_SECONDS", 2.0)
    with shutdown.terminable():
        watch = Watch()
        watch.use(lambda urgent: WorkFailed("gone"))
        with pytest.raises(WorkFailed, match="gone"), watch.watching():
            time.sleep(600)
        time.sleep(5)
        with pytest.raises(shutdown.Terminated), shutdown.terminable():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)
