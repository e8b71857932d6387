"""One writer at a time, and nobody waits for the dead."""

import os
import signal
import subprocess
import sys
from typing import ClassVar

import pytest

from raykd.core.errors import NoRoom
from raykd.core.record import Recipe
from raykd.storage import locks
from raykd.storage.store import Store


class Cake(Recipe):
    """A recipe."""

    kind: ClassVar[str] = "cakes"
    eggs: int = 3


# A process that holds the lock of the recipe above; loads no torch.
HOLDING = """
import sys, time
from typing import ClassVar
from raykd.core.record import Recipe
from raykd.storage import locks
from raykd.storage.store import Store

class Cake(Recipe):
    kind: ClassVar[str] = "cakes"
    eggs: int = 3

with locks.held(Store(sys.argv[1]), Cake(), "writer"):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def other(store):
    """Another process, which holds the lock of the recipe."""
    command = [sys.executable, "-c", HOLDING, str(store.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_who_waits_is_told_for_whom_and_goes_on_when_that_one_is_killed(store, other):
    said = []

    def say(text):
        said.append(text)
        os.kill(other.pid, signal.SIGKILL)

    with locks.held(store, Cake(), "writer", say) as held:
        assert held
    [text] = said
    assert f"is being made by process {other.pid} on " in text
    assert [*store.root.glob("locks/*")] == []


def test_patience_ends_with_a_sentence(store, other):
    message = f"process {other.pid} on .* writes there; wait until it is done"
    with pytest.raises(NoRoom, match=message), locks.held(store, Cake(), "writer", patience=0.1):
        pass
    with locks.held(store, Cake(), "writer", wait=False) as mine:
        assert not mine


def test_roles_and_recipes_do_not_wait_for_each_other(store, other):
    later = Cake(eggs=4)
    with locks.held(store, Cake(), "maker", wait=False) as made:
        assert made
    with locks.held(store, later, "writer", wait=False) as mine:
        assert mine
        with locks.held(store, later, "writer", wait=False) as again:
            assert not again
