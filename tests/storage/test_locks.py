"""One writer at a time, and nobody waits for the dead."""

import os
import signal
import subprocess
import sys

import pytest

from raykd.core.errors import NoRoom
from raykd.recipes import TeacherRun
from raykd.storage import locks
from raykd.storage.store import Store
from tests.small import digits, teacher_run

HOLDING = """
import sys, time
from raykd.storage import locks
from raykd.recipes import TeacherRun
from raykd.storage.store import Store, read_json
from pathlib import Path
run = TeacherRun.read(read_json(Path(sys.argv[2])))
with locks.held(Store(sys.argv[1]), run, "writer"):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def run(store) -> TeacherRun:
    return teacher_run(store)


@pytest.fixture
def other(store, run, tmp_path):
    """Another process, which holds the run's lock."""
    from raykd.storage.store import write_json

    write_json(tmp_path / "run.json", run.plain())
    command = [sys.executable, "-c", HOLDING, str(store.root), str(tmp_path / "run.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_who_waits_is_told_for_whom_and_goes_on_when_that_one_is_killed(store, run, other):
    said = []

    def say(text):
        said.append(text)
        os.kill(other.pid, signal.SIGKILL)

    with locks.held(store, run, "writer", say) as held:
        assert held
    [text] = said
    assert f"is being made by process {other.pid} on " in text
    assert [*store.root.glob("locks/*")] == []


def test_patience_ends_with_a_sentence(store, run, other):
    message = f"process {other.pid} on .* writes there; wait until it is done"
    with pytest.raises(NoRoom, match=message), locks.held(store, run, "writer", patience=0.6):
        pass
    with locks.held(store, run, "writer", wait=False) as mine:
        assert not mine


def test_roles_and_recipes_do_not_wait_for_each_other(store, run, other):
    later = run.model_copy(update={"seed": 1, "data": digits(store, limit=320)})
    with locks.held(store, run, "maker", wait=False) as made:
        assert made
    with locks.held(store, later, "writer", wait=False) as mine:
        assert mine
        with locks.held(store, later, "writer", wait=False) as again:
            assert not again
